"""The round loop: sends the model, collects the replies of the sites, combines them, takes the server step, writes the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedml.cohort.variants.checks import Check
from fedml.contract.encoded import plain_reply
from fedml.contract.extras import NO_EXTRAS, Extras, Shapes
from fedml.contract.plausible import check_plausible
from fedml.contract.replies import check_form
from fedml.errors import InputError, Reason, RunError
from fedml.learning.training import trained_parameters
from fedml.models.fusion import build_model, digest, learned
from fedml.runs.events import (
    Agreed,
    CheckRow,
    Checks,
    Final,
    GroupScores,
    PartScores,
    Round,
    SiteDisclosure,
    SiteRow,
    TrainedRow,
)
from fedml.runs.live import dropped
from fedml.runs.log import UNFINISHED, emit, line_of, save_counts, save_model, save_received, save_unfinished, write_line
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.agreement import Agreement, ReportChecks
from fedml.strategies.agreement.meaning import meaning_of
from fedml.strategies.algorithms.algorithm import returned
from fedml.strategies.algorithms.averaging import Averaging
from fedml.strategies.algorithms.flower_strategy import FlowerStrategy
from fedml.strategies.algorithms.registry import algorithm_of, make_strategy
from fedml.strategies.checkpoint import Begun, RunState, Saved, Saver, load
from fedml.strategies.chosen import Chosen, chosen_after, ended, kept_round
from fedml.strategies.epsilon import again_of, privacy_record
from fedml.strategies.exchange import Answer, Participation, answers, ask, config_with, request
from fedml.strategies.judge import judged
from fedml.strategies.lateness import Lateness, persons_of
from fedml.study.start import load_start, taken_over
from fedml.study.study import Study
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.registry import make_task
from fedml.wire.records import (
    AGREEMENT,
    ARRAYS,
    CONFIG,
    COUNTS,
    METRICS,
    Phase,
    array_record,
    holds,
    metric_record,
    pack,
    unpack,
    unpack_tensors,
)


def run_study(study: Study, grid: Grid, run: Path, *, resumed: bool = False) -> RunState:
    """Runs the whole study over ``grid`` and writes the record to ``run`` (``fedml.runs.log``).

    Args:
        resumed: go on after the run's newest checkpoint; from the beginning if there is none.

    Raises:
        RunError: the quorum was missed, or no reply was usable; a checkpoint does not fit.
        InputError: the study names a strategy or network that does not exist.
    """
    strategy = make_strategy(study)
    saved = load(study, grid, run, strategy) if resumed else None
    if saved is None:
        saved = first_state(study, grid, run)
        saver = Saver(study, run, strategy, saved.agreement, saved.begun)
        saver.save(saved.state, saved.chosen, "")
    else:
        saver = Saver(study, run, strategy, saved.agreement, saved.begun)
    state, chosen, agreement = saved.state, saved.chosen, saved.agreement
    lateness = Lateness(study, persons_of(study, agreement.persons))
    requested = dict.fromkeys(agreement.nodes.values(), state.round)  # rounds requested from each site: an upper bound of its releases
    while not ended(study, chosen, state.round):
        requested = {site: n + 1 for site, n in requested.items()}
        try:
            arrived = state.arrays
            state, event = one_round(study, grid, run, strategy, agreement, state, lateness)
            chosen = chosen_after(study, chosen, event, arrived, state.arrays)
            line = line_of(event)
            saver.save(state, chosen, line)
            write_line(run, line)
        except BaseException as error:  # a key of the keyboard too
            if state.round:
                save_unfinished(run, state.arrays, agreement.constants)
            if isinstance(error, Exception):
                emit(run, privacy_record(study, requested, again_of(run)))  # the releases of a failed run count, too
            raise
    state = replace(state, arrays=dict(state.arrays if chosen.arrays is None else chosen.arrays))
    received, begun_with = dict[str, Counts](), saved.begun
    final, counts = evaluate(study, grid, agreement, state, kept_round(study, chosen), received)
    final = replace(final, meaning_sha256=meaning_of(study, agreement, begun_with.first, begun_with.names, final))
    save_counts(run, counts)
    save_received(run, {site: own for site, own in received.items() if "witness" in final.sites[site]})
    save_model(run, state.arrays, agreement.constants, agreement.image_shape, agreement.panel)
    emit(run, privacy_record(study, requested, again_of(run)))
    emit(run, final)
    saver.done()
    (run / UNFINISHED).unlink(missing_ok=True)  # from before the run went on
    return state


def first_state(study: Study, grid: Grid, run: Path) -> Saved:
    """The agreement of the sites and the weights with which the first round begins, both noted in the log."""
    agreement = agree(study, grid, check_reporter(run))
    model = build_model(study, agreement.layout(study))
    trained_parameters(model, study.training.freeze)
    start, names = begun(study, learned(model), run)
    count, first = sum(p.numel() for p in model.parameters()), digest(start)
    emit(run, replace(agreed_event(agreement, disclosures=agreement.disclosures, parameters=count, started=names), first_sha256=first))
    return Saved(RunState(0, start, {}), Chosen(), agreement, Begun(first, names))


def check_reporter(run: Path) -> ReportChecks:
    """A function that writes the table of checks to the run's log."""
    return lambda checks: emit(run, Checks(checks=[_check_row(c) for c in checks]))


def _check_row(c: Check) -> CheckRow:
    return {"site": c.site, "check": c.check, "value": c.value, "verdict": c.verdict, "fix": c.fix}


def preflight(study: Study, grid: Grid, run: Path) -> Agreement:
    """Only the agreement before the first round, which checks that the sites' data are compatible.

    Raises:
        RunError: the data are not compatible, or too few sites answered.
    """
    agreement = agree(study, grid, check_reporter(run), train=False)
    emit(run, agreed_event(agreement, disclosures=None, parameters=0))
    return agreement


def begun(study: Study, weights: dict[str, torch.Tensor], run: Path) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """The weights with which the first round begins: ``weights`` by the seed, with those of ``[model] start``; and the names of these.

    Raises:
        InputError: the file is not there, or none of its arrays has a name and shape of the model's.
    """
    pinned = study.model.start
    if pinned is None:
        return weights, None
    names = taken_over(pinned, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    if not names:
        raise InputError(f"[model] start: none of its arrays has a name and shape of this model's, such as {next(iter(weights))}.")
    arrays = load_start(pinned, run)
    return {name: torch.from_numpy(arrays[name].copy()) if name in names else tensor for name, tensor in weights.items()}, names


def agreed_event(
    agreement: Agreement, *, disclosures: dict[str, SiteDisclosure] | None, parameters: int, started: list[str] | None = None
) -> Agreed:
    """The event of an agreement."""
    return Agreed(
        sites=list(agreement.everyone.values()), persons=agreement.persons, matching=agreement.matching, variants=agreement.variants,
        image_shape=list(agreement.image_shape), disclosed=disclosures, parameters=parameters, started=started, first_sha256=None,
        columns=agreement.columns,
    )  # fmt: skip


def one_round(
    study: Study, grid: Grid, run: Path, strategy: Any, agreement: Agreement, state: RunState, lateness: Lateness
) -> tuple[RunState, Round]:
    """One message to each site: evaluate the model, then train it. The strategy combines replies as they arrive. Writes nothing; the event
    has its time.

    Args:
        state: after the round before. lateness: of this run.
    """
    number = state.round + 1
    began, who, counts = time.monotonic(), Participation(refused=agreement.absent(study)), dict[str, Counts]()
    config = request(study, Phase.ROUND, number)
    if isinstance(strategy, FlowerStrategy):
        strategy.nodes = list(agreement.nodes)
    messages = list(_to_roster(strategy.configure_train(number, pack(state.arrays), config, grid), agreement, config))
    asked, busy = (
        {message.metadata.dst_node_id for message in messages},
        lateness.busy(grid) | dict.fromkeys(dropped(run), str(Reason.REMOVED)),
    )
    messages = [message for message in messages if agreement.nodes[message.metadata.dst_node_id] not in busy]
    who.refused |= {site: str(Reason.NOT_ASKED) for node, site in agreement.nodes.items() if node not in asked}
    who.refused |= {site: reason for site, reason in busy.items() if site in study.federation.training}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.arrays.items()}
    extras = returned(algorithm_of(study), Phase.ROUND, shapes)
    check, patience = _check(study, Phase.ROUND, agreement, shapes, extras, state.arrays), lateness.patience()
    found = answers(grid, messages, agreement.nodes, study.federation.timeout, check, patience)
    del messages
    incoming: Iterable[Answer] = (lateness.note(answer, began) for answer in found)
    norms = dict[str, float]()
    # With privacy of a site, updates are clipped: none can stand out.
    incoming = incoming if study.privacy.unit == "site" else judged(study, incoming, state.arrays, norms, list(extras.records))
    replies = _train_replies(study, incoming, who, counts, extras)
    following, _ = strategy.aggregate_train(number, replies)
    who.check_quorum(study, f"round {number}")
    who.check_persons(study, f"round {number}", lateness.persons)
    if following is None:
        raise RunError(f"round {number}: no site trained on any person; check the training persons of each site with fedml-site check.")
    arrays = {n: state.arrays[n] if study.training.is_frozen(n) else tensor for n, tensor in unpack_tensors(following).items()}
    state = RunState(number, arrays, strategy.state if isinstance(strategy, Averaging) else {})
    sites = {site: _trained_row(a, norms.get(site)) for site, a in who.answered.items()}
    metrics = metrics_of(study, counts)
    event = Round(
        time=time.time(), round=number, seconds=time.monotonic() - began, metrics=metrics, sites=sites, refused=who.refused,
    )  # fmt: skip
    return state, event


def evaluate(
    study: Study, grid: Grid, agreement: Agreement, state: RunState, kept: int | None = None, received: dict[str, Counts] | None = None
) -> tuple[Final, dict[str, Counts]]:
    """The last exchange evaluates only, on validation and test persons. Returns the event and site -> its counts.

    Args:
        state: of the last round, with the arrays that are evaluated. kept: the round whose arrays they are, if they were chosen.
        received: site -> its counts as they came is added to it.
    """
    began, who, counts = time.monotonic(), Participation(refused=agreement.absent(study, evaluating=True)), dict[str, Counts]()
    content = RecordDict({ARRAYS: pack(state.arrays), CONFIG: request(study, Phase.EVALUATE, state.round), **agreement.record()})
    messages = [ask(node, content, "evaluate", study.federation.timeout) for node in agreement.everyone]
    for answer in answers(grid, messages, agreement.everyone, study.federation.timeout, _check(study, Phase.EVALUATE, agreement, None)):
        who.add(_read_counts(study, answer, counts))
        if received is not None and answer.reason is None:
            received[answer.site] = unpack(array_record(answer.message.content, COUNTS))
    who.check_quorum(study, "the last evaluation")
    if agreement.nodes:
        counts = {site: _apart(own) if site in study.federation.evaluate_only else own for site, own in counts.items()}
    final = Final(
        round=state.round, weights_sha256=digest({**state.arrays, **agreement.constants}), metrics=metrics_of(study, counts),
        groups=groups_of(study, counts), sites={site: site_row(a) for site, a in who.answered.items()}, refused=who.refused,
        seconds=time.monotonic() - began, kept=kept, meaning_sha256=None,
    )  # fmt: skip
    return final, counts


def _apart(counts: Counts) -> Counts:
    """The counts of the test persons of a site that does not train, as those of another part, so that they are in no sum of others."""
    return {f"external{key.removeprefix('test')}": value for key, value in counts.items() if key.startswith("test/")}


def _check(
    study: Study, phase: Phase, agreement: Agreement, shapes: Shapes | None, extras: Extras = NO_EXTRAS,
    current: Mapping[str, torch.Tensor] | None = None,
) -> Callable[[str, RecordDict], None]:  # fmt: skip
    """A function that checks a site's reply: its form, then whether the site's persons can have sent it. An update that is not float32
    becomes the weights that it stands for, from those that were sent (``current``)."""
    start = {} if current is None else {name: value.numpy() for name, value in current.items()}

    def check(site: str, reply: RecordDict) -> None:
        if (plain := plain_reply(study, reply, start)) is not reply:
            reply[ARRAYS] = plain[ARRAYS]
        check_form(study, phase, site, reply, shapes, extras)
        check_plausible(study, phase, reply, agreement.persons.get(site))

    return check


def _to_roster(messages: Iterable[Message], agreement: Agreement, config: Any) -> Iterator[Message]:
    """The strategy's messages to nodes of the roster, in the roster's order, with agreement and configuration added."""
    by_node = {m.metadata.dst_node_id: m for m in messages}
    extra = agreement.record()[AGREEMENT]
    for node in agreement.nodes:
        if node in by_node:
            message = by_node[node]
            if message.content.get(AGREEMENT) is not extra:  # messages may share their content
                message.content[AGREEMENT] = extra
                config_with(message, config)
            yield message


def _train_replies(
    study: Study, replies: Iterable[Answer], who: Participation, counts: dict[str, Counts], extras: Extras
) -> Iterator[Message]:
    """Passes arrays, metrics (as Flower's strategies expect them) and ``extras`` to the strategy, and collects the counts."""
    for answer in replies:
        read = _read_counts(study, answer, counts)
        if read.reason is None:
            content = read.message.content
            metrics, arrays = metric_record(content, METRICS), (ARRAYS, *extras.records)
            yield _with_content(read.message, RecordDict({**{name: array_record(content, name) for name in arrays}, METRICS: metrics}))
            # The strategy has read the arrays; they are dropped, so that memory does not grow with the number of sites: from the content
            # itself, because whoever passed the answer on still has it while the next one arrives.
            for name in arrays:
                del content[name]
            read = replace(read, message=_with_content(read.message, RecordDict({METRICS: metrics})))
        who.add(read)


def _with_content(message: Message, content: RecordDict) -> Message:
    """A copy of ``message`` with other content; its metadata, which identify the site, are kept."""
    light = copy(message)
    light.content = content
    return light


def _read_counts(study: Study, answer: Answer, counts: dict[str, Counts]) -> Answer:
    if answer.reason is None and holds(answer.message.content, COUNTS, ArrayRecord):
        received = unpack(array_record(answer.message.content, COUNTS))
        parts = dict.fromkeys(key.rpartition("/")[0] for key in received)
        spread = make_task(study).spread
        counts[answer.site] = {
            f"{part}/{name}": value
            for part in parts
            for name, value in spread({k.rpartition("/")[2]: v for k, v in received.items() if k.rpartition("/")[0] == part}).items()
        }
    return answer


def site_row(answer: Answer) -> SiteRow:
    """The entry of one answer in the run's log."""
    journal = None if answer.journal is None else list(answer.journal)
    row: SiteRow = {"bytes_out": answer.bytes_out, "bytes_in": answer.bytes_in, "journal": journal}
    return row if answer.witness is None else {**row, "witness": answer.witness._asdict()}


def _trained_row(answer: Answer, norm: float | None) -> TrainedRow:
    metrics = metric_record(answer.message.content, METRICS)
    seen = float(metrics.get("seen", 0))  # type: ignore[arg-type]
    loss = float(metrics["loss-sum"]) / seen if seen else None  # type: ignore[arg-type]
    return {"train_loss": loss, "seen": seen, "seconds": answer.seconds, "update_norm": norm, **site_row(answer)}


def _of(part: str, counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """Site -> its counts of ``part``, for sites that have any."""
    by_site = {site: {k[len(part) + 1 :]: v for k, v in c.items() if k.startswith(f"{part}/")} for site, c in counts.items()}
    return {site: c for site, c in by_site.items() if c}


def groups_of(study: Study, counts: Mapping[str, Counts]) -> dict[str, GroupScores]:
    """label -> metrics of the test persons in that subgroup, of all sites that reported it ("all") and of each ("sites")."""
    task, out = make_task(study), dict[str, GroupScores]()
    for label in (label for labels in study.evaluation.labels().values() for label in labels):
        if group := _of(f"test@{label}", counts):
            out[label] = {"all": task.metrics(add_counts(group.values())), "sites": {s: task.metrics(c) for s, c in group.items()}}
    return out


def metrics_of(study: Study, counts: Mapping[str, Counts]) -> dict[str, PartScores]:
    """part -> {"all": metrics of the merged counts, "sites": {site: its metrics}, "worst": the worst site by the watched metric}.

    The part ``external`` is of all persons of the sites that do not train, if others do.
    """
    task = make_task(study)
    out: dict[str, PartScores] = {}
    for part in ("train", "val", "test", "external"):
        by_site = _of(part, counts)
        if not by_site:
            continue
        sites = {site: task.metrics(c) for site, c in by_site.items()}
        valid = {s: m[task.watched] for s, m in sites.items() if math.isfinite(m.get(task.watched, math.nan))}
        worst = (min if task.higher else max)(valid, key=valid.__getitem__) if valid else None
        out[part] = {"all": task.metrics(add_counts(by_site.values())), "sites": sites, "worst": worst}
    return out
