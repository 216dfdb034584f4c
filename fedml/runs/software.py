"""Which code of this software made something: its version, the SHA-256 of its files, and the git commit if it runs from a checkout.

The version says what was installed; the files may have been edited since. So the files themselves are read, not the list of an installer.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import fedml
from fedml.study.code_section import DISTRIBUTION

CHANGED = "+changes"  # ends the name of a commit
_CODE = (".py", ".toml")


class Software(TypedDict):
    """``version`` of the package, ``sha256`` of its files, hexadecimal; ``commit``: ``HASH``, ``HASH+changes``, or ``none`` without git."""

    version: str
    sha256: str
    commit: str


def software() -> Software:
    """The code of this software as it lies on disk when it is first asked for in this process."""
    return {"version": _version(), "sha256": code_digest(), "commit": _commit()}


@lru_cache
def code_digest() -> str:
    """SHA-256 of this software's files: the same code and sources give identical derived files."""
    out = hashlib.sha256()
    package = Path(fedml.__file__).parent
    for at, folders, names in os.walk(package, followlinks=True):  # in a checkout, some folders are symbolic links
        folders.sort()
        for path in (Path(at) / name for name in sorted(names) if name.endswith(_CODE)):
            data = path.read_bytes()
            out.update(f"{path.relative_to(package).as_posix()}:{len(data)}:".encode() + data)
    return out.hexdigest()


def git_commit(folder: Path) -> str:
    """Commit of the working tree at ``folder``, with ``+changes`` if there are uncommitted changes; ``none`` without git."""
    try:
        return _git(folder, "rev-parse", "HEAD") + (CHANGED if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


def words(code: Software) -> str:
    """``code`` for a reader: version, the first digits of the SHA-256, and the commit."""
    commit, _, changed = code["commit"].partition("+")
    tree = "" if commit == "none" else f", git commit {commit[:12]}{' with uncommitted changes' if changed else ''}"
    return f"{DISTRIBUTION} {code['version']}, files {code['sha256'][:12]}{tree}"


def by_this_code(code: Software | None) -> bool:
    """Whether something was made by exactly the files of this software as they are here; False if it does not say by which."""
    return code is not None and code["sha256"] == code_digest()


def other_code(first: Software | None, other: Software | None, names: tuple[str, str] = ("the first run", "this run")) -> str | None:
    """What tells apart the code that made two runs, as a phrase; None if it is the same, or if neither run says by which it was made.

    Args:
        names: of the runs in the phrase.
    """
    if first is None and other is None:
        return None
    if first is None or other is None:
        return f"{names[first is not None]} does not say by which code it was made"
    if first["sha256"] != other["sha256"]:
        return f"made by other code of this software: {words(first)} in {names[0]}, {words(other)} in {names[1]}"
    return None


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # a saved model, with a copy of this software beside it
        return fedml.__version__


@lru_cache
def _commit() -> str:
    """The commit of this software's own files; ``none`` if git does not track them, such as in an environment inside another's tree."""
    package = Path(fedml.__file__).parent.resolve()
    places = sorted({str(path.resolve()) for path in (package, *package.iterdir()) if path.is_dir()})
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        lines = _git(package, "status", "--porcelain", "--untracked-files=all", "--", *places).splitlines()
        changed = any(line.strip('"').endswith(_CODE) for line in lines)
        return _git(package, "rev-parse", "HEAD") + (CHANGED if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
