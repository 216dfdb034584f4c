"""A bundle's container: a zip with one spelling. The same files give the same bytes, and other bytes are refused.

Files are stored as they are, in the order of their names, with one time and one mode. So a bundle that is read can be held to the byte
against what its files would be packed to: nothing hides between, before or behind them, and nothing is larger than it looks.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fedml.errors import InputError

LARGEST = 1 << 30  # bytes of a whole bundle, which is read into memory
MOST = 512  # files
NAME = re.compile(r"(examples/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_TIME = (1980, 1, 1, 0, 0, 0)


class BadArchive(ValueError):
    """The container is damaged or not as a bundle's; ``file`` is where, ``str()`` what."""

    def __init__(self, file: str, what: str) -> None:
        super().__init__(what)
        self.file = file


def pack(files: Mapping[str, bytes]) -> bytes:
    """The zip of ``files``; ``ValueError`` for a name or size that ``unpack`` would refuse."""
    if not all(NAME.fullmatch(name) for name in files) or len(files) > MOST or sum(map(len, files.values())) > LARGEST - (MOST << 9):
        raise ValueError("a bundle takes at most 1 GiB in 512 files with plain names")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, files[name])
    return out.getvalue()


def unpack(path: Path) -> dict[str, bytes]:
    """The files of a bundle, by name, in memory: nothing is written.

    Raises:
        InputError: there is no such file.
        BadArchive: it is damaged, or was not written by ``pack``.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a bundle that `fedml bundle` wrote.") from error
    if len(raw) > LARGEST:
        raise BadArchive(path.name, "is larger than a bundle may be (1 GiB)")
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if len(entries) > MOST:
                raise BadArchive(path.name, f"holds {len(entries)} files, more than a bundle may ({MOST})")
            for info in entries:
                files[_checked(info, files)] = _read(archive, info)
    except BadArchive:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, LookupError):
        raise BadArchive(path.name, "is no zip, or a damaged one") from None
    if sum(map(len, files.values())) > LARGEST - (MOST << 9) or pack(files) != raw:
        raise BadArchive(path.name, "has bytes that belong to none of its files, or was packed by another program")
    return files


def _checked(info: zipfile.ZipInfo, seen: Mapping[str, bytes]) -> str:
    """The entry's name, if it may be read."""
    shown = ascii(info.orig_filename)[:80]
    if not NAME.fullmatch(info.orig_filename) or info.filename != info.orig_filename:
        raise BadArchive(shown, "is a name that no file of a bundle has")
    if info.filename in seen:
        raise BadArchive(info.filename, "is there twice")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits or info.file_size != info.compress_size:
        raise BadArchive(info.filename, "is compressed or encrypted; a bundle's files are stored as they are")
    if info.external_attr >> 16 != stat.S_IFREG | 0o644:
        raise BadArchive(info.filename, "is no plain file")
    return info.filename


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, EOFError, ValueError):
        raise BadArchive(info.filename, "was changed: it does not fit its own checksum") from None
