"""What a study releases of a person or of a site, as events, before anything is run: every figure comes from here and the accountant.

Unit ``patient``: a training person of a site is in each of the site's DP-SGD steps with the site's sampling rate, and in its noised
statistics once; a held-out person is in the noised counts of each evaluation, if ``metrics = "private"``. A person is in one part only, so
parts compose in parallel and the worst part counts. Unit ``site``: a site's update is in each round's noised mean.

    plan = sampling(study, "oslo")              # rate, divisor, steps a round
    z = noise_multiplier(study, "oslo")         # stated, or solved for the stated epsilon
    events = training_events(study, "oslo")     # of the whole study, or of so many rounds
    claims(study)                               # what may be said of it: {site: Claim}, or {"": Claim} for unit site
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from fedml.errors import InputError
from fedml.modalities.registry import modalities_of
from fedml.study.sections import PartName
from fedml.study.study import Study
from fedml.wire.records import Phase

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from fedml.privacy.accounting import Claim

EVALUATIONS_AT_END = 1


@dataclass(frozen=True)
class Sampling:
    """One site's DP-SGD: each person is in a step with probability ``rate``; the noisy sum is divided by ``divisor`` (persons)."""

    rate: float
    divisor: float
    steps: int  # a round


def sampling(study: Study, site: str) -> Sampling:
    """From the study alone: the stated number of persons stands for the real one, which is not released."""
    persons = study.privacy.persons[site]
    expected = min(study.training.batch_size or persons, persons)
    rate = expected / persons
    return Sampling(rate, float(expected), study.training.local_epochs * math.ceil(persons / expected))


def statistics_events(study: Study) -> list[DpEvent]:
    """The noised sums before training, once a run."""
    from fedml.privacy.accounting import gaussian

    if study.privacy.unit != "patient" or study.privacy.statistics != "private":
        return []
    return gaussian(study.privacy.statistics_multiplier)


def round_events(study: Study, site: str, rounds: int, multiplier: float | None = None) -> list[DpEvent]:
    """``rounds`` rounds of training at ``site``, about a person there (unit patient) or about the site."""
    from fedml.privacy.accounting import sampled_gaussian

    z = noise_multiplier(study, site) if multiplier is None else multiplier
    if study.privacy.unit == "site":
        return sampled_gaussian(1.0, z, rounds)
    plan = sampling(study, site)
    return sampled_gaussian(plan.rate, z, rounds * plan.steps)


def training_events(study: Study, site: str, rounds: int | None = None, multiplier: float | None = None) -> list[DpEvent]:
    """All that is released of one training person of ``site``, or of ``site``, in so many rounds (the study's own if left out)."""
    rounds = study.federation.rounds if rounds is None else rounds
    return [*statistics_events(study), *round_events(study, site, rounds, multiplier)]


def evaluations(study: Study) -> int:
    """How often validation persons are counted in a whole study."""
    every = study.training.evaluate_every
    return (math.ceil(study.federation.rounds / every) if every else 0) + EVALUATIONS_AT_END


@lru_cache(maxsize=256)
def metrics_multiplier(study: Study) -> float:
    """Noise multiplier of each noised count: as stated for training, or what keeps all evaluations together at the stated epsilon."""
    from fedml.privacy.accounting import sampled_gaussian

    return _solved(study, "metrics", lambda z: sampled_gaussian(1.0, z, evaluations(study)))


def evaluation_events(study: Study, times: int | None = None) -> list[DpEvent]:
    """All that is released of one validation person when counts are noised; nothing otherwise (then they are not covered)."""
    from fedml.privacy.accounting import sampled_gaussian

    if study.privacy.unit != "patient" or study.privacy.metrics != "private":
        return []
    return sampled_gaussian(1.0, metrics_multiplier(study), evaluations(study) if times is None else times)


def message_events(study: Study, site: str, phase: Phase, number: int) -> dict[PartName, list[DpEvent]]:
    """What the answer to one message releases of a person, by the part in which the person is. A site's ledger is charged with it."""
    if study.privacy.unit != "patient":
        return {}
    if phase is Phase.STATISTICS:
        return {"train": statistics_events(study)}
    counted = dict.fromkeys(counted_parts(study, phase, number), evaluation_events(study, 1))
    return {"train": round_events(study, site, 1), **counted} if phase is Phase.ROUND else {**counted}


def counted_parts(study: Study, phase: Phase, number: int) -> tuple[PartName, ...]:
    """Whose counts the answer to one message holds, under unit patient: nobody's who trains."""
    every = study.training.evaluate_every
    if phase is Phase.ROUND:
        return ("val",) if every and (number - 1) % every == 0 else ()
    return ("val", "test") if phase is Phase.EVALUATE else ()


@lru_cache(maxsize=256)
def noise_multiplier(study: Study, site: str) -> float:
    """The study's own, or the smallest with which the whole study stays within its epsilon at ``site``.

    Raises:
        InputError: no noise is enough.
    """
    return _solved(study, site, lambda z: training_events(study, site, multiplier=z))


def _solved(study: Study, what: str, events_of: Callable[[float], list[DpEvent]]) -> float:
    from fedml.privacy.accounting import solve_noise_multiplier

    plan = study.privacy
    if plan.noise_multiplier is not None:
        return plan.noise_multiplier
    assert plan.epsilon is not None  # noqa: S101 - the study was validated
    try:
        return solve_noise_multiplier(plan.epsilon, plan.delta, events_of)
    except ValueError as error:
        raise InputError(
            f"[privacy] epsilon {plan.epsilon:g} cannot be kept ({what}: {error}); raise it, plan fewer rounds, or raise "
            "statistics_multiplier if statistics are private."
        ) from error


def events_by_site(study: Study, rounds: Mapping[str, int] | None = None) -> dict[str, list[DpEvent]]:
    """A whole study's events by site; ``rounds`` are those in which a site was asked. Unit site: one entry, named ``""``."""
    if study.privacy.unit == "none":
        return {}
    if study.privacy.unit == "site":
        most = study.federation.rounds if rounds is None else max(rounds.values(), default=0)
        return {"": training_events(study, "", most)}
    done = dict.fromkeys(study.federation.sites, study.federation.rounds) if rounds is None else dict(rounds)
    return {site: training_events(study, site, n) for site, n in done.items()}


def claims(study: Study, rounds: Mapping[str, int] | None = None) -> dict[str, Claim]:
    """What may be said about the study's privacy, by site (unit patient) or once, under ``""`` (unit site)."""
    from fedml.privacy.accounting import claim

    out = {}
    for site, events in events_by_site(study, rounds).items():
        worst = max((events, evaluation_events(study)), key=lambda e: _epsilon(study, e))
        unit: Literal["person", "site"] = "site" if study.privacy.unit == "site" else "person"
        out[site] = claim(unit, worst, study.privacy.delta, covered(study), not_covered(study))
    return out


def _epsilon(study: Study, events: list[DpEvent]) -> float:
    from fedml.privacy.accounting import epsilon

    return epsilon(events, study.privacy.delta)


def covered(study: Study) -> tuple[str, ...]:
    """What the figure is about."""
    plan = study.privacy
    if plan.unit == "site":
        return ("the models of every round and the final model, for whoever sees them",)
    told = ["each trained model that leaves a site, and so every model made of them"]
    if plan.statistics == "private":
        told.append("the sums from which inputs are standardised")
    if plan.metrics == "private":
        told.append("the counts behind every metric")
    return tuple(told)


def not_covered(study: Study) -> tuple[str, ...]:
    """What is released besides, and who has to be trusted."""
    plan, told = study.privacy, list[str]()
    if plan.unit == "site":
        told.append("what the server itself receives: each site's own update")
        told.append("the counts behind the metrics, and how many persons each site has")
    elif plan.metrics == "exact":
        told.append("the counts behind the metrics, about persons who are not trained on")
    told += [text for modality in modalities_of(study) for text in modality.words.uncovered(study)]
    told.append("that a site took part, or refused and by which code")
    return tuple(told)
