"""What a run's folder knows, as short sentences with pointers: the only source of the checklists and of the model card.

    facts = facts_of(record)                       # {"outcome": Fact("The target is ...", ("study.json#/cohort/target", ...)), ...}
    resolve(run, "events.jsonl#final/metrics")     # what a pointer points to

A pointer is a file of the run's folder, then what in it: ``study.json#/cohort/target`` (JSON Pointer, RFC 6901),
``events.jsonl#agreed/persons`` (the last event of that kind, then a JSON Pointer without its first slash; ``round`` is the list of all
rounds), ``report.html#calibration`` (an id), or ``model.safetensors`` (the file). What the folder does not say is no fact and has no entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.experiments.runs.record import Record
from fedml.runs.log import EVENTS, MODEL, read_events
from fedml.strategies.algorithms.registry import algorithm_of
from fedml.study.sections import PARTS, normal
from fedml.study.study import Study

_PART = {"train": "train", "val": "validation", "test": "test"}
_MANY = "round"  # the one kind of event of which there are many


@dataclass(frozen=True)
class Fact:
    """One sentence or a few, made of the run's values, and where in the run's folder they are."""

    text: str
    pointers: tuple[str, ...]


def resolve(run: Path, pointer: str) -> Any:
    """What ``pointer`` points to: a JSON value, the id itself in HTML, or the file's path.

    Raises:
        LookupError: nothing is there.
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
        raise LookupError(f"{pointer}: {name} has no such id")
    value: Any = json.loads(path.read_text(encoding="utf-8")) if name.endswith(".json") else _by_kind(read_events(run)[0])
    for word in place.removeprefix("/").split("/"):
        key = word.replace("~1", "/").replace("~0", "~")
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise LookupError(f"{pointer}: {name} has nothing there") from error
    return value


def _by_kind(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Kind -> its last event; ``round`` -> all of them."""
    found: dict[str, Any] = {str(e["event"]): e for e in events if e["event"] != _MANY}
    return {**found, _MANY: [e for e in events if e["event"] == _MANY]}


def facts_of(record: Record) -> dict[str, Fact]:
    """All facts of a run, by name.

    Raises:
        InputError: the run's log lacks what every run writes.
    """
    try:
        found = [*_plan(record.study), *_method(record), *_happened(record), *_outcome(record)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{record.run / EVENTS}: is not as a run writes it ({error!r}); take the file that the run wrote.") from error
    return {name: Fact(text, tuple(pointers)) for name, text, *pointers in found if text}


Told = tuple[str, ...]  # name of the fact, its text (empty: not known), pointers


def _plan(study: Study) -> Iterator[Told]:
    """What the study asks, of whom, and with which limits."""
    about, cohort, model = study.study, study.cohort, study.model
    yield "question", _quoted(about.question), "study.json#/study/question"
    text = about.purpose and f"Purpose of the use of data (Data Use Ontology): {about.purpose}."
    yield "purpose", text, "study.json#/study/purpose"
    yield "seed", f"Seed of all that is random: {about.seed}.", "study.json#/study/seed"
    yield "task", f"Task: {model.task}.", "study.json#/model/task"
    classes = ", ".join(normal(c) for c in cohort.classes)
    target = {
        "classification": f'The outcome is the column "{cohort.target}", with classes {classes}.',
        "regression": f'The outcome is the column "{cohort.target}", a number.',
        "segmentation": f"The outcome is a mask with classes {classes}, given with each image.",
    }[model.task]
    yield "outcome", target, "study.json#/cohort/target", "study.json#/cohort/classes", "study.json#/model/task"
    yield "inputs", f"Inputs of a person: {', '.join(cohort.inputs)}.", "study.json#/cohort/inputs"
    if cohort.clinical is not None:
        kinds = cohort.clinical.categories
        names = [f"{c} ({', '.join(normal(v) for v in kinds[c])})" if c in kinds else c for c in cohort.clinical.columns]
        text = f"Clinical columns, with the codes of categories: {', '.join(names)}."
        yield "columns", text, "study.json#/cohort/clinical/columns", "study.json#/cohort/clinical/categories"
    sites = study.federation.sites
    text = f"Roster: {_count(len(sites), 'site')} ({', '.join(sites)}); a round needs {study.federation.needed} of them."
    yield "roster", text, "study.json#/federation/sites", "study.json#/federation/quorum"
    part = cohort.split
    text = f"Planned fractions of persons: train {part.train:g}, validation {part.val:g}, test {part.test:g}, by a keyed hash of the id "
    yield "split", text + "where a site does not list its own split.", "study.json#/cohort/split", "study.json#/cohort/split_key"
    text = "A person is in one part only: parts are of persons, with all that was read of each, not of images or visits."
    yield "disjoint", text, "study.json#/cohort/split"
    groups = [label for labels in study.evaluation.labels().values() for label in labels]
    text = f"Subgroups named in the study: {', '.join(groups)}." if groups else ""
    yield "named_groups", text, "study.json#/evaluation/subgroups", "study.json#/evaluation/bands"
    limits = study.policy
    text = f"The study's own limits: a site needs {_count(limits.min_persons, 'training person')} at least, "
    yield "limits", text + f"a number that leaves has {_count(limits.min_count, 'person')} behind it at least.", "study.json#/policy"


def _method(record: Record) -> Iterator[Told]:
    """How data are prepared, what the model is, how it is trained."""
    study = record.study
    yield "preprocessing", *_preprocessing(study)
    yield "missing", *_missing(study)
    yield "output", *_output(study)
    size = record.agreed.parameters
    learned = f" It has {size:,} learned numbers." if size else ""
    yield "model", f"{_network(study)}{learned}", "study.json#/model", *(["events.jsonl#agreed/parameters"] if size else [])
    text = f"The first weights are random and follow from the study's seed ({study.study.seed}); no pretrained weights are read."
    yield "initialisation", text, "study.json#/study/seed"
    plan, strategy = study.training, study.strategy
    options = "".join(f", {k} = {v}" for k, v in strategy.options.items())
    batch = f"batches of {_count(plan.batch_size, 'person')}" if plan.batch_size else "all persons in one batch"
    text = (
        f"Strategy {strategy.name}{options}. {algorithm_of(study).words.report} "
        f"At a site: optimiser {plan.optimizer}, learning rate {plan.lr:g}, momentum {plan.momentum:g}, "
        f"weight decay {plan.weight_decay:g}, {batch}, {_count(plan.local_epochs, 'epoch')} a round, "
        f"precision {plan.precision}. "
        f"{_count(study.federation.rounds, 'round')} planned."
    )
    yield "training", text, "study.json#/training", "study.json#/strategy", "study.json#/federation/rounds"
    changes = ", ".join(f"{name} {value}" for name, value in plan.augment.model_dump().items() if value)
    text = (
        f"Training images are changed at random: {changes}." if changes else "No image is turned, mirrored or otherwise varied in training."
    )
    yield "augmentation", text if "image" in study.cohort.inputs else "", "study.json#/training/augment"
    text = "At a site the loss weighs all training persons alike; none is drawn more often for its class."
    yield "balance", text if study.model.task == "classification" else "", "study.json#/training"


def _preprocessing(study: Study) -> Told:
    image = study.cohort.image
    source = "sums over the training persons of all sites"
    if study.privacy.unit != "none":
        source = "ranges that the study states" if study.privacy.statistics == "stated" else "noised sums over the training persons"
    kinds = {"clinical": "clinical numbers", "variants": "variants", "image": "image channels"}
    what = [*(kinds[name] for name in study.cohort.inputs), *(["the outcome"] if study.model.task == "regression" else [])]
    text = f"Standardised by mean and standard deviation, from {source}: {', '.join(what)}."
    pointers = ["study.json#/privacy/statistics"]
    if image is not None and image.tiles is not None:
        cut, at = image.tiles, f" at {image.tiles.mpp:g} micrometres a pixel" if image.tiles.mpp else " of a slide's finest level"
        text = (
            f"Slides are cut into tiles of {cut.size_px} x {cut.size_px} pixels{at}, used where at least {cut.min_tissue:.0%} is tissue; "
            f"a step of training draws {cut.per_step} of a person. {text}"
        )
        pointers.insert(0, "study.json#/cohort/image/tiles")
    elif image is not None and image.preprocess is not None:
        size = " x ".join(map(str, image.size))
        steps = [f"turned to {image.orientation}"] if image.orientation else []
        steps += [f"resampled to {' x '.join(f'{s:g}' for s in image.spacing_mm)} mm"] if image.spacing_mm else []
        steps += [f"intensities {image.window[0]:g} to {image.window[1]:g} brought to 0 to 1"] if image.window else []
        two = image.percentiles
        steps += [f"percentiles {two[0]:g} and {two[1]:g} of all sites' training voxels brought to 0 and 1"] if two else []
        text = f"Images are {', '.join([*steps, f'cropped and padded to {size}'])}. {text}"
        pointers.insert(0, "study.json#/cohort/image")
    elif image is not None:
        text = f"Images are read as they are and must have {image.channels} x {' x '.join(map(str, image.size))} values. {text}"
        pointers.insert(0, "study.json#/cohort/image")
    return (text, *pointers)


def _missing(study: Study) -> Told:
    clinical, said, pointers = study.cohort.clinical, [], []
    if clinical is not None:
        said.append("A missing clinical number is replaced by the mean" + (" and marked by an indicator." if clinical.indicate else "."))
        codes = [f"{column}: {', '.join(normal(v) for v in values)}" for column, values in clinical.missing.items()]
        said += [f"Codes read as missing: {'; '.join(codes)}."] if codes else []
        pointers += ["study.json#/cohort/clinical/indicate", "study.json#/cohort/clinical/missing"]
    if "variants" in study.cohort.inputs:
        said.append("A missing genotype is replaced by the mean dosage.")
        pointers.append("study.json#/cohort/inputs")
    if len(study.cohort.inputs) > 1:
        said.append(
            "An input that a person lacks is masked, and the model is told so; in training an input is hidden with chance "
            f"{study.model.input_dropout:g}."
        )
        pointers.append("study.json#/model/input_dropout")
    return (" ".join(said), *pointers)


def _network(study: Study) -> str:
    model = study.model
    if model.task == "segmentation":
        net = model.segmentation
        return f"Segmentation network {net.net} with channels {', '.join(map(str, net.channels))} and {net.norm} norm."
    hidden = {k: f" with hidden widths {', '.join(map(str, v))}" if v else "" for k, v in _widths(study).items()}
    encoders = {
        "image": f"image: {model.image.net} with channels {', '.join(map(str, model.image.channels))} and {model.image.norm} norm"
        + (", a person's images put together by learned attention" if model.image.pooling == "attention" else ""),
        "variants": f"variants: {model.variants.net}{hidden['variants']}",
        "clinical": f"clinical: {model.clinical.net}{hidden['clinical']}",
    }
    return f"One encoder an input ({'; '.join(encoders[name] for name in study.cohort.inputs)}), then a fusion{hidden['fusion']}."


def _output(study: Study) -> Told:
    classes = len(study.cohort.classes)
    text = {
        "classification": f"The model gives a probability for each of {classes} classes; the predicted class is the most probable one.",
        "regression": "The model gives a number in the unit of the outcome.",
        "segmentation": f"The model gives {classes} scores for each voxel; the predicted class is the one with the highest.",
    }[study.model.task]
    return (text, "study.json#/model/task", "study.json#/cohort/classes")


def _widths(study: Study) -> dict[str, tuple[int, ...]]:
    return {"variants": study.model.variants.hidden, "clinical": study.model.clinical.hidden, "fusion": study.model.hidden}


def _happened(record: Record) -> Iterator[Told]:
    """The run itself: identity, versions, sites, persons, rounds."""
    start, agreed, end, images = record.start, record.agreed, record.end, "image" in record.study.cohort.inputs
    text = f"Run {start.run_id}, engine {start.engine}, study SHA-256 {start.study_sha256}."
    yield "identity", text, "events.jsonl#start/run_id", "events.jsonl#start/engine", "events.jsonl#start/study_sha256"
    commit, _, changed = start.git_commit.partition("+")
    text = f"The study lay in a working tree at git commit {commit}{', with changes that are in no commit' if changed else ''}."
    yield "code", "" if commit == "none" else text, "events.jsonl#start/git_commit"
    found = ", ".join(f"{name} {version}" for name, version in start.versions.items() if version != "absent")
    yield "versions", found and f"Versions: {found}.", "events.jsonl#start/versions"
    yield "began", f"The run began {_day(start.time)}.", "events.jsonl#start/time"
    if end.came:
        yield "ended", f"It ended {_day(end.time)} with status {end.status}.", "events.jsonl#end/time", "events.jsonl#end/status"
    if agreed.came:
        yield "sites", f"Sites that took part: {', '.join(agreed.sites)}.", "events.jsonl#agreed/sites"
        yield from _persons(record)
    rows = [f"{s.name} {_aside(s.quarantined)}" for s in record.sites if s.quarantined is not None]
    text = f"Persons with an image set aside as unusable: {'; '.join(rows)}."
    yield "quarantined", text if rows and images else "", "events.jsonl#agreed/told"
    rows = [f"{s.name} {s.policy['deidentification']}" for s in record.sites if s.policy is not None]
    text = f"What a site does with a DICOM file that is not de-identified: {'; '.join(rows)}."
    yield "deidentification", text if rows and images else "", "events.jsonl#agreed/told"
    rows = [f"{s.name} {_limits(s.policy)}" for s in record.sites if s.policy is not None]
    yield "policies", f"Limits of the sites, as they disclosed them: {'; '.join(rows)}." if rows else "", "events.jsonl#agreed/told"
    rows = [f"{s.name} {s.dataset}" for s in record.sites if s.dataset is not None]
    yield "digests", f"SHA-256 of the data that were read: {'; '.join(rows)}." if rows else "", "events.jsonl#agreed/told"
    verdicts = [sum(check["verdict"] == kind for check in record.checks) for kind in ("ok", "warn", "fail")]
    text = f"Checks of the sites' variants: {verdicts[0]} passed, {verdicts[1]} warned, {verdicts[2]} failed."
    yield "checks", text if record.checks else "", "events.jsonl#checks/checks"
    missed = {s.name: "".join(f", missed {len(n)} ({reason})" for reason, n in s.missed.items()) for s in record.sites}
    rows = [f"{s.name} in {len(s.rounds)}{missed[s.name]}" for s in record.sites]
    text = f"{_count(len(record.rounds), 'round')} of training done, then the last evaluation: {'; '.join(rows)}."
    yield "participation", text if record.rounds else "", "events.jsonl#round"


def _persons(record: Record) -> Iterator[Told]:
    study, here = record.study, [s for s in record.sites if s.name in record.agreed.sites]
    hidden = study.privacy.unit == "patient"
    shown = [p for p in PARTS if any(s.count(p) for s in here)]
    rows = [f"{s.name} {', '.join(f'{_PART[p]} {s.count(p) or 0:,}' for p in shown)}" for s in here]
    total = ", ".join(f"{_PART[p]} {sum(s.count(p) or 0 for s in here):,}" for p in shown)
    text, pointers = f"Persons by site and part: {'; '.join(rows)}. All sites: {total}.", ["events.jsonl#agreed/persons"]
    if not shown:
        text, pointers = "", []
    if hidden:
        stated = "; ".join(f"{site} about {n:,}" for site, n in study.privacy.persons.items())
        text = f"{text} Training persons as the study states them, for their number is protected: {stated}.".strip()
        pointers.append("study.json#/privacy/persons")
    yield ("persons", text, *pointers)
    if study.model.task == "classification" and shown:
        names = [normal(c) for c in study.cohort.classes]
        sums = {p: [sum(column) for column in zip(*(s.persons[p] for s in here if s.count(p)), strict=True)] for p in shown}
        rows = [f"{_PART[p]} {', '.join(f'{n:,} of class {c}' for c, n in zip(names, own, strict=True))}" for p, own in sums.items()]
        text = f"Persons by outcome, all sites: {'; '.join(rows)}."
        yield "events", text, "events.jsonl#agreed/persons", "study.json#/cohort/classes"


def _limits(policy: Mapping[str, Any]) -> str:
    least = (
        f"{_count(policy['min_persons'], 'training person')} at least, {_count(policy['min_count'], 'person')} behind a number that leaves"
    )
    return f"({least}, {_count(policy['max_rounds'], 'round')} at most)"


def _aside(counts: Mapping[str, int]) -> str:
    rows = [f"{'a few' if n < 0 else n} ({reason})" for reason, n in counts.items()]
    return ", ".join(rows) or "none"


def _outcome(record: Record) -> Iterator[Told]:
    """What came out: metrics of all, of each site and subgroup; privacy; the model's file."""
    final, privacy = record.final, record.privacy
    part, scores = held_out(record)
    if scores:
        at, held = f"events.jsonl#final/metrics/{part}", _PART[part]
        text = f"Measures on {held} persons: {', '.join(k for k in scores['all'] if k != 'persons')}."
        yield "measures", text, f"{at}/all"
        text = f"{held.capitalize()} persons of all sites: {_row(scores['all'])}."
        yield "performance", text, f"{at}/all"
        rows = "; ".join(f"{site} {_row(own)}" for site, own in scores["sites"].items())
        worst = f" The worst is {scores['worst']}." if scores.get("worst") else ""
        yield "by_site", f"By site: {rows}.{worst}" if len(scores["sites"]) > 1 else "", f"{at}/sites", f"{at}/worst"
        text = "Test persons are of the same sites as training persons; no site outside the roster was tested."
        yield "external", text if part == "test" else "", "study.json#/federation/sites", f"{at}/sites"
        groups = "; ".join(f"{label} {_row(own['all'])}" for label, own in final.groups.items())
        yield "groups", f"Test persons by subgroup: {groups}." if groups else "", "events.jsonl#final/groups"
    if final.came:
        text = f"The model after round {final.round}, the last, is the result; none was chosen by its score on validation persons."
        yield "selection", text, "events.jsonl#final/round"
        there = (record.run / MODEL).is_file()
        text = f"The model is {MODEL}, SHA-256 of its numbers {final.weights_sha256}." if there else ""
        yield "file", text, MODEL, "events.jsonl#final/weights_sha256"
    heads = [f"{s.name} {s.journal[0]} after {s.journal[1]:,} entries" for s in record.sites if s.journal is not None]
    yield "journals", f"Heads of the sites' journals: {'; '.join(heads)}." if heads else "", "events.jsonl#round"
    if privacy.came and privacy.unit == "none":
        yield "privacy", "No differential privacy: updates of sites and counts of persons are exact.", "events.jsonl#privacy/unit"
    elif privacy.sentence:
        from fedml.privacy.accounting import rounded_up

        spent = "; ".join(f"{s.name} {rounded_up(s.epsilon)}" for s in record.sites if s.epsilon is not None)
        by_site = f" Epsilon by site: {spent}." if privacy.unit == "patient" and spent else ""
        yield "privacy", f"{privacy.sentence}{by_site}", "events.jsonl#privacy/sentence", "events.jsonl#privacy/claims"


def held_out(record: Record) -> tuple[str, dict[str, Any]]:
    """The part on which the run was evaluated at last, test persons where there are any, and its scores; empty if there are none."""
    metrics = record.final.metrics
    return next(((part, dict(metrics[part])) for part in ("test", "val") if part in metrics), ("", {}))


def _row(metrics: Mapping[str, Any]) -> str:
    values = [f"{name} {shown(name, value)}" for name, value in metrics.items() if name != "persons"]
    return f"{', '.join(values)} ({_count(int(metrics['persons']), 'person')})"


def shown(name: str, value: float | None) -> str:
    """A measure as it is printed: three decimals, counts of persons (of a class, such as ``missed/1``) as whole numbers."""
    counts = name.partition("/")[0] in ("persons", "missed")
    return "not defined" if value is None else f"{value:,.0f}" if counts else f"{value:.3f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _quoted(text: str) -> str:
    return f'"{" ".join(text.split())}"' if text.strip() else ""


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
