"""Benchmark: chi-squared of planted variants at the shipped defaults, as a share of that of the pooled file in PLINK 2.

    .venv/bin/python experiments/bench/power_association.py [SIMULATIONS] [VARIANTS]

Genotypes as in ``null_association.py``, not admixed; every variant has an effect on the outcome, so small that a test of it alone is what a
scan would make (0.25 standard deviations or log-odds of 0.4 for each ALT allele, divided by the number of variants' root). PLINK: ``--glm
firth-fallback`` of all persons with an indicator of each site where our model has an intercept for each. A variant that ours does not test
counts as 0. Chi-squared from the p value, one degree of freedom.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedml.experiments.bench.null_association import KINDS, Design
from fedml.experiments.runs.association import read_table
from fedml.experiments.runs.run import run_nodes
from fedml.study.study import Study, parse_study, validate

DESIGNS = (
    Design((300,) * 3, None),
    Design((300,) * 20, None),
    Design((300, 1000, 3000), None),
    Design((300,) * 6, 0.5),
    Design((300,) * 6, 0.2),
    Design((300,) * 6, 0.05),
    Design((300,) * 20, 0.2),
    Design((300, 1000, 3000), 0.05),
)


def chi2(folder: Path, design: Design, variants: int, seed: int) -> pd.DataFrame:
    """The variants' chi-squared of both, and whether the minor allele frequency is 5 % or more."""
    from bed_reader import to_bed
    from scipy.stats import chi2 as distribution

    random = np.random.default_rng(seed)
    half, total = variants // 2, sum(design.persons)
    frequency = np.concatenate([random.uniform(0.01, 0.05, half), random.uniform(0.05, 0.5, variants - half)])
    dosage = random.binomial(2, frequency, (total, variants)).astype(np.int8)
    effects = random.choice([-1.0, 1.0], variants) / np.sqrt(variants * 2 * frequency * (1 - frequency))
    score = (dosage - 2 * frequency) @ effects  # of variance 1: each variant explains as much as another
    y = _outcome(random, design, score)
    names = [f"s{at}" for at in range(len(design.persons))]
    site = np.repeat(names, design.persons)
    ids = np.array([f"p{at}" for at in range(total)])
    of: dict[str, Any] = {"sid": [f"rs{at + 1}" for at in range(variants)], "chromosome": ["1"] * variants}
    of |= {"bp_position": list(range(1000, 1000 + variants)), "allele_1": ["G"] * variants, "allele_2": ["A"] * variants}
    for name in names:
        rows, place = np.flatnonzero(site == name), folder / name
        place.mkdir()
        to_bed(place / "genotypes.bed", dosage[rows], properties=of | {"fid": ids[rows].tolist(), "iid": ids[rows].tolist()})
        pd.DataFrame({"id": ids[rows], "y": y[rows]}).to_csv(place / "persons.csv", index=False)
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    plan = {
        "study": {"name": "power", "seed": 1}, "cohort": {"inputs": ["variants"], "target": "y"},
        "model": {"task": KINDS[design.share is not None]}, "gwas": {"components": 0}, "federation": {"sites": names},
    }  # fmt: skip
    run = folder / "run"
    run.mkdir()
    run_nodes(
        parse_study(validate(Study, plan, "the study").canonical),
        [{"manifest": str((folder / name / "site.toml").resolve())} for name in names], run, "gwas",
    )  # fmt: skip
    ours = read_table(run).set_index("rsid").p_value.astype(float).reindex(of["sid"])
    to_bed(folder / "all.bed", dosage, properties=of | {"fid": ids.tolist(), "iid": ids.tolist()})
    theirs = _plink(folder, ids, y + 1 if design.share is not None else y, site if design.share is not None else None)
    found = pd.DataFrame({"ours": distribution.isf(ours, 1), "pooled": distribution.isf(theirs.reindex(of["sid"]), 1)}).fillna(0.0)
    return found.assign(frequent=np.arange(variants) >= half)


def _outcome(random: np.random.Generator, design: Design, score: np.ndarray) -> np.ndarray:
    """(persons,): a number, or 0 and 1 with that share of cases at each site; the variants explain a tenth of the liability."""
    liability = np.sqrt(0.1) * score + np.sqrt(0.9) * random.normal(size=len(score))
    if design.share is None:
        return np.asarray(np.round(liability, 6))
    ends = np.cumsum([0, *design.persons])
    out = np.zeros(len(score), int)
    for begin, end in itertools.pairwise(ends.tolist()):
        out[begin + np.argsort(-liability[begin:end])[: round(design.share * (end - begin))]] = 1
    return out


def _plink(folder: Path, ids: np.ndarray, y: np.ndarray, site: np.ndarray | None) -> pd.Series:
    """p values of PLINK by rsID."""
    own = {"#FID": ids, "IID": ids}
    pd.DataFrame({**own, "y": y}).to_csv(folder / "pheno", sep="\t", index=False)
    command = ["plink2", "--bfile", "all", "--threads", "1", "--pheno", "pheno", "--out", "own", "--glm", "omit-ref", "hide-covar"]
    if site is None:
        command.append("allow-no-covars")
    else:
        indicators = pd.get_dummies(pd.Series(site), drop_first=True, dtype=int)
        pd.concat([pd.DataFrame(own), indicators], axis=1).to_csv(folder / "covar", sep="\t", index=False)
        command += ["firth-fallback", "--covar", "covar"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return pd.read_csv(next(folder.glob("own.y.glm.*")), sep="\t").set_index("ID").P


def main(simulations: int = 5, variants: int = 1000) -> None:
    """Prints a row a design."""
    print("| sites x persons | outcome | pooled chi-squared, mean | share of it, MAF below 5 % | others | all |\n|---|---|---|---|---|---|")
    for design in DESIGNS:
        parts = []
        for seed in range(simulations):
            with tempfile.TemporaryDirectory() as folder:
                parts.append(chi2(Path(folder), design, variants, seed))
        found = pd.concat(parts)
        shares = [part.ours.sum() / part.pooled.sum() for part in (found[~found.frequent], found[found.frequent], found)]
        persons = design.persons
        sizes = f"{len(persons)} x {persons[0]}" if len(set(persons)) == 1 else ", ".join(map(str, persons))
        kind = "a number" if design.share is None else f"{design.share:.0%} cases"
        print(f"| {sizes} | {kind} | {found.pooled.mean():.2f} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
