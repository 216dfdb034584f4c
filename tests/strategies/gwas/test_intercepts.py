"""Sites that differ in their share of cases and in their allele frequencies: an intercept for each. And alleles too rare for any test.

The persons do not exist. The references, on the pooled persons, are statsmodels and an own maximisation of Firth's likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.stats import chi2
from statsmodels.stats.meta_analysis import combine_effects

from fedml.analytics.logistic import balance
from fedml.errors import RunError
from fedml.study.study import Study, parse_study, validate
from fedml.wire.records import Phase
from tests.conftest import write_bed, write_csv
from tests.trait import Ran, firth, run, worst

SITES = {"north": (260, 0.5), "south": (340, 0.3), "west": (300, 0.1)}  # persons, share of cases
VARIANTS = 60


def study_of(sites: list[str], task: str = "classification", **gwas: Any) -> Study:
    plan = {
        "study": {"name": "sites", "seed": 1},
        "cohort": {"inputs": ["variants", "clinical"], "target": "y", "clinical": {"columns": ["age"]}},
        "model": {"task": task},
        "gwas": {"components": 0, "covariates": ["age"], **gwas},
        "federation": {"sites": sites},
    }
    return parse_study(validate(Study, plan, "the study").canonical)


class Persons:
    """Sites on disk, and all persons in one place: ``dosage`` (persons, variants), ``age``, ``y``, ``site`` (persons,)."""

    def __init__(self, folder: Path, sites: dict[str, tuple[int, float | None]], seed: int = 3, rarest: float = 0.15) -> None:
        random = np.random.default_rng(seed)
        self.folder, self.names, parts = folder, list(sites), []
        for number, (name, (count, share)) in enumerate(sites.items()):
            # The higher a site's number, the more frequent the alleles of the first half: with the share of cases, they are confounded.
            frequency = np.linspace(rarest, 0.5, VARIANTS) * np.where(np.arange(VARIANTS) < VARIANTS // 2, 0.4 + 0.3 * number, 0.9)
            dosage = random.binomial(2, frequency, (count, VARIANTS)).astype(np.int8)
            dosage[random.random(dosage.shape) < 0.01] = -1
            age = random.normal(60, 9, count).round(1)
            y = random.normal(number, 1, count) if share is None else (random.permutation(count) < round(share * count)).astype(int)
            ids, place = [f"{name}-{at}" for at in range(count)], folder / name
            place.mkdir(parents=True)
            keys = [("1", 1000 + 100 * at, f"rs{at + 1}", "A", "G") for at in range(VARIANTS)]
            write_bed(place / "genotypes.bed", ids, keys, dosage)
            write_csv(place / "persons.csv", ids, {"y": y})
            write_csv(place / "clinical.csv", ids, {"age": age})
            data = 'persons = "persons.csv"\nvariants = { path = "genotypes.bed", build = "GRCh38" }\nclinical = { path = "clinical.csv" }'
            (place / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\ncentre = "curious"\n')
            parts.append((dosage, age, y, np.full(count, number)))
        self.dosage, self.age, self.y, self.site = (np.concatenate(part) for part in zip(*parts, strict=True))

    def run(self, study: Study) -> Ran:
        return run(study, self.folder, self.folder.parent / f"run-{len(list(self.folder.parent.glob('run-*')))}")

    def design(self, variant: int, *, each: bool) -> Any:
        """(persons, ...): one column of ones or one a site, age, and the variant with its mean where missing."""
        ones = np.eye(len(self.names))[self.site] if each else np.ones((len(self.y), 1))
        g = self.dosage[:, variant].astype(float)
        g[g < 0] = g[g >= 0].mean()
        return np.column_stack([ones, self.age - self.age.mean(), g])


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Persons:
    return Persons(tmp_path_factory.mktemp("intercepts") / "sites", dict(SITES))


def reference_of(persons: Persons, table: pd.DataFrame, *, each: bool) -> dict[str, tuple[float, float, float]]:
    out = {}
    for rsid in table.index:
        x = persons.design(int(rsid[2:]) - 1, each=each)
        if table.method[rsid] == "firth":
            out[rsid] = firth(x, persons.y)
        else:
            fitted = sm.Logit(persons.y, x).fit(disp=0, tol=1e-13)
            out[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
    return out


@pytest.mark.parametrize(("intercept", "each"), [("auto", True), ("site", True), ("one", False)])
def test_two_classes_are_the_pooled_model_with_an_intercept_for_each_site(persons: Persons, intercept: str, each: bool) -> None:
    table = persons.run(study_of(persons.names, first_pass_p=1.0, min_mac=0, intercept=intercept)).table
    assert len(table) == VARIANTS
    assert set(table.method) == {"wald"}
    beta, error, p = worst(table, reference_of(persons, table, each=each))
    assert beta < 1e-5
    assert error < 1e-6
    assert p < 1e-5


def test_rare_classes_are_the_pooled_penalised_model(tmp_path: Path) -> None:
    persons = Persons(tmp_path / "sites", {"a": (400, 0.04), "b": (300, 0.1), "c": (500, 0.03)}, seed=8)
    table = persons.run(study_of(persons.names, first_pass_p=1.0, min_mac=0)).table
    assert set(table.method) == {"firth"}
    beta, error, p = worst(table, reference_of(persons, table, each=True))
    assert beta < 1e-5
    assert error < 1e-5
    assert p < 1e-5


def test_a_number_has_one_intercept_unless_the_study_says_so(tmp_path: Path) -> None:
    persons = Persons(tmp_path / "sites", {"a": (150, None), "b": (200, None), "c": (150, None)})
    for intercept, each in (("auto", False), ("site", True)):
        table = persons.run(study_of(persons.names, "regression", min_mac=0, intercept=intercept)).table
        reference = {}
        for rsid in table.index:
            fitted = sm.OLS(persons.y, persons.design(int(rsid[2:]) - 1, each=each)).fit()
            reference[rsid] = fitted.params[-1], fitted.bse[-1], fitted.pvalues[-1]
        assert max(worst(table, reference)[:2]) < 1e-6


def test_sites_that_differ_do_not_look_like_the_disease(persons: Persons) -> None:
    """No variant has an effect. Of the first half, whose frequencies differ between sites, one intercept calls most significant."""
    found = {}
    for intercept in ("one", "site"):
        table = persons.run(study_of(persons.names, first_pass_p=1.0, intercept=intercept)).table
        confounded = [f"rs{at + 1}" for at in range(VARIANTS // 2)]
        found[intercept] = (table.p_value.astype(float)[confounded] < 0.05).mean()
    assert found["one"] > 0.5
    assert found["site"] < 0.2


def test_no_message_grows_with_the_sites(persons: Persons) -> None:
    """Each site is asked at its own intercept, and at none of another's."""
    ran = persons.run(study_of(persons.names))
    asked = {step.site: step.given["theta"] for step in ran.steps if step.phase is Phase.NULL}
    assert all(theta.shape == (2,) for theta in asked.values())
    assert len({float(theta[0]) for theta in asked.values()}) == 3
    assert len({float(theta[1]) for theta in asked.values()}) == 1


def test_a_site_without_one_class_is_named(tmp_path: Path) -> None:
    persons = Persons(tmp_path / "sites", {"a": (100, 0.5), "b": (100, 0.0), "c": (100, 1.0)})
    with pytest.raises(RunError, match=r'b has controls only, c has cases only: with an intercept .* or set \[gwas\] intercept = "one"'):
        persons.run(study_of(["a", "b", "c"]))
    assert len(persons.run(study_of(["a", "b", "c"], intercept="one")).table) == VARIANTS
    for intercept in ("auto", "one"):
        with pytest.raises(RunError, match="b has controls only, c has cases only: a variant that differs between sites looks like one of"):
            persons.run(study_of(["b", "c"], intercept=intercept))
    with pytest.raises(RunError, match="all persons are of one class"):
        persons.run(study_of(["b"]))


def test_variants_with_few_minor_alleles_are_not_tested(tmp_path: Path) -> None:
    """The rule looks at all persons' alleles and at how many cases there are, not at whose alleles they are."""
    sites: dict[str, tuple[int, float | None]] = {"a": (400, 0.05), "b": (400, 0.05)}
    persons = Persons(tmp_path / "sites", sites, rarest=0.01)
    called = persons.dosage >= 0
    alleles = np.where(called, persons.dosage, 0).sum(0)
    minor = np.minimum(alleles, 2 * called.sum(0) - alleles)
    worth = 4 / (1 / 40 + 1 / 760) / 800
    assert balance(40, 760) == pytest.approx(worth)
    ran = persons.run(study_of(["a", "b"]))
    expected = [f"rs{at + 1}" for at in np.flatnonzero(minor * worth >= 20)]
    assert 10 < len(expected) < VARIANTS - 10
    assert ran.table.index.tolist() == expected
    assert ran.event["left_out"] == {"fewer than 20 minor alleles": VARIANTS - len(expected)}
    assert (ran.event["variants"], ran.event["tested"]) == (VARIANTS, len(expected))
    whole = persons.run(study_of(["a", "b"], min_mac=0)).table
    pd.testing.assert_frame_equal(ran.table, whole.loc[expected])
    with pytest.raises(RunError, match=r"none of 60 variants has 5000 minor alleles \(each counts as 0.19, .*; lower \[gwas\] min_mac"):
        persons.run(study_of(["a", "b"], min_mac=5000))


def test_a_number_counts_each_minor_allele(tmp_path: Path) -> None:
    persons = Persons(tmp_path / "sites", {"a": (300, None), "b": (300, None)}, rarest=0.005)
    called = persons.dosage >= 0
    alleles = np.where(called, persons.dosage, 0).sum(0)
    expected = [f"rs{at + 1}" for at in np.flatnonzero(np.minimum(alleles, 2 * called.sum(0) - alleles) >= 20)]
    assert len(expected) < VARIANTS
    assert persons.run(study_of(["a", "b"], "regression")).table.index.tolist() == expected


def test_each_sites_own_estimates_are_combined_in_the_table(tmp_path: Path) -> None:
    """Of a number, those of a regression in each site; of two classes, score estimates, which are near those of the maximum."""
    persons = Persons(tmp_path / "sites", {"a": (150, None), "b": (200, None), "c": (150, None)})
    table = persons.run(study_of(persons.names, "regression", min_mac=0)).table
    for rsid in table.index[::7]:
        x, beta, variance = persons.design(int(rsid[2:]) - 1, each=False), [], []
        g, frequency = persons.dosage[:, int(rsid[2:]) - 1], table.effect_allele_frequency[rsid]
        x[:, -1] = np.where(g < 0, 2 * frequency, g)
        for site in range(3):
            fitted = sm.OLS(persons.y[persons.site == site], x[persons.site == site]).fit()
            beta.append(fitted.params[-1])
            variance.append(fitted.bse[-1] ** 2)
        theirs, row = combine_effects(np.array(beta), np.array(variance), method_re="dl"), table.loc[rsid]
        random = [theirs.mean_effect_re, theirs.sd_eff_w_re] if theirs.tau2 > 0 else [theirs.mean_effect_fe, theirs.sd_eff_w_fe]
        expected = [theirs.mean_effect_fe, theirs.sd_eff_w_fe, *random, theirs.q, max(theirs.i2, 0)]
        found = row[["meta_beta", "meta_standard_error", "random_beta", "random_standard_error", "q", "i2"]].astype(float)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
        assert 10**-row.q_neg_log10_p == pytest.approx(chi2.sf(theirs.q, 2), rel=1e-5)


def test_score_estimates_of_two_classes_are_near_the_joint_ones(persons: Persons) -> None:
    table = persons.run(study_of(persons.names, first_pass_p=1e-9, min_mac=0)).table
    assert set(table.method) == {"score"}
    assert np.abs((table.meta_beta - table.beta) / table.standard_error).max() < 0.35
    assert np.abs(table.meta_standard_error / table.standard_error - 1).max() < 0.1
    assert 0.2 < (10**-table.q_neg_log10_p < 0.5).mean() < 0.8
