"""What a curve says after the last round: a model that was not trained, that still improves, or that is past its best; who chose it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from fedml.runs.events import Event, PartScores, Round
from fedml.study.study import Study
from fedml.tasks.registry import make_task

_ROUNDS = 6  # fewer are no curve
_FALLING = 0.05  # relative fall of the training loss from one third of the rounds to the next
_RISING = 0.01  # gain of the validation metric from one third of the rounds to the next, on the scale of _PAST
_PAST = 0.02  # of a metric between 0 and 1, relative of others: how much better an earlier round was than the last ones

_MORE = "more rounds may help"


def hints(study: Study, events: Sequence[Event]) -> list[str]:
    """Sentences for the person who ran it, none if the curve has settled. A round's metrics are of the model before that round."""
    rounds = [event for event in events if isinstance(event, Round)]
    if not rounds or not (study.federation.rounds and (study.training.local_steps or study.training.local_epochs)):
        return ["the model was not trained: set [federation] rounds and [training] local_epochs to 1 or more"]
    return [text for text in (_past(study, rounds), _choosers(study, rounds)) if text]


def without_score(study: Study, scores: PartScores, sites: Iterable[str]) -> list[str]:
    """Those of ``sites`` with no value of the watched metric of their own: they sent no scores, or too few persons of a class give none.

    Noised counts come of every site, so of a study with noised metrics none is named."""
    if study.privacy.metrics == "private":
        return []
    watched = make_task(study).watched
    values = {site: scores["sites"].get(site, {}).get(watched) for site in sites}
    return [site for site, value in values.items() if value is None or not math.isfinite(value)]


def choosers(study: Study, lacking: Sequence[str], sites: int) -> str:
    """A sentence about a choice by the validation metric, if some of the ``sites`` have none; otherwise empty."""
    if not lacking:
        return ""
    return (
        f"the choice is by the validation {make_task(study).watched}, which {sites - len(lacking)} of {sites} sites have; too few "
        f"validation persons, or too few of a class: {', '.join(lacking)}"
    )


def _choosers(study: Study, rounds: Sequence[Round]) -> str:
    last = next((event for event in reversed(rounds) if "val" in event.metrics), None)
    if last is None or (study.training.keep != "best" and not study.training.patience):
        return ""
    return choosers(study, without_score(study, last.metrics["val"], last.sites), len(last.sites))


def _past(study: Study, rounds: Sequence[Round]) -> str:
    """The validation curve is past its best, or still rises; without one, the training loss still falls."""
    task = make_task(study)
    curve = [
        (r.round - 1, value) for r in rounds if "val" in r.metrics and (value := r.metrics["val"]["all"].get(task.watched)) is not None
    ]
    curve = [(number, value) for number, value in curve if math.isfinite(value)]
    if study.privacy.metrics == "private":  # noised figures have a best round by chance
        return ""
    if len(curve) < _ROUNDS:
        return "" if curve else _falling(rounds)
    values = np.array([value for _, value in curve])
    smooth = np.convolve(values, np.ones(3) / 3, mode="valid")  # one round of few persons is best by chance
    best = int(smooth.argmax() if task.higher else smooth.argmin())
    scale = 1.0 if task.higher else max(abs(float(smooth[-1])), 1e-12)
    if best < len(smooth) * 2 // 3 and abs(smooth[best] - smooth[-1]) / scale >= _PAST:
        better = "fewer rounds, a smaller learning rate or more weight decay may be better"
        kept = (
            'keep = "best" made the best round\'s model the result'
            if study.training.keep == "best"
            else '[training] keep = "best" takes it'
        )
        return (
            f"past its best: validation {task.watched} was {smooth[best]:.3f} around round {curve[best + 1][0]} and {smooth[-1]:.3f} at "
            f"the end (means of three rounds); {better}; {kept}"
        )
    third = len(values) // 3
    middle, late = float(values[third : 2 * third].mean()), float(values[-third:].mean())
    if (late - middle if task.higher else middle - late) / scale < _RISING:
        return ""
    return f"still improving: validation {task.watched} went from {middle:.3f} to {late:.3f} from the second to the last third; {_MORE}"


def _falling(rounds: Sequence[Round]) -> str:
    losses = np.array([loss for r in rounds if (loss := mean_loss(r)) is not None])
    if len(losses) < _ROUNDS or not np.isfinite(losses).all():
        return ""
    third = len(losses) // 3
    middle, late = float(losses[third : 2 * third].mean()), float(losses[-third:].mean())
    if middle <= 0 or (middle - late) / middle < _FALLING:
        return ""
    return f"still learning: the training loss fell from {middle:.4g} to {late:.4g} from the second to the last third; {_MORE}"


def mean_loss(event: Round) -> float | None:
    """Mean training loss of a round over the persons of all sites that sent theirs; None without one."""
    known = [(row["train_loss"], row["seen"]) for row in event.sites.values() if row["train_loss"] is not None and row["seen"]]
    return sum(loss * seen for loss, seen in known) / sum(seen for _, seen in known) if known else None
