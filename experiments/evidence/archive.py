"""A bundle's container: a zip file in canonical form. The same files give the same bytes; a zip file in another form is refused.

Files are stored uncompressed, sorted by name, with a fixed time and mode. A bundle that is read can therefore be compared byte by byte
with the result of packing its files again: no data can hide between, before or after the files, and no file expands to a larger size.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fedml.errors import InputError

LARGEST = 1 << 30  # bytes of a bundle, which is read into memory
MOST = 512  # files
NAME = re.compile(r"(examples/|code/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_TIME = (1980, 1, 1, 0, 0, 0)


class BadArchive(ValueError):
    """The container is damaged or not in canonical form. ``file``: the file at fault; ``str()``: the error."""

    def __init__(self, file: str, what: str) -> None:
        super().__init__(what)
        self.file = file


def pack(files: Mapping[str, bytes]) -> bytes:
    """The bytes of the zip file of ``files``. Raises ``ValueError`` for a name or size that ``unpack`` would refuse."""
    if not all(NAME.fullmatch(name) for name in files) or len(files) > MOST or sum(map(len, files.values())) > LARGEST - (MOST << 9):
        raise ValueError(f"a bundle takes at most 1 GiB in {MOST} files; names have letters, digits, dots, hyphens and underscores")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, files[name])
    return out.getvalue()


def unpack(path: Path) -> dict[str, bytes]:
    """Name -> bytes of each file in a bundle. Nothing is written to disk.

    Raises:
        InputError: the file cannot be read.
        BadArchive: the file is damaged or was not written by ``pack``.
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
                raise BadArchive(path.name, f"has {len(entries)} files, a bundle has at most {MOST}")
            for info in entries:
                files[_checked(info, files)] = _read(archive, info)
    except BadArchive:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, LookupError):
        raise BadArchive(path.name, "is not a zip file, or is damaged") from None
    if sum(map(len, files.values())) > LARGEST - (MOST << 9) or pack(files) != raw:
        raise BadArchive(path.name, "has bytes outside its files, or was packed by another program")
    return files


def _checked(info: zipfile.ZipInfo, earlier: Mapping[str, bytes]) -> str:
    """The name of an entry that passes the checks; else raises ``BadArchive``."""
    shown = ascii(info.orig_filename)[:80]
    if not NAME.fullmatch(info.orig_filename) or info.filename != info.orig_filename:
        raise BadArchive(shown, "is not a valid name of a file in a bundle")
    if info.filename in earlier:
        raise BadArchive(info.filename, "is in the bundle twice")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits or info.file_size != info.compress_size:
        raise BadArchive(info.filename, "is compressed or encrypted; a bundle's files are stored uncompressed")
    if info.external_attr >> 16 != stat.S_IFREG | 0o644:
        raise BadArchive(info.filename, "is not a regular file")
    return info.filename


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, EOFError, ValueError):
        raise BadArchive(info.filename, "was changed: its checksum does not match") from None
