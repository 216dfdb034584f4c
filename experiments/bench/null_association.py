"""Benchmark: association of variants without an effect at the default policy (min_count = 5), 20 simulations each.

    .venv/bin/python experiments/bench/null_association.py [SIMULATIONS] [VARIANTS]

Genotypes (minor allele frequency from 5 to 50 %, Hardy-Weinberg equilibrium) and outcomes are drawn independently. A row gives lambda
(mean and range over simulations) and the shares of p below .05 and .001 over all of them, with their standard errors as if variants were
independent.
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
DESIGNS = (
    ((300,) * 3, None),
    ((300,) * 20, None),
    ((300, 1000, 3000), None),
    ((300,) * 6, 0.5),
    ((300,) * 6, 0.2),
    ((300,) * 6, 0.05),
    ((300,) * 20, 0.2),
    ((1000,) * 3, 0.05),
)


def simulate(folder: Path, persons: tuple[int, ...], share: float | None, variants: int, seed: int) -> np.ndarray:
    """p values of one simulation; ``share`` of cases at each site, None: a number."""
    from bed_reader import to_bed

    random = np.random.default_rng(seed)
    frequency, names = random.uniform(0.05, 0.5, variants), [f"s{at}" for at in range(len(persons))]
    for name, count in zip(names, persons, strict=True):
        place, ids = folder / name, [f"{name}-{at}" for at in range(count)]
        place.mkdir()
        properties: dict[str, Any] = {
            "fid": ids,
            "iid": ids,
            "sid": [f"rs{at + 1}" for at in range(variants)],
            "chromosome": ["1"] * variants,
        }
        properties |= {"bp_position": list(range(1000, 1000 + variants)), "allele_1": ["G"] * variants, "allele_2": ["A"] * variants}
        to_bed(place / "genotypes.bed", random.binomial(2, frequency, (count, variants)).astype(np.int8), properties=properties)
        y = random.normal(size=count) if share is None else (random.permutation(count) < round(share * count)).astype(int)
        (place / "persons.csv").write_text("id,y\n" + "".join(f"{i},{v}\n" for i, v in zip(ids, y.tolist(), strict=True)))
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    plan = {
        "study": {"name": "null", "seed": 1},
        "cohort": {"inputs": ["variants"], "target": "y"},
        "model": {"task": KINDS[share is not None]},
        "gwas": {"components": 0},
        "federation": {"sites": names},
    }
    study = parse_study(validate(Study, plan, "the null study").canonical)
    run = folder / "run"
    run.mkdir()
    run_nodes(study, [{"manifest": str((folder / name / "site.toml").resolve())} for name in names], run, "gwas")
    return read_table(run).p_value.to_numpy(float)


def main(simulations: int = 20, variants: int = 3000) -> None:
    """Prints a row a design."""
    print("| sites x persons | cases | variants tested | lambda | p < .05 | p < .001 |\n|---|---|---|---|---|---|")
    for persons, share in DESIGNS:
        found, inflation = [], []
        for seed in range(simulations):
            with tempfile.TemporaryDirectory() as folder:
                p = simulate(Path(folder), persons, share, variants, seed)
            found.append(p)
            inflation.append(genomic_inflation(p))
        every = np.concatenate(found)
        shares = [f"{100 * (every < at).mean():.2f} % ± {100 * np.sqrt(at * (1 - at) / len(every)):.2f}" for at in (0.05, 0.001)]
        sizes = f"{len(persons)} x {persons[0]}" if len(set(persons)) == 1 else ", ".join(map(str, persons))
        line = f"{np.mean(inflation):.3f} ({min(inflation):.3f} to {max(inflation):.3f})"
        kind = "a number" if share is None else f"{share:.0%}"
        print(f"| {sizes} | {kind} | {len(every):,} | {line} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
