"""Benchmark: omics at scale. Three sites, each a Parquet matrix of persons x features; memory of the site's process, and time of an epoch.

Memory: `fedml federation up` starts a process for each site, and a study (standardisation by all sites, one round, evaluation) runs on
them. The figures are peaks of the site's resident process as the kernel counts them: VmHWM, in which the pages of libraries count, and the
largest RssAnon that was seen (every 0.05 s); and VmHWM of the process that converts the matrix once. The peer is a script that reads one
site's matrix with pandas and trains the same epoch in torch.

Time: one epoch of network ``linear`` of one site by ``fedml.learning.training.train`` with batches from the site's cache, against the same
loop in plain torch from a float32 array in memory: standardised in each batch, and standardised once before (not counted). All end with
the same weights, bit for bit.

    .venv/bin/python experiments/bench/omics.py [PERSONS] [FEATURES] [REPEATS] [memory|time|both]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedml.study.study import Study

ROSTER, PLANTED, BATCH, SEED = ("oslo", "porto", "utrecht"), 20, 64, 3
PEER = """
import sys
import numpy as np, pandas as pd, torch
from torch import nn
folder, features = sys.argv[1:]
table = pd.read_parquet(folder + "/expression.parquet").set_index("id")
y = torch.from_numpy(pd.read_csv(folder + "/persons.csv").set_index("id").reindex(table.index)["y"].to_numpy())
x = torch.from_numpy(table.to_numpy(np.float32))
del table
torch.set_num_threads(1)
x -= x.mean(0)
x /= x.std(0)
model = nn.Linear(int(features), 2)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
for rows in torch.randperm(len(x)).split(64):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    optimizer.step()
"""


def make_site(folder: Path, name: str, persons: int, features: int) -> None:
    """Writes a site: a matrix of one row group, float32, 1 % missing, and a label drawn from the log-odds of the first features."""
    import pyarrow as pa
    from pyarrow import parquet

    random = np.random.default_rng([SEED, ROSTER.index(name)])
    ids = [f"{name}-{k:06d}" for k in range(persons)]
    folder.mkdir(parents=True)
    arrays, odds = [pa.array(ids)], np.zeros(persons)
    for at in range(features):
        z = random.standard_normal(persons, dtype=np.float32)
        if at < PLANTED:
            odds += z
        values = z * np.float32(1 + at % 7) + np.float32(at % 11)
        arrays.append(pa.array(values, mask=random.random(persons) < 0.01))
    matrix = pa.table(arrays, names=["id", *names_of(features)])
    parquet.write_table(matrix, folder / "expression.parquet", use_dictionary=False, row_group_size=persons)
    y = random.random(persons) < 1 / (1 + np.exp(-odds / np.sqrt(PLANTED)))
    (folder / "persons.csv").write_text("id,y\n" + "".join(f"{i},{int(v)}\n" for i, v in zip(ids, y, strict=True)))
    data = '[data]\npersons = "persons.csv"\nomics = { path = "expression.parquet" }\n'
    (folder / "site.toml").write_text(f'[site]\nname = "{name}"\n{data}[policy]\ncentre = "curious"\n[compute]\ndevice = "cpu"\n')


def names_of(features: int) -> list[str]:
    """The features' names."""
    return [f"ENSG{k:011d}" for k in range(features)]


def make_sites(folder: Path, persons: int, features: int) -> None:
    """Each site in a process of its own, whose memory is given back."""
    for name in ROSTER:
        words = [sys.executable, __file__, "make", str(folder / name), name, str(persons), str(features)]
        subprocess.run(words, check=True)


def study_of(features: int) -> Study:
    """One round of one epoch of a linear model."""
    from fedml.study.study import Study, parse_study, validate

    plan = {
        "study": {"name": "wide"},
        "cohort": {"inputs": ["omics"], "target": "y", "omics": {"columns": names_of(features)}},
        "training": {"optimizer": "sgd", "local_epochs": 1, "batch_size": BATCH, "lr": 1e-4},
        "federation": {"sites": list(ROSTER), "rounds": 1, "timeout": 3600},
    }
    return parse_study(validate(Study, plan, "the wide study").canonical)


class Peaks:
    """In the block, a thread notes the memory of processes and of their children, by name: ``own`` and ``child``, MB. Final."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self.own: dict[str, dict[str, float]] = {name: {} for name in processes}
        self.child: dict[str, dict[str, float]] = {name: {} for name in processes}
        self._processes, self._stop = processes, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            for name, process in self._processes.items():
                with suppress(OSError):
                    _note(self.own[name], process)
                    tasks = Path(f"/proc/{process}/task").iterdir()
                    for child in {int(c) for task in tasks for c in (task / "children").read_text().split()}:
                        if b"fedml.cohort.wide.convert" in Path(f"/proc/{child}/cmdline").read_bytes():
                            _note(self.child[name], child)


def _note(peaks: dict[str, float], process: int) -> None:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmHWM", "RssAnon", "RssFile"):
            peaks[key] = max(peaks.get(key, 0), int(value.split()[0]) / 1024)


def memory(work: Path, persons: int, features: int) -> None:
    """Runs the study on a federation of processes and prints their peaks, and that of the peer."""
    from fedml.clients.gate.approvals import approve
    from fedml.clients.service import prepare_state
    from fedml.clients.site.manifest import find_sites
    from fedml.experiments.bench.timing import run_process, table
    from fedml.experiments.federation.local import down, home_of, up
    from fedml.experiments.runs.run import On, new_run, run

    study, sites = study_of(features), find_sites(work / "sites", ROSTER)[0]
    for site in sites.values():
        approve(prepare_state(site), study, "benchmark")
    running = up(work / "sites", lambda _: None)
    try:
        with Peaks(running.sites) as peaks:
            began = time.perf_counter()
            folder = new_run(study, work / "runs", None, engine="deployment", job="train")
            outcome = run(study, sites, folder, On("deployment", flower_home=home_of(work / "sites")))
            took = time.perf_counter() - began
    finally:
        down(work / "sites", lambda _: None)
    assert outcome.status == "finished", outcome.reason
    (work / "peer").mkdir()
    peer = run_process([sys.executable, "-c", PEER, str(work / "sites" / ROSTER[0]), str(features)], work / "peer")
    rows = []
    for name in ROSTER:
        own, child = peaks.own[name], peaks.child[name]
        rows.append((name, *(f"{own[key]:.0f}" for key in ("VmHWM", "RssAnon", "RssFile")), f"{child.get('VmHWM', 0):.0f}"))
    rows.append(("peer: pandas and torch, one site", f"{peer.peak_mb:.0f}", "", "", ""))
    head = ("", "VmHWM (MB)", "RssAnon (MB)", "RssFile (MB)", "converting process, VmHWM (MB)")
    table(f"peak memory, {len(ROSTER)} sites of {persons:,} persons x {features:,} features, whole run in {took:.0f} s", head, rows)


def epochs(work: Path, features: int, repeats: int) -> None:
    """Times an epoch of each way and prints the ratios."""
    import torch
    from torch import nn

    from fedml.clients.site.read import load_cohort
    from fedml.cohort import omics
    from fedml.cohort.wide.matrix import Matrix
    from fedml.experiments.bench.timing import Pairs, seconds, table
    from fedml.learning.statistics import cohort_sums, constants_from
    from fedml.learning.training import batches, train
    from fedml.modalities.layout import Layout
    from fedml.models.fusion import build_model, constants, digest, load
    from fedml.seeds import torch_seed
    from fedml.tasks.registry import make_task

    study = study_of(features)
    omics.LARGEST = 0  # a small matrix too is read from disk here
    cohort = load_cohort((str((work / "sites" / ROSTER[0] / "site.toml").resolve()),), study)
    matrix = cohort.input("omics", Matrix)
    assert matrix is not None
    fixed = constants_from(cohort_sums(cohort, study.model.task))
    model, rows = build_model(study, Layout((), 0)), cohort.rows("train")
    load(constants(model), fixed)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    raw = torch.from_numpy(matrix.floats(np.arange(len(cohort))))
    y = torch.from_numpy(cohort.labels.astype(np.int64))
    mean, std = fixed["preprocess.omics.mean"], fixed["preprocess.omics.std"]
    ready = raw.clone()
    for part in torch.split(ready, 64):
        part.sub_(mean).mul_(1 / std).nan_to_num_(0.0)
    torch.set_num_threads(study.training.threads)
    found = []

    def ours() -> None:
        model.load_state_dict(first)
        train(model, cohort, study.training, make_task(study), seed=SEED)
        found.append(digest({"weight": model.encoder["omics"].weight, "bias": model.encoder["omics"].bias}))  # type: ignore[dict-item]

    def peer(x: torch.Tensor, each: bool) -> None:
        layer = nn.Linear(features, 2)
        layer.load_state_dict({key: first[f"encoder.omics.{key}"] for key in ("weight", "bias")})
        optimizer = torch.optim.SGD(layer.parameters(), lr=study.training.lr)
        inverse = 1 / std
        with torch_seed(SEED) as generator:
            for chosen in batches(rows, BATCH, generator):
                at = torch.from_numpy(chosen)
                optimizer.zero_grad()
                batch = x[at]
                if each:
                    batch = ((batch - mean) * inverse).masked_fill(torch.isnan(batch), 0.0)
                nn.functional.cross_entropy(layer(batch), y[at]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        found.append(digest({"weight": layer.weight, "bias": layer.bias}))

    lines = []
    for name, x, each in (("standardised in each batch", raw, True), ("standardised before", ready, False)):
        pairs = Pairs()
        cpu = Pairs()
        for _ in range(repeats + 1):
            for times, used, work_of in ((pairs.ours, cpu.ours, ours), (pairs.peer, cpu.peer, lambda x=x, each=each: peer(x, each))):
                began = time.process_time()
                times.append(seconds(work_of))
                used.append(time.process_time() - began)
        for each_pair in (pairs, cpu):
            del each_pair.ours[0], each_pair.peer[0]  # the warm-up
        lines += [pairs.row(f"{name}, wall"), cpu.row(f"{name}, CPU")]
    assert len(set(found)) == 1, "the final weights differ"
    title = f"an epoch, {len(rows):,} training persons x {features:,} features, batches of {BATCH}, median of {repeats}"
    table(title, ("peer in memory", "ours (s)", "peer (s)", "ratio", "range"), lines)
    print(f"final weights of all {len(found)} epochs are bitwise equal: SHA-256 {found[0][:16]}")


def main() -> None:
    """Makes the sites, measures and prints."""
    if sys.argv[1:2] == ["make"]:
        make_site(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        return
    from fedml.cohort import omics
    from fedml.experiments.bench.timing import machine

    persons, features, repeats = (*map(int, sys.argv[1:4]), *(5000, 60_000, 5)[len(sys.argv[1:4]) :])
    what = sys.argv[4] if len(sys.argv) > 4 else "both"
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="fedml-bench-") as name:
        work = Path(name)
        began = time.perf_counter()
        make_sites(work / "sites", persons, features)
        print(f"matrices made in {time.perf_counter() - began:.0f} s; limit of a matrix in memory: {omics.LARGEST >> 20} MB")
        if what in ("memory", "both"):
            memory(work, persons, features)
        if what in ("time", "both"):
            epochs(work, features, repeats)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
