"""Writes the record of a run to MLflow, from the run's folder.

    deliver(run, study)    # after the run, or during the run, in a second process of `fedml run`

Delivery is idempotent: the parent is found by its tag ``fedml.run_id`` and an existing record is continued. The record, including its
timestamps, is a function of the run's folder, so MLflow recognises figures that were delivered before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedml.errors import InputError, RunError
from fedml.runs.events import End, Start
from fedml.runs.log import EVENTS, read_log, study_of
from fedml.study.study import Study
from fedml.tracking import outbox
from fedml.tracking.files import Write
from fedml.tracking.members import read_member
from fedml.tracking.now import Now
from fedml.tracking.registry import package_archive
from fedml.tracking.store import connect, runs_of
from fedml.tracking.tracker import Given, Tracker

_POLL_SECONDS = 0.1  # between two reads of the events
_SIZE_TAG = "fedml.events_bytes"  # set last: the record is complete up to this size of the log
_AUDIT = "audit.json"


def _find(client: Any, start: Start) -> Any:
    """The parent of a run; None if MLflow has none."""
    experiment = client.get_experiment_by_name(start.study)
    found = runs_of(client, experiment.experiment_id, start.run_id) if experiment else []
    return next((r for r in found if "fedml.site" not in r.data.tags), None)


def _complete(run: Path, size: int) -> str:
    """The tag of a complete record; that of a sweep's run is to be continued if the sweep chooses the run later."""
    member = read_member(run)
    return str(size) if member is None or member.chosen else f"{size}, not chosen"


def _audit(client: Any, run: Path, parent: str) -> None:
    """Logs the lower bound of an audit next to the claim, once."""
    if (run / _AUDIT).exists():
        bound = json.loads((run / _AUDIT).read_text(encoding="utf-8")).get("audit", {}).get("epsilon")
        if bound is not None and client.get_run(parent).data.metrics.get("privacy/epsilon_lower_bound") != float(bound):
            client.log_metric(parent, "privacy/epsilon_lower_bound", bound)
        client.log_artifact(parent, str(run / _AUDIT), "record")


def note_audit(run: Path) -> bool:
    """Adds ``audit.json`` and its bound to the run's MLflow record; False: there is no such record."""
    client = connect()
    parent = _find(client, next(e for e in read_log(run)[0] if isinstance(e, Start)))
    if parent is None:
        return False
    _audit(client, run, str(parent.info.run_id))
    return True


def deliver(
    run: Path, study: Study, *, wait: Callable[[], bool] = lambda: False, write: Write | None = None, given: Given | None = None
) -> str:
    """Tracks a run from its folder and returns the parent's MLflow run id. A complete record is not written again.

    Args:
        wait: called if there are no new events and the run has not ended; true: poll again, false: close the record.
        write: makes the files for a person of a finished run (``fedml.experiments.tracked.files``); None: there are none.
        given: what the record has besides the log, ``write`` too; None: it is computed here, which loads PyTorch.

    Raises:
        InputError: the folder has no log. RunError: another process is recording the run.
    """
    if not (run / EVENTS).exists():
        raise InputError(f"{run}: is not a run's folder, it has no {EVENTS}; give a folder from fedml-runs.")
    with outbox.lock_run(run):
        client, (events, at) = connect(), read_log(run)
        start = events[0] if events and isinstance(events[-1], End) else None
        recorded = _find(client, start) if isinstance(start, Start) else None
        if recorded is not None and recorded.data.tags.get(_SIZE_TAG) == _complete(run, at):
            outbox.mark_delivered(run, recorded.info.run_id, at)
            return str(recorded.info.run_id)
        given = given or _computed(run, study, write)
        tracker, at, now = Tracker(run, study, given), 0, Now(run, study.federation.rounds)
        package_archive()  # while the run continues
        while True:
            events, at = read_log(run, at)
            tracker(events)
            now.look(client, tracker.parent, tracker.children)
            if tracker.status != "RUNNING" or (not events and not wait()):
                given.settle()
                now.end(client, tracker.parent, tracker.children, {"RUNNING": "ended"}.get(tracker.status, tracker.status.lower()))
                parent = tracker.close()
                _audit(client, run, parent)
                client.set_tag(parent, _SIZE_TAG, _complete(run, at))
                outbox.mark_delivered(run, parent, at)
                return parent
            time.sleep(_POLL_SECONDS)


def _computed(run: Path, study: Study, write: Write | None) -> Given:
    from fedml.tracking.knowing import known_of, watched_of

    return Given(watched_of(study), lambda parts: known_of(run, study, parts), write)


def deliver_pending(runs: Path, say: Callable[[str], object], write: Write | None = None) -> None:
    """Delivers every undelivered run in a folder (``fedml.tracking.outbox``) and reports each. A run that another process is recording is
    skipped.

    Raises:
        InputError: there is no such folder. RunError: MLflow did not accept a run; earlier runs are delivered.
    """
    if not runs.is_dir():
        raise InputError(f"--runs {runs}: is not a folder; give the folder that contains the runs.")
    found = outbox.pending(runs)
    for done, run in enumerate(found):
        try:
            say(f"{run.name}: {deliver(run, study_of(run), write=write)}")
        except outbox.Busy as error:
            say(str(error))
        except Exception as error:
            raise RunError(
                f"{run}: MLflow did not accept the run ({error}); {len(found) - done} run(s) are not delivered yet, try again later."
            ) from error
    if not found:
        say("all runs are delivered to MLflow")
