"""Text from outside: which characters may be shown, and numbered lines of a file, plain or gzip."""

from __future__ import annotations

import gzip
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from fedml.errors import InputError

LINE_BYTES = 2**20


def unsafe_character(text: str, allowed: str = "") -> str:
    """The first character of ``text`` that a terminal interprets, or that is invisible or reorders others (Unicode categories C, Zl and Zp:
    controls, bidirectional marks, zero-width characters, line separators), as ``U+001B``; "" if there is none.

    Args:
        allowed: characters that are not looked for, such as line ends.
    """
    if text.isprintable():  # nearly always, and a study may have 100,000 texts
        return ""
    for c in text:
        if not c.isprintable() and unicodedata.category(c) != "Zs" and c not in allowed:
            return f"U+{ord(c):04X}"
    return ""


def printable(text: str, allowed: str = "") -> str:
    """``text`` with U+FFFD in the place of each character that ``unsafe_character`` finds."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unsafe_character(c, allowed) else c for c in text)


def _bounded(lines: IO[bytes], path: Path, limit: int) -> Iterator[bytes]:
    """The lines; ``InputError`` before more than ``limit`` bytes, or a longer line than ``LINE_BYTES``, are in memory."""
    size = 0
    for line in iter(lambda: lines.readline(LINE_BYTES + 1), b""):
        size += len(line)
        if size > limit or len(line) > LINE_BYTES:
            raise InputError(f"{path}: has more than {limit:,} bytes, or a line of more than {LINE_BYTES:,}; give a smaller file.")
        yield line


def numbered_lines(path: Path, limit: int | None = None) -> Iterator[tuple[int, str]]:
    """(number from 1, line without line end) of a UTF-8 text file; gzip and bgzip are recognised by their first bytes.

    ``limit``: the largest number of bytes, unpacked; a line then has at most ``LINE_BYTES``.

    Raises:
        InputError: the file cannot be read, is truncated, is not UTF-8 text, or is too long.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            whole = cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if packed else raw)
            lines: Iterable[bytes] = whole if limit is None else _bounded(whole, path, limit)
            for number, line in enumerate(lines, start=1):
                yield number, line.decode().rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is damaged or truncated ({error}); copy the file again.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; give a plain or gzip text file.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give the path of an existing file.") from error
