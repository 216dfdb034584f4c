"""Checks that a bundle's record is closed: nothing in it beyond what a run writes, nothing out of range, and the same persons wherever
persons are counted.

Each function yields (file, sentence) for what is wrong. They look at the record alone, so they find a change whoever signed it; what a
record that fits together cannot show is in ``fedml.experiments.evidence.words``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from fedml.cohort.images.reasons import Unusable
from fedml.contract.plausible import check_counts
from fedml.contract.witness import agreement_digest, arrays_digest, meaning_digest
from fedml.errors import SiteError
from fedml.experiments.evidence.contents import AUDIT, VERSIONS, counts_by_site
from fedml.experiments.evidence.schema import Audit, Versions, wrong_form, wrong_log
from fedml.experiments.evidence.signing import canonical
from fedml.experiments.runs.record import Record, exchanges
from fedml.learning.training import passes
from fedml.runs.events import Final, Round
from fedml.runs.log import COUNTS, EVENTS, LAYOUT, MODEL, PANEL, RECEIVED
from fedml.study.start import FILE as START
from fedml.study.start import taken_over
from fedml.tasks.own import least_loss
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task

Problem = tuple[str, str]  # file, description
CONSTANTS = ("preprocess.", "target.")
_STATISTICS = (".running_mean", ".running_var")  # of batch norm: learned, and no parameters
_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
_AHEAD = 86_400.0  # seconds by which the clock of whoever verifies may be behind
_FOUR_DIGITS = 1e-3  # relative: a mean has four digits in the record, and the constant is a float32
_SLACK = 60.0  # seconds between clocks that do not stand still together
_SIGNED = ("bias", "r2", "d2")  # measures that may be negative although they have no bounds


def form(files: Mapping[str, bytes]) -> Iterator[Problem]:
    """Every source has exactly the keys, arrays and bytes that a run writes."""
    for text in wrong_log(files[EVENTS]):
        yield EVENTS, text
    if json.dumps(layout := json.loads(files[LAYOUT])).encode() != files[LAYOUT] or layout.keys() != {"image_shape", "variants"}:
        yield LAYOUT, "is not as a run writes it"
    yield from wrong_versions(files[VERSIONS])
    if AUDIT in files:
        audit = json.loads(files[AUDIT])
        if (json.dumps(audit, indent=1, allow_nan=False) + "\n").encode() != files[AUDIT]:
            yield AUDIT, "is not as an audit writes it: a key is there twice, or it is written in another way"
        if why := wrong_form(Audit, audit):
            yield AUDIT, why
    for name in (MODEL, COUNTS, *([RECEIVED] if RECEIVED in files else [])):
        if save(load(files[name])) != files[name]:
            yield name, "has metadata or bytes besides its arrays"
    panel = files[PANEL].decode()
    if any(not re.fullmatch(r"[^\t]+\t\d{1,10}\t[^\t]*\t[ACGTN]+\t[ACGTN,*<>A-Z0-9:]+", line) for line in panel.split("\n")[:-1]):
        yield PANEL, "has a line that is not contig, position, id, REF and ALT"
    elif len(set(panel.split("\n")[:-1])) != panel.count("\n"):
        yield PANEL, "has a variant twice"


def wrong_versions(raw: bytes) -> Iterator[Problem]:
    """versions.json has its form."""
    versions = json.loads(raw)
    if canonical(versions) != raw:
        yield VERSIONS, "is not canonical JSON: a key is there twice, or it is written in another way"
    if why := wrong_form(Versions, versions):
        yield VERSIONS, why


def arrays(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    """The model has as many parameters as agreed and no other array; counts have the names, types and shapes of the study's task."""
    model, study = load(files[MODEL]), record.study
    learned = {name: value for name, value in model.items() if not name.startswith(CONSTANTS)}
    statistics = () if record.start.job == "evaluate" else _STATISTICS
    size = sum(value.size for name, value in learned.items() if not name.endswith(statistics))
    if size != record.agreed.parameters:
        yield MODEL, f"has {size} parameters, the sites agreed on {record.agreed.parameters}"
    known = {f"preprocess.{name}" for name in (*study.cohort.inputs, "image")} | {"target"}
    for name in (name for name in model if name.startswith(CONSTANTS)):
        if name.rpartition(".")[0] not in known:
            yield MODEL, f"has the array {_short(name)}, which no preprocessing of this study has"
    if any(value.dtype.kind == "f" and not np.isfinite(value).all() for value in model.values()):
        yield MODEL, "has a number that is not finite"
    task, labels = make_task(study), {label for group in study.evaluation.labels().values() for label in group}
    for key, value in load(files[COUNTS]).items():
        site, _, rest = key.partition("/")
        part, _, name = rest.partition("/")
        part, _, label = part.partition("@")
        dtype, shape = task.fields.get(name, ("", ()))
        if site not in record.agreed.sites or part not in ("val", "test", "external") or (label and label not in labels) or not dtype:
            yield COUNTS, f"has the array {_short(key)}, which no site of this study sends"
        elif str(value.dtype) != dtype or len(value.shape) != len(shape) or any(
            want is not None and want != have for want, have in zip(shape, value.shape, strict=True)
        ):  # fmt: skip
            yield COUNTS, f"{_short(key)} has another type or shape than the task's"


def columns(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    """Table 1 is of the study's columns and of training persons, and where every site tells a mean, that of all is the model's constant."""
    study, table = record.study, record.agreed.columns or {}
    clinical = () if study.cohort.clinical is None else study.cohort.clinical.columns
    names = [*clinical, *([study.cohort.outcome] if study.traits.standardised else [])]
    for site, own in table.items():
        if site not in record.agreed.sites or not own.keys() <= set(names):
            yield EVENTS, f"describes a column or a site that the study does not have ({_short(site)})"
        elif most := [row["known"] for row in own.values() if row["known"] > sum(record.agreed.persons.get(site, {}).get("train", []))]:
            yield EVENTS, f"describes a column of {max(most)} training persons of {site}, which described fewer"
    means = load(files[MODEL]).get("preprocess.clinical.mean")
    told = [table.get(site, {}) for site in study.federation.training if site in record.agreed.sites]
    if means is None or not all(told) or study.cohort.standardise == "site":  # then each site has its own
        return
    for name, constant in zip(clinical, means.tolist(), strict=False):
        rows = [own[name] for own in told if name in own and own[name]["known"]]
        if len(rows) != len(told) or any(row["mean"] is None for row in rows):
            continue
        sizes, of_sites = np.array([row["known"] for row in rows]), np.array([row["mean"] for row in rows], np.float64)
        if abs(sizes @ of_sites / sizes.sum() - constant) > sizes @ np.abs(of_sites) / sizes.sum() * _FOUR_DIGITS + 1e-6:
            yield EVENTS, f"the sites' means of {_short(name)} do not have the model's constant as their mean"


def persons(record: Record) -> Iterator[Problem]:
    """The persons that a site described, those of its counts, and those that were seen in training are the same."""
    study, agreed = record.study, record.agreed
    described = agreed.persons
    if study.privacy.unit == "patient":
        if described:
            yield EVENTS, "has numbers of persons, which no site describes under privacy of a patient"
        return
    if list(described) != [site for site in study.federation.sites if site in agreed.sites]:
        yield EVENTS, "persons are not described for the sites of the agreement, in the roster's order"
        return
    counted = counts_by_site(record)
    for site, parts in described.items():
        own = counted.get(site, {})
        test = "external" if "external/persons" in own else "test"
        for part, name in (("val", "val"), ("test", test)):
            total = sum(parts[part])
            if f"{name}/persons" in own and study.privacy.metrics != "private" and float(own[f"{name}/persons"].sum()) != total:
                yield EVENTS, f"{site} described {total} {part} persons, its counts are of {float(own[f'{name}/persons'].sum()):g}"
        if (found := _classes(record, site, parts["test"], own.get(f"{test}/confusion"))) is not None:
            yield EVENTS, f"{site} described {parts['test']} test persons by class, its counts are of {found}"
        public = _policy(record, site).get("public")
        answered = site in record.final.sites
        if answered and public and sum(parts["test"]) and f"{test}/persons" not in own:
            yield COUNTS, f"{site} described {sum(parts['test'])} test persons of public data and answered, and has no counts of them"
        yield from _trained(record, site, sum(parts["train"]))
    for event in record.rounds:
        for site, scores in event.metrics.get("val", {"sites": {}})["sites"].items():
            if site in described and study.privacy.metrics != "private" and scores["persons"] != sum(described[site]["val"]):
                yield (
                    EVENTS,
                    f"round {event.round}: {site} has metrics of {scores['persons']:g} persons, it described {sum(described[site]['val'])}",
                )
    if study.privacy.metrics != "private":
        yield from _plausible(record, counted)


def _policy(record: Record, site: str) -> Mapping[str, Any]:
    return record.site(site).policy or {}


def _classes(record: Record, site: str, described: list[int], confusion: Any) -> list[int] | None:
    """The persons of each class by the counts, if they must be as described and are not. Small cells are rounded where they are described
    and where they are counted, in different ways; a table in which none can have been rounded tells the classes exactly."""
    if confusion is None or len(described) != len(confusion) or record.study.privacy.metrics == "private":
        return None
    policy = _policy(record, site)
    smallest = max(record.study.policy.min_count, policy["min_count"]) if policy else None
    found = [int(n) for n in confusion.sum(1)]
    exact = policy.get("public") or (smallest is not None and min(described) > smallest)
    return found if exact and found != list(described) else None


def _trained(record: Record, site: str, described: int) -> Iterator[Problem]:
    """Persons seen in a round: at most all passes over the described ones, and at least the whole batches of every pass."""
    plan = record.study.training
    for event in record.rounds:
        if site not in event.sites:
            continue
        seen = event.sites[site]["seen"]
        if not 0 <= seen <= described * passes(plan, described):
            yield EVENTS, f"round {event.round}: {site} trained on {seen:g} persons in all passes, it described {described}"
        elif (
            not plan.local_steps
            and plan.local_epochs
            and seen < plan.local_epochs * _least(described, plan.batch_size, _rounding(record, site))
        ):
            yield EVENTS, f"round {event.round}: {site} trained on {seen:g} persons in {plan.local_epochs} passes, it described {described}"


def _rounding(record: Record, site: str) -> int:
    """The smallest batch that the site trains with: it leaves out a last one that is smaller."""
    return max(record.study.policy.min_count, int(_policy(record, site).get("min_count", 0)), 2)


def _least(persons: int, batch: int, smallest: int) -> int:
    left = persons % batch if batch and persons > batch else 0
    return persons - left if left < smallest else persons


def _plausible(record: Record, counted: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> Iterator[Problem]:
    """What the centre asks of each reply: counts that so many persons can have."""
    for site, own in counted.items():
        as_sent = {("test" + key.removeprefix("external") if key.startswith("external") else key): value for key, value in own.items()}
        try:
            check_counts(as_sent, record.agreed.persons.get(site))
        except SiteError as error:
            yield COUNTS, f"{site}: {error}"
        for key in (key for key in as_sent if key.startswith("test@") and key.endswith("/persons")):
            if float(as_sent[key].sum()) > float(as_sent.get("test/persons", np.zeros(1)).sum()):
                yield COUNTS, f"{site}: {key} is more than all test persons"


def ranges(record: Record) -> Iterator[Problem]:
    """Metrics of every round are the task's and within their bounds; so are losses, sizes of updates, and numbers of sites."""
    task, floor, own = make_task(record.study), least_loss(record.study), _own(record)
    names = {m.name for m in task.measures if m.of != "class"} | {
        f"{m.name}/{c}" for m in task.measures if m.of != "all" for c in task.scored.values()
    }
    private = record.study.privacy.metrics == "private"  # noised counts may give any number
    for event in exchanges(record.rounds, record.final):
        where = f"{event.kind} {event.round}"
        for part, scores in [*event.metrics.items(), *(event.groups.items() if isinstance(event, Final) else ())]:
            if any(site not in event.sites for site in scores["sites"]) or scores.get("worst", None) not in (None, *scores["sites"]):
                yield EVENTS, f"{where}, {part}: has metrics of a site that did not answer"
            for who, values in {"all sites": scores["all"], **scores["sites"]}.items():
                if any(name not in {"persons", *names} for name in values) or "persons" not in values:
                    yield EVENTS, f"{where}, {part}, {who}: has other metrics than the task {task.name}"
                elif wrong := [n for n, v in values.items() if v is not None and not private and not _possible(task, n, v, own)]:
                    yield EVENTS, f"{where}, {part}, {who}: {wrong[0]} cannot be {values[wrong[0]]!r}"
        for site, row in event.sites.items() if isinstance(event, Round) else ():
            loss = row["train_loss"]
            if loss is not None and floor is not None and loss < floor - 1e-6:
                yield EVENTS, f"{where}, {site}: this task's loss cannot be {loss!r}"
            if (loss is None) != (row["seen"] == 0):
                yield EVENTS, f"{where}, {site}: a loss and the persons that it is of are only there together"
    yield from _disclosed(record)


def _own(record: Record) -> set[str]:
    return {measure.partition(":")[2] for measure in record.study.evaluation.metrics}


def _possible(task: Task, name: str, value: float, own: set[str]) -> bool:
    if name == "persons":
        return value >= 0 and value == int(value)
    measure = task.described(name)
    low, high = measure.bounds or (None, 1.0 if name in ("r2", "d2") else None)
    if measure.bounds is None and name not in (*_SIGNED, *own):
        low = 0.0
    return (low is None or value >= low - 1e-9) and (high is None or value <= high + 1e-9)


def _disclosed(record: Record) -> Iterator[Problem]:
    agreed, reasons = record.agreed, {str(reason) for reason in Unusable}
    named: dict[str, list[str]] = {"disclosed": list(agreed.disclosed or {}), "matching": list(agreed.matching)}
    for what, keys in named.items():
        if any(site not in agreed.sites for site in keys) and any(site not in record.study.federation.sites for site in keys):
            yield EVENTS, f"agreed: {what} names a site that is not in the roster"
    for site in record.sites:
        if any(reason not in reasons for reason in site.quarantined or {}):
            yield EVENTS, f"agreed: {site.name} excluded images for a reason that there is not"
    for row in record.checks:
        if row["site"] not in (*record.study.federation.sites, "all sites"):
            yield EVENTS, f"checks: {_short(row['site'])} is not in the roster"


def engine(record: Record) -> Iterator[Problem]:
    """A deployment's sites have gates, and a gate adds its journal to every reply; an engine in one process has no gates."""
    deployed = record.start.engine == "deployment"
    for event in exchanges(record.rounds, record.final):
        for site, row in event.sites.items():
            if deployed != (row["journal"] is not None):
                have = (
                    "without the journal that a gate adds"
                    if deployed
                    else f"with a journal, which the engine {record.start.engine} does not have"
                )
                yield EVENTS, f"{event.kind} {event.round}: {site} answered {have}; the run says engine {record.start.engine}"
                return


def times(record: Record) -> Iterator[Problem]:
    """Times between 2020 and now, in order, with room for the seconds that each exchange says it took; the run's name has its start."""
    yield from time_problems(record)
    before = record.agreed.time
    for event in exchanges(record.rounds, record.final):
        if event.seconds > event.time - before + _SLACK:
            yield EVENTS, f"{event.kind} {event.round}: took {event.seconds:.0f} s, the log has {event.time - before:.0f} s for it"
        if isinstance(event, Round) and any(row["seconds"] > event.seconds + _SLACK for row in event.sites.values()):
            yield EVENTS, f"round {event.round}: a site's answer took longer than the round"
        before = event.time


def time_problems(record: Record) -> Iterator[Problem]:
    """The run's times are between 2020 and now, and its name has its start."""
    start, end = record.start.time, record.end.time
    if not start >= _EARLIEST or not end <= time.time() + _AHEAD:
        yield EVENTS, f"the run is dated {_date(start)} to {_date(end)}, which is before 2020 or in the future"
    named = re.search(r"-(\d{8}-\d{6})-[0-9a-f]{6}$", record.run_id)
    if not record.start.git_commit:  # a run of a comparison has a name of its own
        pass
    elif named is None or not record.run_id.startswith(f"{record.start.study}-"):
        yield EVENTS, "run_id is not the study's name, a date and six digits"
    elif abs(_read(named[1]) - start) > _SLACK:
        yield EVENTS, f"the run's name says {named[1]} UTC, its log begins at {_date(start)}"


def _read(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return float("inf")


def resumed(record: Record, rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """A run that goes on has done the rounds that it says, and counts what it may have requested twice: one more each time, once sites were
    asked for a round."""
    done, asked, seen = 0, 0, set[str]()
    for row in rows:
        seen.add(str(row["event"]))
        done += row["event"] == "round"
        if row["event"] != "resumed":
            continue
        again = row["rounds_again"] + row["evaluations_again"]
        if row["round"] != done:
            yield EVENTS, f"the run goes on after round {row['round']}, and the log has {done} before"
        more = again - asked
        if not (1 <= more <= record.study.federation.rounds + 1 if "agreed" in seen and "final" not in seen else more == 0):
            yield EVENTS, f"the run goes on after round {done}, and counts {again} requests that may have been answered twice"
        asked = again


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} seconds"


def agreement_of(files: Mapping[str, bytes], record: Record) -> str:
    """The digest of the agreement, from the bundle's files."""
    constants = {name: value for name, value in load(files[MODEL]).items() if name.startswith(CONSTANTS)}
    return agreement_digest(record.start.study_sha256, files[PANEL], record.agreed.image_shape, constants)


def meaning(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    """Panel, image shape, constants, first weights and model give the one digest that the last event has."""
    final, agreed, model = record.final, record.agreed, load(files[MODEL])
    if arrays_digest(model) != final.weights_sha256:
        yield MODEL, f"is not the run's last model: {EVENTS} has another SHA-256 of the arrays"
        return
    if final.meaning_sha256 is None:
        yield EVENTS, "the last event has no digest of the model's meaning: the run was made by an older version; run the study again"
        return
    if (agreed.first_sha256 is None) != (record.start.job == "evaluate"):
        yield EVENTS, "agreed: first_sha256, of the weights with which the first round begins, is there for a training and only for it"
    pinned = record.study.model.start
    expected = (
        None if pinned is None or record.start.job == "evaluate" else taken_over(pinned, {n: tuple(v.shape) for n, v in model.items()})
    )
    if agreed.started != expected:
        yield EVENTS if pinned is None else START, "agreed: started does not name the arrays that the study pins and the model has"
    found = meaning_digest(agreement_of(files, record), agreed.first_sha256 or "", agreed.started or (), final.weights_sha256)
    if found != final.meaning_sha256:
        yield (
            PANEL if record.agreed.variants else MODEL,
            (
                "panel, image shape, preprocessing constants, first weights and model are not those of the run: "
                f"{EVENTS} has another digest of them (meaning_sha256)"
            ),
        )


def _short(text: str) -> str:
    return repr(text[:80])
