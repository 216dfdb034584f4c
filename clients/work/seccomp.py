"""seccomp: which system calls this process may make. It holds for all its threads, and cannot be undone.

The program is classic BPF over ``struct seccomp_data``: the number of the call, the architecture, six arguments. Memory that an argument
points at cannot be read, so a path is Landlock's matter. Source: https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

from fedml.clients.work.syscalls import NEWEST, allowed, architecture, call, others

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false (instructions to skip), constant

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in bytes; arguments have 8 bytes, the lower half first
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_GREATER, _IF_ANY_BIT = 0x15, 0x25, 0x45
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_SET_FILTER, _ALL_THREADS, _IS_AVAILABLE = 1, 1, 2

_CLONE_THREAD = 0x00010000
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, and CLONE_PIDFD.
_CLONE_REFUSED = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00001000
# F_DUPFD to F_SETLKW, locks of open files, F_DUPFD_CLOEXEC, sizes of pipes. Not F_SETOWN and F_SETSIG (a signal to any process), leases,
# F_NOTIFY.
_FCNTL = (*range(8), 36, 37, 38, 1030, 1031, 1032)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Not TIOCSTI, which types into the terminal of whoever started the process.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK,
# PR_GET_NO_NEW_PRIVS, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE, PR_SET_VMA.
_PRCTL = (2, 3, 15, 16, 21, 23, 29, 30, 39, 41, 42, 0x53564D41)
_CREATES = os.O_CREAT | 0x00400000  # or __O_TMPFILE: the call has a mode
_SET_ID = 0o6000  # a file that runs as its owner


def missing() -> str:
    """Why seccomp cannot be used, as a phrase; "" if it can."""
    action = ctypes.c_uint32(_ERRNO)
    try:
        call("seccomp", _IS_AVAILABLE, 0, ctypes.addressof(action))
    except OSError as error:
        return f"the kernel has no seccomp filters ({error})"
    return ""


def restrict() -> None:
    """Only the system calls of ``program`` are possible from now on. The process has PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: the kernel refuses the program, or a thread cannot take it.
    """
    lines = program(platform.machine(), os.getpid())
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(buffer)))
    if thread := call("seccomp", _SET_FILTER, _ALL_THREADS, ctypes.addressof(described)):
        raise OSError(errno.EBUSY, f"thread {thread} has a seccomp filter of its own")


def program(machine: str, process: int) -> list[Instruction]:
    """The filter: EPERM where nothing else is said.

    Args:
        machine: "x86_64" or "aarch64". A call of another architecture (32-bit code) ends the process.
        process: its id, the only process to which it may send signals.
    """
    number = others(machine)
    rules = {
        # glibc falls back to clone and openat, whose flags can be read; those of clone3 and openat2 are in memory.
        **{number[name]: _answer(_ERRNO | errno.ENOSYS) for name in ("clone3", "openat2")},
        **dict.fromkeys(allowed(machine).values(), _answer(_ALLOW)),
        number["clone"]: _if_all(_is_set(0, _CLONE_THREAD), _is_clear(0, _CLONE_REFUSED)),
        number["kill"]: _if_any(0, [process]),
        number["tgkill"]: _if_any(0, [process]),
        number["fcntl"]: _if_any(1, _FCNTL),
        number["ioctl"]: _if_any(1, _IOCTL),
        number["prctl"]: _if_any(0, _PRCTL),
        number["prlimit64"]: _if_all(_is_zero(0), _is_zero(2), _is_zero(2, half=4)),  # of this process, and no new limit
        number["sched_setaffinity"]: _if_any(0, [0]),
        number["openat"]: _opens(flags=2, mode=3),
        **({number["open"]: _opens(flags=1, mode=2)} if "open" in number else {}),
        **({number["creat"]: _if_all(_is_clear(1, _SET_ID))} if "creat" in number else {}),
    }
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture(machine)),
        *_answer(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        # Calls that no list of this release has, and x32's: a library asks for another way.
        (_IF_GREATER, 0, 1, NEWEST),
        *_answer(_ERRNO | errno.ENOSYS),
    ]
    for call_number, body in sorted(rules.items()):
        lines += [(_IF_EQUAL, 0, len(body), call_number), *body]
    return [*lines, *_answer(_ERRNO | errno.EPERM)]


# The kernel reads the lower 32 bits of the arguments that are compared here, except of prlimit64's pointer.


def _load(argument: int, half: int = 0) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument + half)


def _answer(action: int) -> list[Instruction]:
    return [(_RETURN, 0, 0, action)]


def _if_any(argument: int, values: Iterable[int]) -> list[Instruction]:
    """Allowed if the argument is one of ``values``."""
    tests = [line for value in values for line in ((_IF_EQUAL, 0, 1, value), *_answer(_ALLOW))]
    return [_load(argument), *tests, *_answer(_ERRNO | errno.EPERM)]


def _if_all(*tests: list[Instruction]) -> list[Instruction]:
    """Allowed if every test is passed; a test ends by skipping the one instruction after it, which refuses."""
    refuse = _answer(_ERRNO | errno.EPERM)
    return [line for test in tests for line in (*test, *refuse)] + _answer(_ALLOW)


def _is_set(argument: int, bits: int) -> list[Instruction]:
    return [_load(argument), (_IF_ANY_BIT, 1, 0, bits)]


def _is_clear(argument: int, bits: int) -> list[Instruction]:
    return [_load(argument), (_IF_ANY_BIT, 0, 1, bits)]


def _is_zero(argument: int, half: int = 0) -> list[Instruction]:
    return [_load(argument, half), (_IF_EQUAL, 1, 0, 0)]


def _opens(flags: int, mode: int) -> list[Instruction]:
    """Opened for reading, writing or both; emptied only if opened for writing; no file is created that runs as its owner.

    Landlock checks nothing of a file that is opened for neither (access mode 3), and learns from ABI 3 on that opening for reading
    empties a file.
    """
    refused = [(_load(flags), (_AND, 0, 0, os.O_ACCMODE), (_IF_EQUAL, 0, 1, os.O_ACCMODE))]
    refused += [(_load(flags), (_AND, 0, 0, os.O_ACCMODE | os.O_TRUNC), (_IF_EQUAL, 0, 1, os.O_RDONLY | os.O_TRUNC))]
    with_mode = _if_all(_is_clear(mode, _SET_ID))
    first = [line for test in refused for line in (*test, *_answer(_ERRNO | errno.EPERM))]
    return [*first, _load(flags), (_IF_ANY_BIT, 0, len(with_mode), _CREATES), *with_mode, *_answer(_ALLOW)]
