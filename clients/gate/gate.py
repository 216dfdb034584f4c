"""The gate: checks every request and every reply of the site, and writes a journal entry for each decision.

Request: the exact study must be approved at this site and must name the site in its roster; the centre must be trusted as far as the study
needs (``fedml.clients.gate.trust``); rounds and sizes must be within the site's policy; every record must be declared and of the declared
type; what the message sets must follow from the plan (``fedml.clients.gate.course``); the same request is not answered twice. Reply: only
declared records, of the declared shapes, finite, about enough persons, and not too large. Site and study may both set a limit: the stricter
one applies. A refusal sends a code of ``fedml.errors.Reason`` and no text.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

from fedml.clients.gate import polygenic, signed
from fedml.clients.gate.approvals import Approval, approval_of, stamp
from fedml.clients.gate.bounds import by_class, check_bounds, check_effective
from fedml.clients.gate.charge import charge, check_budget
from fedml.clients.gate.checks import (
    MEGABYTE,
    Limits,
    check_numbers,
    check_persons,
    check_planned,
    check_reply,
    check_request,
    continued,
    limits,
    named,
    notes_of,
    plain_of,
    reply_limits,
    round_numbers,
    sha256_of,
)
from fedml.clients.gate.code_store import stored
from fedml.clients.gate.course import (
    Arrival,
    check_class_weights,
    check_constants,
    check_sent,
    check_stated,
    check_values,
    check_weights,
    followed,
    joined_late,
    keep_course,
    read_course,
)
from fedml.clients.gate.genes import check_genes
from fedml.clients.gate.history import answered_runs, asked_for, columns_of, evaluations_of, exactly, runs_of, seen
from fedml.clients.gate.journal import About, Direction, Journal, RecordNote
from fedml.clients.gate.ledger import Ledger
from fedml.clients.gate.pins import pin
from fedml.clients.gate.repeats import Before, Key, check_repeats
from fedml.clients.gate.trust import Level, check_level, exact_answers, level_of
from fedml.clients.site import released
from fedml.clients.site.manifest import Site, check_roster, read_site
from fedml.clients.site.progress import Teller
from fedml.clients.site.read import load_cohort
from fedml.clients.site.stamp import stamp_of
from fedml.clients.work import genomics
from fedml.clients.work.apart import Apart
from fedml.clients.work.client import reason_of, refusal
from fedml.clients.work.half import Memory, recall, remember, site_algorithm
from fedml.clients.work.known import HERE, Work, forget_data, layout_of, planned_persons
from fedml.clients.work.loaded import model_for
from fedml.clients.work.request import Request, read_request
from fedml.contract.extras import Shapes
from fedml.contract.replies import read_arrays
from fedml.errors import InputError, Reason, SiteError
from fedml.learning.statistics import neutral_constants
from fedml.privacy.statistics import stated_constants
from fedml.quiet import told
from fedml.runs.checkpoints import KEPT
from fedml.study.start import with_start
from fedml.study.study import Study, without_transforms
from fedml.wire.packing import bundle, is_bundled, unbundle
from fedml.wire.records import AGREEMENT, ANALYSES, ANALYSIS, ARRAYS, CLASS_WEIGHTS, JOURNAL, OUTCOMES, RESUMES, Phase

log = logging.getLogger("fedml.site")


class Gate:
    """The gate of one site. ``handle`` answers a message; it raises only KeyboardInterrupt and SystemExit. Final."""

    def __init__(self, site: Site, state: Path) -> None:
        self.site, self.state = site, state
        path = state / "journal.jsonl"
        self.journal = Journal(path)
        self._accepted = seen(path)  # (run, phase, round) -> content
        self._resumed: frozenset[tuple[str, int]] = frozenset()  # (run, number with which it goes on), noted in the journal
        self.ledger = Ledger(state / "ledger.db")
        self._runs = runs_of(path)
        self._columns = columns_of(path, Phase.SUBSPACE)
        self._evaluated = evaluations_of(path, Phase.EVALUATE)
        self._trained = answered_runs(path, Phase.ROUND)
        self._approvals: tuple[str, dict[str, Approval | None]] = ("", {})  # stamp of the files, approvals by study
        self._stamp = stamp_of(site)
        self._cut = self.journal.cut()
        self._teller = Teller(state)
        self._run, self._again = "", False  # of the request in progress; it came before, with the same bytes
        self._confined: tuple[tuple[str, str], Apart] | None = None  # of one run of one study at a time
        self._apart: set[tuple[str, bool, str]] = set()  # (study, analysis, stamp of the data) whose persons were compared, and noted

    def handle(self, message: Message, context: Context) -> Message:
        """Checked content, or the code of a refusal. Writes a journal entry for the request, and one for the reply to an accepted one."""
        note: dict[str, Any] = {"about": About(str(message.metadata.run_id)), "records": ()}
        direction: Direction = "in"
        try:
            if self._cut:
                raise SiteError(Reason.STATE_LOST, self._cut)
            self._read_again()
            note["records"] = notes_of(message.content)
            note["about"] = About(continued(message.content, note["about"].run), sha256_of(message.content))
            self._approval(note["about"].study)  # before anything is unpacked or parsed: without an approval a message costs its digest
            bundled = is_bundled(message.content)
            message.content = unbundle(message.content)
            note["records"] = notes_of(message.content)
            request, level = self._admit(message, note)
            self.journal.append(direction="in", verdict="accepted", reason="", **note)
            direction, note["records"] = "out", ()
            charge(self.ledger, self.site.manifest.policy, request, note["about"].run)
            work = self._work(request)
            memory = Memory(context.state, note["about"].run, self._kept(request.study, note["about"].run), durable=True)
            recall(request, memory)
            content = work.execute(self._teller.of(request, self.site), message.content, memory)
            remember(request, memory)
            note["records"] = named(notes_of(content), content, site_algorithm(request.study).returns)
            shapes = self._shapes(request, message.content) if request.phase is Phase.ROUND else None
            plain = plain_of(request, content, message.content)
            check_reply(request, plain, message.content, reply_limits(self.site.manifest, request), shapes)
            if work is not HERE:
                check_numbers(request, plain, load_cohort(request.manifests, request.study))
            self._remember(request, level, message.content, plain, note["about"].run)
            entry = self.journal.append(direction="out", verdict="accepted", reason="", **note)
            content[JOURNAL] = signed.head_of(self.site, request, message.content, content, entry)
            return Message(bundle(content) if bundled else content, reply_to=message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of compiled code too; the error's text may name a person, so it is not sent
            reason = reason_of(error)
            with suppress(Exception):  # str(error) itself may raise
                log.error("%s refused (%s): %s", direction, reason, told(error), exc_info=reason is Reason.INTERNAL)
            try:
                if not self._cut:
                    self.journal.append(direction=direction, verdict="refused", reason=str(reason), **note)
            except Exception as failed:
                log.error("the journal cannot be written; every request is refused until it can be written: %s", failed)
            return refusal(message, reason)
        finally:
            self._teller.end()

    def close(self) -> None:
        """Ends the confined processes of a study with own code."""
        if self._confined is not None:
            self._confined[1].close()
            self._confined = None

    def interrupt(self) -> None:
        """Ends the wait for a confined process, so that the site can stop."""
        if self._confined is not None:
            self._confined[1].kill()

    def _work(self, request: Request) -> Work:
        """Who answers: this process, or for what depends on own code a confined one."""
        study = request.study
        if study.code is None or request.phase in (Phase.DESCRIBE, Phase.VOXELS, *ANALYSES):
            return HERE
        if self._confined is None or self._confined[0] != (study.sha256, self._run):
            self.close()
            code = stored(self.state, study.code)
            apart = Apart(self.site, self.state, study, list(code.files.values()), code.packages)
            self._confined = ((study.sha256, self._run), apart)
        return self._confined[1].work

    def first_weights(self, content: RecordDict) -> dict[str, Any]:
        """The weights with which the study of a message with the agreement begins; of own code, from the process without data."""
        request = read_request(content, (str(self.site.file.resolve()),), self.site.name)
        return self._work(request).first_weights(request, content)

    def _shapes(self, request: Request, content: RecordDict) -> Shapes:
        """The shapes of the model's weights, which the network of own code gives without having seen data."""
        if request.study.code is None:
            return {k: tuple(v.shape) for k, v in model_for(request.study, layout_of(request.study, content)).weights.items()}
        return {k: tuple(v.shape) for k, v in self._work(request).first_weights(request, content).items()}

    def _read_again(self) -> None:
        """Reads manifest and data anew if one of their files changed."""
        now = stamp_of(self.site)
        if now != self._stamp:
            forget_data()
            self.close()
            self.site, self._stamp = read_site(self.site.file), now
            log.info("a file of the site changed; manifest and data are read again")

    def _approval(self, sha256: str) -> Approval:
        """The study's approval; ``SiteError`` if there is none."""
        now = stamp(self.state)
        if now != self._approvals[0]:
            self._approvals = (now, {})
        known = self._approvals[1]
        if sha256 not in known:
            try:
                known[sha256] = approval_of(self.state, sha256)
            except InputError as error:
                raise SiteError(Reason.NOT_APPROVED, str(error)) from error
        found = known[sha256]
        if found is None:
            raise SiteError(Reason.NOT_APPROVED, f"study {sha256} is not approved at this site")
        return found

    def _admit(self, message: Message, note: dict[str, Any]) -> tuple[Request, Level]:
        """The request, if it is allowed. Fills ``note`` for the journal as far as the message can be read."""
        policy = self.site.manifest.policy
        if sum(n.bytes for n in note["records"]) > policy.max_request_mb * MEGABYTE:
            raise SiteError(Reason.TOO_LARGE, f"the message is larger than {policy.max_request_mb} MB")
        run, sha256 = note["about"].run, sha256_of(message.content)
        note["about"] = About(run, sha256)
        approval = self._approval(sha256)
        request = read_request(message.content, (str(self.site.file.resolve()),), self.site.name)
        request = replace(request, study=without_transforms(request.study))  # own code never runs in this process
        study = request.study
        note["about"] = About(run, study.sha256, study.study.name, str(request.phase), request.round)
        check_roster(self.site, study)
        if policy.purposes is not None and study.study.purpose not in policy.purposes:
            raise SiteError(Reason.PURPOSE, f'purpose "{study.study.purpose}" is not allowed by [policy] purposes')
        level = level_of(self.site, approval)
        check_level(level, study, self.site)
        check_budget(study, policy)
        allowed = limits(policy, study)
        fewest, most = round_numbers(request.phase, study, policy.max_steps)
        if study.federation.rounds > allowed.max_rounds or not fewest <= request.round <= most:
            raise SiteError(
                Reason.ROUNDS,
                f"round {request.round} is requested, {fewest} to {most} are possible; the study has {study.federation.rounds} rounds, "
                f"[policy] max_rounds allows {allowed.max_rounds}",
            )
        check_planned(study, request.phase)
        note["records"] = named(note["records"], message.content, site_algorithm(study).sends.records)
        check_request(request, message.content)
        key, resumed = Key(run, str(request.phase), request.round), RESUMES in request.config
        before = Before(self._accepted, self._runs, self._evaluated.get(study.sha256, ()))
        self._again = check_repeats(before, policy, study.sha256, key, note["records"], resumed=resumed)
        if resumed and run != str(message.metadata.run_id) and (run, message.metadata.run_id) not in self._resumed:
            about, self._resumed = note["about"], self._resumed | {(run, message.metadata.run_id)}
            self.journal.append(direction="site", verdict="noted", about=about, reason=f"resumed as run {message.metadata.run_id}")
        cohort = load_cohort(request.manifests, study)
        check_persons(cohort, study, allowed)
        if request.phase in OUTCOMES:
            from fedml.clients.gate.outcomes import check as check_outcomes  # SciPy's statistics take half a second to import

            check_outcomes(self.state, self.site, request, read_arrays(message.content, ANALYSIS), run)
        elif request.phase in ANALYSES:
            self._check_analysis(request, message.content, note["records"], key, allowed)
        if level != "trusted":
            self._check_bounds(request, allowed, cohort.count("train"))
        self._pin(request, message.content, run)
        if study.code is not None:  # counted before own code is asked: its refusals cannot be repeated without end
            self._accept(study, key, note["records"])
        self._run = run
        if level != "trusted":
            self._check_course(request, message.content, run)
        self._accept(study, key, note["records"])
        if request.phase is Phase.EVALUATE:
            self._evaluated.setdefault(study.sha256, set()).add(asked_for(note["records"]))
        return replace(request, trust=approval.trust), level

    def _accept(self, study: Study, key: Key, records: tuple[RecordNote, ...]) -> None:
        self._accepted[key] = exactly(records)
        self._runs.setdefault(study.sha256, set()).add(key.run)

    def _kept(self, study: Study, run: str) -> Path:
        """The folder of what the study's algorithm keeps at this site between rounds."""
        return self.state / KEPT / f"{study.sha256[:32]}-{run}"

    def _check_analysis(
        self, request: Request, content: RecordDict, records: tuple[RecordNote, ...], key: tuple[str, str, int], allowed: Limits
    ) -> None:
        """The persons and columns of an analysis, and its design, which is fixed within a run."""
        before = max((step for run, phase, step in self._accepted if (run, phase) == key[:2]), default=0)
        persons = genomics.check_persons(request, content, allowed.min_persons, before)
        if request.phase is Phase.SUBSPACE:
            self._count_columns(request.study, records, request.round - before, persons)
        if design := genomics.design_digest(request, content):
            pin(self.state, key[0], {"design": design}, Reason.REPLAYED, "the covariates or components changed within the run")
        if request.phase is Phase.GENES and not self.site.manifest.data.public:
            check_genes(self.state, key[0], request, content)
        polygenic.check(self.state, key[0], request, read_arrays(content, ANALYSIS), persons)

    def _count_columns(self, study: Study, records: tuple[RecordNote, ...], columns: int, persons: int) -> None:
        """Counts the products of genotypes (columns) over all runs of a study: as many columns as persons would let the genotypes be
        solved for. A request identical to an earlier one reveals nothing new and is not counted again, so a run may be repeated."""
        known = self._columns.setdefault(study.sha256, {})
        requested = asked_for(records)
        if requested not in known and sum(known.values()) + columns > persons:
            raise SiteError(
                Reason.TOO_FEW,
                f"other runs of the study requested {sum(known.values())} columns of {persons} persons; {columns} more would be too many",
            )
        known.setdefault(requested, columns)

    def _check_bounds(self, request: Request, allowed: Limits, training: int) -> None:
        """The plan's bounds, and the persons' differences from those of earlier answers. Public data have neither."""
        study, policy = request.study, self.site.manifest.policy
        if self.site.manifest.data.public:
            return
        if study.privacy.unit != "patient" and request.phase in (Phase.STATISTICS, Phase.ROUND):
            check_bounds(study, policy, allowed.min_count, training)
            if study.training.class_weights and study.training.class_weights != "inverse":
                check_effective(by_class(load_cohort(request.manifests, study), study), study.training.class_weights, allowed.min_count)
        if (study.sha256, request.phase in ANALYSES, self._stamp) in self._apart:
            return
        for persons in planned_persons(request):
            if near := released.too_near(self.state, persons, allowed.min_count):
                raise SiteError(
                    Reason.TOO_FEW,
                    f"exact values were released (study {near[1]}) about a group that differs by {near[0]} persons from one of this study; "
                    f"subtraction would reveal them, so at least {allowed.min_count} (min_count) persons must differ",
                )

    def _pin(self, request: Request, content: RecordDict, run: str) -> None:
        """Raises ``SiteError`` if the data or the agreement differ from those of the run's earlier messages."""
        if self.site.manifest.policy.changed_data == "refuse":
            pin(self.state, run, {"data": self._stamp}, Reason.DATA_CHANGED, "a file of the site changed within the run; start a new one")
        if request.phase in ANALYSES or AGREEMENT not in content:
            return
        arrays = read_arrays(content, AGREEMENT)
        digests = {f"agreement {name}": hashlib.sha256(value.tobytes()).hexdigest() for name, value in arrays.items()}
        pin(self.state, run, digests, Reason.REPLAYED, "the agreement changed within the run")

    def _check_course(self, request: Request, content: RecordDict, run: str) -> None:
        """Raises ``SiteError`` if weights, constants or the server's values do not follow from the plan (``fedml.clients.gate.course``)."""
        study, drift = request.study, self.site.manifest.policy.max_drift
        if request.phase not in (Phase.ROUND, Phase.EVALUATE) or not exact_answers(study):
            return
        algorithm = site_algorithm(study)
        course, last = read_course(self.state, study, run)
        number = request.round + (request.phase is Phase.EVALUATE)  # the final weights would begin the next round
        if last is not None and number <= course.round and self._again:
            return
        if last is None:
            if run in self._trained:
                raise SiteError(Reason.STATE_LOST, f"what this site remembered of run {run} is lost")
            external = request.name in study.federation.evaluate_only  # its level allows weights that it cannot check
            if request.phase is Phase.EVALUATE and study.federation.rounds and not external:
                raise SiteError(Reason.OFF_PLAN, "the last evaluation is requested of a site that answered no round of the run")
            if external:
                return
            self._check_constants(request, content)
        if request.phase is Phase.ROUND:
            check_values(algorithm, request.config, number)
            if last is None and number > 1 and algorithm.sends.records:
                course = joined_late(course, study, number, self._work(request).first_update(request, content), self._training(request))
            check_sent(algorithm, {name: read_arrays(content, name) for name in algorithm.sends.records}, course, drift)
        weights = read_arrays(content, ARRAYS)
        work = self._work(request)
        pinned = study.model.start
        start = (lambda: with_start(pinned, work.first_weights(request, content), weights)), (lambda: work.first_update(request, content))
        check_weights(study, algorithm, Arrival(request.phase is Phase.EVALUATE, number, weights, course, last, *start), drift)

    def _training(self, request: Request) -> int:
        return load_cohort(request.manifests, request.study).count("train")

    def _check_constants(self, request: Request, content: RecordDict) -> None:
        """Raises ``SiteError`` if the preprocessing constants are not those that the study states, or do not fit the site's persons."""
        study, agreed = request.study, read_arrays(content, AGREEMENT)
        if study.training.class_weights == "inverse":
            manifest = self.site.manifest
            fewest = 0 if manifest.data.public else limits(manifest.policy, study).min_count
            check_class_weights(by_class(load_cohort(request.manifests, study), study), agreed.get(CLASS_WEIGHTS), fewest)
        check_stated(neutral_constants(study), agreed)
        if study.privacy.unit != "none" and study.privacy.statistics == "stated":
            check_stated(stated_constants(study, layout_of(study, content)), agreed)
        else:
            check_constants(self._work(request).own_sums(request, content), agreed)

    def _remember(self, request: Request, level: Level, content: RecordDict, reply: RecordDict, run: str) -> None:
        """What later messages are held against."""
        study = request.study
        key = (study.sha256, request.phase in ANALYSES, self._stamp)
        if level != "trusted" and not self.site.manifest.data.public and key not in self._apart:
            for persons in planned_persons(request):
                released.note(self.state, persons, study.study.name)
            self._apart.add(key)
        if level != "trusted" and request.phase is Phase.ROUND and exact_answers(study):
            course, _ = read_course(self.state, study, run)
            self._trained.add(run)
            if course.round >= request.round:  # repeated by a run that goes on
                return
            received = read_arrays(content, ARRAYS)
            returned = [read_arrays(reply, name) for name in site_algorithm(study).returns]
            flat = {f"{place} {name}": value for place, arrays in enumerate(returned) for name, value in arrays.items()}
            keep_course(self.state, study, followed(study, course, request.round, received, read_arrays(reply, ARRAYS), flat), received)
