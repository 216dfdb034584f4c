"""Delivery to MLflow: of a run while it continues, by a second process; of a sweep or a comparison, after its last run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedml import quiet
from fedml.experiments.runs.forked import Forked, may_fork
from fedml.tracking import outbox

if TYPE_CHECKING:
    from rich.console import Console

    from fedml.study.study import Study
    from fedml.tracking.files import Write

_TRACKING_SECONDS = 1800  # time limit for a sweep or a comparison
_FOLLOW = "fedml.experiments.tracked.follow"  # which uses this folder, so its name and no import
_RUN_SECONDS = 300  # time limit for a run, after it has ended


class Tracking:
    """``fedml.experiments.tracked.follow`` as a process, so that a slow or unavailable MLflow does not delay the run. Final.

    The process is started early, because importing MLflow takes a second. What it would have to load PyTorch for is computed here.
    """

    def __init__(self, write: Write | None) -> None:
        self.write, pipe = write, subprocess.PIPE
        self.process: Forked | subprocess.Popen[str]
        if may_fork():  # from a notebook it may not
            self.process = Forked(_FOLLOW)
        else:
            words = [sys.executable, "-P", "-m", _FOLLOW]
            self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def begin(self, run: Path, study: Study) -> None:
        """Sends the folder of the run to follow, and marks the run as not yet delivered to MLflow."""
        from fedml.tracking.knowing import watched_of

        outbox.mark_pending(run)
        watched = watched_of(study)
        self._say(json.dumps({"run": str(run), "watched": watched.name, "higher": watched.higher, "files": self.write is not None}))

    def _say(self, line: str) -> None:
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None  # noqa: S101 - it is a pipe
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def wait(self, run: Path, study: Study, *, finished: bool) -> tuple[str | None, str]:
        """(MLflow's run id, "") once the record is complete; (None, why) if MLflow has no complete record.

        ``finished``: the run trained and tested a model, of which the record has intervals and files.
        """
        place = Path(tempfile.mkdtemp(prefix="fedml-files-"))
        try:
            if finished:
                self._tell(run, study, place)
            return self._ended()
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _tell(self, run: Path, study: Study, place: Path) -> None:
        """Says where what is known and the files lie: lines so short that a process that hangs delays nothing here."""
        from fedml.tracking.knowing import known_of
        from fedml.tracking.known import TESTED

        known, files = place / "known.json", place / "files"
        with suppress(Exception):  # the other process does it then, and says why it cannot
            known.write_text(known_of(run, study, TESTED).text(), encoding="utf-8")
            self._say(str(known))
            if self.write is not None:
                files.mkdir()
                self.write(run, files)
                self._say(str(files))

    def _ended(self) -> tuple[str | None, str]:
        from fedml.text import printable

        try:
            output, errors = self.process.communicate(timeout=_RUN_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            return None, f"it took longer than {_RUN_SECONDS} s"
        code = self.process.returncode or 0
        if code == 0 and output.strip():
            return output.split()[-1], ""
        ended = f"the process that records it was ended by signal {-code}" if code < 0 else "no error message"
        return None, printable((quiet.last_said(errors) or ended).removeprefix("error: "))


def delivered(folder: Path, console: Console, what: str) -> str:
    """Delivers a sweep or a comparison (``what``) to MLflow in a separate process; why it has no complete record, "" if it has one."""
    from fedml.text import printable

    command, why = [sys.executable, "-P", "-m", "fedml.experiments.cli", "track", str(folder)], ""
    try:
        with console.status("recording in MLflow"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TRACKING_SECONDS, start_new_session=True, check=False)
        if done.returncode:
            why = (quiet.last_said(done.stderr) or "no error message").removeprefix("error: ")
    except subprocess.TimeoutExpired:
        why = f"it took longer than {_TRACKING_SECONDS} s"
    except KeyboardInterrupt:
        why = "stopped from the keyboard"
    if not why:
        return ""
    return f"MLflow has no complete record of this {what} ({printable(why)}); deliver it later: fedml track {folder}"
