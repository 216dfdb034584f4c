"""The process of `fedml run` that records the run in MLflow while it continues. It loads neither PyTorch nor pandas: what needs them comes
from the process that runs the study.

On its standard input, a line each: the run's folder and its watched metric; after the run the file with what is known of it
(``fedml.tracking.known``), and the folder with the files for a person. What is not said before the input ends is computed here. Its last
line of output is MLflow's run id.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from fedml.tracking.lean import defer

_BUSY_SECONDS = 60


def follow(given: TextIO) -> None:
    """Records the run that ``given`` names, until it has ended.

    Raises:
        RunError: MLflow did not accept it.
    """
    defer()
    parent = os.getppid()
    from fedml.runs.log import study_of
    from fedml.tracking.deliver import deliver
    from fedml.tracking.known import Watched
    from fedml.tracking.outbox import Busy
    from fedml.tracking.store import plain_errors
    from fedml.tracking.tracker import Given

    with plain_errors():
        _prepare()
        line = given.readline()
        if not line:  # the run did not begin
            return
        told = json.loads(line)
        run = Path(told["run"])
        study = study_of(run)
        heard = _Heard(given, run)
        all_given = Given(Watched(told["watched"], told["higher"]), heard.known, heard.write if told["files"] else None, heard.settle)
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return print(deliver(run, study, wait=lambda: os.getppid() == parent, given=all_given))
            except Busy:  # of a run that was killed and goes on, the process that recorded it before may not have ended yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


def _prepare() -> None:
    """Imports MLflow and creates its tables, while the run is being prepared. A copy of this process creates them, which takes the memory
    of that with it; if it cannot, the use of the store tells why."""
    from fedml.tracking.store import connect, create, is_new

    import_module("mlflow.tracking.client")  # so that both have it
    if is_new():
        gc.freeze()
        copy = os.fork()
        if copy == 0:
            try:
                create()
            finally:
                os._exit(0)
        os.waitpid(copy, 0)
    connect()


class _Heard:
    """What the other process says after the run. Final."""

    def __init__(self, given: TextIO, run: Path) -> None:
        self.given, self.run, self.said = given, run, ""

    def settle(self) -> None:
        """Waits until the run's folder is complete."""
        self.said = self.given.readline()

    def known(self, parts: Sequence[str]) -> Any:
        """What is known of the run."""
        from fedml.runs.log import study_of
        from fedml.tracking.known import Known

        if self.said.strip():
            return Known.parse(Path(self.said.strip()).read_text(encoding="utf-8"))
        from fedml.tracking.knowing import known_of

        return known_of(self.run, study_of(self.run), parts)

    def write(self, run: Path, into: Path) -> None:
        """The files for a person."""
        line = self.given.readline().strip()
        if line:
            shutil.copytree(line, into, dirs_exist_ok=True)
            return _draw(into)
        from fedml.experiments.tracked.files import write_files

        write_files(run, into)


def _draw(into: Path) -> None:
    from fedml.experiments.tracked.draw import draw_plots

    draw_plots(into)


def main() -> None:
    """The process."""
    from fedml.cli import guarded

    def app(args: Sequence[str], standalone_mode: bool) -> None:
        follow(sys.stdin)

    run: Callable[..., Any] = app
    guarded(run, ["follow"])


if __name__ == "__main__":
    main()
