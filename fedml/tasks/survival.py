"""Survival: the time to an event in intervals of the study's grid (``fedml.tasks.survival_labels``).

``[model] survival = "discrete"``: the network gives log-odds of the event in each interval for a person who is at risk in it (Gensheimer
and Narasimhan 2019, "A scalable discrete-time survival model for neural networks", PeerJ 7:e6257). The loss is a sum over persons, so
training over sites is that of the pooled persons.

``"cox"``: the network gives a log-hazard, trained by the partial likelihood (Cox 1975, Biometrika 62:269; ties by Breslow 1974, Biometrics
30:89) *of the persons of one step*, who are of one site: not the pooled partial likelihood. Beside it a
baseline is learned, the log-odds of each interval, to which the log-hazard is added (the discrete model of Cox 1972, JRSS B 34:187). The
network's weights get no gradient from it, and it none that grows with a person's hazard, so a person far off cannot throw it.

A competing event ends the time at risk as censoring does: hazards are those of the event of interest (cause-specific).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.errors import NotBuilt
from fedml.study.study import Study
from fedml.tasks.counts import Counts
from fedml.tasks.drawn import Statistic
from fedml.tasks.survival_counts import coarse, count, grouped, scored_places, survival_fields
from fedml.tasks.survival_labels import time_labels
from fedml.tasks.survival_measures import survival_measures
from fedml.tasks.survival_over_time import survival_over_time
from fedml.tasks.task import Answer, Compared, Floats, Result, Task, Words, unchanged

EVALUATION_BATCH = 512  # persons; gradients are not kept
_BLOCK = 512  # events whose pairs are in memory at a time


def survival_task(study: Study) -> Task:
    """The task of a study whose target is the time to an event of each person."""
    times, target, cox = study.times, study.cohort.time_to_event, study.model.survival == "cox"
    places, last = len(times.edges), times.places[-1]
    log_alive = _cox_log_alive if cox else _discrete_log_alive
    losses = _cox_log_losses if cox else log_losses
    event, until = target.names[0], ", ".join(f"{h:g}" for h in times.horizons)

    def risk_of(output: torch.Tensor) -> Floats:
        return risks(log_alive(output.double()), last)

    unknown = ["It does not state how a predicted risk would change a person's treatment."]
    if len(target.names) > 1:
        unknown.append(f"Competing events ({', '.join(target.names[1:])}) count as censored, so a risk is that if there were none of them.")
    if target.entry is not None:
        unknown.append("Training allows for late entry; the measures of tested persons do not.")
    return Task(
        name=study.model.task, traits=study.traits, classes=(), scored={}, outputs=places + 1 if cox else places,
        truth=itemgetter("label"), loss=cox_loss if cox else discrete_loss, counts=_counts(study, log_alive, losses),
        fields=survival_fields(times), coarse=coarse, grouped=partial(grouped, horizons=times.places), spread=unchanged,
        evaluation_batch=EVALUATION_BATCH, measures=survival_measures(times), watched="c_index", higher=True, measure="c_index",
        risks=False, over_time=partial(survival_over_time, times, event), labels=time_labels(study), answer=_answer(study, log_alive),
        compared=Compared(values=lambda output, truth: risk_of(output), statistic=drawn_c_index),
        linear_score=NotBuilt("a hazard has no type in a scoring file"),
        words=Words(
            predicts=f"the time to {event}, in {places} intervals until {times.until:g} {times.time_unit}"
            + (", by the partial likelihood of each step" if cox else ", by the hazard of each interval"),
            counts="persons by time, event and risk (tables), sums of predicted survival and of its squares, and of log-losses",
            outcome=f"The outcome is the time to {event} in {times.time_unit}, in the columns {' and '.join(target.columns)}, rounded up "
            "to "
            f"{places} times until {times.until:g}.",
            output=f"The model gives the probability of no {event} by {until} {times.time_unit}.",
            balance=NotBuilt("a time has no classes that could be out of balance"),
            no_prediction="",
            no_classes="The outcome is a time and has no classes.",
            answer=lambda result: _sentences(event, result),
            unknown=tuple(unknown),
            groups="Times and risks of a group are released in few steps, so its C-index is less exact than that of all.",
        ),
    )  # fmt: skip


# --- outputs: (persons, places) log P(no event by the end of each place)


def _discrete_log_alive(output: torch.Tensor) -> torch.Tensor:
    return functional.logsigmoid(-_log_odds(output)).cumsum(1)


def _log_odds(output: torch.Tensor) -> torch.Tensor:
    """Log-odds of the event in each interval. An output of 0 is one event expected in the whole grid, not one half in each interval."""
    return output - math.log(output.shape[1])


def _cox_log_alive(output: torch.Tensor) -> torch.Tensor:
    return _discrete_log_alive(output[:, :1] + output[:, 1:])


def risks(log_alive: torch.Tensor, last: int) -> Floats:
    """(persons,) log(-log P(no event by the end of the place ``last``))."""
    out: Floats = (-log_alive[:, last]).clamp_min(torch.finfo(torch.float64).tiny).log().numpy()
    return out


# --- losses


def _at_risk(label: torch.Tensor, places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(persons, places) whether a person is at risk in each interval, and has the event of interest in it."""
    at = torch.arange(places, device=label.device)
    time = label[:, 0].long()[:, None]
    there = at <= time
    if label.shape[1] == 3:
        there &= at >= label[:, 2].long()[:, None]
    return there, (at == time) & (label[:, 1] == 1)[:, None]


def log_losses(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(persons,) -log likelihood of each person's intervals, of outputs (persons, places)."""
    there, happened = _at_risk(label, output.shape[1])
    losses = functional.binary_cross_entropy_with_logits(_log_odds(output), happened.to(output.dtype), reduction="none")
    return (losses * there).sum(1)


def discrete_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The mean over persons of ``log_losses``."""
    return log_losses(output, label).mean()


def _cox_log_losses(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(persons,) the same, of outputs (persons, 1 + places): the score, and the baseline."""
    return log_losses(output[:, :1] + output[:, 1:], label)


def partial_likelihood(score: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """-log partial likelihood of these persons by their number, ties by Breslow; 0 without an event. score: (persons,)."""
    time, event = label[:, 0], label[:, 1] == 1
    there = time[None, :] >= time[:, None]  # (event of a row, who is at risk then)
    if label.shape[1] == 3:
        there &= label[:, 2][None, :] <= time[:, None]
    at_risk = torch.logsumexp(score[None, :].expand_as(there).masked_fill(~there, -torch.inf), 1)
    return torch.where(event, at_risk - score, torch.zeros_like(score)).mean()


def cox_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """``partial_likelihood`` of the scores, and the mean over persons of the log-losses of the baseline at these scores."""
    baseline = torch.cat([output[:, :1].detach(), output[:, 1:]], 1)
    return partial_likelihood(output[:, 0], label) + _cox_log_losses(baseline, label).mean()


# --- counts, comparison


def _counts(
    study: Study, log_alive: Callable[[torch.Tensor], torch.Tensor], losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor, Any], Counts]:
    scored, last, places = list(scored_places(study.times)), study.times.places[-1], len(study.times.edges)

    def counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
        out, whole = output.detach().double(), label.double().numpy().astype(np.int64)
        found, each = log_alive(out), losses(out, label).numpy()
        if not (np.isfinite(each).all() and bool(torch.isfinite(found).all())):
            raise FloatingPointError("the model's output is not finite")
        sums = {"log_loss_sum": np.array([float(each.sum())]), "log_loss_sq_sum": np.array([float((each**2).sum())])}
        return count(risks(found, last), found[:, scored].exp().numpy(), whole[:, 0], whole[:, 1] == 1, places) | sums

    return counts


def drawn_c_index(labels: Floats, risk: Floats) -> Statistic:
    """Harrell's C-index of persons drawn with replacement. labels: (persons, 2 or 3). risk: (persons,)."""
    time, event = labels[:, 0], labels[:, 1] == 1
    cases = np.flatnonzero(event)

    def of(drawn: npt.NDArray[Any]) -> Floats:
        weight = drawn.astype(np.float64)
        above, below = np.zeros(len(weight)), np.zeros(len(weight))
        for at in range(0, len(cases), _BLOCK):
            rows = cases[at : at + _BLOCK, None]
            comparable = (time > time[rows]) | ((time == time[rows]) & ~event)
            right = comparable * ((risk < risk[rows]) + 0.5 * (risk == risk[rows]))
            above += (weight[:, rows[:, 0]] * (weight @ right.T)).sum(1)
            below += (weight[:, rows[:, 0]] * (weight @ comparable.T)).sum(1)
        out: Floats = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
        return out

    return of


# --- answers and sentences


def _answer(study: Study, log_alive: Callable[[torch.Tensor], torch.Tensor]) -> Answer:
    times, event = study.times, study.cohort.time_to_event.names[0]
    names, places = [f"survival_{horizon:g}" for horizon in times.horizons], list(times.places)

    def columns(output: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
        found = log_alive(output.detach().double())
        alive = found[:, places].exp()
        return {name: alive[:, k].tolist() for k, name in enumerate(names)} | {"risk": risks(found, places[-1]).tolist()}

    def caption(output: torch.Tensor) -> str:
        alive = float(log_alive(output[None].double())[0, places[-1]].exp())
        return f"P(no {event} by {times.horizons[-1]:g} {times.time_unit}) {alive:.2f}"

    return Answer(columns=columns, example={name: [0.5] for name in names} | {"risk": [0.0]}, caption=caption)


def _sentences(event: str, result: Result) -> list[str]:
    out = [f"Measured on {result.held}: C-index {result.headline}."]
    out += [f"Of two persons of whom one has {event} earlier, the model gives that one the higher risk in {result.percent('c_index')} of "
            "pairs (50 % would be a guess)."]  # fmt: skip
    main = result.estimates.get("c_index", {})
    if main.get("low") is not None and main["low"] <= 0.5:
        out += ["The ranking is worse than a guess." if main["high"] < 0.5 else "The model is not shown to be better than a guess."]
    for name, value in result.estimates.items():
        if name.startswith("ratio_") and value.get("value") is not None:
            out.append(f"At horizon {name.removeprefix('ratio_')}, observed over predicted risk is {result.say(value)}.")
    return out
