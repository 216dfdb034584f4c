"""Small studies that once gave wrong tables: each gives the right value, or the sentence that says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pysam
import pytest
import statsmodels.api as sm

from fedml.clients.site.manifest import find_sites, read_site
from fedml.clients.site.read import load_cohort
from fedml.errors import InputError, RunError
from fedml.study.read import read_study
from fedml.study.study import for_roster
from tests.conftest import DATA
from tests.trait import run, worst

CASES = DATA.parent / "cases" / "genomes"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the cases are not at {CASES}")
SEX = {"cohort.variants.sex": {"column": "sex", "male": 1, "female": 0}}


def table_of(folder: Path, case: str, study: str = "s", **changes: Any) -> pd.DataFrame:
    shutil.copytree(CASES / case, folder / case, dirs_exist_ok=True)
    plan = read_study(folder / case / f"{study}.toml", overrides=changes)
    found, _ = find_sites(folder / case, plan.federation.sites)
    return run(for_roster(plan, list(found)), folder / case, folder / f"run-{len(list(folder.iterdir()))}").table


def pooled(case: str, covariate: str = "") -> tuple[Any, Any, Any]:
    """Copies of ALT (persons, variants), a haploid ALT as 2; y; and the covariate; of sites a and b, by pysam and pandas."""
    dosage, y, values = [], [], []
    for site in "ab":
        with pysam.VariantFile(str(CASES / case / site / "cohort.vcf")) as file:
            calls = [[(sum(gt), len(gt)) for gt in (record.samples[s]["GT"] for s in file.header.samples)] for record in file]
        dosage.append([[2 * count if length == 1 else count for count, length in row] for row in calls])
        persons = pd.read_csv(CASES / case / site / "persons.csv", index_col="id")
        y.append(persons.y)
        if covariate:
            values.append(pd.read_csv(CASES / case / site / "clinical.csv", index_col="id")[covariate].reindex(persons.index))
    return np.concatenate(dosage, axis=1).T, np.concatenate(y), np.concatenate(values) if values else None


def by_regression(dosage: Any, y: Any, others: Any, rsids: list[str]) -> dict[str, tuple[float, float, float]]:
    out = {}
    for at, rsid in enumerate(rsids):
        fitted = sm.OLS(y, np.column_stack([np.ones(len(y)), *([] if others is None else [others]), dosage[:, at]])).fit()
        out[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
    return out


def test_men_on_x_have_one_copy_however_a_file_writes_it(tmp_path: Path) -> None:
    haploid, hard = (table_of(tmp_path, "c01_x", study, **SEX) for study in ("s", "s2"))
    pd.testing.assert_frame_equal(haploid, hard)
    dosage, y, sex = pooled("c01_x", "sex")
    assert max(worst(haploid, by_regression(dosage, y, sex, haploid.index.tolist()))) < 1e-6
    copies = np.where(sex == 1, 1, 2)
    frequency = (dosage * copies[:, None] / 2).sum(0) / copies.sum()
    np.testing.assert_allclose(haploid.effect_allele_frequency, frequency, atol=1e-9)
    assert haploid.effect_allele_frequency["rs1"] == 0.09
    assert (haploid.an == 600).all()


def test_x_without_the_sex_is_not_analysed(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        table_of(tmp_path, "c01_x")
    with pytest.raises(InputError, match="its 30 variants are on X or Y, and nobody's sex is known; add the column to the study"):
        load_cohort((str(tmp_path / "c01_x" / "a" / "site.toml"),), read_study(tmp_path / "c01_x" / "s.toml"))


def test_everyone_has_one_copy_of_mt(tmp_path: Path) -> None:
    table = table_of(tmp_path, "c02_mt", **{"gwas.min_mac": 0})
    dosage, y, _ = pooled("c02_mt")
    frequency = dosage.mean(0) / 2
    kept = np.flatnonzero((frequency >= 0.01) & (frequency <= 0.99))
    assert (table.an == 400).all()
    np.testing.assert_allclose(table.effect_allele_frequency, frequency[kept], atol=1e-9)
    reference = by_regression(dosage[:, kept], y, None, [str(at) for at in kept])
    assert max(worst(table.set_index(np.array([str(at) for at in kept])), reference)) < 1e-6


@pytest.mark.parametrize(("study", "rsids"), [("s", [f"rs{k}" for k in range(1, 31)]), ("s3", ["rs3", "rs4"])])
def test_one_id_of_a_list_is_enough(tmp_path: Path, study: str, rsids: list[str]) -> None:
    table = table_of(tmp_path, "c03_idlist", study)
    assert table.index.tolist() == rsids
    assert (table.sites == 2).all()


def test_a_covariate_is_that_of_the_same_person(tmp_path: Path) -> None:
    table = table_of(tmp_path, "c06_cov")
    dosage, y, age = pooled("c06_cov", "age")
    reference = by_regression(dosage, y, age, [f"rs{at + 1}" for at in range(dosage.shape[1])])
    assert max(worst(table, {rsid: reference[rsid] for rsid in table.index})) < 1e-5
    assert len(table) == 30


@pytest.mark.parametrize(("case", "study", "sentence"), [
    ("c04_minus9", "s", 'column "y" is -9 for .* far from the others .* -9 is PLINK\'s code for a missing phenotype'),
    ("c05_12", "s2", "-9"),
])  # fmt: skip
def test_minus_nine_is_no_phenotype(tmp_path: Path, case: str, study: str, sentence: str) -> None:
    with pytest.raises(RunError):
        table_of(tmp_path, case, study)
    plan = read_study(tmp_path / case / f"{study}.toml")
    site = tmp_path / case / plan.federation.sites[0] / "site.toml"
    assert read_site(site).name == plan.federation.sites[0]
    with pytest.raises(InputError, match=sentence):
        load_cohort((str(site),), plan)


def test_cases_at_one_site_and_controls_at_another(tmp_path: Path) -> None:
    for intercept in ("auto", "one"):
        with pytest.raises(RunError, match="a has cases only, b has controls only: a variant that differs between sites looks like"):
            table_of(tmp_path, "c34_cc", **{"gwas.intercept": intercept})


def test_one_and_two_are_the_classes_that_the_study_says(tmp_path: Path) -> None:
    table = table_of(tmp_path, "c05_12")
    assert len(table) == 30
    assert set(table.n) == {400}
