"""What `fedml track` does: it delivers a run, a sweep or a comparison to MLflow, with the files for a person."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedml.errors import InputError
from fedml.experiments.tracked.files import write_files


def track(run_folder: Path | None, runs: Path, *, follow: bool) -> None:
    """Delivers a run, a sweep or a comparison (-: its path is on standard input); None: all in ``runs`` that were not delivered.

    Raises:
        InputError: the folder is none of them. RunError: MLflow did not accept it.
    """
    from fedml.runs.log import STUDY, study_of
    from fedml.tracking.comparisons import COMPARISON, deliver_comparison, deliver_pending_comparisons
    from fedml.tracking.deliver import deliver
    from fedml.tracking.store import plain_errors
    from fedml.tracking.sweeps import SWEEP, deliver_all_pending, deliver_sweep

    if run_folder is None:
        deliver_all_pending(runs, print, write_files)
        return deliver_pending_comparisons(runs, print)
    parent = os.getppid()
    if str(run_folder) == "-":
        run_folder = Path(sys.stdin.readline().strip())
    if (run_folder / COMPARISON).exists():
        with plain_errors():
            return print(deliver_comparison(run_folder))
    if (run_folder / SWEEP).exists():
        with plain_errors():
            return print(deliver_sweep(run_folder, write=write_files))
    if not (run_folder / STUDY).exists():
        raise InputError(f"{run_folder}: is not a run's folder, it has no {STUDY}; give a folder from fedml-runs.")
    study = study_of(run_folder)
    with plain_errors():
        print(deliver(run_folder, study, wait=lambda: follow and os.getppid() == parent, write=write_files))
