"""Whether the messages of a run follow from its plan. Without this, a centre could choose weights with which an answer about many persons
holds the values of one.

- The weights of the first round are those that the study's seed gives (``fedml.models.fusion.build_model``).
- Rounds come in order. The weights of a round are near those that the site received last: as far as the server's step can move them when no
  site's update is longer than ``max_drift`` times this site's own longest.
- The weights of the last evaluation begin another round, so to speak; with ``keep = "best"`` they may be those of any round, which the site
  knows by their digests; with ``ema`` they lie behind the last round's by as many rounds as the average does.
- The server's values for the sites, such as FedProx's mu, are those of the study. A record that it sends besides the model is not longer
  than ``max_drift`` times what this site has returned of its own.
- The preprocessing constants fit the site's own persons: of a federation of up to 900 times as many persons, no mean is farther than 30
  standard deviations, and no standard deviation is below a thirtieth. Weights of classes fit them likewise.

Lengths are Euclidean norms over all weights. They, and the last round's weights, are kept in the state folder, of a few runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.clients.gate.bounds import check_effective
from fedml.errors import Reason, SiteError
from fedml.learning.training import planned_steps
from fedml.runs.log import write_whole
from fedml.strategies.algorithms.algorithm import Algorithm
from fedml.study.study import Study
from fedml.study.training_round import training_of_round

Arrays = Mapping[str, npt.NDArray[Any]]
FOLDER = "course"
_SAME = 1e-4, 1e-6  # relative, absolute: two versions of torch draw first weights that differ in the last bits
_FARTHEST = 30.0  # standard deviations; the square root of how many times more persons than this site a federation has
_ROUNDS = 5  # missed rounds for which the weights may have moved on
_KEPT = 32  # runs
_NOISE = 6.0  # standard normal noise of d weights is longer than sqrt(d) + 6 with a probability below exp(-18)


@dataclass(frozen=True)
class Course:
    """What a site remembers of a run: the last ``round`` that it answered, the length of its ``longest`` update, and of all that it
    ``returned`` besides the model. ``digests``: of the weights of each round, where the last evaluation may be of any of them."""

    run: str
    round: int = 0
    longest: float = 0.0
    returned: float = 0.0
    digests: Sequence[str] = ()


def length(arrays: Arrays, less: Arrays | None = None) -> float:
    """The norm over all arrays, of their difference from those of ``less`` if given."""
    total = 0.0
    for name, value in arrays.items():
        difference = value.astype(np.float64) if less is None else value.astype(np.float64) - less[name]
        total += float((difference**2).sum())
    return math.sqrt(total)


def _folder(state: Path, study: Study, run: str) -> Path:
    return state / FOLDER / f"{study.sha256[:32]}-{run}"


def read_course(state: Path, study: Study, run: str) -> tuple[Course, dict[str, npt.NDArray[Any]] | None]:
    """What is remembered of this run, and the weights that came last; a new course and None if nothing is."""
    from safetensors.numpy import load_file

    folder = _folder(state, study, run)
    try:
        course = Course(**json.loads((folder / "course.json").read_text()))
        return course, dict(load_file(folder / f"{course.round}.safetensors"))
    except (OSError, ValueError, TypeError):
        return Course(run), None


def keep_course(state: Path, study: Study, course: Course, received: Arrays) -> None:
    """Replaces what is remembered of the run's last round; the oldest runs are forgotten."""
    from safetensors.numpy import save

    folder = _folder(state, study, course.run)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{course.round}.safetensors", save({k: np.ascontiguousarray(v) for k, v in received.items()}))
    write_whole(folder / "course.json", json.dumps(asdict(course)).encode())
    for old in folder.glob("*.safetensors"):
        if old.stem != str(course.round):
            old.unlink()
    for old in sorted(folder.parent.iterdir(), key=lambda place: place.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def joined_late(course: Course, study: Study, number: int, update: float, training_persons: int) -> Course:
    """The course of a site that was not there before round ``number``, as if it had returned what its training would: a change of gradient,
    the length of its update over learning rate and steps, in each round up to ``_ROUNDS``."""
    steps = planned_steps(study, training_persons)
    rate = training_of_round(study, 1).lr  # that of ``update``
    return replace(course, returned=min(number - 1, _ROUNDS) * update / (rate * max(steps, 1)))


def followed(study: Study, course: Course, number: int, received: Arrays, sent: Arrays, returned: Arrays) -> Course:
    """The course after an answered round."""
    longest = max(course.longest, length(sent, received))
    known = (*course.digests, _digest(received)) if study.training.keep == "best" else ()
    return replace(course, round=number, longest=longest, returned=course.returned + length(returned), digests=known)


def _digest(arrays: Arrays) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name}\0".encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Arrival:
    """Weights that arrive: with them round ``number`` begins. ``last``: those of round ``course.round``; None: the run is new here.

    ``first``: the study's first weights. ``update``: the length of the update that this site's training makes of them, for a site that was
    not there in the first round. ``final``: they are evaluated at the end of the run.
    """

    final: bool
    number: int
    weights: Arrays
    course: Course
    last: Arrays | None
    first: Callable[[], Arrays]
    update: Callable[[], float]


def check_weights(study: Study, algorithm: Algorithm, arrived: Arrival, max_drift: float) -> None:
    """Raises ``SiteError`` if the weights cannot be those that follow from the plan."""
    number, received, course = arrived.number, arrived.weights, arrived.course
    last = arrived.first() if arrived.last is None else arrived.last
    if received.keys() != last.keys() or any(value.shape != last[name].shape for name, value in received.items()):
        raise SiteError(Reason.BAD_MESSAGE, "the arrays are not those of the study's model")
    if arrived.last is None and number == 1:
        if any(not np.allclose(value, last[name], *_SAME) for name, value in received.items()):
            raise SiteError(Reason.OFF_PLAN, "the weights of the first round are not those of the study's seed")
        return
    if arrived.last is None:
        course = Course(course.run, 1, arrived.update())
    if number <= course.round:
        raise SiteError(Reason.OFF_PLAN, f"round {number} is requested after round {course.round}")
    if arrived.final and _digest(received) in course.digests:
        return
    rounds = min(number - course.round, _ROUNDS) + (_behind(study, course.round) if arrived.final else 0)
    far, allowed = length(received, last), _reach(study, algorithm, course, rounds, received, max_drift)
    if not far <= allowed:
        raise SiteError(
            Reason.OFF_PLAN,
            f"the weights of round {number} are {far:.3g} away from those of round {course.round}; {allowed:.3g} is the farthest that this "
            f"site's own updates (longest {course.longest:.3g}) make plausible, with [policy] max_drift = {max_drift:g}",
        )


def _reach(study: Study, algorithm: Algorithm, course: Course, rounds: int, weights: Arrays, max_drift: float) -> float:
    """How far the server's steps can move the weights in so many rounds."""
    count = sum(value.size for value in weights.values())
    longest = max_drift * course.longest * _growth(study, course.round, rounds)
    step = longest if algorithm.server is None else algorithm.server.reach(longest, count)
    if study.privacy.unit == "site":
        from fedml.privacy.releases import noise_multiplier

        norm = max(study.privacy.clipping_norm, course.longest)
        step += (math.sqrt(count) + _NOISE) * noise_multiplier(study, "") * norm / len(study.federation.training)
    # The first weights differ in the last bits between versions of torch.
    return rounds * step + 1e-3 * (1 + length(weights))


def _behind(study: Study, number: int) -> int:
    """By how many rounds the result of a run may lie behind the model of round ``number``: a moving average by 1 / (1 - decay), the
    best round by those that this site may have missed."""
    if study.training.ema:
        return min(number, math.ceil(1 / (1 - study.training.ema)))
    return min(number, _ROUNDS) if study.training.keep == "best" else 0


def _growth(study: Study, known: int, rounds: int) -> float:
    """By how much the largest learning rate of the ``rounds`` from round ``known`` on exceeds that of the rounds up to it; at least 1.

    In a warm-up the site's own updates are shorter than those of later rounds, of which it may have missed some.
    """
    schedule = study.training.schedule
    if schedule is None or not known:
        return 1.0
    last = min(known + min(rounds, _ROUNDS) - 1, study.federation.rounds)
    shares = [schedule.share(n, study.federation.rounds) for n in range(1, max(known, last) + 1)]
    return max(shares) / max(shares[:known])


def check_values(algorithm: Algorithm, config: Mapping[str, Any], number: int) -> None:
    """Raises ``SiteError`` if the server's values for the site are not those of the study."""
    if int(config.get("server-round", number)) != number:
        raise SiteError(Reason.OFF_PLAN, "server-round is another round than the message's")
    for key, value in algorithm.sends.values.items():
        if config.get(key) != value:
            raise SiteError(Reason.OFF_PLAN, f"{key} differs from the study's {value:g}")


def check_sent(algorithm: Algorithm, records: Mapping[str, Arrays], course: Course, max_drift: float) -> None:
    """Raises ``SiteError`` if a record of the algorithm is longer than what the sites returned can make it."""
    for name in algorithm.sends.records:
        if not length(records[name]) <= max_drift * course.returned + 1e-6:
            raise SiteError(Reason.OFF_PLAN, f"{name} is longer than [policy] max_drift times all that this site returned")


def check_stated(stated: Mapping[str, Any], constants: Arrays) -> None:
    """Raises ``SiteError`` if constants differ from those that follow from the study alone."""
    for name, value in stated.items():
        if name not in constants or not np.allclose(constants[name], value.numpy(), *_SAME):
            raise SiteError(Reason.OFF_PLAN, f"{name} is not what the study states")


def check_constants(sums: Arrays, constants: Arrays) -> None:
    """Raises ``SiteError`` if preprocessing constants do not fit the site's own sums (3, columns): count, sum, sum of squares."""
    for name, (count, total, squares) in sums.items():
        if f"{name}.mean" not in constants or f"{name}.std" not in constants:
            continue
        n = np.maximum(count, 1)
        mean = total / n
        std = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
        agreed_mean, agreed_std = (constants[f"{name}.{what}"].astype(np.float64) for what in ("mean", "std"))
        if agreed_mean.shape != mean.shape or agreed_std.shape != std.shape:
            raise SiteError(Reason.BAD_MESSAGE, f"the constants of {name} have another number of columns")
        room = 1e-6 * (np.abs(mean) + std)  # float32
        small = (agreed_std > 0) & (std > _FARTHEST * agreed_std + room)
        far = np.abs(agreed_mean - mean) > _FARTHEST * np.maximum(agreed_std, std) + room
        if ((count > 1) & (small | far)).any() or (agreed_std < 0).any():
            raise SiteError(Reason.OFF_PLAN, f"the constants of {name} do not fit this site's persons")


def check_class_weights(persons: npt.NDArray[np.int64], weights: npt.NDArray[Any] | None, fewest: int) -> None:
    """Raises ``SiteError`` if weights of classes cannot be inverse to frequencies, or leave fewer effective persons than ``fewest``.

    Args:
        persons: (classes,) training persons of this site. fewest: 0 for public data.
    """
    if weights is None or weights.shape != persons.shape or (weights < 0).any() or not weights.any():
        raise SiteError(Reason.OFF_PLAN, "there are no weights of classes, or not of this study's classes")
    present = weights[weights > 0].astype(np.float64)
    if abs((1 / present).sum() / len(present) - 1) > 1e-3 or (persons[weights == 0] >= max(fewest, 1)).any():
        raise SiteError(Reason.OFF_PLAN, "the weights of classes are not inverse to frequencies of which this site's persons are a part")
    check_effective(persons, weights, fewest)
