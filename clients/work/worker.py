"""The confined process of a study with own code: ``python -P -I -m fedml.clients.work.worker``, started by ``fedml.clients.work.apart``.

It reads frames from standard input and answers on the descriptor that was standard output. The first frame says what it may read and write
and holds the bytes of the own code; it is confined before anything else is imported. Then each frame asks one thing of ``_ASKED``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fedml.clients.work.confine import confine
from fedml.clients.work.frames import read_frame, write_frame
from fedml.quiet import hush_process

_PR_SET_PDEATHSIG = 1
_MOST = 2**40  # bytes of a request: the gate has checked it


def main() -> None:
    """Serves frames until standard input closes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    source, out = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what own code prints goes to the log, not between frames
    os.set_inheritable(source, False)
    os.set_inheritable(out, False)
    first = read_frame(source, _MOST)
    if first is None:
        return
    plan, payloads = first
    confine([Path(path) for path in plan["readable"]], [Path(path) for path in plan["writable"]])
    hush_process()  # after the confinement, which needs that there is one thread
    _serve(source, out, plan, b"".join(payloads))


def _serve(source: int, out: int, plan: dict[str, Any], code: bytes) -> None:
    from fedml.study.packages import provide_package
    from fedml.study.sources import provide

    place = 0

    def following(size: int) -> bytes:
        nonlocal place
        place += size
        return code[place - size : place]

    for size in plan["code"]:
        provide(following(size))
    for files in plan["packages"]:
        provide_package({path: following(size) for path, size in files})
    write_frame(out, {"ready": True})
    while (frame := read_frame(source, _MOST)) is not None:
        header, payloads = frame
        try:
            head, parts = _answer(header, payloads)
        except BaseException as error:  # of any type: the other side tells it as one of its reasons
            head, parts = _refused(error)
        write_frame(out, head, parts)


def _answer(header: dict[str, Any], payloads: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    from dataclasses import replace

    from flwr.app import RecordDict

    from fedml.clients.work import known
    from fedml.clients.work.client import execute
    from fedml.clients.work.half import Memory
    from fedml.clients.work.request import read_request
    from fedml.flower.content import from_bytes, to_bytes
    from fedml.wire.records import ARRAYS, pack

    content, state = from_bytes(payloads[0]), from_bytes(payloads[1])
    request = replace(read_request(content, tuple(header["manifests"]), header["name"]), trust=header["trust"])
    match header["ask"]:
        case "first-weights":
            return {}, [to_bytes(RecordDict({ARRAYS: pack(known.first_weights(request, content))})), b""]
        case "own-sums":
            return {}, [to_bytes(RecordDict({ARRAYS: pack(known.own_sums(request, content))})), b""]
        case "first-update":
            return {"number": known.first_update(request, content)}, [b"", b""]
        case _:
            reply = execute(request, content, Memory(state, header["run"]))
            return {}, [to_bytes(reply), to_bytes(state)]


def _refused(error: BaseException) -> tuple[dict[str, Any], list[bytes]]:
    from fedml.clients.work.client import reason_of

    return {"reason": str(reason_of(error)), "text": f"{type(error).__name__}: {error}"[:2000]}, []


if __name__ == "__main__":
    main()
    sys.exit(0)
