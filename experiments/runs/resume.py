"""``fedml run --resume RUN``: a run that stopped goes on after its last complete round, in the same folder and the same MLflow run.

    with held(run):                                           # by this command alone
        complete = prepare(run, study, engine="local")        # the log ends after that round; True: only the log's end was lacking

The log is cut after the last round of the checkpoint: what follows, such as the end of a failed run, is said in the event ``resumed``
instead. A round that the checkpoint has and the log lacks is written as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.flower.parent import LOCK
from fedml.runs.checkpoints import CHECKPOINTS, ORIGIN, newest
from fedml.runs.events import NO_END, NOT_RESUMED, Agreed, End, Event, Final, Privacy, Resumed, Round, Start, from_row
from fedml.runs.log import EVENTS, STUDY, emit, last, read_log
from fedml.runs.software import software
from fedml.study.sources import FOLDER, provide_folder
from fedml.study.study import Study, parse_study

_RECORDER_SECONDS = 60.0  # for the process that records the run in MLflow, which closes the record when its command has ended


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Holds the run for this command; the operating system releases it when the command ends, however it ends.

    Raises:
        InputError: another command runs it, or it is no run's folder.
    """
    try:
        file = (run / STUDY).open("ab")  # a lock over NFS requires write access; nothing is written
    except OSError as error:
        raise InputError(f"{run}: is not a run's folder, it has no {STUDY} that can be opened; give a folder from fedml-runs.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{run}: is still running; wait for its end, or stop it first.") from None
        yield


def study_to_resume(run: Path, given: Study | None) -> Study:
    """The study of the run, which must be ``given`` to the last character.

    Raises:
        InputError: it is another, or the folder is none of a run that can go on.
    """
    if not (run / STUDY).is_file() or not (run / EVENTS).is_file():
        raise InputError(f"--resume {run}: is not a run's folder, it has no {STUDY} and {EVENTS}; give a folder from fedml-runs.")
    provide_folder(run / FOLDER)
    try:
        own = parse_study((run / STUDY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{run / STUDY}: is not the study of a run ({error}); restore the run's folder.") from error
    if given is None or given.sha256 == own.sha256:
        return own
    if given.study.name != own.study.name:
        raise InputError(f'--resume {run}: is a run of the study "{own.study.name}", not of "{given.study.name}"; give its own study.')
    raise InputError(
        f"--resume {run}: the study differs from the run's in {_different(given, own)}; a run goes on only with the study with which it "
        "began: undo the change (give the same --set and --seed, too), or start a new run."
    )


def _different(given: Study, own: Study) -> str:
    first, second = (_leaves(json.loads(study.canonical)) for study in (given, own))
    return next((key for key in sorted({*first, *second}) if first.get(key) != second.get(key)), "its text")


def _leaves(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {where: value}
    return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{where}.{key}" if where else key).items()}


def prepare(run: Path, study: Study, engine: str) -> bool:
    """Makes the log ready to go on, and notes that the run was resumed. True: the run was complete but for the end of its log.

    Raises:
        InputError: the run is finished or running, of another job or engine, or its checkpoint is damaged or missing.
    """
    from fedml.strategies.chosen import planned  # here, because it loads PyTorch, which the copy that records the run is not to have

    _wait_for_recorder(run)
    events = read_log(run, strict=True)[0]
    start = events[0] if events and isinstance(events[0], Start) else None
    if start is None:
        raise InputError(f"{run / EVENTS}: does not begin with the start of a run; start a new run.")
    if start.job != "train":
        raise InputError(f"--resume {run}: is a run of the job {start.job}; only the training of a model goes on after a stop.")
    if start.engine != engine:
        raise InputError(f"--resume {run}: the run is of the engine {start.engine}; give --engine {start.engine}.")
    end = last(events, NO_END)
    if end.status == "finished":
        raise InputError(f"--resume {run}: the run is finished, so there is nothing to go on with; start a new run.")
    if _is_served(run):
        raise InputError(f"--resume {run}: is still running at the SuperLink; wait for its end, or stop it there first.")
    (run / LOCK).unlink(missing_ok=True)  # of a server app that was killed
    before, status = last(events, NOT_RESUMED), "killed" if not end.came else end.status
    if any(isinstance(event, Final) for event in events) and status == "killed":  # the model is saved, too
        _cut(run, events, len(events))
        emit(run, _resumed(len(_rounds(events)), status, before))
        emit(run, End(status="finished", reason=""))
        return True
    found = newest(run / CHECKPOINTS)
    rounds = _rounds(events)
    if found is None:
        _check_beginning(run, study, rounds)
        _cut(run, events, 1)
        emit(run, _resumed(0, status, before))
        return False
    number, _, of_round = found
    note = json.loads(of_round["run"])
    if note["study"] != study.sha256 or note["run"] != start.run_id:
        raise InputError(f"{run / CHECKPOINTS}: the checkpoint is of another run; restore the folder of the run or start a new run.")
    if not (run / CHECKPOINTS / ORIGIN).is_file() or not any(isinstance(event, Agreed) for event in events):
        raise InputError(f"{run}: the log or the checkpoints lack a part, so the run cannot go on; restore the folder or start a new run.")
    if len(rounds) < number - 1:
        raise InputError(f"{run / EVENTS}: has {len(rounds)} rounds, the checkpoint is of round {number}; restore the folder of the run.")
    keep = next((at for at, event in enumerate(events) if _is_beyond(event, number)), len(events))
    _cut(run, events, keep)
    if len(rounds) < number:
        lacking = from_row(json.loads(of_round["event"]), schema=start.schema, strict=True)
        assert isinstance(lacking, Round)  # noqa: S101 - its SHA-256 is that of what was written
        emit(run, lacking)
        rounds.append(lacking)
    at_end = planned(study, rounds[:number])[0] == number
    emit(run, _resumed(number, status, before, rounds_again=len(rounds) - number + (not at_end), evaluations_again=int(at_end)))
    return False


def _rounds(events: Sequence[Event]) -> list[Round]:
    return [event for event in events if isinstance(event, Round)]


def _is_beyond(event: Event, number: int) -> bool:
    """Whether an event is of what follows the checkpoint of round ``number``."""
    return isinstance(event, Privacy | Final | End) or (isinstance(event, Round) and event.round > number)


def _resumed(number: int, status: str, before: Resumed, rounds_again: int = 0, evaluations_again: int = 0) -> Resumed:
    return Resumed(
        round=number, status=status, code=software(), rounds_again=before.rounds_again + rounds_again,
        evaluations_again=before.evaluations_again + evaluations_again,
    )  # fmt: skip


def _check_beginning(run: Path, study: Study, rounds: Sequence[Round]) -> None:
    """Raises ``InputError`` unless a run without a checkpoint may begin from its agreement."""
    if rounds:
        raise InputError(f"--resume {run}: the run has no checkpoint to go on from; start a new run ([model] start takes trained weights).")
    if study.privacy.unit == "patient" and study.privacy.statistics == "private":
        raise InputError(
            f"--resume {run}: the run stopped before its first round, and its statistics would be released a second time, which the "
            "study's epsilon does not count; start a new run."
        )


def _cut(run: Path, events: Sequence[Event], keep: int) -> None:
    """Ends the log after ``keep`` events. In its place: a file that is replaced would not have the lock of who records it."""
    with (run / EVENTS).open("r+b") as file:
        lines = file.read().split(b"\n")
        file.truncate(sum(len(line) + 1 for line in lines[:keep]))
        file.flush()
        os.fsync(file.fileno())


def _is_served(run: Path) -> bool:
    """Whether a server app works on the run: it holds a lock (``fedml.flower.parent.working``)."""
    with suppress(OSError), (run / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _wait_for_recorder(run: Path) -> None:
    """Waits until no process records the run in MLflow, and marks the record as not complete."""
    from fedml.tracking import outbox

    until = time.monotonic() + _RECORDER_SECONDS
    while True:
        try:
            with outbox.lock_run(run):
                if outbox.is_tracked(run):
                    outbox.mark_again(run)
                return
        except outbox.Busy as error:
            if time.monotonic() > until:
                raise InputError(str(error)) from error
            time.sleep(0.1)
