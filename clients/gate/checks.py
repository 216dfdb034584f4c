"""The checks of the gate on one request and one reply: their records, sizes, numbers of persons, and limits. They keep no state."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedml.analytics import forms
from fedml.clients.gate.journal import RecordNote
from fedml.clients.site.manifest import Manifest, Policy
from fedml.clients.work import genomics, outcome_checks
from fedml.clients.work.client import smallest_of
from fedml.clients.work.half import check_declared, round_training, site_algorithm
from fedml.clients.work.request import Request
from fedml.cohort.groups import reportable_groups
from fedml.cohort.persons import Cohort
from fedml.contract.encoded import plain_reply
from fedml.contract.extras import NO_EXTRAS, Shapes
from fedml.contract.replies import check_form, is_finite, read_arrays
from fedml.errors import Reason, SiteError
from fedml.strategies.algorithms.algorithm import returned
from fedml.study.section import PARTS
from fedml.study.study import Study
from fedml.wire.records import (
    AGREEMENT,
    ANALYSES,
    ANALYSIS,
    ARRAYS,
    CLASS_WEIGHTS,
    CONFIG,
    COUNTS,
    DESCRIBED,
    EXCLUDED,
    FLIPS,
    IMAGE_SHAPE,
    JOURNAL,
    METRICS,
    NUM_EXAMPLES,
    OUTCOMES,
    PANEL,
    PERSONS,
    REQUEST_RECORDS,
    RESUMES,
    SITE,
    SUMS,
    VOXELS,
    WINDOW,
    Phase,
    config_record,
    holds,
    metric_record,
)

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """The limits in force: for each limit, the stricter of the site's and the study's."""

    min_persons: int
    min_count: int
    max_rounds: int
    max_request_mb: int
    max_reply_mb: int


def limits(policy: Policy, study: Study) -> Limits:
    """The limits for ``study`` at a site with ``policy``."""
    stated = study.policy
    return Limits(
        min_persons=max(policy.min_persons, stated.min_persons),
        min_count=max(policy.min_count, stated.min_count),
        max_rounds=policy.max_rounds,
        max_request_mb=policy.max_request_mb,
        max_reply_mb=min(policy.max_reply_mb, stated.max_reply_mb or policy.max_reply_mb),
    )


def reply_limits(manifest: Manifest, request: Request) -> Limits:
    """The limits of a reply. Exact counts of persons of public data may be sent, also of few, except in analyses of variants, which leave
    out few carriers at every site alike."""
    allowed = limits(manifest.policy, request.study)
    return replace(allowed, min_count=1) if manifest.data.public and request.phase not in ANALYSES - OUTCOMES else allowed


def notes_of(content: RecordDict) -> tuple[RecordNote, ...]:
    """Size and digest of each record, arrays without a copy. A record name that no phase declares is noted as "undeclared"."""
    known = {ANALYSIS, ARRAYS, AGREEMENT, CONFIG, METRICS, COUNTS, SITE, DESCRIBED, SUMS, VOXELS, JOURNAL}
    notes = []
    for name, record in content.items():
        digest, size = hashlib.sha256(), 0
        for key in sorted(record):
            if key == RESUMES and name == CONFIG:  # a run that goes on repeats a request; the journal notes which run it continues
                continue
            value = record[key]
            data = value.data if hasattr(value, "data") and hasattr(value, "stype") else repr(value).encode()
            digest.update(key.encode() + b"\0")
            digest.update(data)
            size += len(data)
        notes.append(RecordNote(name if name in known else "undeclared", size, digest.hexdigest()))
    return tuple(notes[:64])


def sha256_of(content: RecordDict) -> str:
    """SHA-256 of the study's text in a message; ``SiteError`` if it has none."""
    text = config_record(content, CONFIG).get("study") if holds(content, CONFIG, ConfigRecord) else None
    if not isinstance(text, str):
        raise SiteError(Reason.BAD_MESSAGE, "the message has no study")
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def continued(content: RecordDict, run: str) -> str:
    """The run that a message belongs to: ``run``, or the one that it says it continues.

    Raises:
        SiteError: what it says is no number of a run.
    """
    config = config_record(content, CONFIG) if holds(content, CONFIG, ConfigRecord) else {}
    origin = config.get(RESUMES, run)
    if not isinstance(origin, str) or not re.fullmatch(r"\d{1,20}", origin, re.ASCII):
        raise SiteError(Reason.BAD_MESSAGE, "the run that the message continues is not a number")
    return origin


def named(notes: tuple[RecordNote, ...], content: RecordDict, declared: Collection[str]) -> tuple[RecordNote, ...]:
    """``notes`` of ``content`` with the names of the records that the study's algorithm declares."""
    return tuple(replace(note, name=name) if name in declared else note for note, name in zip(notes, content, strict=False))


def round_numbers(phase: Phase, study: Study, steps: int) -> tuple[int, int]:
    """The smallest and the largest round number of a message of ``phase``. Test persons are evaluated once, after the last round; with
    ``patience`` that is the first after so many rounds without a better one, at the earliest."""
    rounds, patience = study.federation.rounds, study.training.patience
    if phase in ANALYSES:
        return 0, steps
    earliest = min(patience + 2, rounds) if patience else rounds
    return {Phase.ROUND: (1, rounds), Phase.EVALUATE: (earliest, rounds)}.get(phase, (0, 0))


def check_persons(cohort: Cohort, study: Study, allowed: Limits) -> None:
    """Raises ``SiteError`` if the site has too few persons to take part: who train, or at a site that does not train, who test."""
    trains = cohort.site not in study.federation.evaluate_only
    persons, what = (cohort.count("train"), "training") if trains else (cohort.count("test"), "test")
    if persons < allowed.min_persons:
        raise SiteError(Reason.TOO_FEW, f"{persons} {what} persons, [policy] min_persons requires {allowed.min_persons}")


def check_planned(study: Study, phase: Phase) -> None:
    """Raises ``SiteError`` if a private study does not plan ``phase``: its epsilon covers planned phases only."""
    plan = study.privacy
    if plan.unit != "none" and (phase in (*ANALYSES, Phase.VOXELS) or (phase is Phase.STATISTICS and plan.statistics == "stated")):
        raise SiteError(Reason.UNDECLARED, f"a study with privacy of one {plan.unit} has no phase {phase}")


def check_request(request: Request, content: RecordDict) -> None:
    """Raises ``SiteError`` unless the message holds exactly what its phase (``fedml.wire.records``) and the study's algorithm declare."""
    check_declared(request, content)
    expected = REQUEST_RECORDS[request.phase]
    if AGREEMENT in expected:
        values = read_arrays(content, AGREEMENT)
        fixed = {f"preprocess.{name}.{what}" for name in request.study.cohort.inputs for what in ("mean", "std")} | {
            "target.mean",
            "target.std",
        }
        if request.study.cohort.image is not None and request.study.cohort.image.percentiles:
            fixed.add(WINDOW)
        if request.study.training.class_weights == "inverse":
            fixed.add(CLASS_WEIGHTS)
        for key, value in values.items():
            wanted = {PANEL: "uint8", FLIPS: "uint8", IMAGE_SHAPE: "int64"}.get(key, "float32" if key in fixed else "")
            if str(value.dtype) != wanted or value.ndim != 1 or not is_finite(value):
                raise SiteError(Reason.UNDECLARED, "the agreement has an array that is not declared")
    if ANALYSIS in expected:
        step = read_arrays(content, ANALYSIS)
        forms.check_request(request.study, request.phase, step, read_arrays(content, AGREEMENT)[PANEL].tobytes().count(b"\n"))
        if not all(is_finite(value) for value in step.values()):
            raise SiteError(Reason.NON_FINITE, "the request of the analysis step has a number that is not finite")
    if ARRAYS in expected and any(str(v.dtype) != "float32" or not is_finite(v) for v in read_arrays(content, ARRAYS).values()):
        raise SiteError(Reason.UNDECLARED, "the arrays are not finite 32-bit floats")


def check_reply(request: Request, reply: RecordDict, content: RecordDict, allowed: Limits, weights: Shapes | None = None) -> None:
    """Raises ``SiteError`` unless ``reply`` holds what its phase declares (``fedml.contract.replies``), is about enough persons and is
    not too large.

    Args:
        weights: of a round, the shapes of the model's weights.
    """
    if sum(n.bytes for n in notes_of(reply)) > allowed.max_reply_mb * MEGABYTE:
        raise SiteError(Reason.TOO_LARGE, f"the reply is larger than {allowed.max_reply_mb} MB")
    extras = NO_EXTRAS
    if request.phase is Phase.ROUND and weights is not None:
        extras = returned(site_algorithm(request.study), request.phase, weights)
    elif request.phase in OUTCOMES:
        weights = forms.reply_shapes(request.study, request.phase, 0, read_arrays(content, ANALYSIS))
    elif request.phase in ANALYSES:
        weights = genomics.shapes_of_reply(request, content)
    check_form(request.study, request.phase, request.name, reply, weights, extras)
    small = f"fewer than {allowed.min_count} persons (min_count) would be sent"
    if request.phase in OUTCOMES:
        outcome_checks.check_small(request, read_arrays(content, ANALYSIS), read_arrays(reply, ANALYSIS), allowed.min_count)
        return
    if request.phase in ANALYSES:
        genomics.check_small(request, reply, content, allowed.min_count)
        return
    plan = request.study.privacy
    if COUNTS in reply and plan.metrics == "exact":
        counts = read_arrays(reply, COUNTS)
        if any(key.endswith("/persons") and _too_few(value, allowed.min_count) for key, value in counts.items()):
            raise SiteError(Reason.TOO_FEW, f"metrics of {small}")
        if _too_few(_rest(request.study, counts), allowed.min_count):
            raise SiteError(Reason.TOO_FEW, f"metrics that subtraction would reveal, of {small}")
    if plan.unit == "patient":
        return  # numbers of training persons are not sent, or have noise
    if DESCRIBED in reply:
        described = read_arrays(reply, DESCRIBED)
        if _too_few(described[PERSONS].sum(1), allowed.min_count) or (
            EXCLUDED in described and _too_few(described[EXCLUDED], allowed.min_count)
        ):
            raise SiteError(Reason.TOO_FEW, f"the reply has a count of {small}")
    if VOXELS in reply and _too_few(read_arrays(reply, VOXELS)[PERSONS], allowed.min_count):
        raise SiteError(Reason.TOO_FEW, f"the reply has an intensity histogram of {small}")
    if SUMS in reply and any(_too_few(value[0], allowed.min_count) for value in read_arrays(reply, SUMS).values()):
        raise SiteError(Reason.TOO_FEW, f"the reply has sums over {small}")
    if METRICS in reply and 0 < int(str(metric_record(reply, METRICS)[NUM_EXAMPLES])) < allowed.min_persons:
        raise SiteError(Reason.TOO_FEW, f"fewer than {allowed.min_persons} persons (min_persons) trained")


def plain_of(request: Request, reply: RecordDict, content: RecordDict) -> RecordDict:
    """``reply`` with the weights that its update stands for (``fedml.contract.encoded``); raises ``SiteError`` if it is none."""
    return plain_reply(request.study, reply, read_arrays(content, ARRAYS)) if request.phase is Phase.ROUND else reply


def check_numbers(request: Request, reply: RecordDict, cohort: Cohort) -> None:
    """Raises ``SiteError`` unless numbers that this site knows are what a process with own code reports: persons and steps."""
    study = request.study
    if METRICS in reply:
        found, persons = metric_record(reply, METRICS), cohort.count("train")
        plan = round_training(request)
        size = min(plan.batch_size, persons) or persons
        steps = plan.local_steps or plan.local_epochs * math.ceil(persons / max(size, 1))
        seen = 2 * steps * size if plan.local_steps else plan.local_epochs * persons
        told = [int(float(str(found[key]))) for key in ("steps", "seen")]
        if found[NUM_EXAMPLES] != persons or not 0 <= told[0] <= steps or not 0 <= told[1] <= seen:
            raise SiteError(Reason.CODE, "own code reports other persons, or more steps, than there are")
    groups = reportable_groups(cohort.groups, study.evaluation, cohort.rows("test"), smallest_of(request)) if cohort.groups else ()
    known = {f"test@{label}": float(len(rows)) for label, rows in groups}
    for key, value in read_arrays(reply, COUNTS).items() if COUNTS in reply else ():
        part, _, name = key.partition("/")
        if name == "persons" and float(value[0]) != known.get(part, float(cohort.count(part)) if part in PARTS else -1.0):
            raise SiteError(Reason.CODE, f"own code reports another number of {part} persons than there are")


def _rest(study: Study, counts: dict[str, Any]) -> Any:
    """(variables with a reported group,) test persons who are in none of the reported groups of the variable."""
    rest = []
    for labels in study.evaluation.labels().values():
        reported = [float(counts[key][0]) for label in labels if (key := f"test@{label}/persons") in counts]
        if reported:
            rest.append(float(counts["test/persons"][0]) - sum(reported))
    return np.array(rest)


def _too_few(persons: Any, smallest: int) -> bool:
    """Whether any number of ``persons`` is above 0 and below ``smallest``."""
    return bool(((persons > 0) & (persons < smallest)).any())
