"""Whether a reply of the declared form is possible at all: numbers of persons that the site described, sums that persons can have, and
arrays that can be added to those of other sites. A false reply within these bounds is not found.

    check_plausible(study, Phase.ROUND, reply, agreement.persons["oslo"])     # at the server, after ``check_form``

An honest site meets the rules unless a value of its data is above ``LARGEST_VALUE`` or its training diverges. Each reply is checked alone,
before it is added to others, so an error names the site that made it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedml.contract.disclosure import HIDDEN
from fedml.contract.replies import read_arrays
from fedml.errors import Reason, SiteError
from fedml.learning.training import passes
from fedml.study.study import Study
from fedml.tasks.clusters import DESIGN
from fedml.tasks.clusters import implausible as unlikely
from fedml.tasks.lost import implausible
from fedml.wire.records import ARRAYS, COUNTS, DESCRIBED, EXCLUDED, IMAGE_SHAPE, METRICS, NUM_EXAMPLES, PERSONS, SUMS, Phase

MOST_PERSONS = 2**31  # of one site
MOST_VOXELS = 2**40  # of one image
LARGEST = 1e15  # absolute value of a weight, and mean loss of a person: products with ``MOST_PERSONS`` stay finite in float32
LARGEST_VALUE = 1e30  # absolute value of a quantity of one person: sums of its square stay finite in float64, and its mean in float32
_ROUNDING = 1e-6  # relative, of sums in another order
_AXIS = 2**20
_NOT_NEGATIVE = (
    "brier_sum",
    "log_loss_sum",
    "abs_sum",
    "e2_sum",
    "y2_sum",
    "deviance_sum",
    "deviance_sq_sum",
    "y_log_y_sum",
    *("alive_sum", "alive_sq_sum", "log_loss_sq_sum"),
)
Persons = Mapping[str, Sequence[int]]  # part -> persons by class, as the site described them


def check_plausible(study: Study, phase: Phase, reply: RecordDict, persons: Persons | None) -> None:
    """Raises ``SiteError`` (``implausible``) if no site with these persons can send ``reply``.

    Args:
        persons: None: not known, as in ``describe`` and with privacy of a patient.
    """
    if phase is Phase.DESCRIBE:
        _check_described(read_arrays(reply, DESCRIBED))
    if SUMS in reply and study.privacy.unit == "none":  # noise may make a private sum impossible
        for value in read_arrays(reply, SUMS).values():
            _check_moments(value)
    if ARRAYS in reply and phase is Phase.ROUND:
        for name, value in read_arrays(reply, ARRAYS).items():
            if value.size and float(np.abs(value).max()) > LARGEST:
                raise _wrong(f"{name} has a weight above {LARGEST:g}")
    if METRICS in reply and persons is not None:
        _check_metrics(study, dict(reply.metric_records[METRICS]), sum(persons["train"]))
    if COUNTS in reply and study.privacy.metrics != "private":
        check_counts(read_arrays(reply, COUNTS), persons)


def _wrong(text: str) -> SiteError:
    return SiteError(Reason.IMPLAUSIBLE, text)


def _check_described(values: Mapping[str, npt.NDArray[Any]]) -> None:
    if PERSONS in values and int(values[PERSONS].max(initial=0)) > MOST_PERSONS:
        raise _wrong(f"more than {MOST_PERSONS} persons of a class")
    excluded = values.get(EXCLUDED)
    if excluded is not None and excluded.size and not HIDDEN <= int(excluded.min()) <= int(excluded.max()) <= MOST_PERSONS:
        raise _wrong("a number of excluded persons is negative or too large")
    shape = [int(n) for n in values.get(IMAGE_SHAPE, np.zeros(0, np.int64)).tolist()]
    if shape and (not all(0 < n <= _AXIS for n in shape) or math.prod(shape) > MOST_VOXELS):
        raise _wrong(f"an image has at least one voxel along each axis, and at most {MOST_VOXELS} voxels")


def _check_moments(value: npt.NDArray[Any]) -> None:
    """Count, sum and sum of squares, (3, quantities): the count is not negative, and the square of the mean is at most the mean square."""
    count, total, squares = value
    if (count < 0).any() or (squares < 0).any() or float(count.max(initial=0)) > MOST_VOXELS * float(MOST_PERSONS):
        raise _wrong("a count or a sum of squares is negative or too large")
    if ((count == 0) & ((total != 0) | (squares != 0))).any():
        raise _wrong("a sum of no persons is not 0")
    n = np.maximum(count, 1)
    if (np.abs(total) / n > LARGEST_VALUE).any() or (squares / n > LARGEST_VALUE**2).any():
        raise _wrong(f"the mean of a quantity is above {LARGEST_VALUE:g}")
    if ((total / n) ** 2 > (squares / n) * (1 + _ROUNDING) + np.finfo(np.float64).tiny).any():
        raise _wrong("the square of a mean is larger than the mean square")


def _check_metrics(study: Study, metrics: Mapping[str, Any], training: int) -> None:
    trained, seen = int(str(metrics[NUM_EXAMPLES])), float(str(metrics.get("seen", 0)))
    if trained > training:
        raise _wrong(f"{trained} persons trained, the site described {training}")
    if not 0 <= seen <= max(trained, 1) * passes(study.training, trained):
        raise _wrong("more persons were seen than trained, in all passes of a round")
    if abs(float(str(metrics.get("loss-sum", 0)))) > LARGEST * max(seen, 1):
        raise _wrong(f"the mean loss of a person is above {LARGEST:g}")


def check_counts(counts: Mapping[str, npt.NDArray[Any]], persons: Persons | None) -> None:
    """Raises ``SiteError`` (``implausible``) if no site with these persons can have these counts.

    Args:
        counts: ``PART/NAME`` -> array. persons: as in ``check_plausible``.
    """
    for key, value in counts.items():
        part, _, name = key.partition("/")
        if value.dtype.kind in "iu" and value.size and int(value.min()) < 0:
            raise _wrong(f"{key} has a negative count")
        if value.size and float(np.abs(value.astype(np.float64)).max()) > MOST_PERSONS * LARGEST_VALUE**2:
            raise _wrong(f"{key} has a number above {MOST_PERSONS * LARGEST_VALUE**2:g}")
        if persons is not None and name == "persons":
            described = sum(persons[part.partition("@")[0]])
            if float(value.sum()) > described:
                raise _wrong(f"{key} counts {float(value.sum()):g} persons, the site described {described}")
        _check_scores(key, name, value, counts.get(f"{part}/persons"), counts.get(f"{part}/histogram"))
        _check_errors(key, name, float(value.sum()), {k.removeprefix(f"{part}/"): v for k, v in counts.items()})
        if name == "lost" and (why := implausible({k.removeprefix(f"{part}/"): v for k, v in counts.items() if k.startswith(f"{part}/")})):
            raise _wrong(f"{key} {why}")
        if name == DESIGN and (why := unlikely({k.removeprefix(f"{part}/"): v for k, v in counts.items() if k.startswith(f"{part}/")})):
            raise _wrong(f"{key} {why}")
        if name == "confusion" and float(value.sum()) != float(counts[f"{part}/persons"].sum()):
            raise _wrong(f"{key} has another number of persons than {part}/persons")


def _check_scores(key: str, name: str, value: npt.NDArray[Any], persons: Any, histogram: Any) -> None:
    """Sums and histograms of scores that so many persons can have."""
    people = float(persons.sum()) if persons is not None else math.inf
    if name in _NOT_NEGATIVE and float(value.min(initial=0)) < 0:
        raise _wrong(f"{key} is negative")
    if name == "brier_sum" and float(value.sum()) > 2 * people * (1 + _ROUNDING):
        raise _wrong(f"{key} is above 2 for each person")
    if name == "histogram" and float(value.sum(axis=(-1, -2), dtype=np.float64).max(initial=0)) > people:
        raise _wrong(f"{key} has more persons than {people:g}")
    if name in ("ranks", "times") and float(value.sum(dtype=np.float64)) > people:
        raise _wrong(f"{key} has more persons than {people:g}")
    if name == "tables" and float(value.sum(axis=(-1, -2), dtype=np.float64).max(initial=0)) > people:
        raise _wrong(f"{key} has more persons of a label than {people:g}")
    if name == "beyond" and histogram is not None:
        sides = histogram.sum(-1, dtype=np.float64)
        if (np.abs(value) > sides[:, 0] * sides[:, 1] * (1 + _ROUNDING)).any():
            raise _wrong(f"{key} has more pairs than there are")


def _check_errors(key: str, name: str, value: float, sums: Mapping[str, npt.NDArray[Any]]) -> None:
    """Sums of errors, of their absolute values and of their squares that the same persons can have (``sums``: of one part, by name)."""
    people, more = float(sums["persons"].sum()) if "persons" in sums else math.inf, 1 + _ROUNDING
    if name == "e_sum" and "abs_sum" in sums and abs(value) > float(sums["abs_sum"].sum()) * more:
        raise _wrong(f"{key} is larger than the sum of absolute errors")
    squares = {"abs_sum": "e2_sum", "deviance_sum": "deviance_sq_sum"}.get(name, "")
    if squares in sums and value**2 > people * float(sums[squares].sum()) * more + np.finfo(np.float64).tiny:
        raise _wrong(f"the square of the mean of {key} is larger than the mean square")
    if name == "y_sum" and "y_log_y_sum" in sums and (value < 0 or value != round(value)):
        raise _wrong(f"{key} is no number of events")
