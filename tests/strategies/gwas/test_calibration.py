"""Variants without an effect, at the default policy: tests are as often significant as they should be, and frequencies are those of all
persons. The persons do not exist; their genotypes and outcomes are drawn independently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedml.experiments.runs.association import read_table
from fedml.study.study import Study, parse_study, validate
from tests.conftest import write_bed, write_csv
from tests.trait import observed

VARIANTS = 3000


def study_of(sites: list[str], task: str) -> Study:
    """An association without covariates at the default policy; every variant, also a rare one, is fitted in full."""
    plan = {
        "study": {"name": "null", "seed": 1},
        "cohort": {"inputs": ["variants"], "target": "y"},
        "model": {"task": task},
        "gwas": {"components": 0, "first_pass_p": 1.0, "min_mac": 0},
        "federation": {"sites": sites},
    }
    return parse_study(validate(Study, plan, "the null study").canonical)


def scan(
    folder: Path, persons: list[int], share: float | None, low: float = 0.05, high: float = 0.5, seed: int = 5
) -> tuple[pd.DataFrame, np.ndarray]:
    """The table, and the frequency among all persons of each of its rows. ``share`` of cases at each site; None: a number."""
    random = np.random.default_rng(seed)
    frequency = random.uniform(low, high, VARIANTS)
    keys = [("1", 1000 + 100 * at, f"rs{at + 1}", "A", "G") for at in range(VARIANTS)]
    names, total = [f"s{at}" for at in range(len(persons))], np.zeros(VARIANTS)
    for name, count in zip(names, persons, strict=True):
        dosage = random.binomial(2, frequency, (count, VARIANTS)).astype(np.int8)
        total += dosage.sum(0)
        y = random.normal(size=count) if share is None else (random.permutation(count) < round(share * count)).astype(int)
        ids, place = [f"{name}-{at}" for at in range(count)], folder / "sites" / name
        place.mkdir(parents=True)
        write_bed(place / "genotypes.bed", ids, keys, dosage)
        write_csv(place / "persons.csv", ids, {"y": y})
        data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }'
        (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
    observed(study_of(names, "regression" if share is None else "classification"), folder / "sites", folder / "run")
    table = read_table(folder / "run").set_index("rsid")
    at = np.array([int(name[2:]) - 1 for name in table.index])
    return table, total[at] / (2 * sum(persons))


@pytest.mark.parametrize(
    ("persons", "share"),
    [
        ([300] * 6, 0.2),
        ([300] * 6, None),
        pytest.param([300] * 20, 0.2, marks=pytest.mark.long),
        pytest.param([1000] * 3, 0.1, marks=pytest.mark.long),
        pytest.param([300, 600, 3000], 0.5, marks=pytest.mark.long),
        pytest.param([300] * 20, None, marks=pytest.mark.long),
    ],
)
def test_variants_without_an_effect_are_called_as_often_as_chance_does(tmp_path: Path, persons: list[int], share: float | None) -> None:
    table, pooled = scan(tmp_path, persons, share)
    assert len(table) == VARIANTS
    assert (table.sites == len(persons)).mean() > 0.99
    p = table.p_value.astype(float)
    z = table.beta / table.standard_error
    # Four standard errors: of a share of 0.05, and of the median of a chi-squared.
    assert abs((p < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / VARIANTS)
    assert abs(np.median(z**2) / 0.4549 - 1) < 4 * 2.33 / np.sqrt(VARIANTS)
    everywhere = (table.sites == len(persons)).to_numpy()
    np.testing.assert_allclose(table.effect_allele_frequency[everywhere], pooled[everywhere], atol=1e-9)


def test_rare_variants_do_not_choose_sites_by_their_cases(tmp_path: Path) -> None:
    """From 0.2 to 3 %, where sites are left out for their carriers: as many are significant as chance makes."""
    table, _ = scan(tmp_path, [300] * 6, 0.2, low=0.002, high=0.03, seed=6)
    part = table[(table.sites < 6) & (table.sites > 0)]
    assert len(part) > 500
    assert abs((part.p_value.astype(float) < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(part))
