"""Benchmark: a complete study as a process, 50 rounds of a 13-64-2 network at the four heart hospitals, from the command line to the
finished MLflow record, against ``heart_script.py``: the same federated averaging over the same batches as a plain script, without any
record.

Each pair is measured twice: with an empty MLflow store (which MLflow must create first) and with an existing store. The final weights and
test metrics of both must agree.

    .venv/bin/python experiments/bench/heart_rounds.py [REPEATS]
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from fedml.errors import InputError
from fedml.experiments.bench.timing import Ended, Pairs, machine, run_process, table
from fedml.experiments.prepare import prepare

HERE = Path(__file__).resolve().parent
PLAN = HERE / "heart_mlp.toml"
COLUMNS = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal")
PERSONS = {"cleveland": 303, "budapest": 294, "zurich-basel": 123, "long-beach": 200}
TOLERANCE = 1e-6


def make_sites(out: Path) -> str:
    """Writes the sites: the real hospitals if the files exist, else simulated tables of the same shape; returns which, as text."""
    try:
        prepare("heart", out, data=HERE.parents[1].parent / "shared" / "data", say=lambda _: None)
        for manifest in out.glob("*/site.toml"):  # the script suppresses no small counts, so the sites must not either
            manifest.write_text(manifest.read_text() + "\n[policy]\nmin_count = 1\n")
        return "UCI heart disease"
    except InputError:
        pass
    generator = np.random.default_rng(0)
    for site, persons in PERSONS.items():
        (out / site).mkdir(parents=True)
        x = generator.integers(1, 200, (persons, len(COLUMNS)))
        y = (x[:, 0] + generator.normal(0, 60, persons) > 100).astype(int)
        ids = [f"{site}-{i:03d}" for i in range(persons)]
        lines = [",".join(("id", *COLUMNS)), *(f"{i},{','.join(map(str, row))}" for i, row in zip(ids, x, strict=True))]
        (out / site / "clinical.csv").write_text("\n".join(lines) + "\n")
        (out / site / "persons.csv").write_text("\n".join(["id,disease", *(f"{i},{v}" for i, v in zip(ids, y, strict=True))]) + "\n")
        plan_text = f'[site]\nname = "{site}"\n[data]\npersons = "persons.csv"\nclinical = {{ path = "clinical.csv" }}\n'
        (out / site / "site.toml").write_text(plan_text)
    return "simulated tables of the shape of UCI heart disease"


def ours(sites: Path, work: Path, store: Path) -> Ended:
    """Runs ``fedml run`` with the MLflow store ``store``; artifacts and runs are written to ``work``."""
    fedml = str(Path(sys.executable).with_name("fedml"))
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "FEDML_DEBUG": ""}
    return run_process([fedml, "run", str(PLAN), "--sites", str(sites), "--json"], work, environment)


def script(sites: Path, work: Path) -> Ended:
    """Runs the plain script."""
    return run_process([sys.executable, str(HERE / "heart_script.py"), str(PLAN), str(sites), str(work)], work)


def compare(work: Path) -> str:
    """Asserts that both give the same model and metrics, and that MLflow has the record; returns the difference as text."""
    summary = json.loads((work / "output.log.ours").read_text().splitlines()[-1])
    assert summary["status"] == "finished", summary
    assert summary["mlflow_run_id"], "MLflow has no record of the run"
    our = safetensors.numpy.load_file(work / summary["folder"] / "model.safetensors")
    theirs = np.load(work / "weights.npz")
    learned = {k: v for k, v in our.items() if not k.startswith("preprocess.")}
    assert learned.keys() == set(theirs.files), (sorted(learned), theirs.files)
    apart = max(float(np.abs(v - theirs[k]).max() / np.abs(theirs[k]).max()) for k, v in learned.items())
    assert apart <= TOLERANCE, f"final weights differ by {apart:.1e} of the largest"
    test = json.loads((work / "metrics.json").read_text())["test"]
    for name, within in (("accuracy", 1e-12), ("brier", 1e-5), ("log_loss", 1e-5), ("auroc", 1e-3)):  # AUROC: ours is from 4,096 bins
        assert abs(summary["metrics"]["test"][name] - test[name]) <= within, (name, summary["metrics"]["test"][name], test[name])
    bits = all(np.array_equal(v, theirs[k]) for k, v in learned.items())
    return "bitwise equal" if bits else f"equal to {apart:.1e} of the largest weight"


def main() -> None:
    """Measures, compares and prints."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        print(f"data: {make_sites(work / 'sites')}")
        script(work / "sites", work)  # warm-up: bytecode and disk cache
        ours(work / "sites", work, work / "kept.db")
        ends: dict[str, list[Ended]] = {"empty store": [], "existing store": [], "script": []}
        pairs, equal = {"empty store": Pairs(), "existing store": Pairs()}, set()
        for at in range(repeats):
            for kind, times in pairs.items():
                our = ours(work / "sites", work, work / (f"fresh-{at}.db" if kind == "empty store" else "kept.db"))
                shutil.move(work / "output.log", work / "output.log.ours")
                peer = script(work / "sites", work)
                equal.add(compare(work))
                times.ours.append(our.seconds)
                times.peer.append(peer.seconds)
                ends[kind].append(our)
                ends["script"].append(peer)
    head = ("MLflow store", "fedml run (s)", "script (s)", "ratio", "range")
    table(f"heart, 50 rounds, median of {repeats}", head, [times.row(kind) for kind, times in pairs.items()])
    rows = [
        (kind, f"{statistics.median(e.cpu_seconds for e in many):.2f}", f"{statistics.median(e.peak_mb for e in many):.0f}")
        for kind, many in ends.items()
    ]
    table("processes", ("", "CPU (s)", "peak resident (MB)"), rows)
    print(f"\nfinal weights: {', '.join(sorted(equal))}; test metrics agree")


if __name__ == "__main__":
    main()
