"""System calls by number on x86-64 and 64-bit ARM: those that a confined process may use. ``call`` makes one.

Numbers: Linux 6.18, ``arch/x86/entry/syscalls/syscall_64.tbl`` and ``include/uapi/asm-generic/unistd.h``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

# By ``platform.machine()``: the AUDIT_ARCH number with which the kernel names the architecture of a call, and the column below.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
NEWEST = 469  # the last number of Linux 6.18; x32 calls have greater ones

# "name x86-64 ARM", "-" where the architecture has none; one number stands for both.
_ALLOWED = {
    "memory": """brk 12 214, get_mempolicy 239 236, madvise 28 233, map_shadow_stack 453, mbind 237 235, mlock 149 228, mlock2 325 284,
        mmap 9 222, mprotect 10 226, mremap 25 216, mseal 462, msync 26 227, munlock 150 229, munmap 11 215, pkey_alloc 330 289,
        pkey_free 331 290, pkey_mprotect 329 288, set_mempolicy 238 237, set_mempolicy_home_node 450""",
    "threads": """arch_prctl 158 -, exit 60 93, exit_group 231 94, futex 202 98, futex_requeue 456, futex_wait 455, futex_waitv 449,
        futex_wake 454, gettid 186 178, membarrier 324 283, restart_syscall 219 128, rseq 334 293, sched_get_priority_max 146 125,
        sched_get_priority_min 147 126, sched_getaffinity 204 123, sched_getattr 315 275, sched_getparam 143 121,
        sched_getscheduler 145 120, sched_rr_get_interval 148 127, sched_yield 24 124, set_robust_list 273 99, set_tid_address 218 96""",
    "time, and signals that arrive": """alarm 37 -, clock_getres 229 114, clock_gettime 228 113, clock_nanosleep 230 115, getitimer 36 102,
        gettimeofday 96 169, nanosleep 35 101, pause 34 -, rt_sigaction 13 134, rt_sigpending 127 136, rt_sigprocmask 14 135,
        rt_sigreturn 15 139, rt_sigsuspend 130 133, rt_sigtimedwait 128 137, setitimer 38 103, sigaltstack 131 132, time 201 -,
        timer_create 222 107, timer_delete 226 111, timer_getoverrun 225 109, timer_gettime 224 108, timer_settime 223 110,
        timerfd_create 283 85, timerfd_gettime 287 87, timerfd_settime 286 86, times 100 153""",
    "facts of this process and machine": """getcpu 309 168, getegid 108 177, geteuid 107 175, getgid 104 176, getgroups 115 158,
        getpgid 121 155, getpgrp 111 -, getpid 39 172, getppid 110 173, getpriority 140 141, getrandom 318 278, getresgid 120 150,
        getresuid 118 148, getrlimit 97 163, getrusage 98 165, getsid 124 156, getuid 102 174, ioprio_get 252 31, sysinfo 99 179,
        umask 95 166, uname 63 160, wait4 61 260, waitid 247 95""",
    "open files and pipes": """close 3 57, close_range 436, copy_file_range 326 285, dup 32 23, dup2 33 -, dup3 292 24, epoll_create 213 -,
        epoll_create1 291 20, epoll_ctl 233 21, epoll_pwait 281 22, epoll_pwait2 441, epoll_wait 232 -, eventfd 284 -, eventfd2 290 19,
        fadvise64 221 223, fallocate 285 47, fdatasync 75 83, flock 73 32, fstat 5 80, fstatfs 138 44, fsync 74 82, ftruncate 77 46,
        getdents 78 -, getdents64 217 61, lseek 8 62, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, pread64 17 67, preadv 295 69,
        preadv2 327 286, pselect6 270 72, pwrite64 18 68, pwritev 296 70, pwritev2 328 287, read 0 63, readahead 187 213, readv 19 65,
        select 23 -, sendfile 40 71, signalfd 282 -, signalfd4 289 74, sync_file_range 277 84, write 1 64, writev 20 66""",
    "paths, of which Landlock decides": """access 21 -, chdir 80 49, faccessat 269 48, faccessat2 439, fchdir 81 50, getcwd 79 17,
        link 86 -, linkat 265 37, lstat 6 -, mkdir 83 -, mkdirat 258 34, newfstatat 262 79, readlink 89 -, readlinkat 267 78, rename 82 -,
        renameat 264 38, renameat2 316 276, rmdir 84 -, stat 4 -, statfs 137 43, statx 332 291, unlink 87 -, unlinkat 263 35""",
}
# Allowed with some arguments (``clients/work/seccomp.py``), said to be unknown, or used here before the process is confined.
_OTHERS = """clone 56 220, kill 62 129, tgkill 234 131, prctl 157 167, ioctl 16 29, fcntl 72 25, open 2 -, creat 85 -, openat 257 56,
    prlimit64 302 261, sched_setaffinity 203 122, clone3 435, openat2 437, capget 125 90, capset 126 91, seccomp 317 277, socket 41 198,
    landlock_create_ruleset 444, landlock_add_rule 445, landlock_restrict_self 446"""


def known(machine: str) -> bool:
    """Whether the numbers of ``machine`` (as ``platform.machine()`` names it) are listed, and this process is one of 64 bits."""
    return machine in _MACHINES and sys.maxsize > 2**32


def architecture(machine: str) -> int:
    """The AUDIT_ARCH number of a known ``machine``."""
    return _MACHINES[machine][0]


def allowed(machine: str) -> dict[str, int]:
    """The calls that are allowed with any arguments, by name."""
    return {name: number for text in _ALLOWED.values() for name, number in _numbers(text, machine).items()}


def others(machine: str) -> dict[str, int]:
    """The numbers of other calls that ``fedml.clients.work`` speaks of, by name; without those that ``machine`` lacks."""
    return _numbers(_OTHERS, machine)


def _numbers(text: str, machine: str) -> dict[str, int]:
    column, entries = _MACHINES[machine][1], [entry.split() for entry in text.split(",")]
    by_name = {name: (numbers * 2)[column] for name, *numbers in entries}
    return {name: int(number) for name, number in by_name.items() if number != "-"}


def call(name: str, *arguments: int) -> int:
    """Makes a system call of ``others`` and returns its result; raises ``OSError`` with the call's name if it fails.

    A pointer is given as its address (``ctypes.addressof``).
    """
    # Without argument types ctypes passes 32 bits, and the C library reads six registers whatever their number.
    words = [ctypes.c_long(word) for word in (others(platform.machine())[name], *arguments)]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(*words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
