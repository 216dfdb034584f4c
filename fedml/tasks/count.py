"""Counts of events: Poisson and negative binomial regression (NB2) with a log link and an exposure, and metrics from sums that add.

The model gives the logarithm of the expected count for one unit of exposure; with a negative binomial also log(dispersion), which is
learned (``fedml.networks.outcome.Dispersion``): variance = mu + dispersion mu^2 (Cameron and Trivedi 2013, "Regression Analysis of Count
Data", section 3.3). A person's label is the count, with an exposure (count, exposure): mu = exposure exp(output).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.errors import InputError, NotBuilt
from fedml.study.study import Study
from fedml.tasks.counts import Counts
from fedml.tasks.drawn import statistic
from fedml.tasks.interval_tools import Floats, Interval, Parts, student
from fedml.tasks.measure import Measure
from fedml.tasks.regression import MEASURES as OF_NUMBERS
from fedml.tasks.task import Answer, Cells, Compared, Fields, Labels, Result, Task, Words, not_grouped, unchanged

_SUMS = ("persons", "y_sum", "y_log_y_sum", "deviance_sum", "deviance_sq_sum", "log_loss_sum", "e_sum", "e2_sum", "abs_sum")
_FIELDS: Fields = dict.fromkeys(_SUMS, ("float64", (1,)))
EVALUATION_BATCH = 512  # persons; gradients are not kept


def count_task(study: Study) -> Task:
    """The task of a study whose target is a number of events of each person."""
    target, exposure, dispersed = study.cohort.outcome, study.cohort.exposure, study.model.counts == "negative_binomial"
    each = f"for one unit of {exposure}" if exposure else "of each person"
    return Task(
        name=study.model.task, traits=study.traits, classes=(), scored={}, outputs=2 if dispersed else 1,
        truth=itemgetter("label"), loss=count_loss, counts=count_sums, fields=_FIELDS, coarse=unchanged,
        grouped=not_grouped, spread=unchanged,
        evaluation_batch=EVALUATION_BATCH, measures=MEASURES, watched="deviance", higher=False, measure="deviance",
        risks=False, over_time=None,
        labels=_labels(study),
        answer=Answer(
            columns=lambda output, batch: {"predicted": output[:, 0].double().exp().tolist()},
            example={"predicted": [0.0]},
            caption=lambda output: f"predicted {float(output[0].double().exp()):.4g}",
        ),
        compared=Compared(
            values=lambda output, truth: expected(output.double(), truth.double()).numpy(),
            statistic=lambda labels, values: statistic("mean", labels, _deviance(_counted(labels), np.log(values), values)),
        ),
        linear_score=NotBuilt("the logarithm of a rate has no type in a scoring file"),
        words=Words(
            predicts=f"a number of events {each}",
            counts="sums of counts, of deviances, of errors and of their squares",
            outcome=f'The outcome is the column "{target}", a number of events'
            + (f', observed for an exposure in the column "{exposure}".' if exposure else "."),
            output=f"The model gives the expected number of events {each} ("
            + ("negative binomial with a learned dispersion)." if dispersed else "Poisson)."),
            balance=NotBuilt("a number has no classes that could be out of balance"),
            no_prediction="",
            no_classes="The outcome is a number of events and has no classes.",
            answer=lambda result: _answer(target, result),
            unknown=() if exposure else ("It does not state over which time events were counted, so the same time is assumed for all.",),
            groups="",
        ),
    )  # fmt: skip


# --- labels


def _labels(study: Study) -> Labels:
    target, exposure = study.cohort.outcome, study.cohort.exposure

    def read(cells: Cells) -> Floats:
        counts = cells.numbers(target)
        wrong = (counts < 0) | (counts != np.floor(counts)) & ~np.isnan(counts)
        if wrong.any():
            raise InputError(
                f'{cells.path}: column "{target}" holds no count for {int(wrong.sum())} person(s), such as {counts[wrong][0]:g}; '
                "write whole numbers from 0, or leave the cell empty."
            )
        if exposure is None:
            return counts
        time = cells.numbers(exposure, "[cohort] exposure")
        if (time <= 0).any():
            raise InputError(
                f'{cells.path}: column "{exposure}" is 0 or negative for {int((time <= 0).sum())} person(s); [cohort] exposure needs '
                "numbers above 0; correct the cell or leave it empty."
            )
        return np.where(np.isnan(counts + time)[:, None], np.nan, np.stack([counts, time], 1))

    def placeholder(labels: Floats, random: np.random.Generator) -> Floats:
        counts = random.poisson(2, len(labels)).astype(np.float64)
        return counts if exposure is None else np.stack([counts, random.uniform(0.5, 2, len(labels))], 1)

    return Labels(
        read=read,
        cells=lambda labels: dict(zip(filter(None, (target, exposure)), np.reshape(labels, (len(labels), -1)).T.tolist(), strict=True)),
        show=lambda label: " in ".join(f"{number:g}" for number in np.atleast_1d(label)),
        placeholder=placeholder,
        canary=NotBuilt("no audit of counts is built"),
    )


def _counted(labels: Floats) -> Floats:
    """(persons,) counts of labels with or without exposure."""
    return labels if labels.ndim == 1 else labels[:, 0]


# --- loss and sums


def _parts(output: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(persons,) counts and logarithms of their expected number."""
    if label.ndim == 1:
        return label, output[:, 0]
    return label[:, 0], output[:, 0] + label[:, 1].log()


def expected(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(persons,) expected counts over each person's own exposure."""
    return _parts(output, label)[1].exp()


def log_losses(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(persons,) -log P(the person's count), in double precision, because log-gamma functions cancel."""
    y, eta = _parts(output.double(), label.double())
    if output.shape[1] == 1:
        return eta.exp() - y * eta + torch.lgamma(y + 1)
    size = torch.exp(-output[:, 1].double())  # 1 / dispersion
    spread = torch.nn.functional.softplus(eta + output[:, 1].double())  # log(1 + dispersion mu)
    ways = torch.lgamma(y + size) - torch.lgamma(size) - torch.lgamma(y + 1)
    return size * spread - ways - y * (eta + output[:, 1].double() - spread)


def count_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """-log P(the person's count), the mean over persons."""
    return log_losses(output, label).mean()


def _deviance(y: Floats, eta: Floats, mu: Floats) -> Floats:
    """The Poisson deviance of each person. eta: log(mu), which is finite where mu is 0."""
    from scipy.special import xlogy

    out: Floats = 2 * (xlogy(y, y) - y * eta - y + mu)
    return np.maximum(out, 0)  # rounding may give a negative value


def count_sums(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """Sums over persons, each (1,): of counts y, of y log y, of Poisson deviances, of log-losses, of errors, and of squares."""
    from scipy.special import xlogy

    out = output.detach().double()
    y, eta = (part.numpy() for part in _parts(out, label.double()))
    with np.errstate(over="ignore"):
        mu = np.exp(eta)
    deviance, error = _deviance(y, eta, mu), mu - y
    sums = {
        "persons": float(len(y)), "y_sum": y.sum(), "y_log_y_sum": xlogy(y, y).sum(), "deviance_sum": deviance.sum(),
        "deviance_sq_sum": (deviance**2).sum(), "log_loss_sum": log_losses(out, label).sum(), "e_sum": error.sum(),
        "e2_sum": (error**2).sum(), "abs_sum": np.abs(error).sum(),
    }  # fmt: skip
    if not all(np.isfinite(float(v)) for v in sums.values()):
        raise FloatingPointError("the model's output is not finite, or too large for an expected count")
    return {name: np.array([float(sums[name])]) for name in _SUMS}


# --- measures


def _mean(counts: Mapping[str, npt.NDArray[Any]], key: str) -> float:
    return float(counts[key][0] / counts["persons"][0])


def _d2(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    """1 - deviance / deviance of the mean count of all."""
    total, persons = float(counts["y_sum"][0]), float(counts["persons"][0])
    if total <= 0:
        return float("nan")
    spread = 2 * (float(counts["y_log_y_sum"][0]) - total * np.log(total / persons))
    return float(1 - counts["deviance_sum"][0] / spread) if spread > 1e-9 * total else float("nan")


def _deviance_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    found = student([(float(p["persons"][0]), float(p["deviance_sum"][0]), float(p["deviance_sq_sum"][0])) for p in parts], level)
    return Interval(found.value, max(found.low, 0.0), found.high, level, found.method)


MEASURES: tuple[Measure, ...] = (
    Measure(
        name="deviance", of="all", value=lambda counts, one: _mean(counts, "deviance_sum"), interval=_deviance_interval,
        printed="mean Poisson deviance", axis="deviance", meaning="how far the expected count is from the true one, where an error "
        "counts more if few events are expected: 0 is perfect", bounds=None, guess=None, counted=False, additive=True, brief=True,
    ),
    Measure(
        name="d2", of="all", value=_d2, interval=NotBuilt("how the deviance hangs together with the mean count is not in the sums"),
        printed="D²", axis="D²", meaning="the share of the deviance of the mean count of all that the prediction explains",
        bounds=None, guess=None, counted=False, additive=False, brief=True,
    ),
    *(measure for measure in OF_NUMBERS if measure.name in ("rmse", "mae", "bias")),
    Measure(
        name="log_loss", of="all", value=lambda counts, one: _mean(counts, "log_loss_sum"),
        interval=NotBuilt("the spread of log-losses is not in the sums"), printed="log loss", axis="log loss",
        meaning="minus the logarithm of the probability of the true count, on average", bounds=None, guess=None, counted=False,
        additive=True, brief=False,
    ),
)  # fmt: skip


def _answer(target: str, result: Result) -> list[str]:
    d2, off = result.estimates["d2"]["value"], result.estimates["mae"]
    better = f"it explains {result.percent('d2')} of the deviance" if d2 is None or d2 > 0 else "the mean of all would be closer"
    first = f"Of {result.held}, the expected {target} has a mean Poisson deviance of {result.headline}; {better} (D² {result.number(d2)})."
    return [first, f"It is off by {result.say(off)} events on average."]
