"""Another process of the local engine: ``python -P -m fedml.clients.gate.engine_worker``, started by ``fedml.experiments.runs.workers``.

It reads frames from standard input and answers on the descriptor that was standard output, with what ``fedml.clients.gate.local`` answers
in the first process: the same code, seeds and bits. The first frame holds the run's configuration, each other one a message to a node. A
node's state comes with its first message and stays here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from fedml.clients.work.frames import read_frame, write_frame
from fedml.quiet import hush_process

_PR_SET_PDEATHSIG = 1
_MOST = 2**40  # bytes of a message


def main() -> None:
    """Serves frames until standard input closes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key of the keyboard reaches the first process too, which ends this one
    source, out = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints goes to the screen, not between frames
    hush_process()
    first = read_frame(source, _MOST)
    if first is not None:
        _serve(source, out, first[0]["config"])


def _serve(source: int, out: int, config: dict[str, Any]) -> None:
    from flwr.app import Message

    from fedml.clients.gate.local import app
    from fedml.flower.content import from_bytes, to_bytes
    from fedml.flower.grid import InProcessGrid

    grids: dict[int, InProcessGrid] = {}
    write_frame(out, {"ready": True})
    while (frame := read_frame(source, _MOST)) is not None:
        asked, payloads = frame
        node = asked["node"]
        if node not in grids:
            grids[node] = InProcessGrid(app, [asked["node_config"]], config)
            if payloads[1]:  # else this process stands in for one that was killed: what the node kept is in the run's folder
                grids[node].state_of(1).update(from_bytes(payloads[1]))
        message = Message(from_bytes(payloads[0]), 1, asked["kind"], ttl=asked["ttl"])
        (reply,) = grids[node].send_and_receive([message])
        if reply.has_error():
            write_frame(out, {"code": reply.error.code, "reason": reply.error.reason})
        else:
            write_frame(out, {}, [to_bytes(reply.content)])


if __name__ == "__main__":
    main()
    sys.exit(0)
