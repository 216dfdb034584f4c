"""Persons who do not exist, with imputed dosages, at three sites, in every format: the same numbers, as each format can hold them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fedml.study.study import Study, parse_study, validate
from tests.conftest import write_csv

PERSONS = {"north": 110, "south": 90, "west": 130}
VARIANTS = 40
MISSING = (30, 31, 32)  # variants of which some persons have no dosage
KEYS = [("1", 1_000 + 50 * at, f"rs{at + 1}", *("AG" if at % 2 else "CT")) for at in range(VARIANTS)]


class People(NamedTuple):
    """All persons: ``haplotype`` (persons, variants, 2) probabilities of ALT with three decimals, nan where missing; ``dosage`` their
    sum."""

    ids: list[str]
    site: Any
    haplotype: Any
    dosage: Any
    age: Any
    y: Any
    case: Any
    rare: Any


def drawn() -> People:
    random = np.random.default_rng(7)
    count = sum(PERSONS.values())
    frequency = random.uniform(0.12, 0.5, VARIANTS)
    truth = (random.random((count, VARIANTS, 2)) < frequency[:, None]).astype(float)
    # As imputation gives them: most nearly sure, some not at all.
    haplotype = np.round(np.where(truth == 1, random.beta(6, 1, truth.shape), random.beta(0.4, 6, truth.shape)), 3)
    genotyped = random.random((count, VARIANTS)) < 0.3
    haplotype[genotyped] = np.round(haplotype[genotyped])
    for at in MISSING:
        haplotype[random.choice(count, 17, replace=False), at] = np.nan
    dosage = np.round(haplotype.sum(2), 3)
    age = random.normal(50, 10, count).round(2)
    effect = np.nan_to_num(dosage[:, [0, 5]]) @ [0.4, -0.3]
    y = (effect + 0.02 * age + random.normal(size=count)).round(4)
    case = (random.random(count) < 1 / (1 + np.exp(1.0 - 0.8 * np.nan_to_num(dosage[:, 0])))).astype(int)
    site = np.repeat(list(PERSONS), list(PERSONS.values()))
    return People(
        [f"{name}-{at}" for at, name in enumerate(site)], site, haplotype, dosage, age, y, case, (random.random(count) < 0.07).astype(int)
    )


PEOPLE = drawn()


def shown(value: float) -> str:
    return "." if np.isnan(value) else f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def gp(first: float, second: float) -> str:
    """Probabilities of the three genotypes of independent haplotypes, with six decimals."""
    if np.isnan(first):
        return ".,.,."
    both = first * second
    return f"{(1 - first) * (1 - second):.6f},{first + second - 2 * both:.6f},{both:.6f}"


_NUMBER = {"DS": "A", "HDS": ".", "GP": "G"}
_VALUE = {"DS": lambda a, b: shown(a + b), "HDS": lambda a, b: f"{shown(a)},{shown(b)}", "GP": gp}


def vcf(samples: Sequence[str], haplotype: Any, field: str, keys: Sequence[Any] = KEYS) -> str:
    """A VCF with GT and ``field``: DS, HDS or GP."""
    lines = [
        "##fileformat=VCFv4.3", '##FILTER=<ID=PASS,Description="">', "##contig=<ID=1,length=248956422>",
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="">',
        f'##FORMAT=<ID={field},Number={_NUMBER[field]},Type=Float,Description="">',
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]),
    ]  # fmt: skip
    for at, (contig, position, name, ref, alt) in enumerate(keys):
        calls = []
        for first, second in haplotype[:, at]:
            gt = ".|." if np.isnan(first) else f"{int(first >= 0.5)}|{int(second >= 0.5)}"
            calls.append(f"{gt}:{_VALUE[field](first, second)}")
        lines.append("\t".join([contig, str(position), name, ref, alt, ".", "PASS", ".", f"GT:{field}", *calls]))
    return "\n".join(lines) + "\n"


def plink2(*words: object, cwd: Path) -> None:
    """Runs PLINK 2; skips the test where it is not installed."""
    if shutil.which("plink2") is None:
        pytest.skip("PLINK 2 is not installed")
    done = subprocess.run(["plink2", "--threads", "1", "--memory", "2000", *map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def site_files(folder: Path, file: str, *, min_count: int = 1) -> None:
    """``folder/<site>/`` with everything but the genotypes, which ``file`` names."""
    for name in PERSONS:
        rows, place = np.flatnonzero(name == PEOPLE.site), folder / name
        place.mkdir(parents=True, exist_ok=True)
        ids = [PEOPLE.ids[row] for row in rows]
        write_csv(place / "persons.csv", ids, {"y": PEOPLE.y[rows], "case": PEOPLE.case[rows], "rare": PEOPLE.rare[rows]})
        write_csv(place / "clinical.csv", ids, {"age": PEOPLE.age[rows]})
        data = f'persons = "persons.csv"\nvariants = {{ path = "{file}", build = "GRCh38" }}\nclinical = {{ path = "clinical.csv" }}'
        policy = f'[policy]\ncentre = "curious"\nmin_count = {min_count}\n'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n{policy}')


def study_of(dosage: str, target: str = "y", *, gwas: Any = None, **variants: Any) -> Study:
    plan = {
        "study": {"name": "imputed", "seed": 1},
        "cohort": {
            "inputs": ["variants", "clinical"],
            "target": target,
            "variants": {"build": "GRCh38", "dosage": dosage, **variants},
            "clinical": {"columns": ["age"]},
        },
        "model": {"task": "regression" if target == "y" else "classification"},
        "gwas": {"components": 0, "first_pass_p": 1.0, "min_mac": 0, "covariates": ["age"], **(gwas or {})},
        "federation": {"sites": list(PERSONS)},
    }
    return parse_study(validate(Study, plan, "the study of dosages").canonical)
