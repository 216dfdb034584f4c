"""Messages between the gate and the confined process: a JSON header and a payload, each with its length before it.

The gate reads what a process with foreign code writes, so every length has a limit and every wait an end.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Sequence
from typing import Any

HEADER_BYTES = 2**20
PARTS = 4  # payloads of a frame, at most


def write_frame(out: int, header: dict[str, Any], payloads: Sequence[bytes] = (), seconds: float | None = None) -> None:
    """Writes a frame to a file descriptor.

    Args:
        seconds: how long the whole may take, where the other end may never read; ``out`` must not block then. None: for ever.

    Raises:
        TimeoutError: it took too long.
    """
    until = None if seconds is None else time.monotonic() + seconds
    head = json.dumps({**header, "lengths": [len(data) for data in payloads]}).encode()
    for data in (len(head).to_bytes(8, "little"), head, *payloads):
        view = memoryview(data)
        while view:
            if until is not None and not select.select([], [out], [], max(until - time.monotonic(), 0))[1]:
                raise TimeoutError("the confined process did not read in time")
            view = view[os.write(out, view) :]


def read_frame(source: int, limit: int, seconds: float | None = None) -> tuple[dict[str, Any], list[bytes]] | None:
    """The next frame: header and payloads. None if the other end closed before one began.

    Args:
        limit: bytes of all payloads together. seconds: how long the whole may take; None: for ever.

    Raises:
        ValueError: it is no frame, or too large. TimeoutError: it took too long.
    """
    until = None if seconds is None else time.monotonic() + seconds
    start = _exactly(source, 8, until, may_end=True)
    if start is None:
        return None
    if (size := int.from_bytes(start, "little")) > HEADER_BYTES:
        raise ValueError("the header of a frame is too long")
    try:
        header = json.loads(_exactly(source, size, until) or b"")
        lengths = header.pop("lengths")
        plain = isinstance(lengths, list) and all(type(n) is int and n >= 0 for n in lengths)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("a frame has no valid header") from error
    if not plain or len(lengths) > PARTS or sum(lengths) > limit:
        raise ValueError("a frame has too much in it")
    return header, [_exactly(source, n, until) or b"" for n in lengths]


def _exactly(source: int, size: int, until: float | None, *, may_end: bool = False) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        left = None if until is None else until - time.monotonic()
        if left is not None and (left <= 0 or not select.select([source], [], [], left)[0]):
            raise TimeoutError("the confined process did not answer in time")
        part = os.read(source, min(size - len(data), 2**20))
        if not part:
            if may_end and not data:
                return None
            raise ValueError("a frame ends early")
        data += part
    return bytes(data)
