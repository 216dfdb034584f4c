"""The gate: what may come in, what may go out, and a journal entry for each decision. Nothing at the site runs or leaves but through it.

In: the study must be approved here, word for word; the site in its roster; rounds and sizes within policy; every record declared and of the
declared type; and no request may come twice. Out: declared records only, of the declared shapes, finite, about enough persons, not too
large. Site and study may each state limits: the stricter holds. A refusal sends a code of ``fedml.errors.Reason`` and no text.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedml.analytics import forms
from fedml.clients.gate.approvals import is_approved
from fedml.clients.gate.journal import Direction, Journal, RecordNote, asked_for, columns_of, runs_of, seen
from fedml.clients.gate.ledger import Ledger
from fedml.clients.site.manifest import Policy, Site, check_roster
from fedml.clients.site.read import load_cohort
from fedml.clients.work import genomics
from fedml.clients.work.client import execute, model_for, reason_of, refusal
from fedml.clients.work.request import Request, read_request
from fedml.contract.replies import check_form, is_finite, read_arrays
from fedml.errors import Reason, SiteError
from fedml.modalities.layout import Layout, make_layout
from fedml.privacy.releases import counted_parts, message_events
from fedml.study.sections import PartName
from fedml.study.study import Study
from fedml.wire.packing import bundle, is_bundled, unbundle
from fedml.wire.records import (
    AGREEMENT,
    ANALYSES,
    ANALYSIS,
    ARRAYS,
    ASIDE,
    CONFIG,
    COUNTS,
    DESCRIBED,
    FLIPS,
    IMAGE_SHAPE,
    JOURNAL,
    METRICS,
    NUM_EXAMPLES,
    PANEL,
    PERSONS,
    REQUEST_CONFIG,
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
    """The stricter of site and study for each limit."""

    min_persons: int
    min_count: int
    max_rounds: int
    max_request_mb: int
    max_reply_mb: int


def limits(policy: Policy, study: Study) -> Limits:
    """What holds for ``study`` at a site with ``policy``."""
    asked = study.policy
    return Limits(
        min_persons=max(policy.min_persons, asked.min_persons),
        min_count=max(policy.min_count, asked.min_count),
        max_rounds=policy.max_rounds,
        max_request_mb=policy.max_request_mb,
        max_reply_mb=min(policy.max_reply_mb, asked.max_reply_mb or policy.max_reply_mb),
    )


class Gate:
    """The gate of one site. ``handle`` answers a message; it raises nothing but a wish to stop. Final."""

    def __init__(self, site: Site, state: Path) -> None:
        self.site, self.state = site, state
        self.journal = Journal(state / "journal.jsonl")
        self._seen = seen(state / "journal.jsonl")
        self.ledger = Ledger(state / "ledger.db")
        self._runs = runs_of(state / "journal.jsonl")
        self._columns = columns_of(state / "journal.jsonl", Phase.SUBSPACE)
        self._designs: dict[str, str] = {}  # of each run's analysis
        self._agreed: dict[tuple[str, str], str] = {}  # (run, array) -> SHA-256 of what was agreed on

    def handle(self, message: Message, context: Context) -> Message:
        """The reply to ``message``: content that passed the gate, or a refusal's code. Two journal entries."""
        told: dict[str, Any] = {"run": str(message.metadata.run_id), "records": ()}
        direction: Direction = "in"
        try:
            bundled = is_bundled(message.content)
            message.content = unbundle(message.content)
            told["records"] = _notes(message.content)
            asked = self._admit(message, told)
            self.journal.append(direction="in", verdict="accepted", reason="", **told)
            direction, told["records"] = "out", ()
            self._charge(asked, told["run"])
            content = execute(asked, message.content)
            told["records"] = _notes(content)
            check_reply(asked, content, message.content, limits(self.site.manifest.policy, asked.study))
            entry = self.journal.append(direction="out", verdict="accepted", reason="", **told)
            content[JOURNAL] = ConfigRecord({"head": entry.digest, "count": entry.seq})
            return Message(bundle(content) if bundled else content, reply_to=message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever it is (a panic of compiled code too), its text may name a person
            reason = reason_of(error)
            with suppress(Exception):  # its text may fail to be made
                log.error("%s refused (%s): %s", direction, reason, error, exc_info=reason is Reason.INTERNAL)
            try:
                self.journal.append(direction=direction, verdict="refused", reason=str(reason), **told)
            except Exception:
                log.error("the journal cannot be written; nothing is answered but refusals until it can", exc_info=True)
            return refusal(message, reason)

    def _admit(self, message: Message, told: dict[str, Any]) -> Request:
        """The request, if everything about it is allowed; ``told`` is filled for the journal as far as it can be read."""
        policy = self.site.manifest.policy
        if sum(n.bytes for n in told["records"]) > policy.max_request_mb * _MEGABYTE:
            raise SiteError(Reason.TOO_LARGE, f"the message is larger than {policy.max_request_mb} MB")
        asked = read_request(message.content, (str(self.site.file.resolve()),), self.site.name)
        study = asked.study
        told |= {"study": study.sha256, "study_name": study.study.name, "phase": str(asked.phase), "round": asked.round}
        if not is_approved(self.state, study.sha256):
            raise SiteError(Reason.NOT_APPROVED, f"study {study.study.name} ({study.sha256}) is not approved at this site")
        check_roster(self.site, study)
        if policy.purposes is not None and study.study.purpose not in policy.purposes:
            raise SiteError(Reason.PURPOSE, f'purpose "{study.study.purpose}" is not among those allowed')
        allowed = limits(policy, study)
        fewest, most = _numbers(asked.phase, study.federation.rounds, policy.max_steps)
        if study.federation.rounds > allowed.max_rounds or not fewest <= asked.round <= most:
            raise SiteError(Reason.ROUNDS, f"round {asked.round} of {most}, the policy allows {allowed.max_rounds} rounds")
        check_planned(study, asked.phase)
        check_request(asked, message.content)
        if told["run"] not in self._runs.setdefault(study.sha256, set()) and len(self._runs[study.sha256]) >= policy.max_runs:
            raise SiteError(Reason.REPLAYED, f"the study was run {policy.max_runs} times here, which is what the policy allows (max_runs)")
        key = (told["run"], told["phase"], asked.round)
        if key in self._seen:
            raise SiteError(Reason.REPLAYED, f"this request was answered before: {key}")
        cohort = load_cohort(asked.manifests, study)
        if cohort.count("train") < allowed.min_persons:
            raise SiteError(Reason.TOO_FEW, f"{cohort.count('train')} training persons, the policy wants {allowed.min_persons}")
        if asked.phase in ANALYSES:
            before = max((step for run, phase, step in self._seen if (run, phase) == key[:2]), default=0)
            persons = genomics.check_persons(asked, message.content, allowed.min_persons, before)
            if asked.phase is Phase.SUBSPACE:
                self._count_columns(study, told["records"], asked.round - before, persons)
            design = genomics.design_digest(asked, message.content)
            if design and self._designs.setdefault(told["run"], design) != design:
                raise SiteError(Reason.REPLAYED, "the analysis goes on with other covariates or components than it began with")
        self._pin(asked, message.content, told["run"])
        self._seen.add(key)
        self._runs[study.sha256].add(told["run"])
        return asked

    def _count_columns(self, study: Study, records: tuple[RecordNote, ...], columns: int, persons: int) -> None:
        """Products of genotypes are counted over all runs of a study: with as many as persons, genotypes could be solved for. What was
        asked before in the same words tells nothing new, so an honest run may be repeated."""
        known = self._columns.setdefault(study.sha256, {})
        asked = asked_for(records)
        if asked not in known and sum(known.values()) + columns > persons:
            raise SiteError(
                Reason.TOO_FEW,
                f"{sum(known.values())} columns of {persons} persons were asked in other runs of the study, {columns} more would be",
            )
        known.setdefault(asked, columns)

    def _pin(self, asked: Request, content: RecordDict, run: str) -> None:
        """A run goes on with the agreement that it began with: neither a window nor constants may change from message to message."""
        if asked.phase in ANALYSES or AGREEMENT not in content:
            return
        for name, value in read_arrays(content, AGREEMENT).items():
            mark = hashlib.sha256(value.tobytes()).hexdigest()
            if self._agreed.setdefault((run, name), mark) != mark:
                raise SiteError(Reason.REPLAYED, "the run goes on with another agreement than it began with")

    def _charge(self, asked: Request, run: str) -> None:
        """Writes what the answer will release into the ledger, before it is made. Raises ``SiteError`` if the budget would be passed."""
        policy, study = self.site.manifest.policy, asked.study
        cohort = load_cohort(asked.manifests, study)

        told: dict[str, Any] = {
            "run": run,
            "study": study.sha256,
            "study_name": study.study.name,
            "phase": asked.phase,
            "round": asked.round,
        }

        def persons(part: PartName) -> list[str]:
            return [cohort.ids[row] for row in cohort.rows(part)]

        if study.privacy.unit != "patient":
            if policy.max_epsilon > 0 and not policy.allow_unprotected:
                text = f'the policy grants epsilon {policy.max_epsilon:g}, but study "{study.study.name}" protects no patient'
                raise SiteError(Reason.BUDGET, text)
            if asked.phase in ANALYSES:
                self.ledger.note_unprotected(genomics.persons(asked), **told)
            elif asked.phase is Phase.ROUND and (there := persons("train")):
                self.ledger.note_unprotected(there, **told)
            return
        # Exact counts about persons who are held out have no epsilon: the plan says so, and the ledger.
        bare = [row for part in counted_parts(study, asked.phase, asked.round) for row in persons(part)]
        if bare and study.privacy.metrics == "exact":
            self.ledger.note_unprotected(bare, **told)
        released = message_events(study, asked.name, asked.phase, asked.round)
        parts = [(there, events) for part, events in released.items() if events and (there := persons(part))]
        if parts:
            ahead = study.federation.rounds - asked.round if asked.phase is Phase.ROUND else 0
            self.ledger.charge_all(parts, **told, max_epsilon=policy.max_epsilon, delta=policy.delta, ahead=ahead)


def _notes(content: RecordDict) -> tuple[RecordNote, ...]:
    """Each record's bytes and digest, arrays without a copy. Names that are none of ours are noted as such."""
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


def _numbers(phase: Phase, rounds: int, steps: int) -> tuple[int, int]:
    """The first and the last number that a message of ``phase`` may have: test persons are looked at once, after the last round."""
    if phase in ANALYSES:
        return 0, steps
    return {Phase.ROUND: (1, rounds), Phase.EVALUATE: (rounds, rounds)}.get(phase, (0, 0))


def check_planned(study: Study, phase: Phase) -> None:
    """Raises ``SiteError`` where a private study does not plan ``phase``: its figures count what is planned and nothing else."""
    plan = study.privacy
    if plan.unit != "none" and (phase in (*ANALYSES, Phase.VOXELS) or (phase is Phase.STATISTICS and plan.statistics == "stated")):
        raise SiteError(Reason.UNDECLARED, f"a study with privacy of one {plan.unit} plans no {phase}")


def check_request(asked: Request, content: RecordDict) -> None:
    """Raises ``SiteError`` unless the message holds exactly what its phase declares (``fedml.wire.records``)."""
    expected = REQUEST_RECORDS[asked.phase]
    if set(content) != expected:
        raise SiteError(Reason.UNDECLARED, f"records are {sorted(content)}, expected {sorted(expected)}")
    for key, value in content.config_records[CONFIG].items():
        kind = REQUEST_CONFIG.get(key)
        if kind is None or isinstance(value, bool) or not isinstance(value, kind):
            raise SiteError(Reason.UNDECLARED, "the config holds a key or type that is not declared")
    if AGREEMENT in expected:
        values = read_arrays(content, AGREEMENT)
        fixed = {f"preprocess.{name}.{what}" for name in asked.study.cohort.inputs for what in ("mean", "std")} | {
            "target.mean",
            "target.std",
        }
        if asked.study.cohort.image is not None and asked.study.cohort.image.percentiles:
            fixed.add(WINDOW)
        for key, value in values.items():
            wanted = {PANEL: "uint8", FLIPS: "uint8", IMAGE_SHAPE: "int64"}.get(key, "float32" if key in fixed else "")
            if str(value.dtype) != wanted or value.ndim != 1 or not is_finite(value):
                raise SiteError(Reason.UNDECLARED, "the agreement holds an array that is not declared")
    if ANALYSIS in expected:
        step = read_arrays(content, ANALYSIS)
        forms.check_request(asked.study, asked.phase, step, read_arrays(content, AGREEMENT)[PANEL].tobytes().count(b"\n"))
        if not all(is_finite(value) for value in step.values()):
            raise SiteError(Reason.NON_FINITE, "a number of the step is not finite")
    if ARRAYS in expected and any(str(v.dtype) != "float32" or not is_finite(v) for v in read_arrays(content, ARRAYS).values()):
        raise SiteError(Reason.UNDECLARED, "the arrays are not finite 32-bit floats")


def check_reply(asked: Request, reply: RecordDict, request: RecordDict, allowed: Limits) -> None:
    """Raises ``SiteError`` unless ``reply`` is what its phase declares (``fedml.contract.replies``), about enough persons, not too
    large."""
    if sum(n.bytes for n in _notes(reply)) > allowed.max_reply_mb * _MEGABYTE:
        raise SiteError(Reason.TOO_LARGE, f"the reply is larger than {allowed.max_reply_mb} MB")
    weights = None
    if asked.phase is Phase.ROUND:
        weights = {k: tuple(v.shape) for k, v in model_for(asked.study, _layout(asked.study, request)).weights.items()}
    elif asked.phase in ANALYSES:
        weights = genomics.shapes_of_reply(asked, request)
    check_form(asked.study, asked.phase, asked.name, reply, weights)
    small = f"fewer than {allowed.min_count} persons would leave"
    if asked.phase in ANALYSES:
        genomics.check_small(asked, reply, request, allowed.min_count)
        return
    plan = asked.study.privacy
    if COUNTS in reply and plan.metrics == "exact":
        counts = read_arrays(reply, COUNTS)
        if any(key.endswith("/persons") and _few(value, allowed.min_count) for key, value in counts.items()):
            raise SiteError(Reason.TOO_FEW, f"metrics of {small}")
        if _few(_rest(asked.study, counts), allowed.min_count):
            raise SiteError(Reason.TOO_FEW, f"by subtraction, metrics of {small}")
    if plan.unit == "patient":
        return  # who trains is not counted, or with noise
    if DESCRIBED in reply:
        told = read_arrays(reply, DESCRIBED)
        if _few(told[PERSONS].sum(1), allowed.min_count) or (ASIDE in told and _few(told[ASIDE], allowed.min_count)):
            raise SiteError(Reason.TOO_FEW, f"a part of {small}")
    if VOXELS in reply and _few(read_arrays(reply, VOXELS)[PERSONS], allowed.min_count):
        raise SiteError(Reason.TOO_FEW, f"voxels of {small}")
    if SUMS in reply and any(_few(value[0], allowed.min_count) for value in read_arrays(reply, SUMS).values()):
        raise SiteError(Reason.TOO_FEW, f"a sum over {small}")
    if METRICS in reply and 0 < int(str(reply.metric_records[METRICS][NUM_EXAMPLES])) < allowed.min_persons:
        raise SiteError(Reason.TOO_FEW, "too few persons trained")


def _rest(study: Study, counts: dict[str, Any]) -> Any:
    """Test persons who are in no group that is told, a number for each variable of which any group is."""
    rest = []
    for labels in study.evaluation.labels().values():
        told = [float(counts[key][0]) for label in labels if (key := f"test@{label}/persons") in counts]
        if told:
            rest.append(float(counts["test/persons"][0]) - sum(told))
    return np.array(rest)


def _few(persons: Any, smallest: int) -> bool:
    """Is any number of persons more than none and fewer than ``smallest``?"""
    return bool(((persons > 0) & (persons < smallest)).any())


def _layout(study: Study, request: RecordDict) -> Layout:
    values = read_arrays(request, AGREEMENT)
    return make_layout(study, tuple(int(n) for n in values[IMAGE_SHAPE]), values[PANEL].tobytes())
