"""Federated training compared with pooled data and with each site alone: same study, seeds and test persons, in one process.

*Pooled* is the study on one node that holds all persons: the same model, optimiser and number of passes over the data. *Local* trains at
one site only, with preprocessing constants of that site, and is then tested on every site's test persons. Earlier runs with the same study,
data, versions and code of this software are reused; only missing runs are started.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.cohort.variants.harmonise import panel_of
from fedml.cohort.variants.keys import from_text
from fedml.cohort.variants.model import Dosages
from fedml.errors import InputError, RunError, nearest
from fedml.experiments.compare import cost
from fedml.experiments.compare.cost import Training
from fedml.experiments.compare.outputs import Outputs, scores, tested_outputs
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.runs.run import outcome, read_all, run_nodes
from fedml.runs.events import Final, GroupScores, Start
from fedml.runs.log import STUDY, emit, load_model, write_whole
from fedml.runs.software import by_this_code, code_digest, other_code, software
from fedml.study.sources import write_files
from fedml.study.start import write_start
from fedml.study.study import Study, for_roster
from fedml.tasks.counts import Counts
from fedml.tasks.registry import make_task
from fedml.tasks.task import built
from fedml.tracking.store import versions

if TYPE_CHECKING:
    from rich.console import Console

BASELINES = ("pooled", "local")
FEDERATED, POOLED, ALONE = "federated", "pooled", " alone"
_MOST_SEEDS = 1_000
Planted = dict[str, dict[str, float]]  # site -> person -> planted log-odds


@dataclass(frozen=True)
class Trained:
    """One way to train with one seed: test metrics of all persons, of each site and subgroup, counts of the sites, outputs of persons.

    With ``outputs``, ``metrics``, ``sites`` and ``counts`` are of them; without, of the counts in the run's record. ``groups`` and
    ``external`` are of counts that sites sent.
    """

    who: str
    seed: int
    run: Path
    metrics: dict[str, float]
    sites: dict[str, dict[str, float]]
    groups: Mapping[str, GroupScores]
    counts: dict[str, Counts]
    outputs: Outputs | None
    recovery: float | None = None
    external: Mapping[str, tuple[Counts, dict[str, float]]] = field(default_factory=dict)  # sites that do not train
    seconds: float | None = field(default=None, compare=False)  # None: an earlier run was reused


def parse_baselines(text: str) -> list[str]:
    """``pooled,local`` as a list; ``InputError`` for any other word."""
    words = [w.strip() for w in text.split(",") if w.strip()]
    for word in words:
        if word not in BASELINES:
            raise InputError(f'--baselines "{word}" is not known{nearest(word, BASELINES)}; it is pooled, local or both.')
    return words


def parse_seeds(text: str, default: int) -> list[int]:
    """``0-4`` or ``0,1,5`` as a list; the study's seed if empty."""
    try:
        if "-" in text:
            first, last = (int(t) for t in text.split("-"))
            seeds: Sequence[int] = range(first, last + 1)
        else:
            seeds = [int(t) for t in text.split(",")] if text else [default]
    except ValueError as error:
        raise InputError(f'--seeds "{text}" is neither a range such as 0-4 nor a list such as 0,1,5.') from error
    if not 1 <= len(seeds) <= _MOST_SEEDS:
        raise InputError(f'--seeds "{text[:80]}" gives {len(seeds):,} seeds, from 1 to {_MOST_SEEDS} are possible.')
    return list(dict.fromkeys(seeds))


def compare(
    studies: Sequence[Study], sites: Mapping[str, Site], kinds: Sequence[str], truth: Path | None, runs: Path, console: Console
) -> list[Trained]:
    """One row for each way to train and each seed, federated first; with ``recovery`` if ``truth`` is given.

    Args:
        runs: folder of runs; the runs of comparisons are kept in its subfolder ``compare`` and reused.

    Raises:
        InputError: bad site data, or a privacy budget that does not suffice. RunError: a run failed.
    """
    if kinds and any(study.privacy.unit == "site" for study in studies):
        raise InputError(
            '[privacy] unit = "site": site-level privacy is undefined for pooled data and for a single site; give --baselines "" or '
            "--set privacy.unit=none."
        )
    planned: list[Training] = []
    planted = _read_truth(truth) if truth else None
    for study in studies:
        training = study.federation.training
        ways = [FEDERATED, *([POOLED] if "pooled" in kinds else [])]
        ways += [f"{site}{ALONE}" for site in training if "local" in kinds and len(training) > 1]
        planned += [plan_training(study, sites, who, _roster(who, sites), runs) for who in ways]
    return train_all(planned, sites, runs, console, planted)


def plan_training(study: Study, sites: Mapping[str, Site], who: str, roster: Sequence[str], runs: Path) -> Training:
    """One way to train on the nodes of ``roster``, with the earlier run of it that is in ``runs``, if there is one.

    Raises:
        InputError: bad site data, or a task whose models cannot be compared.
    """
    built(make_task(study).compared, study.model.task, "a comparison of two models on the same persons")
    read_all(study, sites)
    return Training(study, who, tuple(roster), _earlier(study, sites, who, roster, runs))


def train_all(
    planned: Sequence[Training], sites: Mapping[str, Site], runs: Path, console: Console, planted: Planted | None = None
) -> list[Trained]:
    """Each training, and the test of its model on the test persons of every site.

    Raises:
        InputError: a privacy budget that does not suffice. RunError: a run failed.
    """
    rows: list[Trained] = []
    cost.check(planned, sites, POOLED)
    for training in planned:
        study, who = training.study, training.who
        run, seconds = _trained(training, sites, runs)
        final, counts = test_everywhere(study, sites, run)
        cost.note_outputs(study, sites, run)
        sent = _of("test", counts)
        outputs = tested_outputs(study, {name: sites[name] for name in study.federation.training}, run, sent) if sent else None
        if outputs is None or not outputs.counts:
            raise RunError(
                f"{who}: no site has as many test persons as min_count ([policy] of site and study) requires, so nothing can be compared; "
                "raise test in [cohort] split, or take fewer folds."
            )
        others = final.metrics["external"]["sites"] if "external" in final.metrics else {}
        row = Trained(
            who, study.study.seed, run, scores(study, outputs), _by_site(study, outputs), final.groups, outputs.counts,
            outputs, None if planted is None else _recovery(outputs, planted),
            {site: (own, others[site]) for site, own in _of("external", counts).items()}, seconds,
        )  # fmt: skip
        rows.append(row)
        watched = make_task(study).watched
        took = f"{seconds:.1f} s" if seconds is not None else f"reused, {run}"
        value = row.metrics.get(watched)  # of persons of one class there is none
        shown = "undefined" if value is None else f"{value:.3f}"
        console.print(f"seed {study.study.seed}, {who}: test {watched} {shown} ({took})", soft_wrap=True)
    return rows


def _by_site(study: Study, outputs: Outputs) -> dict[str, dict[str, float]]:
    return {site: scores(study, outputs.at([site])) for site in outputs.counts}


def _defined(recorded: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in recorded.items() if value is not None}


def _of(part: str, counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """Site -> its counts of ``part``, for sites that have any."""
    found = {site: {k.removeprefix(f"{part}/"): v for k, v in c.items() if k.startswith(f"{part}/")} for site, c in counts.items()}
    return {site: own for site, own in found.items() if own}


def together(studies: Sequence[Study], sites: Mapping[str, Site], rows: Sequence[Trained]) -> dict[str, dict[str, Any]]:
    """What all rows of a comparison cost the persons of each site (``fedml.experiments.compare.cost.totals``)."""
    by_seed = {study.study.seed: study for study in studies}
    return cost.totals([Training(by_seed[r.seed], r.who, tuple(_roster(r.who, sites)), r.run) for r in rows], sites, POOLED)


def _roster(who: str, sites: Mapping[str, Site]) -> list[str]:
    """The nodes of one way to train."""
    return {FEDERATED: list(sites), POOLED: [POOLED]}.get(who) or [who.removesuffix(ALONE)]


def compare_runs(runs: Sequence[Path], sites: Path | None, console: Console) -> tuple[Study, list[Trained]]:
    """One row for each finished run, from its record; prints the differences between the runs.

    Args:
        sites: the folder of their sites: then the models are evaluated again, so that differences are paired by person.

    Raises:
        InputError: a run is not finished, or the runs do not predict the same outcome.
    """
    from fedml.experiments.runs.launch import find

    records = [read_record(run) for run in runs]
    rows, first = [], records[0]
    for record in records:
        if record.status != "finished" or not record.counts:
            raise InputError(f"{record.run}: is not a finished run with stored counts (status {record.status}); give a run that finished.")
        for key in ("task", "target", "classes"):
            value, wanted = (getattr(r.study.model if key == "task" else r.study.cohort, key) for r in (record, first))
            if value != wanted:
                raise InputError(f"{record.run}: {key} is {value}, in {first.run.name} it is {wanted}; compare runs of one question.")
        found = None if sites is None else find(sites, record.study, console.print)
        if found is not None:
            for name, site in found.items():
                if load_cohort((str(site.file),), record.study).digest.hex() != record.site(name).dataset:
                    raise InputError(f"{site.file}: the data differ from those of run {record.run_id}; omit --sites to compare by counts.")
        test = record.final.metrics["test"]
        trained_at = record.study.federation.training
        metrics, by_site = _defined(test["all"]), {site: _defined(own) for site, own in test["sites"].items()}
        counts, outputs = record.counts["test"], None
        if found is not None:
            outputs = tested_outputs(record.study, {s: found[s] for s in trained_at}, record.run, counts)
            metrics, by_site, counts = scores(record.study, outputs), _by_site(record.study, outputs), outputs.counts
        rows.append(Trained(record.run_id, record.study.study.seed, record.run, metrics, by_site, record.final.groups, counts, outputs))
    for record in records[1:]:
        for line in _differences(first, record):
            console.print(f"{record.run_id}: {line}", markup=False, soft_wrap=True)
    return first.study, rows


def _differences(first: Record, other: Record) -> list[str]:
    """The differences of a run from the first: keys of the study, versions, code of this software, data."""
    old, new = (_flat("", r.study.model_dump(mode="json")) for r in (first, other))
    lines = [f"{key} = {new.get(key)}, not {old.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]
    old, new = (r.start.versions for r in (first, other))
    lines += [f"{name} {new.get(name)}, not {old.get(name)}" for name in sorted(old | new) if old.get(name) != new.get(name)]
    if (found := other_code(first.start.code, other.start.code)) is not None:
        lines.append(found)
    data = {site.name: site.dataset for site in first.sites}
    return lines + [f"other data at {site.name}" for site in other.sites if data.get(site.name) != site.dataset]


def _flat(section: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(f"{section}.{key}" if section else key, inner).items()}
    return {section: value}


def _data(study: Study, sites: Mapping[str, Site]) -> dict[str, str]:
    return {name: load_cohort((str(site.file),), study).digest.hex() for name, site in sites.items()}


def _folder(study: Study, sites: Mapping[str, Site], who: str, roster: Sequence[str], runs: Path) -> Path:
    """The folder of a training of a comparison, which depends on study, data, versions and code."""
    data, plan = _data(study, sites), for_roster(study, roster)
    used = {name: data[name] for name in (study.federation.training if who == POOLED else roster)}
    key = hashlib.sha256(json.dumps([plan.canonical, used, versions(), code_digest()], sort_keys=True).encode()).hexdigest()[:16]
    return runs / "compare" / f"{study.study.name}-{who.replace(' ', '-')}-{study.study.seed}-{key}"


def _earlier(study: Study, sites: Mapping[str, Site], who: str, roster: Sequence[str], runs: Path) -> Path | None:
    """The folder of a finished run of the same training; None if there is none."""
    if who == FEDERATED and (recorded := _recorded(study, _data(study, sites), runs)) is not None:
        return recorded
    run = _folder(study, sites, who, roster, runs)
    return run if run.exists() and outcome(run, 0.0).status == "finished" else None


def _trained(training: Training, sites: Mapping[str, Site], runs: Path) -> tuple[Path, float | None]:
    """The folder of a finished run of the training, and its seconds; None for an earlier run."""
    if training.run is not None:
        return training.run, None
    study, who = training.study, training.who
    plan, run = for_roster(study, training.roster), _folder(study, sites, who, training.roster, runs)
    shutil.rmtree(run, ignore_errors=True)  # from an interrupted comparison
    run.mkdir(parents=True)
    write_whole(run / STUDY, plan.canonical.encode())
    write_files(plan.code, run)
    write_start(plan.model.start, run)
    start = Start(run_id=run.name, study=study.study.name, study_sha256=plan.sha256, git_commit="", seed=study.study.seed,
                     versions=versions(), engine="local", job="train", code=software())  # fmt: skip
    emit(run, start)
    if who == POOLED:
        nodes = [{"manifest": "\n".join(str(sites[name].file.resolve()) for name in study.federation.training), "name": POOLED}]
    else:
        nodes = [{"manifest": str(sites[name].file.resolve())} for name in training.roster]
    began = time.monotonic()
    try:
        run_nodes(plan, nodes, run)
    except (RunError, InputError) as error:
        raise RunError(f"{who}: {error}") from error
    return run, time.monotonic() - began


def _recorded(study: Study, data: Mapping[str, str], runs: Path) -> Path | None:
    """The newest finished run of the same study on the same data in which every site took part in every round; None if there is none."""
    for run in sorted(runs.glob(f"{study.study.name}-*"), reverse=True):
        try:
            record = read_record(run)
        except (InputError, LookupError, TypeError):  # not a training run, or of another version
            continue
        same = record.study.sha256 == study.sha256 and record.start.versions == versions() and by_this_code(record.start.code)
        whole = record.status == "finished" and not any(s.missed for s in record.sites)
        if same and whole and {s.name: s.dataset for s in record.sites} == data:
            return run
    return None


def test_everywhere(study: Study, sites: Mapping[str, Site], trained: Path) -> tuple[Final, dict[str, Counts]]:
    """Test metrics and counts of a trained run's model over all sites: an evaluation with the arrays and constants of that run."""
    from fedml.clients.gate.local import app
    from fedml.flower.grid import InProcessGrid
    from fedml.strategies.agreement.agreement import Agreement
    from fedml.strategies.checkpoint import RunState
    from fedml.strategies.rounds import evaluate

    arrays, image_shape, panel = load_model(trained)
    constants = {k: v for k, v in arrays.items() if k.startswith(("preprocess.", "target."))}
    names, only = dict(enumerate(sites, start=1)), study.federation.evaluate_only
    keys = from_text(panel)
    read = {name: load_cohort((str(s.file.resolve()),), study).input("variants", Dosages) for name, s in sites.items()} if keys else {}
    shared = panel_of(keys, {name: dosages.keys for name, dosages in read.items() if dosages is not None}, study.cohort.variants.match)
    nodes, external = ({n: s for n, s in names.items() if (s in only) is wanted} for wanted in (False, True))
    agreement = Agreement(nodes, image_shape, shared, constants, roster=study.federation.sites, external=external)
    label: dict[str, bool | int | float | str] = {"run": str(trained.resolve())}
    grid = InProcessGrid(app, [{"manifest": str(s.file.resolve())} for s in sites.values()], label)
    state = RunState(study.federation.rounds, {k: v for k, v in arrays.items() if k not in constants}, {})
    return evaluate(study, grid, agreement, state)


def _read_truth(path: Path) -> Planted:
    try:
        log_odds: Planted = json.loads(path.read_text())["log_odds"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is not a truth.json of `fedml synth` ({error}); give the file that `fedml synth` wrote.") from error
    return log_odds


def _recovery(outputs: Outputs, planted: Planted) -> float:
    """Correlation (Pearson) of predicted with planted log-odds over all sites' test persons."""
    predicted = np.log(outputs.output[:, 1]) - np.log(outputs.output[:, 0])
    true = [planted[site][person.removeprefix(f"{site}/")] for site, person in zip(outputs.site, outputs.person, strict=True)]
    return float(np.corrcoef(predicted, true)[0, 1])
