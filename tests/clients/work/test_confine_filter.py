"""The filter of system calls, run by an interpreter of classic BPF on the numbers of the kernel's headers, for both processors."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedml.clients.work import seccomp, syscalls

HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), "aarch64": Path("/usr/include/asm-generic/unistd.h")}
ARCHITECTURES = {"x86_64": 62 | 0xC0000000, "aarch64": 183 | 0xC0000000}  # EM_X86_64 and EM_AARCH64, 64 bits, little-endian
# Linux 6.18's newer than many an installed header.
NEWER = re.findall(
    r"\w+",
    "cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr "
    "lsm_list_modules mseal setxattrat getxattrat listxattrat removexattrat open_tree_attr file_getattr file_setattr",
)
# Every call of Linux 6.18 that makes, reaches or changes something other than this process's memory and the files it is given.
WAYS_OUT = re.findall(
    r"\w+",
    """
socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg shutdown getsockname
getpeername setsockopt getsockopt fork vfork execve execveat setsid setpgid setns unshare tkill rt_sigqueueinfo rt_tgsigqueueinfo
pidfd_open pidfd_send_signal pidfd_getfd process_mrelease ptrace process_vm_readv process_vm_writev process_madvise kcmp move_pages
migrate_pages get_robust_list perf_event_open setpriority sched_setscheduler sched_setparam sched_setattr ioprio_set setuid setgid
setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset capget setrlimit personality sethostname setdomainname
mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr statmount listmount
swapon swapoff quotactl quotactl_fd acct name_to_handle_at open_by_handle_at mknod mknodat symlink symlinkat truncate chmod fchmod
fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat setxattr lsetxattr fsetxattr setxattrat removexattr
lremovexattr fremovexattr removexattrat getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat
file_getattr file_setattr inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_init fanotify_mark shmget shmat
shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr memfd_create memfd_secret io_uring_setup io_uring_enter io_uring_register io_setup io_destroy io_submit io_cancel
io_getevents io_pgetevents bpf userfaultfd add_key request_key keyctl init_module finit_module delete_module create_module
query_module get_kernel_syms kexec_load kexec_file_load reboot syslog settimeofday clock_settime clock_adjtime adjtimex iopl ioperm
modify_ldt vhangup lookup_dcookie nfsservctl uselib _sysctl sysfs ustat seccomp landlock_create_ruleset landlock_add_rule
landlock_restrict_self lsm_get_self_attr lsm_set_self_attr lsm_list_modules remap_file_pages splice tee vmsplice sync syncfs mincore
cachestat mlockall munlockall
""",
)
ALLOW, EPERM, ENOSYS, KILL = "allow", "EPERM", "ENOSYS", "kill"


def header(machine: str) -> dict[str, int]:
    """Numbers of system calls as the installed headers of the kernel give them."""
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed (linux-libc-dev)")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", HEADERS[machine].read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in found if name not in ("syscalls", "arch_specific_syscall")}
    if machine == "aarch64":
        numbers["newfstatat"] = numbers.pop("fstatat")
    return numbers | {name: 451 + place for place, name in enumerate(NEWER)}


def verdict(lines: Sequence[tuple[int, int, int, int]], number: int, arguments: Sequence[int] = (), architecture: int = 0) -> str:
    """What a filter answers to one call: an interpreter of the instructions of classic BPF that it uses."""
    data = struct.pack("<iIQ6Q", number if number < 2**31 else number - 2**32, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    place = held = 0
    while True:
        code, yes, no, k = lines[place]
        place += 1
        if code == 0x20:
            (held,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:
            held &= k
        elif code == 0x06:
            names = {0x7FFF0000: ALLOW, 0x80000000: KILL, 0x50000 | errno.EPERM: EPERM, 0x50000 | errno.ENOSYS: ENOSYS}
            return names[k]
        else:
            place += yes if {0x15: held == k, 0x25: held > k, 0x45: bool(held & k)}[code] else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_answers_each_call_of_the_kernel(machine: str) -> None:
    """Numbers come from the kernel's headers, whichever processor this machine has."""
    numbers, lines = header(machine), seccomp.program(machine, 4321)

    def ask(name: str, *arguments: int) -> str:
        return verdict(lines, numbers[name], arguments, ARCHITECTURES[machine])

    for name, number in {**syscalls.allowed(machine), **syscalls.others(machine)}.items():
        assert numbers[name] == number, name
    conditional = {"clone", "kill", "tgkill", "fcntl", "ioctl", "prctl", "prlimit64", "sched_setaffinity", "open", "openat", "creat"}
    for name in numbers:
        if name in ("clone3", "openat2"):
            assert ask(name) == ENOSYS
        elif name in WAYS_OUT:
            assert ask(name) == EPERM, name
            assert ask(name, *[2**64 - 1] * 6) == EPERM, name
    assert not set(WAYS_OUT) & set(syscalls.allowed(machine))
    assert not conditional & set(syscalls.allowed(machine))
    for name in ("read", "mmap", "futex", "execve", "socket"):
        assert verdict(lines, numbers[name], (), 0x40000003) == KILL  # the 32-bit calls of x86
        assert verdict(lines, numbers[name], (), ARCHITECTURES["x86_64" if machine == "aarch64" else "aarch64"]) == KILL
        assert verdict(lines, numbers[name] | 0x40000000, (), ARCHITECTURES[machine]) == ENOSYS  # x32
    for number in (470, 471, 512, 547, 2**31, 2**32 - 1):
        assert verdict(lines, number, (), ARCHITECTURES[machine]) == ENOSYS


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_looks_at_arguments(machine: str) -> None:
    numbers, lines = header(machine), seccomp.program(machine, 4321)

    def ask(name: str, *arguments: int) -> str:
        return verdict(lines, numbers[name], arguments, ARCHITECTURES[machine])

    thread = 0x003D0F00  # as pthread_create calls clone
    assert ask("clone", thread) == ALLOW
    assert ask("clone", thread | 1 << 32) == ALLOW  # the kernel looks at 32 bits
    for flags in (0, 17, 0x4111, thread & ~0x10000, *(thread | 1 << bit for bit in (12, 17, 25, 26, 27, 28, 29, 30))):
        assert ask("clone", flags) == EPERM, hex(flags)
    for name in ("kill", "tgkill"):
        assert ask(name, 4321, 4321, 6) == ALLOW
        for process in (0, 1, 4320, 2**32 - 1, 2**64 - 1, 2**64 - 4321):
            assert ask(name, process, 4321, 6) == EPERM
    assert ask("prlimit64", 0, 7, 0, 99) == ALLOW
    for arguments in ((1, 7, 0, 99), (4321, 7, 0, 99), (0, 7, 0x1000, 0), (0, 7, 0x7F0000000000, 0)):
        assert ask("prlimit64", *arguments) == EPERM
    assert (ask("sched_setaffinity", 0), ask("sched_setaffinity", 1)) == (ALLOW, EPERM)
    assert [ask("fcntl", 3, command) for command in (1, 2, 3, 4, 1030)] == [ALLOW] * 5
    assert [ask("fcntl", 3, command) for command in (8, 10, 15, 1024, 1026)] == [EPERM] * 5
    assert ask("ioctl", 1, 0x5401) == ALLOW
    for command in (0x5412, 0x541C, 0x8901, 0x8902, 0x5452, 0x5402, 0x40086602, 0x540E):
        assert ask("ioctl", 1, command) == ask("ioctl", 1, command | 1 << 32) == EPERM
    assert (ask("prctl", 15), ask("prctl", 3), ask("prctl", 39)) == (ALLOW,) * 3
    for option in (1, 4, 8, 22, 24, 28, 35, 36, 38, 40, 47, 53, 59, 0x59616D61):
        assert ask("prctl", option) == EPERM, option
    opens = [("openat", (0, 0))] + ([("open", (0,))] if machine == "x86_64" else [])
    for name, first in opens:
        for flags, mode, answer in (
            (0, 0, ALLOW),
            (0, 0o4755, ALLOW),  # without O_CREAT no mode is passed, and the register holds anything
            (0o101, 0o644, ALLOW),
            (0o1101, 0o666, ALLOW),
            (0o1002, 0, ALLOW),
            (0o101, 0o4755, EPERM),
            (0o102, 0o2755, EPERM),
            (0o20000002, 0o4600, EPERM),  # O_TMPFILE
            (0o1000, 0, EPERM),  # emptied by opening for reading
            (0o3, 0, EPERM),
            (0o1003, 0, EPERM),
        ):
            assert ask(name, *first, flags, mode) == answer, (name, oct(flags), oct(mode))
    if machine == "x86_64":
        assert (ask("creat", 0, 0o644), ask("creat", 0, 0o4755)) == (ALLOW, EPERM)
