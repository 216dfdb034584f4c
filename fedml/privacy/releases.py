"""The privacy events that a study will release about a person or a site; with the accountant, the source of every privacy figure.

Unit ``patient``: a training person of a site is in each of the site's DP-SGD steps with the site's sampling rate, and once in its noisy
statistics; a held-out person is in the noisy counts of each evaluation, if ``metrics = "private"``. A person is in one part only, so parts
compose in parallel and the worst part counts. Unit ``site``: a site's update is in each round's noisy mean.

    plan = sampling(study, "oslo")              # rate, divisor, steps per round
    z = noise_multiplier(study, "oslo")         # as stated, or computed from the stated epsilon
    events = training_events(study, "oslo")     # of the whole study, or of a number of rounds
    claims(study)                               # privacy claims: {site: Claim}, or {"": Claim} for unit site
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from fedml.errors import InputError
from fedml.modalities.registry import modalities_of
from fedml.study.section import PartName
from fedml.study.study import Study
from fedml.wire.records import Phase

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from fedml.privacy.claims import Claim

EVALUATIONS_AT_END = 1


@dataclass(frozen=True)
class Sampling:
    """DP-SGD at a site: each person is in a step with probability ``rate``; the noisy sum is divided by ``divisor`` (persons)."""

    rate: float
    divisor: float
    steps: int  # per round


def sampling(study: Study, site: str) -> Sampling:
    """The sampling at ``site``, computed from the study's stated number of persons; the actual number is not released."""
    persons = study.privacy.persons[site]
    expected = min(study.training.batch_size or persons, persons)
    rate = expected / persons
    plan = study.training
    return Sampling(rate, float(expected), plan.local_steps or plan.local_epochs * math.ceil(persons / expected))


def statistics_events(study: Study) -> list[DpEvent]:
    """Events of the noisy sums before training, once per run."""
    from fedml.privacy.accounting import gaussian

    if study.privacy.unit != "patient" or study.privacy.statistics != "private":
        return []
    return gaussian(study.privacy.statistics_multiplier)


def round_events(study: Study, site: str, rounds: int, multiplier: float | None = None) -> list[DpEvent]:
    """Events of ``rounds`` training rounds at ``site``, about one of its persons (unit patient) or about the site."""
    from fedml.privacy.accounting import sampled_gaussian

    z = noise_multiplier(study, site) if multiplier is None else multiplier
    if study.privacy.unit == "site":
        return sampled_gaussian(1.0, z, rounds)
    plan = sampling(study, site)
    return sampled_gaussian(plan.rate, z, rounds * plan.steps)


def training_events(study: Study, site: str, rounds: int | None = None, multiplier: float | None = None) -> list[DpEvent]:
    """All events about a training person of ``site``, or about ``site``, in ``rounds`` rounds (None: the study's number of rounds)."""
    rounds = study.federation.rounds if rounds is None else rounds
    return [*statistics_events(study), *round_events(study, site, rounds, multiplier)]


def evaluations(study: Study) -> int:
    """Number of evaluations of validation persons in a whole study."""
    every = study.training.evaluate_every
    return (math.ceil(study.federation.rounds / every) if every else 0) + EVALUATIONS_AT_END


@lru_cache(maxsize=256)
def metrics_multiplier(study: Study) -> float:
    """Noise multiplier of each noisy count: as stated for training, or the one with which all evaluations together have the stated
    epsilon."""
    from fedml.privacy.accounting import sampled_gaussian

    return _solved(study, "metrics", lambda z: sampled_gaussian(1.0, z, evaluations(study)))


def evaluation_events(study: Study, times: int | None = None) -> list[DpEvent]:
    """All events about a validation person if counts are noisy; otherwise none (the counts are then not covered by the claim)."""
    from fedml.privacy.accounting import sampled_gaussian

    if study.privacy.unit != "patient" or study.privacy.metrics != "private":
        return []
    return sampled_gaussian(1.0, metrics_multiplier(study), evaluations(study) if times is None else times)


def message_events(study: Study, site: str, phase: Phase, number: int) -> dict[PartName, list[DpEvent]]:
    """Part of a person -> events of the reply to one message, with which a site charges its ledger."""
    if study.privacy.unit != "patient":
        return {}
    if phase is Phase.STATISTICS:
        return {"train": statistics_events(study)}
    counted = dict.fromkeys(counted_parts(study, phase, number), evaluation_events(study, 1))
    return {"train": round_events(study, site, 1), **counted} if phase is Phase.ROUND else {**counted}


def whole_events(study: Study, site: str, *, only_evaluated: bool = False) -> dict[PartName, list[DpEvent]]:
    """Part of a person -> events of all replies of ``site`` in a whole study, unit patient; the sum of ``message_events``.

    Args:
        only_evaluated: of the last evaluation alone.
    """
    if study.privacy.unit != "patient":
        return {}
    last = evaluation_events(study, 1)
    if only_evaluated or site in study.federation.evaluate_only:
        return {"val": last, "test": last}
    return {"train": training_events(study, site), "val": evaluation_events(study), "test": last}


def counted_parts(study: Study, phase: Phase, number: int) -> tuple[PartName, ...]:
    """The parts whose counts are in the reply to one message, for unit patient; never the training part."""
    every = study.training.evaluate_every
    if phase is Phase.ROUND:
        return ("val",) if every and (number - 1) % every == 0 else ()
    return ("val", "test") if phase is Phase.EVALUATE else ()


@lru_cache(maxsize=256)
def noise_multiplier(study: Study, site: str) -> float:
    """The stated multiplier, or the smallest with which the whole study stays within its epsilon at ``site``.

    Raises:
        InputError: no multiplier is large enough.
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
            f"[privacy] epsilon {plan.epsilon:g} cannot be reached ({what}: {error}); raise epsilon, set fewer rounds, or raise "
            "statistics_multiplier if statistics are private."
        ) from error


def events_by_site(study: Study, rounds: Mapping[str, int] | None = None) -> dict[str, list[DpEvent]]:
    """Site -> events of a whole study; ``rounds``: number of rounds in which the site took part. Unit site: one entry, named ``""``."""
    if study.privacy.unit == "none":
        return {}
    if study.privacy.unit == "site":
        most = study.federation.rounds if rounds is None else max(rounds.values(), default=0)
        return {"": training_events(study, "", most)}
    done = dict.fromkeys(study.federation.training, study.federation.rounds) if rounds is None else dict(rounds)
    return {site: training_events(study, site, n) for site, n in done.items()}


def claims(study: Study, rounds: Mapping[str, int] | None = None, again: int = 0) -> dict[str, Claim]:
    """The study's privacy claims, by site (unit patient) or one, under ``""`` (unit site).

    Args:
        again: evaluations that a resumed run may have requested twice.
    """
    from fedml.privacy.claims import claim

    out = {}
    for site, events in events_by_site(study, rounds).items():
        counts = evaluation_events(study, evaluations(study) + again)
        worst = max((events, counts), key=lambda e: _epsilon(study, e))
        unit: Literal["person", "site"] = "site" if study.privacy.unit == "site" else "person"
        out[site] = claim(unit, worst, study.privacy.delta, covered(study), not_covered(study))
    if evaluated := evaluation_events(study, 1 + again):
        for site in study.federation.evaluate_only:
            out[site] = claim("person", evaluated, study.privacy.delta, ("the counts behind every metric",), not_covered(study))
    return out


def attacker_sentence(study: Study) -> str:
    """How often the best attacker is right about one person, or one site, after the whole study (``fedml.privacy.claims.attacker``)."""
    from fedml.privacy.claims import attacker

    unit: Literal["person", "site"] = "site" if study.privacy.unit == "site" else "person"
    return attacker(unit, [*events_by_site(study).values(), evaluation_events(study)], study.privacy.delta)


def _epsilon(study: Study, events: list[DpEvent]) -> float:
    from fedml.privacy.accounting import epsilon

    return epsilon(events, study.privacy.delta)


def covered(study: Study) -> tuple[str, ...]:
    """The releases that the claim covers."""
    plan = study.privacy
    if plan.unit == "site":
        return ("the models of every round and the final model, for every recipient of these models",)
    releases = ["each trained model that leaves a site, and every model computed from them"]
    if plan.statistics == "private":
        releases.append("the sums from which inputs are standardised")
    if plan.metrics == "private":
        releases.append("the counts behind every metric")
    return tuple(releases)


def not_covered(study: Study) -> tuple[str, ...]:
    """The releases that the claim does not cover."""
    plan, releases = study.privacy, list[str]()
    if plan.unit == "site":
        releases.append("each site's update, which the server receives")
        releases.append("the counts behind the metrics, and the number of persons at each site")
    elif plan.metrics == "exact":
        releases.append("the counts behind the metrics, about persons not used for training")
    releases += [text for modality in modalities_of(study) for text in modality.words.uncovered(study)]
    releases.append("that a site took part, or that it refused and its reason code")
    return tuple(releases)
