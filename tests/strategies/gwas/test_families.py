"""Variants without an effect in families: too many are significant if everyone counts as unrelated, and not with either remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.experiments.runs.association import read_table
from fedml.study.study import Study, parse_study, validate
from tests.conftest import write_bed, write_csv
from tests.families import families
from tests.trait import observed

SITES, FAMILIES, CAUSAL, NULL = ("a", "b", "c"), 200, 700, 2_000
ERROR = np.sqrt(0.05 * 0.95 / NULL)

pytestmark = pytest.mark.long


def study_of(**gwas: Any) -> Study:
    plan = {
        "study": {"name": "families", "seed": 1},
        "cohort": {"inputs": ["variants"], "target": "y"},
        "model": {"task": "regression"},
        "gwas": {"components": 0, **gwas},
        "federation": {"sites": list(SITES)},
    }
    return parse_study(validate(Study, plan, "the study").canonical)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Families of two parents and three children; half of the trait's variance is that of the variants on chromosomes 1 to 5."""
    folder, random = tmp_path_factory.mktemp("families"), np.random.default_rng(7)
    dosage, _ = families(random, random.uniform(0.1, 0.5, CAUSAL + NULL), len(SITES) * FAMILIES, 3)
    value = (dosage[:, :CAUSAL] - dosage[:, :CAUSAL].mean(0)) @ random.normal(size=CAUSAL)
    y = np.sqrt(0.5) * value / value.std() + np.sqrt(0.5) * random.normal(size=len(dosage))
    contigs = [str(1 + 5 * at // CAUSAL) for at in range(CAUSAL)] + ["22"] * NULL
    keys = [(contig, 1000 + 10 * at, f"rs{at + 1}", "A", "G") for at, contig in enumerate(contigs)]
    for name, rows in zip(SITES, np.split(np.arange(len(y)), len(SITES)), strict=True):
        ids, place = [f"{name}-{at}" for at in range(len(rows))], folder / name
        place.mkdir()
        write_bed(place / "genotypes.bed", ids, keys, dosage[rows])
        write_csv(place / "persons.csv", ids, {"y": y[rows]})
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    return folder


def significant(sites: Path, out: Path, **gwas: Any) -> float:
    """Share of the variants without an effect with p below .05."""
    observed(study_of(**gwas), sites, out)
    table = read_table(out)
    assert len(table) == CAUSAL + NULL
    return float((table[table.chromosome == "22"].p_value.astype(float) < 0.05).mean())


def test_everyone_as_if_unrelated_finds_too_much(sites: Path, tmp_path: Path) -> None:
    assert significant(sites, tmp_path / "run") > 0.05 + 5 * ERROR


def test_unrelated_persons_do_not(sites: Path, tmp_path: Path) -> None:
    assert abs(significant(sites, tmp_path / "run", relatives="unrelated", max_kinship=0.15) - 0.05) < 4 * ERROR


def test_two_steps_do_not_with_everyone(sites: Path, tmp_path: Path) -> None:
    found = significant(sites, tmp_path / "run", polygenic={"block": 60, "ridge": [0.1, 0.5, 0.9]})
    assert abs(found - 0.05) < 4 * ERROR
