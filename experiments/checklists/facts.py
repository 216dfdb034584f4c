"""Facts of a run as short sentences with pointers into its folder: the only source of the checklists and of the model card.

    facts = facts_of(record)                       # {"outcome": Fact("The target is ...", ("study.json#/cohort/target", ...)), ...}
    resolve(run, "events.jsonl#final/metrics")     # the value at a pointer

A pointer is a file of the run's folder and a place in it: ``study.json#/cohort/target`` (JSON Pointer, RFC 6901),
``events.jsonl#agreed/persons`` (the last event of that kind, then a JSON Pointer without its first slash; ``round`` is the list of all
rounds), ``report.html#calibration`` (an id), or ``model.safetensors`` (the file). A fact that the folder does not contain has no entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedml.cohort.standard import unscaled
from fedml.contract.disclosure import trust_text
from fedml.errors import InputError, NotBuilt
from fedml.experiments.runs.record import Record
from fedml.modalities.modality import Text
from fedml.modalities.registry import modalities_of
from fedml.runs.events import to_row
from fedml.runs.log import EVENTS, MODEL, read_log
from fedml.runs.software import words
from fedml.strategies.algorithms.registry import algorithm_of
from fedml.study import training_words
from fedml.study.section import PARTS
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task

_PART = {"train": "train", "val": "validation", "test": "test"}
_REPEATED = "round"  # the only kind of event that occurs more than once


@dataclass(frozen=True)
class Fact:
    """One or more sentences with values of the run, and pointers to these values in the run's folder."""

    text: str
    pointers: tuple[str, ...]


def resolve(run: Path, pointer: str) -> Any:
    """The value at ``pointer``: a JSON value, an id in an HTML file, or the path of a file.

    Raises:
        LookupError: there is no such value.
    """
    name, _, place = pointer.partition("#")
    path = run / name
    if Path(name).name != name or not path.is_file():
        raise LookupError(f"{pointer}: the run's folder has no file {name}")
    if not place:
        return path
    if name.endswith(".html"):
        if re.search(rf'\sid="{re.escape(place)}"', path.read_text(encoding="utf-8")):
            return place
        raise LookupError(f"{pointer}: {name} has no element with this id")
    if name.endswith(".json"):
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    else:
        value = _by_kind([to_row(event) for event in read_log(run)[0]])
    for word in place.removeprefix("/").split("/"):
        key = word.replace("~1", "/").replace("~0", "~")
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise LookupError(f"{pointer}: {name} has no such value") from error
    return value


def _by_kind(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Kind -> its last event; ``round`` -> all of them."""
    found: dict[str, Any] = {str(e["event"]): e for e in events if e["event"] != _REPEATED}
    return {**found, _REPEATED: [e for e in events if e["event"] == _REPEATED]}


def facts_of(record: Record) -> dict[str, Fact]:
    """All facts of a run, by name.

    Raises:
        InputError: the run's log is incomplete.
    """
    try:
        found = [*_plan(record.study), *_method(record), *_happened(record), *_outcome(record)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{record.run / EVENTS}: is not in the format of a run ({error!r}); use the unchanged file of the run.") from error
    return {name: Fact(text, tuple(pointers)) for name, text, *pointers in found if text}


FactRow = tuple[str, ...]  # name of the fact, its text (empty: not known), pointers


def _plan(study: Study) -> Iterator[FactRow]:
    """The question of the study, its inputs, sites and limits."""
    about, cohort, model = study.study, study.cohort, study.model
    yield "question", _quoted(about.question), "study.json#/study/question"
    text = about.purpose and f"Purpose of the use of data (Data Use Ontology): {about.purpose}."
    yield "purpose", text, "study.json#/study/purpose"
    yield "seed", f"Seed of all random numbers: {about.seed}.", "study.json#/study/seed"
    yield "task", f"Task: {model.task}.", "study.json#/model/task"
    yield "outcome", make_task(study).words.outcome, "study.json#/cohort/target", "study.json#/cohort/classes", "study.json#/model/task"
    yield "inputs", f"Inputs of a person: {', '.join(cohort.inputs)}.", "study.json#/cohort/inputs"
    yield "columns", *_joined([modality.words.fact(study) for modality in modalities_of(study)])
    sites, external = study.federation.training, study.federation.evaluate_only
    text = f"Roster: {_count(len(sites), 'site')} ({', '.join(sites)}); a round needs {study.federation.needed} of them."
    only = f" External validation only: {', '.join(external)}." if external else ""
    more = ["study.json#/federation/evaluate_only"] if external else []
    yield "roster", text + only, "study.json#/federation/sites", "study.json#/federation/quorum", *more
    part = cohort.split
    text = f"Planned fractions of persons: train {part.train:g}, validation {part.val:g}, test {part.test:g}, by a keyed hash of the id "
    yield "split", text + "where a site does not list its own split.", "study.json#/cohort/split", "study.json#/cohort/split_key"
    text = "Each person is in one part only, with all images and visits: the split is by person."
    yield "disjoint", text, "study.json#/cohort/split"
    groups = [label for labels in study.evaluation.labels().values() for label in labels]
    text = f"Subgroups named in the study: {', '.join(groups)}." if groups else ""
    yield "named_groups", text, "study.json#/evaluation/subgroups", "study.json#/evaluation/bands"
    limits = study.policy
    text = f"Limits of the study: a site needs at least {_count(limits.min_persons, 'training person')}, "
    yield "limits", text + f"a released number has at least {_count(limits.min_count, 'person')} behind it.", "study.json#/policy"


def _method(record: Record) -> Iterator[FactRow]:
    """Preparation of the data, the model and its training."""
    study = record.study
    yield "preprocessing", *_preprocessing(study)
    yield "missing", *_missing(study)
    yield "output", *_output(study)
    size = record.agreed.parameters
    learned = f" It has {size:,} parameters." if size else ""
    yield "model", f"{_network(study)}{learned}", "study.json#/model", *(["events.jsonl#agreed/parameters"] if size else [])
    evaluated = record.start.job == "evaluate"
    yield "initialisation", *(("",) if evaluated else _initialisation(record))
    plan, strategy = study.training, study.strategy
    options = "".join(f", {k} = {v}" for k, v in strategy.options.items())
    batch = f"batches of {_count(plan.batch_size, 'person')}" if plan.batch_size else "all persons in one batch"
    length = _count(plan.local_steps, "step") if plan.local_steps else _count(plan.local_epochs, "epoch")
    more = "".join(f"; {text}" for text in training_words.options(study))
    text = (
        f"Strategy {strategy.name}{options}. {algorithm_of(study).words.report}{_stated_weights(study)} "
        f"At a site: optimiser {plan.optimizer}, learning rate {plan.lr:g}, momentum {plan.momentum:g}, "
        f"weight decay {plan.weight_decay:g}, {batch}, {length} a round, "
        f"precision {plan.precision}{more}. "
        f"{_count(study.federation.rounds, 'round')} planned."
    )
    text = "Nothing was trained in this run: a finished model was tested. Its own record states its training." if evaluated else text
    yield "training", text, "study.json#/training", "study.json#/strategy", "study.json#/federation/rounds"
    changes = ", ".join(f"{name} {value}" for name, value in plan.augment.model_dump().items() if value)
    text = f"Random augmentation of training images: {changes}." if changes else "Training images are not augmented."
    yield "augmentation", text if "image" in study.cohort.inputs else "", "study.json#/training/augment"
    balance = make_task(study).words.balance
    yield "balance", "" if isinstance(balance, NotBuilt) else balance, "study.json#/training"


def _initialisation(record: Record) -> FactRow:
    """With which weights training began; "" if nothing was trained, or if it did not begin."""
    start, names = record.study.model.start, record.agreed.started
    text = f"The initial weights are random, from the study's seed ({record.study.study.seed})"
    if start is None:
        return f"{text}; no pretrained weights are used.", "study.json#/study/seed"
    if names is None:  # it did not begin
        return "", "study.json#/model/start"
    taken = f"{_count(len(names), 'array')} of the model begin as in a file of weights with SHA-256 {start.sha256}"
    return (
        f"{taken}; {text[:1].lower()}{text[1:]}, in all others.",
        "events.jsonl#agreed/started",
        "study.json#/model/start",
        "study.json#/study/seed",
    )


def _stated_weights(study: Study) -> str:
    """With privacy of a patient, sites do not tell how many persons they train."""
    stated = study.privacy.unit == "patient" and "weighted by their training persons" in algorithm_of(study).words.report
    return " These numbers of persons are those that the study states, not counts." if stated else ""


def _selection(record: Record) -> FactRow:
    """Which round's model is the result, and by what it was chosen."""
    study, final, at = record.study, record.final, "events.jsonl#final/round"
    noised = " noised" if study.privacy.metrics == "private" else ""
    stopped = f" Training ended after {final.round} of {study.federation.rounds} rounds by{noised} validation scores." * (
        final.round < study.federation.rounds
    )
    if final.kept is not None:
        text = f"The result is the model after round {final.kept}, which had the best{noised} validation scores.{stopped}"
        return text, at, "events.jsonl#final/kept"
    if study.training.ema:
        text = f"The result is the moving average of the models of rounds 1 to {final.round}; no model was selected by validation scores."
        return text + stopped, at, "study.json#/training/ema"
    return f"The result is the model after the last round, {final.round}; no model was selected by validation scores.{stopped}", at


def _preprocessing(study: Study) -> FactRow:
    source = "sums over the training persons of all sites"
    if study.privacy.unit != "none":
        source = "noised sums over the training persons"
    own, modalities = (*study.cohort.by_site, *unscaled(study)), modalities_of(study)
    columns = [*(m.words.columns for m in modalities if m.name not in own), *(["the outcome"] if study.traits.standardised else [])]
    how = f"by mean and standard deviation, from {source}"
    if study.privacy.unit != "none" and study.privacy.statistics == "stated":
        how = "by the middle and a quarter of the width of the range that the study states for each"
    standard = f"Standardised {how}: {', '.join(columns)}.", ("study.json#/privacy/statistics",)
    texts = [modality.words.preparation(study) for modality in modalities]
    if own:
        text = "Standardised at each site by mean and standard deviation of its own training persons, which did not leave it"
        text = text if study.cohort.by_site else "In their own units, less the mean of the training persons of all sites"
        texts.append((f"{text}: {', '.join(m.words.columns for m in modalities if m.name in own)}.", ("study.json#/cohort/standardise",)))
    return _joined([*texts, *([standard] if columns else [])])


def _missing(study: Study) -> FactRow:
    texts = [modality.words.missing(study) for modality in modalities_of(study)]
    if len(texts) > 1:
        text = "A missing input is masked, and the mask is an input of the model; in training an input is masked with probability "
        texts.append((f"{text}{study.model.input_dropout:g}.", ("study.json#/model/input_dropout",)))
    return _joined(texts)


def _joined(parts: Sequence[Text]) -> FactRow:
    """The texts joined, with the pointers of all of them."""
    return (" ".join(text for text, _ in parts if text), *dict.fromkeys(pointer for _, pointers in parts for pointer in pointers))


def _network(study: Study) -> str:
    model = study.model
    if study.traits.label == "mask":
        net = model.segmentation
        return f"Segmentation network {net.net} with channels {', '.join(map(str, net.channels))} and {net.norm} norm."
    encoders = "; ".join(modality.words.network(study) for modality in modalities_of(study))
    hidden = f" with hidden widths {', '.join(map(str, model.hidden))}" if model.hidden else ""
    return f"One encoder for each input ({encoders}), then a fusion layer{hidden}."


def _output(study: Study) -> FactRow:
    return (make_task(study).words.output, "study.json#/model/task", "study.json#/cohort/classes")


def _happened(record: Record) -> Iterator[FactRow]:
    """The run: identity, versions, sites, persons, rounds."""
    start, agreed, end, images = record.start, record.agreed, record.end, "image" in record.study.cohort.inputs
    text = f"Run {start.run_id}, engine {start.engine}, study SHA-256 {start.study_sha256}."
    yield "identity", text, "events.jsonl#start/run_id", "events.jsonl#start/engine", "events.jsonl#start/study_sha256"
    commit, _, changed = start.git_commit.partition("+")
    text = f"The study file was in a working tree at git commit {commit}{', with uncommitted changes' if changed else ''}."
    made = [] if start.code is None else [f"Made by {words(start.code)}."]
    where = ["events.jsonl#start/code"] * len(made)
    if commit != "none":
        made, where = [*made, text], [*where, "events.jsonl#start/git_commit"]
    yield "code", " ".join(made), *where
    found = ", ".join(f"{name} {version}" for name, version in start.versions.items() if version != "absent")
    yield "versions", found and f"Versions: {found}.", "events.jsonl#start/versions"
    yield "began", f"The run began {_day(start.time)}.", "events.jsonl#start/time"
    if end.came:
        yield "ended", f"It ended {_day(end.time)} with status {end.status}.", "events.jsonl#end/time", "events.jsonl#end/status"
    if agreed.came:
        yield "sites", f"Sites that took part: {', '.join(agreed.sites)}.", "events.jsonl#agreed/sites"
        yield from _persons(record)
    rows = [f"{s.name} {_excluded(s.quarantined)}" for s in record.sites if s.quarantined is not None]
    text = f"Persons with an excluded image, by reason: {'; '.join(rows)}."
    yield "quarantined", text if rows and images else "", "events.jsonl#agreed/disclosed"
    rows = [f"{s.name} {s.policy['deidentification']}" for s in record.sites if s.policy is not None]
    text = f"Policy of each site for DICOM files that are not de-identified: {'; '.join(rows)}."
    yield "deidentification", text if rows and images else "", "events.jsonl#agreed/disclosed"
    rows = [f"{s.name} {_limits(s.policy)}" for s in record.sites if s.policy is not None]
    yield "policies", f"Limits of the sites, as disclosed: {'; '.join(rows)}." if rows else "", "events.jsonl#agreed/disclosed"
    rows = [f"{s.name} {s.dataset}" for s in record.sites if s.dataset is not None]
    yield "digests", f"SHA-256 of the data that were read: {'; '.join(rows)}." if rows else "", "events.jsonl#agreed/disclosed"
    verdicts = [sum(check["verdict"] == kind for check in record.checks) for kind in ("ok", "warn", "fail")]
    text = f"Checks of the sites' variants: {verdicts[0]} passed, {verdicts[1]} warned, {verdicts[2]} failed."
    yield "checks", text if record.checks else "", "events.jsonl#checks/checks"
    missed = {s.name: "".join(f", missed {len(n)} ({reason})" for reason, n in s.missed.items()) for s in record.sites}
    only = record.study.federation.evaluate_only
    rows = [f"{s.name} {'in the last evaluation only' if s.name in only else f'in {len(s.rounds)}'}{missed[s.name]}" for s in record.sites]
    text = f"{_count(len(record.rounds), 'round')} of training, then the last evaluation: {'; '.join(rows)}."
    yield "participation", text if record.rounds else "", "events.jsonl#round"


def _persons(record: Record) -> Iterator[FactRow]:
    study = record.study
    sites = [s for s in record.sites if s.name in record.agreed.sites and s.name not in study.federation.evaluate_only]
    others = [f"{s.name} {s.count('test') or 0:,}" for s in record.sites if s.name in study.federation.evaluate_only and s.persons]
    hidden = study.privacy.unit == "patient"
    parts = [p for p in PARTS if any(s.count(p) for s in sites)]
    rows = [f"{s.name} {', '.join(f'{_PART[p]} {s.count(p) or 0:,}' for p in parts)}" for s in sites]
    total = ", ".join(f"{_PART[p]} {sum(s.count(p) or 0 for s in sites):,}" for p in parts)
    text, pointers = f"Persons by site and part: {'; '.join(rows)}. All sites: {total}.", ["events.jsonl#agreed/persons"]
    text += f" External validation: {'; '.join(others)}." if others else ""
    if not parts:
        text, pointers = "", []
    if hidden:
        stated = "; ".join(f"{site} about {n:,}" for site, n in study.privacy.persons.items())
        text = f"{text} Training persons as stated in the study, because their number is protected: {stated}.".strip()
        pointers.append("study.json#/privacy/persons")
    yield ("persons", text, *pointers)
    names = make_task(study).person_classes
    if names and parts:
        sums = {p: [sum(column) for column in zip(*(s.persons[p] for s in sites if s.count(p)), strict=True)] for p in parts}
        rows = [f"{_PART[p]} {', '.join(f'{n:,} of class {c}' for c, n in zip(names, counts, strict=True))}" for p, counts in sums.items()]
        text = f"Persons by outcome, all sites: {'; '.join(rows)}."
        yield "events", text, "events.jsonl#agreed/persons", "study.json#/cohort/classes"


def _limits(policy: Mapping[str, Any]) -> str:
    training, count = _count(policy["min_persons"], "training person"), _count(policy["min_count"], "person")
    rounds = _count(policy["max_rounds"], "round")
    return f"(at least {training}, at least {count} behind a released number, at most {rounds}; the centre: {trust_text(policy)})"


def _excluded(counts: Mapping[str, int]) -> str:
    rows = [f"{'a few' if n < 0 else n} ({reason})" for reason, n in counts.items()]
    return ", ".join(rows) or "none"


def _outcome(record: Record) -> Iterator[FactRow]:
    """The results: metrics of all persons, of each site and subgroup; privacy; the model's file."""
    final, privacy, task = record.final, record.privacy, make_task(record.study)
    part, scores = held_out(record)
    if scores:
        at, held = f"events.jsonl#final/metrics/{part}", _PART[part]
        text = f"Measures on {held} persons: {', '.join(k for k in scores['all'] if k != 'persons')}."
        yield "measures", text, f"{at}/all"
        text = f"{held.capitalize()} persons of all sites: {_row(task, scores['all'])}."
        yield "performance", text, f"{at}/all"
        rows = "; ".join(f"{site} {_row(task, metrics)}" for site, metrics in scores["sites"].items())
        worst = f" The worst site is {scores['worst']}." if scores.get("worst") else ""
        yield "by_site", f"By site: {rows}.{worst}" if len(scores["sites"]) > 1 else "", f"{at}/sites", f"{at}/worst"
        yield _external(record, task, part)
        groups = "; ".join(f"{label} {_row(task, group['all'])}" for label, group in final.groups.items())
        yield "groups", f"Test persons by subgroup: {groups}." if groups else "", "events.jsonl#final/groups"
    if final.came:
        yield "selection", *_selection(record)
        exists = (record.run / MODEL).is_file()
        text = f"The model is {MODEL}, SHA-256 of its arrays {final.weights_sha256}." if exists else ""
        yield "file", text, MODEL, "events.jsonl#final/weights_sha256"
    heads = [f"{s.name} {s.journal[0]} after {s.journal[1]:,} entries" for s in record.sites if s.journal is not None]
    yield "journals", f"Heads of the sites' journals: {'; '.join(heads)}." if heads else "", "events.jsonl#round"
    if privacy.came and privacy.unit == "none":
        yield (
            "privacy",
            "No differential privacy: no noise was added to updates and counts.",
            "events.jsonl#privacy/unit",
        )
    elif privacy.sentence:
        from fedml.privacy.claims import rounded_up

        spent = "; ".join(f"{s.name} {rounded_up(s.epsilon)}" for s in record.sites if s.epsilon is not None)
        by_site = f" Epsilon by site: {spent}." if privacy.unit == "patient" and spent else ""
        yield "privacy", f"{privacy.sentence}{by_site}", "events.jsonl#privacy/sentence", "events.jsonl#privacy/claims"


def _external(record: Record, task: Task, part: str) -> FactRow:
    """What is known of persons of other sites than those that trained."""
    only, found = record.study.federation.evaluate_only, record.final.metrics.get("external")
    at, roster = f"events.jsonl#final/metrics/{part}/sites", "study.json#/federation/sites"
    if not only:
        text = "Test persons are of the same sites as training persons; no site outside the roster was tested."
        return "external", text if part == "test" else "", roster, at
    named = "study.json#/federation/evaluate_only"
    if not record.study.federation.training:
        return "external", f"External validation: none of the sites ({', '.join(only)}) trained the model.", named
    if found is None:
        return "external", f"The study names {', '.join(only)} for external validation; no person was evaluated there.", named
    rows = "; ".join(f"{site} {_row(task, metrics)}" for site, metrics in found["sites"].items())
    return "external", f"External validation, at sites that did not train: {rows}.", named, "events.jsonl#final/metrics/external"


def held_out(record: Record) -> tuple[str, dict[str, Any]]:
    """The part of the last evaluation (test persons if there are any) and its scores; empty if there are none."""
    metrics = record.final.metrics
    return next(((part, dict(metrics[part])) for part in ("test", "val") if part in metrics), ("", {}))


def _row(task: Task, metrics: Mapping[str, Any]) -> str:
    values = [f"{name} {formatted(task, name, value)}" for name, value in metrics.items() if name != "persons"]
    return f"{', '.join(values)} ({_count(int(metrics['persons']), 'person')})"


def formatted(task: Task, name: str, value: float | None) -> str:
    """A measure as text: three decimals; counts of persons, such as ``missed/1``, as whole numbers."""
    counts = name == "persons" or task.described(name).counted
    return "not defined" if value is None else f"{value:,.0f}" if counts else f"{value:.3f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _quoted(text: str) -> str:
    return f'"{" ".join(text.split())}"' if text.strip() else ""


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
