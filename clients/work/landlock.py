"""Landlock: which files this process may open. It holds for its later threads and children, and cannot be undone.

Source: https://docs.kernel.org/userspace-api/landlock.html, ``include/uapi/linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from fedml.clients.work.syscalls import call
from fedml.errors import InputError

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
# What is handled is refused where no rule allows it. Bits 0 and 6 to 12 besides: execute; make devices, sockets, FIFOs, symbolic links;
# from ABI 5 ioctl of devices.
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP, _SCOPES = 0b11, 0b11  # bind and connect, from ABI 4; abstract UNIX sockets and signals, from ABI 6
_VERSION, _PATH_BENEATH = 1, 1

READ = _READ_FILE | _READ_DIR
READ_WRITE_FILE = _READ_FILE | _WRITE_FILE | _TRUNCATE
# No symbolic links: whoever reads the folder later, unconfined, would follow them.
CHANGE = READ | READ_WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER
_OF_A_FILE = READ_WRITE_FILE


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64), ("handled_access_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """The version of Landlock's interface in the running kernel; raises ``OSError`` without Landlock."""
    return call("landlock_create_ruleset", 0, 0, _VERSION)


def missing() -> str:
    """Why Landlock cannot be used, as a phrase; "" if it can."""
    try:
        abi()
    except OSError as error:
        return {
            errno.ENOSYS: "the kernel has no Landlock (Linux 5.13, built with CONFIG_SECURITY_LANDLOCK)",
            errno.EOPNOTSUPP: 'Landlock is off (add "landlock" to lsm= on the command line of the kernel)',
        }.get(error.errno or 0, f"Landlock does not answer ({error})")
    return ""


def restrict(rules: Iterable[tuple[Path, int]], version: int) -> None:
    """Only what ``rules`` allow can be opened from now on: (existing file or folder, ``READ``, ``READ_WRITE_FILE`` or ``CHANGE``).

    Args:
        rules: of a folder, for all that lies in it; symbolic links are resolved first.
        version: the ABI, from ``abi()``. What a version does not know is not handled; ``seccomp`` refuses it in part.

    Raises:
        OSError: a rule, or the restriction, was refused. ``InputError``: a path does not exist.
    """
    handled = next(bits for known, bits in sorted(_HANDLED.items(), reverse=True) if known <= version)
    attributes = _Ruleset(handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = call("landlock_create_ruleset", ctypes.addressof(attributes), size, 0)
    try:
        for path, access in rules:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                raise InputError(f"{path} cannot be made available to confined code: {error.strerror}") from error
            folder = stat.S_ISDIR(os.fstat(place).st_mode)
            beneath = _Beneath(access & handled if folder else access & handled & _OF_A_FILE, place)
            call("landlock_add_rule", ruleset, _PATH_BENEATH, ctypes.addressof(beneath), 0)
            # A file stays open: Landlock knows it by its inode, and /proc makes another inode for the same name once nobody uses the first.
            if folder:
                os.close(place)
        call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
