"""The run's record in MLflow, made from the run's folder.

    deliver(run, study)    # at once, or while the run goes on: `fedml run` has a second process that does

Delivered twice it is there once: the parent is found by its tag ``fedml.run_id``, and what is there already is taken up again. What a
record says is a function of the run's folder, times and all, so MLflow knows a figure that it has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedml.errors import InputError, RunError
from fedml.runs.events import End, Start
from fedml.runs.log import EVENTS, STUDY, read_log
from fedml.study.study import Study, parse_study
from fedml.tracking import outbox
from fedml.tracking.store import runs_of, store
from fedml.tracking.tracker import Tracker

_TICK_SECONDS = 0.1  # between two looks at the events
_SIZE_TAG = "fedml.events_bytes"  # set last: a record that has it is whole up to there
_AUDIT = "audit.json"


def _find(client: Any, start: Start) -> Any:
    """The parent of a run; None if MLflow has none."""
    experiment = client.get_experiment_by_name(start.study)
    found = runs_of(client, experiment.experiment_id, start.run_id) if experiment else []
    return next((r for r in found if "mlflow.parentRunId" not in r.data.tags), None)


def _audit(client: Any, run: Path, parent: str) -> None:
    """An audit's lower bound beside the claim, once."""
    if (run / _AUDIT).exists():
        bound = json.loads((run / _AUDIT).read_text(encoding="utf-8")).get("audit", {}).get("epsilon")
        if bound is not None and client.get_run(parent).data.metrics.get("privacy/epsilon_lower_bound") != float(bound):
            client.log_metric(parent, "privacy/epsilon_lower_bound", bound)
        client.log_artifact(parent, str(run / _AUDIT), "record")


def note_audit(run: Path) -> bool:
    """Puts ``audit.json`` into the run's MLflow record, its bound beside the claim; False: there is no such record."""
    from mlflow import MlflowClient

    client = MlflowClient(store())
    parent = _find(client, next(e for e in read_log(run)[0] if isinstance(e, Start)))
    if parent is None:
        return False
    _audit(client, run, str(parent.info.run_id))
    return True


def deliver(run: Path, study: Study, *, wait: Callable[[], bool] = lambda: False, settle: Callable[[], object] = lambda: None) -> str:
    """Tracks a run from its folder and returns the parent's MLflow run id. What MLflow has whole is not written again.

    Args:
        wait: asked when nothing is new and the run has not ended: true to look again a little later, false to close the record.
        settle: called once the run has ended, before its files are logged: returns when whoever ran it has written the last of them.

    Raises:
        InputError: the folder has no log. RunError: another process is at it.
    """
    from mlflow import MlflowClient

    from fedml.tracking import scoring  # noqa: F401 - torch and mlflow take seconds, better while the run goes on than after its end

    if not (run / EVENTS).exists():
        raise InputError(f"{run}: is no run's folder, it has no {EVENTS}; give one from fedml-runs.")
    with outbox.alone(run):
        client, (events, at) = MlflowClient(store()), read_log(run)
        start = events[0] if events and isinstance(events[-1], End) else None
        there = _find(client, start) if isinstance(start, Start) else None
        if there is not None and there.data.tags.get(_SIZE_TAG) == str(at):
            outbox.note(run, there.info.run_id, at)
            return str(there.info.run_id)
        tracker, at = Tracker(run, study), 0
        while True:
            events, at = read_log(run, at)
            tracker(events)
            if tracker.status != "RUNNING" or (not events and not wait()):
                settle()
                parent = tracker.close()
                _audit(client, run, parent)
                client.set_tag(parent, _SIZE_TAG, str(at))
                outbox.note(run, parent, at)
                return parent
            time.sleep(_TICK_SECONDS)


def deliver_owed(runs: Path, say: Callable[[str], object]) -> None:
    """Delivers every run in a folder that is owed (``fedml.tracking.outbox``), and says each; one that is being recorded is left to that.

    Raises:
        InputError: there is no such folder. RunError: MLflow did not take one; those before it are there.
    """
    if not runs.is_dir():
        raise InputError(f"--runs {runs}: is no folder; give the one in which runs are kept.")
    found = outbox.owed(runs)
    for done, run in enumerate(found):
        try:
            say(f"{run.name}: {deliver(run, parse_study((run / STUDY).read_text(encoding='utf-8')))}")
        except outbox.Busy as error:
            say(str(error))
        except Exception as error:
            raise RunError(
                f"{run}: MLflow did not take it ({error}); {len(found) - done} run(s) are still owed, try again later."
            ) from error
    if not found:
        say("MLflow has every run that it was to have")
