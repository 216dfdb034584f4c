"""The gate: checks every request and every reply of the site, and writes a journal entry for each decision.

Request: the exact study must be approved at this site and must name the site in its roster; rounds and sizes must be within the site's
policy; every record must be declared and of the declared type; the same request is not answered twice. Reply: only declared records, of
the declared shapes, finite, about enough persons, and not too large. Site and study may both set a limit: the stricter one applies.
A refusal sends a code of ``fedml.errors.Reason`` and no text.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedml.analytics import forms
from fedml.clients.gate.approvals import is_approved
from fedml.clients.gate.journal import About, Direction, Journal, RecordNote, asked_for, columns_of, runs_of, seen
from fedml.clients.gate.ledger import Ledger
from fedml.clients.site.manifest import Policy, Site, check_roster
from fedml.clients.site.read import load_cohort
from fedml.clients.work import genomics
from fedml.clients.work.client import execute, model_for, reason_of, refusal
from fedml.clients.work.half import Memory, check_declared, site_algorithm
from fedml.clients.work.request import Request, read_request
from fedml.contract.extras import NO_EXTRAS
from fedml.contract.replies import check_form, is_finite, read_arrays
from fedml.errors import Reason, SiteError
from fedml.modalities.layout import Layout, make_layout
from fedml.privacy.releases import counted_parts, message_events
from fedml.strategies.algorithms.algorithm import returned
from fedml.study.section import PartName
from fedml.study.study import Study
from fedml.wire.packing import bundle, is_bundled, unbundle
from fedml.wire.records import (
    AGREEMENT,
    ANALYSES,
    ANALYSIS,
    ARRAYS,
    CONFIG,
    COUNTS,
    DESCRIBED,
    EXCLUDED,
    FLIPS,
    IMAGE_SHAPE,
    JOURNAL,
    METRICS,
    NUM_EXAMPLES,
    PANEL,
    PERSONS,
    REQUEST_RECORDS,
    SITE,
    SUMS,
    VOXELS,
    WINDOW,
    Phase,
)

log = logging.getLogger("fedml.site")
_MEGABYTE = 1_000_000


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


class Gate:
    """The gate of one site. ``handle`` answers a message; it raises only KeyboardInterrupt and SystemExit. Final."""

    def __init__(self, site: Site, state: Path) -> None:
        self.site, self.state = site, state
        self.journal = Journal(state / "journal.jsonl")
        self._accepted = seen(state / "journal.jsonl")  # (run, phase, round)
        self.ledger = Ledger(state / "ledger.db")
        self._runs = runs_of(state / "journal.jsonl")
        self._columns = columns_of(state / "journal.jsonl", Phase.SUBSPACE)
        self._designs: dict[str, str] = {}  # run -> digest of the design of its analysis
        self._agreed: dict[tuple[str, str], str] = {}  # (run, name of the array) -> SHA-256 of the agreed array

    def handle(self, message: Message, context: Context) -> Message:
        """The reply to ``message``: checked content, or the code of a refusal. Writes a journal entry for the request, and one for the
        reply if the request was accepted."""
        note: dict[str, Any] = {"about": About(str(message.metadata.run_id)), "records": ()}
        direction: Direction = "in"
        try:
            bundled = is_bundled(message.content)
            message.content = unbundle(message.content)
            note["records"] = _notes(message.content)
            request = self._admit(message, note)
            self.journal.append(direction="in", verdict="accepted", reason="", **note)
            direction, note["records"] = "out", ()
            self._charge(request, note["about"].run)
            content = execute(request, message.content, Memory(context.state, note["about"].run))
            note["records"] = _named(_notes(content), content, site_algorithm(request.study).returns)
            check_reply(request, content, message.content, limits(self.site.manifest.policy, request.study))
            entry = self.journal.append(direction="out", verdict="accepted", reason="", **note)
            content[JOURNAL] = ConfigRecord({"head": entry.digest, "count": entry.seq})
            return Message(bundle(content) if bundled else content, reply_to=message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of compiled code too; the error's text may name a person, so it is not sent
            reason = reason_of(error)
            with suppress(Exception):  # str(error) itself may raise
                log.error("%s refused (%s): %s", direction, reason, error, exc_info=reason is Reason.INTERNAL)
            try:
                self.journal.append(direction=direction, verdict="refused", reason=str(reason), **note)
            except Exception:
                log.error("the journal cannot be written; every request is refused until it can be written", exc_info=True)
            return refusal(message, reason)

    def _admit(self, message: Message, note: dict[str, Any]) -> Request:
        """The request, if it is allowed. Fills ``note`` for the journal as far as the message can be read."""
        policy = self.site.manifest.policy
        if sum(n.bytes for n in note["records"]) > policy.max_request_mb * _MEGABYTE:
            raise SiteError(Reason.TOO_LARGE, f"the message is larger than {policy.max_request_mb} MB")
        request = read_request(message.content, (str(self.site.file.resolve()),), self.site.name)
        study = request.study
        run = note["about"].run
        note["about"] = About(run, study.sha256, study.study.name, str(request.phase), request.round)
        if not is_approved(self.state, study.sha256):
            raise SiteError(Reason.NOT_APPROVED, f"study {study.study.name} ({study.sha256}) is not approved at this site")
        check_roster(self.site, study)
        if policy.purposes is not None and study.study.purpose not in policy.purposes:
            raise SiteError(Reason.PURPOSE, f'purpose "{study.study.purpose}" is not allowed by [policy] purposes')
        allowed = limits(policy, study)
        fewest, most = _numbers(request.phase, study.federation.rounds, policy.max_steps)
        if study.federation.rounds > allowed.max_rounds or not fewest <= request.round <= most:
            raise SiteError(
                Reason.ROUNDS,
                f"round {request.round} is requested, {fewest} to {most} are possible; the study has {study.federation.rounds} rounds, "
                f"[policy] max_rounds allows {allowed.max_rounds}",
            )
        check_planned(study, request.phase)
        note["records"] = _named(note["records"], message.content, site_algorithm(study).sends.records)
        check_request(request, message.content)
        if run not in self._runs.setdefault(study.sha256, set()) and len(self._runs[study.sha256]) >= policy.max_runs:
            raise SiteError(Reason.REPLAYED, f"the study already ran {policy.max_runs} times at this site, the limit of [policy] max_runs")
        key = (run, str(request.phase), request.round)
        if key in self._accepted:
            raise SiteError(Reason.REPLAYED, f"this request (run, phase, round) was accepted before: {key}")
        cohort = load_cohort(request.manifests, study)
        if cohort.count("train") < allowed.min_persons:
            raise SiteError(
                Reason.TOO_FEW, f"{cohort.count('train')} training persons, [policy] min_persons requires {allowed.min_persons}"
            )
        if request.phase in ANALYSES:
            before = max((step for run, phase, step in self._accepted if (run, phase) == key[:2]), default=0)
            persons = genomics.check_persons(request, message.content, allowed.min_persons, before)
            if request.phase is Phase.SUBSPACE:
                self._count_columns(study, note["records"], request.round - before, persons)
            design = genomics.design_digest(request, message.content)
            if design and self._designs.setdefault(run, design) != design:
                raise SiteError(Reason.REPLAYED, "the covariates or components changed within the run of the analysis")
        self._pin(request, message.content, run)
        self._accepted.add(key)
        self._runs[study.sha256].add(run)
        return request

    def _count_columns(self, study: Study, records: tuple[RecordNote, ...], columns: int, persons: int) -> None:
        """Counts the products of genotypes (columns) over all runs of a study: as many columns as persons would let the genotypes be
        solved for. A request identical to an earlier one reveals nothing new and is not counted again, so a run may be repeated."""
        known = self._columns.setdefault(study.sha256, {})
        requested = asked_for(records)
        if requested not in known and sum(known.values()) + columns > persons:
            raise SiteError(
                Reason.TOO_FEW,
                f"other runs of the study requested {sum(known.values())} columns of {persons} persons; {columns} more columns would "
                "exceed the number of persons",
            )
        known.setdefault(requested, columns)

    def _pin(self, request: Request, content: RecordDict, run: str) -> None:
        """Raises ``SiteError`` if the agreement differs from the one of the run's earlier messages: window and constants are fixed."""
        if request.phase in ANALYSES or AGREEMENT not in content:
            return
        for name, value in read_arrays(content, AGREEMENT).items():
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            if self._agreed.setdefault((run, name), digest) != digest:
                raise SiteError(Reason.REPLAYED, f"the agreement changed within the run: array {name}")

    def _charge(self, request: Request, run: str) -> None:
        """Charges the reply's releases to the ledger before the reply is computed. Raises ``SiteError`` if a budget would be exceeded."""
        policy, study = self.site.manifest.policy, request.study
        cohort = load_cohort(request.manifests, study)

        note: dict[str, Any] = {
            "run": run,
            "study": study.sha256,
            "study_name": study.study.name,
            "phase": request.phase,
            "round": request.round,
        }

        def persons(part: PartName) -> list[str]:
            return [cohort.ids[row] for row in cohort.rows(part)]

        if study.privacy.unit != "patient":
            if policy.max_epsilon > 0 and not policy.allow_unprotected:
                text = (
                    f"[policy] max_epsilon is {policy.max_epsilon:g} and allow_unprotected is false, but study "
                    f'"{study.study.name}" has no privacy of a patient'
                )
                raise SiteError(Reason.BUDGET, text)
            if request.phase in ANALYSES:
                self.ledger.note_unprotected(genomics.persons(request), **note)
            elif request.phase is Phase.ROUND and (trained := persons("train")):
                self.ledger.note_unprotected(trained, **note)
            return
        # Exact counts about held-out persons have no epsilon: the plan states it, and the ledger lists them without one.
        counted = [row for part in counted_parts(study, request.phase, request.round) for row in persons(part)]
        if counted and study.privacy.metrics == "exact":
            self.ledger.note_unprotected(counted, **note)
        released = message_events(study, request.name, request.phase, request.round)
        parts = [(ids, events) for part, events in released.items() if events and (ids := persons(part))]
        if parts:
            ahead = study.federation.rounds - request.round if request.phase is Phase.ROUND else 0
            self.ledger.charge_all(parts, **note, max_epsilon=policy.max_epsilon, delta=policy.delta, ahead=ahead)


def _notes(content: RecordDict) -> tuple[RecordNote, ...]:
    """Size and digest of each record, arrays without a copy. A record name that no phase declares is noted as "undeclared"."""
    known = {ANALYSIS, ARRAYS, AGREEMENT, CONFIG, METRICS, COUNTS, SITE, DESCRIBED, SUMS, VOXELS, JOURNAL}
    notes = []
    for name, record in content.items():
        digest, size = hashlib.sha256(), 0
        for key in sorted(record):
            value = record[key]
            data = value.data if hasattr(value, "data") and hasattr(value, "stype") else repr(value).encode()
            digest.update(key.encode() + b"\0")
            digest.update(data)
            size += len(data)
        notes.append(RecordNote(name if name in known else "undeclared", size, digest.hexdigest()))
    return tuple(notes[:64])


def _named(notes: tuple[RecordNote, ...], content: RecordDict, declared: Collection[str]) -> tuple[RecordNote, ...]:
    """``notes`` of ``content`` with the names of the records that the study's algorithm declares."""
    return tuple(replace(note, name=name) if name in declared else note for note, name in zip(notes, content, strict=False))


def _numbers(phase: Phase, rounds: int, steps: int) -> tuple[int, int]:
    """The smallest and the largest round number of a message of ``phase``. Test persons are evaluated once, after the last round."""
    if phase in ANALYSES:
        return 0, steps
    return {Phase.ROUND: (1, rounds), Phase.EVALUATE: (rounds, rounds)}.get(phase, (0, 0))


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


def check_reply(request: Request, reply: RecordDict, content: RecordDict, allowed: Limits) -> None:
    """Raises ``SiteError`` unless ``reply`` holds what its phase declares (``fedml.contract.replies``), is about enough persons and is
    not too large."""
    if sum(n.bytes for n in _notes(reply)) > allowed.max_reply_mb * _MEGABYTE:
        raise SiteError(Reason.TOO_LARGE, f"the reply is larger than {allowed.max_reply_mb} MB")
    weights, extras = None, NO_EXTRAS
    if request.phase is Phase.ROUND:
        weights = {k: tuple(v.shape) for k, v in model_for(request.study, _layout(request.study, content)).weights.items()}
        extras = returned(site_algorithm(request.study), request.phase, weights)
    elif request.phase in ANALYSES:
        weights = genomics.shapes_of_reply(request, content)
    check_form(request.study, request.phase, request.name, reply, weights, extras)
    small = f"fewer than {allowed.min_count} persons (min_count) would be sent"
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
    if METRICS in reply and 0 < int(str(reply.metric_records[METRICS][NUM_EXAMPLES])) < allowed.min_persons:
        raise SiteError(Reason.TOO_FEW, f"fewer than {allowed.min_persons} persons (min_persons) trained")


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


def _layout(study: Study, request: RecordDict) -> Layout:
    values = read_arrays(request, AGREEMENT)
    return make_layout(study, tuple(int(n) for n in values[IMAGE_SHAPE]), values[PANEL].tobytes())
