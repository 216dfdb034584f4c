"""The text in values of DICOM elements, of whatever type and encoding."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fedml.cohort.dicom.files import printable

MAX_DECODED = 2**16  # bytes; longer values are searched for ASCII text only


def text_of(value: Any) -> str:
    """The value as text, parts joined by a backslash; "" if it is empty."""
    if value is None:
        return ""
    parts = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    return "\\".join(str(v) for v in parts).replace("\0", "").strip(" ^=\\\r\n\t")


def readable(data: bytes) -> str:
    """The readable text in bytes: the whole value if it is UTF-8 text, else the runs of ASCII."""
    if not data.isascii() and len(data) <= MAX_DECODED:
        with suppress(UnicodeDecodeError):
            whole = data.decode("utf-8")
            if sum(c.isalpha() for c in whole) > 1:
                return whole
    return printable(data)


def decodings(data: bytes) -> str:
    """The bytes decoded in every usual encoding, for the search."""
    if data.isascii() or len(data) > MAX_DECODED:
        return ""
    return " ".join([data.decode("utf-8", "ignore"), data.replace(b"\0", b"").decode("latin-1"), data.decode("utf-16-le", "ignore")])
