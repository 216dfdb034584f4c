"""Studies of images, federated against pooled: the same study, seeds and number of passes, the same test persons looked at once.

    .venv/bin/python experiments/bench/image_parity.py [--studies wbc,adrenal,lesions] [--seeds 0-2] [--validation]

A classification's figure is AUROC, a segmentation's the mean over persons of the mean over classes of Dice. The interval of the difference
is a paired bootstrap over the test persons within their sites, of the mean over seeds: persons are the chance in it, seeds are not; their
spread stands beside. ``--validation`` looks at validation persons in the place of test persons: for choosing settings.

Data: ``../shared/data``, by ``fedml prepare``. The table goes to standard output, each run to standard error.
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
from fedml.learning.differences import Difference, Statistic, paired_bootstrap, statistic
from fedml.learning.tasks import make_task
from fedml.runs.log import load_model
from fedml.runs.restore import restore
from fedml.study.read import read_study
from fedml.study.sections import PartName
from fedml.study.study import Study, for_roster

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data"
STUDIES = ("wbc", "adrenal", "lesions")
WAYS = ("federated", "pooled")


@dataclass(frozen=True)
class Held:
    """What one model says of the held-out persons: ``ids`` (site/person), ``site`` (persons,), ``truth`` (persons,) the class, and
    ``output`` (persons,): the probability of the last class, or in segmentation the person's Dice (NaN where there is none)."""

    ids: tuple[str, ...]
    site: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    output: npt.NDArray[np.float64]


def train(study: Study, sites: Mapping[str, Site], way: str, run: Path) -> float:
    """Trains into the folder ``run``; returns seconds from the first event to the last."""
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
    """The saved model on every site's persons in ``part``."""
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
                if task.name == "segmentation":
                    value = task.metrics(task.counts(out, task.truth(batch)))["dice_mean_person"]
                else:
                    value = float(out.double().softmax(1)[0, -1])
            ids.append(f"{name}/{cohort.ids[row]}")
            where.append(k)
            truth.append(int(cohort.labels[row]))
            output.append(value)
    return Held(tuple(ids), np.array(where), np.array(truth), np.array(output))


def mean_over_seeds(metric: str, runs: Sequence[Held], chosen: npt.NDArray[np.bool_]) -> Statistic:
    """Of the ``chosen`` persons, drawn so often, the mean over seeds of the metric."""
    each = [statistic(metric, run.truth[chosen], run.output[chosen]) for run in runs]
    return lambda drawn: np.mean([one(drawn) for one in each], axis=0)


def compared(metric: str, found: Mapping[str, Sequence[Held]], chosen: npt.NDArray[np.bool_]) -> tuple[dict[str, list[float]], Difference]:
    """The metric of each way and seed, and federated less pooled, of the ``chosen`` persons."""
    once = np.ones((1, int(chosen.sum())), dtype=np.int64)
    values = {way: [float(mean_over_seeds(metric, [run], chosen)(once)[0]) for run in found[way]] for way in WAYS}
    federated, pooled = (mean_over_seeds(metric, found[way], chosen) for way in WAYS)
    return values, paired_bootstrap(federated, pooled, int(chosen.sum()), seed=0, site=found[WAYS[0]][0].site[chosen])


def parity(study_file: Path, folder: Path, seeds: Sequence[int], part: PartName, work: Path, **changes: Any) -> Iterable[dict[str, Any]]:
    """A row for all sites together and one for each: persons, the metric by way and seed, the difference with its interval.

    Args:
        study_file: the study. folder: its sites. work: where runs are kept. changes: keys of the study, a dot as two underscores.

    Raises:
        ValueError: the seeds do not hold out the same persons; state ``[cohort] split_key``.
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
        raise ValueError("the seeds hold out different persons: give the study a split_key")
    metric = "mean" if study.model.task == "segmentation" else "auroc"
    first = found[WAYS[0]][0]
    for name, chosen in [("all", first.site >= 0), *((s, first.site == k) for k, s in enumerate(sites))]:
        values, difference = compared(metric, found, chosen)
        yield {"study": study.study.name, "who": name, "persons": int(chosen.sum()), **values, "difference": difference}


def told(row: Mapping[str, Any]) -> str:
    """A line of the table."""
    values = [f"{np.mean(row[way]):.3f} ({min(row[way]):.3f} to {max(row[way]):.3f})" for way in WAYS]
    d: Difference = row["difference"]
    return f"| {row['study']} | {row['who']} | {row['persons']} | {' | '.join(values)} | {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f}) |"


def main() -> None:
    """Prepares the sites, trains, prints a table in markdown."""
    parser = argparse.ArgumentParser(description="studies of images, federated against pooled")
    parser.add_argument("--studies", default=",".join(STUDIES))
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--validation", action="store_true", help="validation persons, to choose settings by")
    parser.add_argument("--json", type=Path, help="a file for every run's figures")
    asked = parser.parse_args()
    part: PartName = "val" if asked.validation else "test"
    print(f"{machine()}\n\n| study | site | {part} persons | federated | pooled | difference, 95 % |\n|{'---|' * 6}", flush=True)
    kept = []
    with tempfile.TemporaryDirectory(prefix="fedml-parity-") as folder:
        for name in asked.studies.split(","):
            sites = Path(folder) / name
            prepare(name, sites, data=DATA, say=lambda _: None)
            for row in parity(HERE.parent / "studies" / f"{name}.toml", sites, parse_seeds(asked.seeds, 0), part, Path(folder) / "runs"):
                print(told(row), flush=True)
                kept.append({**row, "difference": vars(row["difference"])})
    if asked.json:
        asked.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
