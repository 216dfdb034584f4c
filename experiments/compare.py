"""Federated against pooled data and against each site alone: same study, same seeds, same test persons, in one process.

*Pooled* is the study on one node that holds all persons: the same model, optimiser and number of passes over the data. *Local* trains at
one site only (its own preprocessing constants too) and is then tested on every site's test persons.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.site import Site, load_aligned, load_cohort
from experiments.run import Outcome, outcome, read_all, run_nodes
from fedml.cohort.panel import panel_of
from fedml.cohort.variants import from_text
from fedml.errors import InputError, RunError, nearest
from fedml.learning.task import make_task
from fedml.records import WINDOW
from fedml.runlog import STUDY, load_model, write_whole
from fedml.study import Study, for_roster

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BASELINES = ("pooled", "local")
Row = dict[str, Any]


def parse_baselines(text: str) -> list[str]:
    """``pooled,local`` as a list; ``InputError`` for another word."""
    words = [w.strip() for w in text.split(",") if w.strip()]
    for word in words:
        if word not in BASELINES:
            raise InputError(f'--baselines "{word}" is not known{nearest(word, BASELINES)}; it is pooled, local or both.')
    return words


def parse_seeds(text: str, default: int) -> list[int]:
    """``0-4`` or ``0,1,5`` as a list; the study's own seed if empty."""
    try:
        if "-" in text:
            first, last = (int(t) for t in text.split("-"))
            return list(range(first, last + 1))
        return [int(t) for t in text.split(",")] if text else [default]
    except ValueError as error:
        raise InputError(f'--seeds "{text}" is neither a range such as 0-4 nor a list such as 0,1,5.') from error


def compare(studies: Sequence[Study], sites: Mapping[str, Site], kinds: Sequence[str], truth: Path | None, console: Console) -> list[Row]:
    """One row for each way to train and each seed: ``who``, ``seed``, ``metrics`` of all test persons, ``recovery`` if truth is given.

    Raises:
        InputError: bad site data. RunError: a run failed.
    """
    planted = _read_truth(truth) if truth else None
    rows: list[Row] = []
    for study in studies:
        read_all(study, sites)
        with tempfile.TemporaryDirectory(prefix="fedml-compare-") as folder:
            plans: list[tuple[str, list[str]]] = [("federated", list(sites))]
            plans += [("pooled", ["pooled"])] if "pooled" in kinds else []
            plans += [(f"{site} alone", [site]) for site in sites if "local" in kinds and len(sites) > 1]
            for who, roster in plans:
                done = _train(study, sites, who, roster, Path(folder) / str(len(rows)))
                final = done.final if len(roster) == len(sites) or who == "pooled" else _test_everywhere(study, sites, done.run)
                row: Row = {"who": who, "seed": study.study.seed, "metrics": final["metrics"]["test"]["all"]}
                row["sites"] = final["metrics"]["test"]["sites"]
                if planted is not None:
                    row["recovery"] = _recovery(study, sites, done.run, planted)
                rows.append(row)
                watched = make_task(study).watched
                console.print(f"seed {study.study.seed}, {who}: test {watched} {row['metrics'][watched]:.3f} ({done.seconds:.1f} s)")
    return rows


def _train(study: Study, sites: Mapping[str, Site], who: str, roster: list[str], run: Path) -> Outcome:
    """Trains on the local engine into folder ``run``."""
    run.mkdir(parents=True)
    plan = for_roster(study, roster)
    write_whole(run / STUDY, plan.canonical.encode())
    if who == "pooled":
        nodes = [{"manifest": "\n".join(str(s.file.resolve()) for s in sites.values()), "name": "pooled"}]
    else:
        nodes = [{"manifest": str(sites[name].file.resolve())} for name in roster]
    return _finish(plan, nodes, run, who)


def _finish(plan: Study, nodes: list[dict[str, str]], run: Path, who: str) -> Outcome:
    began = time.monotonic()
    try:
        run_nodes(plan, nodes, run)
    except (RunError, InputError) as error:
        raise RunError(f"{who}: {error}") from error
    return outcome(run, time.monotonic() - began)


def _test_everywhere(study: Study, sites: Mapping[str, Site], trained: Path) -> dict[str, Any]:
    """Test metrics of a trained run's model over all sites: an evaluation with the arrays and constants of that run."""
    from clients.client import app
    from fedml.flower.grid import InProcessGrid
    from strategies.agreement import Agreement
    from strategies.rounds import RunState, evaluate

    arrays, image_shape, panel = load_model(trained)
    constants = {k: v for k, v in arrays.items() if k.startswith(("preprocess.", "target."))}
    names = dict(enumerate(sites, start=1))
    keys = from_text(panel)
    read = {name: load_cohort((str(s.file.resolve()),), study).variants for name, s in sites.items()} if keys else {}
    shared = panel_of(keys, {name: own.keys for name, own in read.items() if own is not None}, study.cohort.variants.match)
    agreement = Agreement(names, image_shape, shared, constants, roster=study.federation.sites)
    grid = InProcessGrid(app, [{"manifest": str(s.file.resolve())} for s in sites.values()])
    state = RunState(study.federation.rounds, {k: v for k, v in arrays.items() if k not in constants}, {})
    return evaluate(study, grid, agreement, state)


def _read_truth(path: Path) -> dict[str, dict[str, float]]:
    try:
        log_odds: dict[str, dict[str, float]] = json.loads(path.read_text())["log_odds"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is no truth.json of `fedml synth` ({error}).") from error
    return log_odds


def _recovery(study: Study, sites: Mapping[str, Site], trained: Path, planted: dict[str, dict[str, float]]) -> float:
    """Correlation (Pearson) of predicted with planted log-odds over all sites' test persons."""
    import torch

    from fedml.scoring import restore

    _, model = restore(trained)
    arrays, _, panel = load_model(trained)
    window = tuple(arrays[WINDOW].tolist()) if WINDOW in arrays else None
    said, true = [], []
    for name, site in sites.items():
        cohort = load_aligned((str(site.file),), study, panel, window=window)
        rows = cohort.rows("test")
        with torch.inference_mode():
            out = model(cohort.batch(rows)).double().numpy()
        said.append(out[:, 1] - out[:, 0])
        true.append(np.array([planted[name][cohort.ids[r]] for r in rows]))
    return float(np.corrcoef(np.concatenate(said), np.concatenate(true))[0, 1])


def table(study: Study, rows: Sequence[Row]) -> Table:
    """Mean over seeds (with the standard deviation where there are several) of each way to train."""
    from rich.table import Table

    names = [n for n in rows[0]["metrics"] if n not in ("persons", "log_loss", "bias")]
    out = Table(title=f"{study.study.name}: all sites' test persons, {len({r['seed'] for r in rows})} seed(s)")
    out.add_column("trained", no_wrap=True)
    recovery = "recovery" in rows[0]
    for name in (*names, *(["recovery of planted risk"] if recovery else [])):
        out.add_column(name, justify="right")
    for who in dict.fromkeys(r["who"] for r in rows):
        mine = [r for r in rows if r["who"] == who]
        values = [[r["metrics"][n] for r in mine] for n in names] + ([[r["recovery"] for r in mine]] if recovery else [])
        out.add_row(who, *(_spread(v) for v in values))
    return out


def _spread(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ± {float(np.std(values, ddof=1)):.3f}"
