"""Benchmark: association of variants without an effect at the shipped defaults, 20 simulations each.

    .venv/bin/python experiments/bench/null_association.py [SIMULATIONS] [VARIANTS]

Genotypes (half of the variants with a minor allele frequency from 1 to 5 %, half from 5 to 50 %, Hardy-Weinberg equilibrium) and outcomes
are drawn independently; in an admixed design, both depend on a person's share of two ancestries (Fst 0.05; one standard deviation of the
outcome, or log-odds of 1.5, between them), and the study has two components. A row gives lambda (mean and range over simulations) and the
shares of p below .05, in either half, and below .001, over all simulations, with their standard errors as if variants were independent.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedml.analytics.sumstats import genomic_inflation
from fedml.experiments.runs.association import read_table
from fedml.experiments.runs.run import run_nodes
from fedml.study.study import Study, parse_study, validate

KINDS: tuple[str, str] = ("regression", "classification")
_FST = 0.05


class Design(NamedTuple):
    """Persons by site, share of cases (None: a number), and whether persons are of two ancestries."""

    persons: tuple[int, ...]
    share: float | None
    admixed: bool = False


DESIGNS = (
    Design((300,) * 3, None),
    Design((300,) * 20, None),
    Design((300, 1000, 3000), None),
    Design((1000,) * 3, None, True),
    Design((300,) * 6, 0.5),
    Design((300,) * 6, 0.2),
    Design((300,) * 6, 0.05),
    Design((300,) * 20, 0.2),
    Design((300, 1000, 3000), 0.05),
    Design((1000,) * 3, 0.2, True),
)


def simulate(folder: Path, design: Design, variants: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """p values of one simulation, and which of them are of the more frequent half."""
    from bed_reader import to_bed

    random = np.random.default_rng(seed)
    half = variants // 2
    frequency = np.concatenate([random.uniform(0.01, 0.05, half), random.uniform(0.05, 0.5, variants - half)])
    scale = (1 - _FST) / _FST
    ancestral = random.beta(frequency * scale, (1 - frequency) * scale, (2, variants))
    names = [f"s{at}" for at in range(len(design.persons))]
    for number, (name, count) in enumerate(zip(names, design.persons, strict=True)):
        place, ids = folder / name, [f"{name}-{at}" for at in range(count)]
        place.mkdir()
        share = random.beta(1 + number, 2, (count, 1)) if design.admixed else np.zeros((count, 1))
        likely = share * ancestral[0] + (1 - share) * ancestral[1] if design.admixed else frequency
        properties: dict[str, Any] = {
            "fid": ids,
            "iid": ids,
            "sid": [f"rs{at + 1}" for at in range(variants)],
            "chromosome": ["1"] * variants,
        }
        properties |= {"bp_position": list(range(1000, 1000 + variants)), "allele_1": ["G"] * variants, "allele_2": ["A"] * variants}
        to_bed(place / "genotypes.bed", random.binomial(2, likely, (count, variants)).astype(np.int8), properties=properties)
        y = _outcome(random, design, share[:, 0])
        (place / "persons.csv").write_text("id,y\n" + "".join(f"{i},{v}\n" for i, v in zip(ids, y.tolist(), strict=True)))
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    plan = {
        "study": {"name": "null", "seed": 1},
        "cohort": {"inputs": ["variants"], "target": "y"},
        "model": {"task": KINDS[design.share is not None]},
        "gwas": {"components": 2 if design.admixed else 0},
        "federation": {"sites": names},
    }
    study = parse_study(validate(Study, plan, "the null study").canonical)
    run = folder / "run"
    run.mkdir()
    run_nodes(study, [{"manifest": str((folder / name / "site.toml").resolve())} for name in names], run, "gwas")
    table = read_table(run)
    return table.p_value.to_numpy(float), table.rsid.str[2:].to_numpy(int) > half


def _outcome(random: np.random.Generator, design: Design, ancestry: np.ndarray) -> np.ndarray:
    """(persons,) outcomes; ``ancestry`` (persons,): share of the first ancestry."""
    count = len(ancestry)
    if design.share is None:
        return np.asarray(random.normal(size=count) + ancestry)
    if not design.admixed:
        return np.asarray(random.permutation(count) < round(design.share * count)).astype(int)
    odds = np.exp(np.log(design.share / (1 - design.share)) + 1.5 * (ancestry - 0.5))
    return np.asarray(random.random(count) < odds / (1 + odds)).astype(int)


def main(simulations: int = 20, variants: int = 3000) -> None:
    """Prints a row a design."""
    print("| sites x persons | outcome | tested | lambda | p < .05, MAF below 5 % | p < .05, others | p < .001 |")
    print("|---|---|---|---|---|---|---|")
    for design in DESIGNS:
        found, inflation = [], []
        for seed in range(simulations):
            with tempfile.TemporaryDirectory() as folder:
                found.append(simulate(Path(folder), design, variants, seed))
            inflation.append(genomic_inflation(found[-1][0]))
        p, frequent = (np.concatenate(part) for part in zip(*found, strict=True))
        shares = [_share(p[~frequent], 0.05), _share(p[frequent], 0.05), _share(p, 0.001)]
        persons = design.persons
        sizes = f"{len(persons)} x {persons[0]}" if len(set(persons)) == 1 else ", ".join(map(str, persons))
        line = f"{np.mean(inflation):.3f} ({min(inflation):.3f} to {max(inflation):.3f})"
        kind = ("a number" if design.share is None else f"{design.share:.0%} cases") + (", admixed" if design.admixed else "")
        print(f"| {sizes} | {kind} | {len(p):,} | {line} | {' | '.join(shares)} |", flush=True)


def _share(p: np.ndarray, below: float) -> str:
    if not len(p):
        return "none tested"
    return f"{100 * (p < below).mean():.2f} % ± {100 * np.sqrt(below * (1 - below) / len(p)):.2f}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
