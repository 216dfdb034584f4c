"""The files of a run in MLflow: what `fedml report`, `bundle` and `verify` read, and what a person looks at.

record/         the run's folder as it is: log, study, panel, layout; of a finished run counts and model too
report.html ... what ``write`` makes of a finished run
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedml.runs.log import COUNTS, EVENTS, EXAMPLES, LAYOUT, MODEL, PANEL, STUDY
from fedml.study.sources import FOLDER as CODE
from fedml.study.start import FILE as START

RECORD = "record"
Write = Callable[[Path, Path], object]  # (the folder of a finished run, an empty folder): writes there what a person looks at
_ALWAYS = (EVENTS, STUDY, "study.toml", START)
_FINISHED = (PANEL, LAYOUT)
_RESULT = (COUNTS, MODEL)  # of a sweep's run that was not chosen they stay in its folder


def log_files(client: Any, parent: str, run: Path, write: Write | None, *, finished: bool, whole: bool) -> None:
    """Logs the artifacts of a run. ``whole``: its test metrics and its model are recorded too."""
    names = [*_ALWAYS, *(_FINISHED if finished else ()), *(_RESULT if finished and whole else ())]
    with tempfile.TemporaryDirectory(prefix="fedml-files-") as place:
        folder = Path(place)
        if write is not None:
            write(run, folder)
        (folder / RECORD).mkdir()
        for name in names:
            if (run / name).exists():
                shutil.copyfile(run / name, folder / RECORD / name)
        if (run / CODE).is_dir():
            shutil.copytree(run / CODE, folder / RECORD / CODE)
        if finished and (run / EXAMPLES).is_dir():
            shutil.copytree(run / EXAMPLES, folder / RECORD / EXAMPLES)
            shutil.copytree(run / EXAMPLES, folder / EXAMPLES)
        client.log_artifacts(parent, place)  # all at once: each call asks the server for the run
