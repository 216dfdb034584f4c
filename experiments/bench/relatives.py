"""Benchmark: association of variants without an effect in families, with and without the means against relatedness.

    .venv/bin/python experiments/bench/relatives.py [SIMULATIONS] [--cases]

Three sites with 300 nuclear families of two parents and three children each. 1,000 unlinked variants on chromosomes 1 to 10 explain half of
the trait's variance (with --cases: of the liability, a fifth are cases); 2,500 on chromosome 22 have no effect. A row gives lambda (mean
and range over simulations) and the share of p below .05, over all simulations, with the standard error of the simulations' shares:

    related      everyone, as if unrelated
    unrelated    [gwas] relatives = "unrelated": the founders of each family, or fewer
    two steps    everyone, with [gwas.polygenic] at its defaults
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedml.analytics.sumstats import genomic_inflation
from fedml.experiments.runs.association import read_table
from fedml.experiments.runs.run import run_nodes
from fedml.study.study import Study, parse_study, validate

KINDS: tuple[str, str] = ("regression", "classification")
SITES, FAMILIES, CHILDREN = 3, 300, 3
CAUSAL, NULL, HERITABILITY = 1_000, 2_500, 0.5
ANALYSES: dict[str, dict[str, Any]] = {"related": {}, "unrelated": {"relatives": "unrelated"}, "two steps": {"polygenic": {}}}


def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dosages (persons, variants) int8 of all sites' families, and the heritable part of the trait (persons,), of variance 1."""
    frequency = random.uniform(0.05, 0.5, CAUSAL + NULL)
    parents = (random.random((SITES * FAMILIES, 2, 2, CAUSAL + NULL)) < frequency).astype(np.int8)
    people = [parents.sum(2, dtype=np.int8)]
    for _ in range(CHILDREN):
        first = random.integers(0, 2, (SITES * FAMILIES, 2, CAUSAL + NULL)).astype(bool)
        people.append(np.where(first, parents[:, :, 0], parents[:, :, 1]).sum(1, keepdims=True, dtype=np.int8))
    dosage = np.concatenate(people, axis=1).reshape(-1, CAUSAL + NULL)
    causal = dosage[:, :CAUSAL].astype(np.float64)
    value = ((causal - causal.mean(0)) / causal.std(0)) @ random.normal(size=CAUSAL)
    return dosage, value / value.std()


def write(folder: Path, dosage: np.ndarray, y: np.ndarray) -> list[str]:
    """The sites' files; returns their names."""
    from bed_reader import to_bed

    names, contigs = [f"s{at}" for at in range(SITES)], [str(1 + at * 10 // CAUSAL) for at in range(CAUSAL)] + ["22"] * NULL
    for name, rows in zip(names, np.split(np.arange(len(y)), SITES), strict=True):
        place, ids = folder / name, [f"{name}-{at}" for at in range(len(rows))]
        place.mkdir()
        properties: dict[str, Any] = {"fid": ids, "iid": ids, "sid": [f"rs{at + 1}" for at in range(len(contigs))], "chromosome": contigs}
        properties |= {"bp_position": list(range(1000, 1000 + len(contigs)))}
        properties |= {"allele_1": ["G"] * len(contigs), "allele_2": ["A"] * len(contigs)}
        to_bed(place / "genotypes.bed", dosage[rows], properties=properties)
        (place / "persons.csv").write_text("id,y\n" + "".join(f"{i},{v}\n" for i, v in zip(ids, y[rows].tolist(), strict=True)))
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    return names


def simulate(folder: Path, seed: int, *, cases: bool) -> dict[str, np.ndarray]:
    """Analysis -> p values of the variants without an effect."""
    random = np.random.default_rng(seed)
    dosage, heritable = draw(random)
    y = np.sqrt(HERITABILITY) * heritable + np.sqrt(1 - HERITABILITY) * random.normal(size=len(heritable))
    names, out = write(folder, dosage, (y > np.quantile(y, 0.8)).astype(int) if cases else y), {}
    for name, section in ANALYSES.items():
        plan = {
            "study": {"name": "families", "seed": seed},
            "cohort": {"inputs": ["variants"], "target": "y"},
            "model": {"task": KINDS[cases]},
            "gwas": {"components": 0, **section},
            "federation": {"sites": names},
        }
        run = folder / name.replace(" ", "-")
        run.mkdir()
        study = parse_study(validate(Study, plan, "the study").canonical)
        run_nodes(study, [{"manifest": str((folder / site / "site.toml").resolve())} for site in names], run, "gwas")
        table = read_table(run)
        out[name] = table[table.chromosome == "22"].p_value.to_numpy(float)
    return out


def main(simulations: int = 20, *, cases: bool = False) -> None:
    """Prints the rows, and those of the simulations so far after each."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in ANALYSES}
    for seed in range(simulations):
        with tempfile.TemporaryDirectory() as folder:
            for name, p in simulate(Path(folder), seed, cases=cases).items():
                found[name].append(p)
        print(f"| after {seed + 1} simulations | lambda | p < .05 |", flush=True)
        for name, parts in found.items():
            inflation = [genomic_inflation(p) or np.nan for p in parts]
            shares = [100 * float((p < 0.05).mean()) for p in parts]
            error = np.std(shares, ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else np.nan
            span = f"{np.mean(inflation):.3f} ({min(inflation):.3f} to {max(inflation):.3f})"
            print(f"| {name} | {span} | {np.mean(shares):.2f} % ± {error:.2f} |", flush=True)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    main(*map(int, words), cases="--cases" in sys.argv)
