"""Benchmark: studies of images, federated against pooled training: the same study, seeds, number of passes and test persons.

    .venv/bin/python experiments/bench/image_parity.py [--studies wbc,adrenal,lesions] [--seeds 0-2] [--validation]

The metric is AUROC for classification, and the mean over persons of the mean over classes of Dice for segmentation. The interval of the
difference is a paired bootstrap over the test persons within their sites, of the mean over seeds: it includes the variation over persons
but not over seeds, whose range is printed. ``--validation`` evaluates validation persons instead of test persons, to choose settings.

Data: ``../shared/data``, by ``fedml prepare``. The table is written to standard output, each run to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.clients.site.manifest import Site, find_sites
from fedml.clients.site.read import load_aligned
from fedml.experiments.bench.timing import machine
from fedml.experiments.compare.train import parse_seeds
from fedml.experiments.prepare import prepare
from fedml.experiments.runs.run import outcome, run_nodes
from fedml.learning.differences import Difference, paired_bootstrap
from fedml.runs.log import load_model
from fedml.runs.restore import restore
from fedml.study.read import read_study
from fedml.study.section import PartName
from fedml.study.study import Study, for_roster
from fedml.tasks.drawn import Statistic, statistic
from fedml.tasks.registry import make_task

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data"
STUDIES = ("wbc", "adrenal", "lesions")
WAYS = ("federated", "pooled")


@dataclass(frozen=True)
class Held:
    """The outputs of one model on the held-out persons: ``ids`` (site/person), ``site`` (persons,), ``truth`` (persons,) the class, and
    ``output`` (persons,): the probability of the last class, or for segmentation the person's Dice (NaN if undefined)."""

    ids: tuple[str, ...]
    site: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    output: npt.NDArray[np.float64]


def train(study: Study, sites: Mapping[str, Site], way: str, run: Path) -> float:
    """Trains a model in the folder ``run``; returns the seconds from the first event to the last."""
    files = [str(site.file.resolve()) for site in sites.values()]
    plan = for_roster(study, list(sites)) if way == "federated" else for_roster(study, ["pooled"])
    run.mkdir(parents=True)
    (run / "study.json").write_text(plan.canonical)
    run_nodes(plan, [{"manifest": f} for f in files] if way == "federated" else [{"manifest": "\n".join(files), "name": "pooled"}], run)
    done = outcome(run, 0.0)
    assert done.status == "finished", done.reason
    times = [e.time for e in done.events]
    return times[-1] - times[0]


def held_out(study: Study, sites: Mapping[str, Site], run: Path, part: PartName) -> Held:
    """The outputs of the saved model on every site's persons in ``part``."""
    import torch

    _, model = restore(run)
    panel, task = load_model(run)[2], make_task(study)
    ids: list[str] = []
    where: list[int] = []
    truth: list[int] = []
    output: list[float] = []
    for k, (name, site) in enumerate(sites.items()):
        cohort = load_aligned((str(site.file.resolve()),), study, panel)
        for row in cohort.rows(part):
            batch = cohort.batch([row])
            with torch.inference_mode():
                out = model(batch)
                if task.traits.label == "mask":
                    value = task.metrics(task.counts(out, task.truth(batch)))["dice_mean_person"]
                else:
                    value = float(out.double().softmax(1)[0, -1])
            ids.append(f"{name}/{cohort.ids[row]}")
            where.append(k)
            truth.append(int(cohort.labels[row]))
            output.append(value)
    return Held(tuple(ids), np.array(where), np.array(truth), np.array(output))


def mean_over_seeds(metric: str, runs: Sequence[Held], chosen: npt.NDArray[np.bool_]) -> Statistic:
    """The statistic for the bootstrap: the mean over seeds of the metric of the ``chosen`` persons."""
    each = [statistic(metric, run.truth[chosen], run.output[chosen]) for run in runs]
    return lambda drawn: np.mean([one(drawn) for one in each], axis=0)


def compared(metric: str, found: Mapping[str, Sequence[Held]], chosen: npt.NDArray[np.bool_]) -> tuple[dict[str, list[float]], Difference]:
    """The metric of each way and seed on the ``chosen`` persons, and the difference federated minus pooled."""
    once = np.ones((1, int(chosen.sum())), dtype=np.int64)
    values = {way: [float(mean_over_seeds(metric, [run], chosen)(once)[0]) for run in found[way]] for way in WAYS}
    federated, pooled = (mean_over_seeds(metric, found[way], chosen) for way in WAYS)
    return values, paired_bootstrap(federated, pooled, int(chosen.sum()), seed=0, site=found[WAYS[0]][0].site[chosen])


def parity(study_file: Path, folder: Path, seeds: Sequence[int], part: PartName, work: Path, **changes: Any) -> Iterable[dict[str, Any]]:
    """A row for all sites together and one for each: persons, the metric by way and seed, the difference with its interval.

    Args:
        study_file: the study. folder: its sites. work: folder of the runs. changes: keys of the study, with two underscores for a dot.

    Raises:
        ValueError: the seeds hold out different persons; the study needs ``[cohort] split_key``.
    """
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    found: dict[str, list[Held]] = {way: [] for way in WAYS}
    for seed in seeds:
        study = read_study(study_file, overrides=overrides, seed=seed)
        sites, _ = find_sites(folder, study.federation.sites)
        for way in WAYS:
            run = work / f"{study.study.name}-{way}-{seed}"
            seconds = train(study, sites, way, run)
            found[way].append(held_out(study, sites, run, part))
            print(f"{study.study.name}, {way}, seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
    if len({run.ids for runs in found.values() for run in runs}) > 1:
        raise ValueError("the seeds hold out different persons: set [cohort] split_key in the study")
    metric = "mean" if study.traits.label == "mask" else "auroc"
    first = found[WAYS[0]][0]
    for name, chosen in [("all", first.site >= 0), *((s, first.site == k) for k, s in enumerate(sites))]:
        values, difference = compared(metric, found, chosen)
        yield {"study": study.study.name, "who": name, "persons": int(chosen.sum()), **values, "difference": difference}


def line_of(row: Mapping[str, Any]) -> str:
    """A line of the table."""
    values = [f"{np.mean(row[way]):.3f} ({min(row[way]):.3f} to {max(row[way]):.3f})" for way in WAYS]
    d: Difference = row["difference"]
    return f"| {row['study']} | {row['who']} | {row['persons']} | {' | '.join(values)} | {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f}) |"


def main() -> None:
    """Prepares the sites, trains the models and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description="studies of images, federated against pooled")
    parser.add_argument("--studies", default=",".join(STUDIES))
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--validation", action="store_true", help="evaluate validation persons, to choose settings")
    parser.add_argument("--json", type=Path, help="file for the figures of every run")
    options = parser.parse_args()
    part: PartName = "val" if options.validation else "test"
    print(f"{machine()}\n\n| study | site | {part} persons | federated | pooled | difference, 95 % |\n|{'---|' * 6}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedml-parity-") as folder:
        for name in options.studies.split(","):
            sites = Path(folder) / name
            prepare(name, sites, data=DATA, say=lambda _: None)
            for row in parity(HERE.parent / "studies" / f"{name}.toml", sites, parse_seeds(options.seeds, 0), part, Path(folder) / "runs"):
                print(line_of(row), flush=True)
                rows.append({**row, "difference": vars(row["difference"])})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
