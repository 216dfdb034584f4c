"""Frames between the gate and a process with foreign code: what the other end writes, or does not read, has limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from fedml.clients.work.frames import HEADER_BYTES, read_frame, write_frame

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    source, out = os.pipe()
    yield source, out
    for end in (source, out):
        if end in {int(name) for name in os.listdir("/proc/self/fd")}:
            os.close(end)


def header(**values: object) -> bytes:
    head = json.dumps(values).encode()
    return len(head).to_bytes(8, "little") + head


def test_a_frame_arrives_as_it_was_written_and_a_closed_end_is_none(pipe: Pipe) -> None:
    source, out = pipe
    write_frame(out, {"ask": "x"}, [b"one", b"", b"three"])
    assert read_frame(source, 100) == ({"ask": "x"}, [b"one", b"", b"three"])
    os.close(out)
    assert read_frame(source, 100) is None


@pytest.mark.parametrize(
    "written",
    [
        (HEADER_BYTES + 1).to_bytes(8, "little"),
        (2**63).to_bytes(8, "little"),
        (4).to_bytes(8, "little") + b"none",
        header(lengths=[101]),
        header(lengths=[60, 60]),
        header(lengths=[-1]),
        header(lengths=[True]),
        header(lengths=[1.0]),
        header(lengths=[0] * 5),
        header(lengths="9"),
        header(no="lengths"),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        header(lengths=[50]) + b"less",
        b"\x05",
    ],
    ids=["header", "huge", "json", "payload", "sum", "negative", "bool", "float", "many", "text", "none", "deep", "early", "cut"],
)
def test_what_is_no_frame_or_too_large_is_refused(pipe: Pipe, written: bytes) -> None:
    source, out = pipe
    if len(written) < 60_000:
        os.write(out, written)
        os.close(out)
    else:
        if os.fork() == 0:  # a pipe holds less
            os.close(source)
            view = memoryview(written)
            while view:
                view = view[os.write(out, view) :]
            os._exit(0)
        os.close(out)
    with pytest.raises(ValueError, match="frame"):
        read_frame(source, 100)


def test_an_end_that_does_not_write_or_read_in_time_is_left(pipe: Pipe) -> None:
    source, out = pipe
    os.write(out, b"\x05")
    with pytest.raises(TimeoutError, match="did not answer"):
        read_frame(source, 100, seconds=0.2)
    os.set_blocking(out, False)
    with pytest.raises(TimeoutError, match="did not read"):
        write_frame(out, {}, [bytes(2**20)], seconds=0.2)
