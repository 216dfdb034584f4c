"""Benchmark: a linear association of many variants over three sites against PLINK 2 on the pooled file, one thread, equal results.

    .venv/bin/python experiments/bench/gwas_scale.py [PERSONS] [VARIANTS] [REPEATS]

Simulated genotypes of unrelated persons without missing calls, at three sites as PLINK files; age as the covariate, no components. Ours:
the command ``fedml gwas --no-track`` with all sites in its process, from its start to the table and the plots, after a first run that packs
the files; and the time from the first message to them, without the start. PLINK: ``--glm`` of one file of all persons, from its start to
the table. CPU seconds depend less on other work than wall seconds. Memory: the largest resident set of the process.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedml.experiments.bench.timing import Ended, machine, run_process, table
from fedml.experiments.runs.association import read_table
from fedml.runs.log import read_events

SITES = ("oslo", "porto", "utrecht")
_TOGETHER = 20_000  # variants simulated at a time
_STUDY = """
[study]
name = "scale"
question = "scale"
purpose = "DUO:0000042"
seed = 1
[cohort]
inputs = ["variants", "clinical"]
target = "y"
[cohort.clinical]
columns = ["age"]
[model]
task = "regression"
[gwas]
covariates = ["age"]
components = 0
[federation]
sites = ["oslo", "porto", "utrecht"]
"""


def write(folder: Path, persons: int, variants: int) -> None:
    """Writes the study, each site's folder, and for PLINK one file of all persons with phenotype and covariate."""
    from bed_reader import to_bed

    random = np.random.default_rng(1)
    at, frequency = np.arange(variants), random.uniform(0.02, 0.5, variants).astype(np.float32)
    contig = 1 + at * 22 // variants
    pairs = np.array([["A", "C"], ["A", "G"], ["C", "A"], ["C", "T"], ["G", "A"], ["T", "C"]])
    of: dict[str, Any] = {"sid": [f"rs{n + 1}" for n in at], "chromosome": contig.astype(str).tolist()}
    of |= {"bp_position": (1000 + 40 * at).tolist()}
    of |= {"allele_1": pairs[at % 6, 0].tolist(), "allele_2": pairs[at % 6, 1].tolist()}
    dosage = np.empty((persons, variants), np.int8)
    for begin in range(0, variants, _TOGETHER):
        part = slice(begin, begin + _TOGETHER)
        chance = random.random((2, persons, len(frequency[part])), dtype=np.float32)
        dosage[:, part] = (chance < frequency[part]).sum(0)
    age = random.integers(30, 80, persons)
    y = np.round(random.normal(size=persons) + 0.2 * dosage[:, 7] + 0.01 * age, 6)
    ids = np.array([f"p{n:06d}" for n in range(persons)])
    for name, rows in zip(SITES, np.array_split(np.arange(persons), len(SITES)), strict=True):
        (folder / name).mkdir()
        to_bed(folder / name / "genotypes.bed", dosage[rows], properties=of | {"fid": ids[rows].tolist(), "iid": ids[rows].tolist()})
        pd.DataFrame({"id": ids[rows], "y": y[rows], "age": age[rows]}).to_csv(folder / name / "persons.csv", index=False)
        data = 'persons = "persons.csv"\nclinical = { path = "persons.csv" }\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (folder / name / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    to_bed(folder / "all.bed", dosage, properties=of | {"fid": ids.tolist(), "iid": ids.tolist()})
    own = {"#FID": ids, "IID": ids}
    pd.DataFrame({**own, "y": y}).to_csv(folder / "pheno", sep="\t", index=False)
    pd.DataFrame({**own, "age": age}).to_csv(folder / "covar", sep="\t", index=False)
    (folder / "study.toml").write_text(_STUDY)


def ours(folder: Path) -> Ended:
    """The command."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    command = [str(Path(sys.executable).with_name("fedml")), "gwas", "study.toml", "--sites", ".", "--runs", "runs", "--no-track"]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
    return run_process(command, folder, one)


def within(folder: Path) -> float:
    """Seconds from the first message to the end of the last run, by its record."""
    events = read_events(next((folder / "runs").iterdir()))[0]
    return next(float(event["seconds"]) for event in events if event["event"] == "gwas")


def plink(folder: Path) -> Ended:
    """PLINK's command."""
    glm = ["--glm", "omit-ref", "hide-covar", "--pheno", "pheno", "--covar", "covar", "--covar-variance-standardize"]
    return run_process(["plink2", "--bfile", "all", "--threads", "1", *glm, "--out", "own"], folder)


def check_equal(folder: Path, persons: int) -> str:
    """Asserts that both tables agree within the digits that PLINK prints where every site answered; returns the largest difference as text.

    Where few persons of a site carry an allele, the site tells nothing of it: the effect is of the others' persons, as ``n`` says.
    """
    theirs = pd.read_csv(folder / "own.y.glm.linear", sep="\t").set_index("ID")
    results = read_table(next((folder / "runs").iterdir())).set_index("rsid")
    whole = results[results.n == persons]
    theirs = theirs.loc[whole.index]
    assert (whole.n == theirs.OBS_CT).all()
    beta = np.where(whole.effect_allele == theirs.A1, theirs.BETA, -theirs.BETA)
    apart = float((np.abs(beta - whole.beta) / whole.standard_error).max())
    assert apart < 1e-4, apart
    fewer = len(results) - len(whole)
    return f"{len(whole):,} variants of all persons: effects within {apart:.1e} standard errors; {fewer:,} variants of fewer sites' persons"


def main(persons: int = 2000, variants: int = 500_000, repeats: int = 5) -> None:
    """Prints the machine and the table."""
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, persons, variants)
        print(f"first run, which packs the files: {ours(folder).seconds:.1f} s")
        found = []
        for _ in range(repeats):
            mine, inside, theirs = ours(folder), within(folder), plink(folder)
            found.append((mine.seconds, mine.cpu_seconds, inside, mine.peak_mb, theirs.seconds, theirs.cpu_seconds, theirs.peak_mb))
        columns = list(zip(*found, strict=True))
        rows = [
            ("from start to end, wall s", 0, 4), ("from start to end, CPU s", 1, 5),
            ("from the first message, wall s", 2, 4), ("largest resident set, MB", 3, 6),
        ]  # fmt: skip
        shown = []
        for what, own, peer in rows:
            ratios = [a / b for a, b in zip(columns[own], columns[peer], strict=True)]
            medians = [f"{statistics.median(values):.2f}" for values in (columns[own], columns[peer], ratios)]
            shown.append((what, *medians, f"{min(ratios):.2f} to {max(ratios):.2f}"))
        table(f"{persons:,} persons x {variants:,} variants, 3 sites", ("", "ours", "PLINK 2", "ratio", "range"), shown)
        print(check_equal(folder, persons))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
