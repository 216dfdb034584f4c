"""Lines of a text file, plain or gzip, with their numbers: what tables of weights and of genes are read from."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedml.errors import InputError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 text; gzip and bgzip are known by their first bytes, whatever the ending.

    Raises:
        InputError: the file cannot be read, is cut short, or is no text.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(lines, start=1):
                yield number, line.decode().rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is damaged or cut short ({error}); copy it anew.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; give a plain or gzip text file.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give the path of a file that is there.") from error
