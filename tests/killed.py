"""``fedml`` in a process that kills itself (SIGKILL) at a chosen moment of a training: ``python -m tests.killed MOMENT WORD...``.

Moments: ``EVENT`` (before that event is written, such as agreed, privacy, final, end), ``round:N`` (in round N, when its sites have
answered), ``partial:N`` (while the checkpoint of round N is written: half of its bytes are there), ``unlogged:N`` (round N has a
checkpoint, and is not in the log yet).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def die() -> None:
    """Ends this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Makes the process end at the moment."""
    from fedml.runs import checkpoints
    from fedml.strategies import rounds, server

    kind, _, number = moment.partition(":")
    one_round, emit, pieces, write_line = rounds.one_round, rounds.emit, checkpoints._pieces, rounds.write_line

    def killed_round(*given: Any) -> Any:
        done = one_round(*given)
        if (kind, number) == ("round", str(given[5].round + 1)):
            die()
        return done

    def killed_emit(run: Path, event: Any) -> None:
        if moment == event.kind:
            die()
        emit(run, event)

    def killed_line(run: Path, line: str) -> None:
        if kind == "unlogged" and number == str(json.loads(line)["round"]):
            die()
        write_line(run, line)

    def half(arrays: Mapping[str, Any], note: Mapping[str, Any]) -> Iterator[Any]:
        for piece in pieces(arrays, note):
            if kind == "partial" and note.get("event") and number == str(json.loads(note["event"])["round"]):
                partial = max(Path.cwd().glob("runs/*/checkpoints/partial"), key=lambda path: path.stat().st_mtime)
                partial.write_bytes(bytes(piece)[: len(piece) // 2])
                die()
            yield piece

    rounds.one_round, rounds.emit, server.emit, checkpoints._pieces = killed_round, killed_emit, killed_emit, half
    rounds.write_line = killed_line


if __name__ == "__main__":
    arm(sys.argv[1])
    from fedml.experiments.cli import main

    sys.argv = ["fedml", *sys.argv[2:]]
    main()
