"""Which code of this software made something: its version, the SHA-256 of its files, and the git commit if it runs from a checkout.

The version says what was installed; the files may have been edited since. So the files themselves are read, not the list of an installer.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NotRequired, TypedDict

import fedml
from fedml.study.code_section import DISTRIBUTION

CHANGED = "+changes"  # ends the name of a commit
_CODE = (".py", ".toml")


class Wheel(TypedDict):
    """An installed package. ``record_sha256``: of the lines of its RECORD about its own files, sorted, which are those of the wheel;
    ``edited``: whether one of the files has another digest than RECORD has."""

    record_sha256: str
    edited: bool


class Software(TypedDict):
    """``version`` of the package, ``sha256`` of its files, hexadecimal; ``commit``: ``HASH``, ``HASH+changes``, or ``none`` without git;
    ``wheel``: only where the files were installed from one."""

    version: str
    sha256: str
    commit: str
    wheel: NotRequired[Wheel]


def software() -> Software:
    """The code of this software as it lies on disk when it is first asked for in this process."""
    found: Software = {"version": _version(), "sha256": code_digest(), "commit": _commit()}
    return found if (wheel := _wheel()) is None else {**found, "wheel": wheel}


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
    wheel = code.get("wheel")
    edited = " and edited since" if wheel is not None and wheel["edited"] else ""
    installed = "" if wheel is None else f", installed from the wheel with RECORD {wheel['record_sha256'][:12]}{edited}"
    return f"{DISTRIBUTION} {code['version']}, files {code['sha256'][:12]}{tree}{installed}"


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
def _wheel() -> Wheel | None:
    """What RECORD of the installed package says of its files; None in a checkout, which an editable installation has too."""
    try:
        files = metadata.distribution(DISTRIBUTION).files or []
    except metadata.PackageNotFoundError:
        return None
    package = Path(fedml.__file__).parent.resolve()
    own = [file for file in files if file.parts[0] == "fedml" and file.hash is not None and file.hash.mode == "sha256"]
    if not own or Path(str(own[0].locate())).resolve().parents[len(own[0].parts) - 2] != package:
        return None
    lines = sorted(f"{file.as_posix()},sha256={file.hash.value},{file.size}" for file in own if file.hash is not None)
    return {"record_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(), "edited": any(map(_is_edited, own))}


def _is_edited(file: metadata.PackagePath) -> bool:
    """Whether an installed file is not the one that RECORD lists."""
    try:
        found = hashlib.sha256(Path(str(file.locate())).read_bytes()).digest()
    except OSError:
        return True
    return file.hash is None or base64.urlsafe_b64encode(found).decode().rstrip("=") != file.hash.value


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
