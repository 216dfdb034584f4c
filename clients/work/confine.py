"""Confines this process to the files it is given, for ever: no network, no other program, no other process. Linux, x86-64 and ARM64.

A site runs code in it that a researcher wrote and the site approved by its SHA-256. The code is taken to be hostile and able to run any
machine code (ctypes suffices), so nothing here relies on Python. The kernel holds the confinement, also against root, and no call undoes
it: Landlock decides which files are opened (``landlock.py``), seccomp which system calls are possible (``seccomp.py``, ``syscalls.py``).

**What the confinement covers.**

- Files: only what lies under ``readable`` can be opened, and only what lies under ``writable`` be written, created, removed or renamed;
  besides, for reading: the code and shared libraries of this Python and of ``fedml``, C locales, time zones, facts of the processor,
  /dev/zero, /dev/urandom; /dev/null. Nothing can be executed; no device, socket, FIFO or symbolic link created; no owner, mode, time or
  extended attribute changed; no file created that runs as its owner.
- Network, every family: sockets cannot be created, connected, bound, sent on or received from. Names are not resolved.
- Processes: none is started; none but this one is signalled, traced, read, written or given another priority, processor or limit. Of
  /proc only files that describe the machine can be opened. Threads can be started.
- Memory shared with others: /dev/shm, System V and POSIX queues, semaphores and memory, memfd.
- The kernel: only listed system calls are possible. io_uring, bpf, perf, userfaultfd, keyrings, mounts, namespaces, modules, clocks,
  identities, ptrace and what Linux gets after 6.18 are not listed; six commands of ioctl are, so no graphics processor works. Of root's
  capabilities CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are left, so that it reads data of another owner.
- No core dump is written, and no process without CAP_SYS_PTRACE reads this one's memory or environment.

**What it does not cover.**

- What this process has already: its memory, environment and open files. The caller passes no secret, and closes all descriptors but the
  pipes in use. An inherited socket or terminal can be read and written.
- What the process writes to the pipes and to ``writable``: the caller checks it as data of a stranger. File names and contents can be
  anything, and change while they are read.
- Names and metadata: whether a path exists, its size, owner, times, and the target of a symbolic link can be learned anywhere on the
  machine, because Landlock does not handle stat and readlink; folders cannot be listed. Whether a process id exists can be learned.
- Time and load: how long an answer takes; how much processor, memory and disk is used; the processor's caches. Limits are the caller's
  (RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE, a timeout); confined code cannot raise them. Readable files can be locked (flock).
- Errors of the kernel itself.

**What no longer works in it**: subprocess, multiprocessing (data loaders with workers), torch.compile, asyncio, CUDA, symbolic links,
``shutil.copy`` (it copies the mode; ``shutil.copyfile`` works), names of users and groups, threads bound to processors (OMP_PROC_BIND),
``tempfile`` other than with TMPDIR in ``writable``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import site
import stat
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import fedml
from fedml.clients.work import landlock, seccomp
from fedml.clients.work.syscalls import call, known
from fedml.errors import InputError

# What Python, PyTorch and scientific libraries open while they are imported and used; what a machine lacks is passed over.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64", "/usr/share/zoneinfo")
_FILES = (
    "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat",
    "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu", "/sys/kernel/mm/transparent_hugepage/enabled",
)  # fmt: skip
_NULL = "/dev/null"
# Folders of the kernel, where names of other processes and devices are.
_KERNEL = (Path("/proc"), Path("/sys"), Path("/dev"))

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_GET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 3, 4, 21, 38, 39
_FILTER = 2  # SECCOMP_MODE_FILTER
_CAPABILITY_VERSION, _KEPT_CAPABILITIES = 0x20080522, 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_INTERNET, _STREAM = 2, 1


def missing() -> str:
    """Why this machine cannot confine a process, as a phrase for an error; "" if it can."""
    if sys.platform != "linux":
        return f"the system is {platform.system() or sys.platform}, not Linux"
    if not known(platform.machine()):
        return f"the processor is {platform.machine() or 'unknown'}, not x86_64 or aarch64 with a Python of 64 bits"
    return landlock.missing() or seccomp.missing()


def confine(readable: Sequence[Path], writable: Sequence[Path]) -> None:
    """Confines this process, its later threads and children, for ever. The caller ends the process if this raises: part of it may hold.

    Call it before numpy and PyTorch are imported, because they start threads, with HOME and TMPDIR in ``writable``.

    Args:
        readable: existing files and folders; a folder with all that lies in it. Symbolic links are resolved now.
        writable: the same, to be read, written, made, renamed and removed; not where code lies.

    Raises:
        InputError: the machine cannot confine, or a path does not exist or gives away too much (/, /proc, code to be written).
        OSError: the process has more threads than one, or a part of the confinement was refused or did not take effect.
    """
    if reason := missing():
        raise InputError(f"this machine cannot confine a process: {reason}")
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise OSError(errno.EBUSY, f"the process has {threads} threads and Landlock confines one; confine it before they start")
    code = _code()
    rules = _given(readable, landlock.READ, ()) + _given(writable, landlock.CHANGE, code)
    rules += [(path, landlock.READ) for path in (*code, *map(Path, _FILES)) if path.exists()]
    rules += [(Path(_NULL), landlock.READ_WRITE_FILE)]

    os.environ.setdefault("LOGNAME", "confined")  # MONAI asks for a name when it is imported, and /etc/passwd is closed
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    landlock.restrict(rules, landlock.abi())
    _drop_capabilities()
    seccomp.restrict()
    _check()


def _code() -> list[Path]:
    """Folders of code that is imported: of this Python, its packages, ``fedml``, and shared libraries."""
    python = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    libraries = [Path(prefix, name) for prefix in prefixes for name in ("lib", "lib64")]
    # A user's own site-packages, where they are in use.
    user = [Path(site.getusersitepackages())] if site.ENABLE_USER_SITE else []
    package = Path(str(fedml.__file__)).resolve().parent
    # In a checkout fedml/clients, fedml/strategies and fedml/experiments are links.
    links = [path.resolve() for path in package.iterdir() if path.is_symlink()]
    found = [*map(Path, python), *libraries, *user, package, *links, *map(Path, _LIBRARIES)]
    return sorted({path.resolve() for path in found if path.is_dir()})


def _given(paths: Iterable[Path], access: int, code: Sequence[Path]) -> list[tuple[Path, int]]:
    """The caller's paths as rules. ``code``: folders that none of them may overlap."""
    rules = []
    for path in paths:
        try:
            place = path.resolve(strict=True)
        except OSError as error:
            raise InputError(f"{path} cannot be made available to confined code: {error.strerror}") from error
        for kept in (*_KERNEL, *code):
            if place in (kept, *kept.parents) or kept in place.parents:
                raise InputError(f"{path} cannot be made available to confined code, because {kept} would be too; name another folder")
        mode = place.stat().st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{path} cannot be made available to confined code: not a file or a folder")
        rules.append((place, access))
    return rules


def _prctl(option: int, value: int = 0) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
    return result


def _drop_capabilities() -> None:
    """Keeps those that read and write files of other owners, if this process has them; it cannot get any back."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable: capabilities 0 to 31, then 32 to 63
    call("capget", ctypes.addressof(header), ctypes.addressof(sets))
    sets[:] = [sets[0] & _KEPT_CAPABILITIES, sets[1] & _KEPT_CAPABILITIES, 0, 0, 0, 0]
    call("capset", ctypes.addressof(header), ctypes.addressof(sets))


def _check() -> None:
    """Raises ``OSError`` unless the kernel now refuses what it should."""
    states = [_prctl(_PR_GET_NO_NEW_PRIVS), _prctl(_PR_GET_DUMPABLE), _prctl(_PR_GET_SECCOMP)]
    if states != [1, 0, _FILTER]:
        raise OSError(errno.ENOTRECOVERABLE, f"the process is not confined: no_new_privs, dumpable, seccomp are {states}")
    for name, attempt in (("a folder", lambda: os.listdir("/")), ("a socket", lambda: call("socket", _INTERNET, _STREAM, 0))):
        try:
            attempt()
        except PermissionError:
            continue
        raise OSError(errno.ENOTRECOVERABLE, f"the process is not confined: {name} could be opened")
