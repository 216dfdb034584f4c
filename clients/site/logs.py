"""The logs of a site, ``site.log`` and ``supernode.log`` in its state folder: each of bounded size, with ``OLD`` older files ``.1`` (the
newest) to ``.5``, readable by this account only. A service that runs for years does not fill the disk."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, final

from fedml.cli import PrintableFormatter

SITE_LOG, NODE_LOG = "site.log", "supernode.log"
SITE_BYTES, NODE_BYTES = 10_000_000, 2_000_000  # of one file
OLD = 5  # older files of each log
_COLOUR = re.compile("\x1b\\[[0-9;]*m")  # Flower's; other sequences are shown as U+FFFD
_LONGEST_LINE = 8192  # bytes; a longer line is split


@final
class _Rotated(RotatingFileHandler):
    """A log whose files have mode 0600."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(descriptor, 0o600)  # of an earlier version
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)


def rotated(path: Path, size: int, form: str) -> logging.Handler:
    """A handler that writes lines of printable characters to ``path``: at most ``size`` bytes, and in each older file."""
    handler = _Rotated(path, maxBytes=size, backupCount=OLD, encoding="utf-8", errors="replace")
    handler.setFormatter(PrintableFormatter(form))
    return handler


def copy_lines(source: IO[bytes], handler: logging.Handler) -> None:
    """Writes what a process prints to its log, until it ends."""
    with source:
        for line in iter(lambda: source.readline(_LONGEST_LINE), b""):
            text = _COLOUR.sub("", line.decode(errors="replace").rstrip("\r\n"))
            handler.handle(logging.LogRecord("", logging.INFO, "", 0, text, None, None))


def files(path: Path) -> list[Path]:
    """The files of a log, the oldest first."""
    names = [path.with_name(f"{path.name}.{number}") for number in range(OLD, 0, -1)]
    return [file for file in (*names, path) if file.is_file()]


def lines(path: Path) -> Iterator[str]:
    """The lines of a log and of its older files, the oldest first."""
    for file in files(path):
        with file.open(encoding="utf-8", errors="replace") as found:
            yield from found
