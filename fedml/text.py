"""Reads numbered lines of a text file, plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedml.errors import InputError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without line end) of a UTF-8 text file; gzip and bgzip are recognised by their first bytes.

    Raises:
        InputError: the file cannot be read, is truncated, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(lines, start=1):
                yield number, line.decode().rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is damaged or truncated ({error}); copy the file again.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; give a plain or gzip text file.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give the path of an existing file.") from error
