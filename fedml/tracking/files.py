"""The files of a run in MLflow: what `fedml report`, `bundle` and `verify` read, and what a person looks at.

    record/         the run's folder as it is: log, study, panel, layout; of a finished run counts and model too
    report.html ... what ``write`` makes of a finished run
"""

from __future__ import annotations

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
    for name in names:
        if (run / name).exists():
            client.log_artifact(parent, str(run / name), RECORD)
    if (run / CODE).is_dir():
        client.log_artifacts(parent, str(run / CODE), f"{RECORD}/{CODE}")
    if finished and (run / EXAMPLES).is_dir():
        for place in (EXAMPLES, f"{RECORD}/{EXAMPLES}"):
            client.log_artifacts(parent, str(run / EXAMPLES), place)
    if write is not None:
        with tempfile.TemporaryDirectory(prefix="fedml-files-") as folder:
            write(run, Path(folder))
            client.log_artifacts(parent, folder)
