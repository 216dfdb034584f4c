"""Federated regressions are the pooled ones: against statsmodels, a direct maximisation, and PLINK 2."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedml.analytics import linear, logistic
from fedml.cohort.variants.frequency import allele_frequency, genotype_counts
from tests.conftest import write_bed

SPLITS = {1: [], 2: [300], 6: [20, 65, 140, 300, 480]}


class Data(NamedTuple):
    dosage: Any
    frequency: Any
    covariates: Any
    number: Any
    case: Any
    imputed: Any

    def sites(self, cuts: list[int]) -> list[Data]:
        """Split at these persons; the frequency stays the pooled one."""
        rows = np.split(np.arange(len(self.case)), cuts)
        return [Data(self.dosage[r], self.frequency, self.covariates[r], self.number[r], self.case[r], self.imputed[r]) for r in rows]


def make(persons: int = 600, variants: int = 24, seed: int = 0, missing: float = 0.03, rare: float = 0.05, intercept: float = -0.6) -> Data:
    rng = np.random.default_rng(seed)
    dosage = rng.binomial(2, rng.uniform(rare, 0.5, variants), (persons, variants)).astype(np.int8)
    dosage[rng.random(dosage.shape) < missing] = -1
    dosage[:, 5] = 1  # does not vary
    frequency = allele_frequency(genotype_counts(dosage))
    imputed = np.where(dosage < 0, 2 * frequency, dosage)
    x = np.column_stack([np.ones(persons), rng.normal(0, 1, persons), rng.normal(0, 1, persons), rng.integers(0, 2, persons)])
    signal = 0.5 * x[:, 1] + 0.7 * imputed[:, 0]
    return Data(
        dosage,
        frequency,
        x,
        signal + rng.normal(0, 1, persons),
        (rng.random(persons) < 1 / (1 + np.exp(-intercept - signal))) * 1.0,
        imputed,
    )


def fit_linear(sites: list[Data], contributes: Any = None) -> linear.Association:
    reported = np.ones((len(sites), len(sites[0].frequency)), bool) if contributes is None else contributes
    null = [linear.null_sums(s.covariates, s.number) for s in sites]
    sums = [linear.variant_sums(s.dosage, s.frequency, s.covariates, s.number) for s in sites]
    masked = [linear.VariantSums(v.xg * c, v.gg * c, v.gy * c) for v, c in zip(sums, reported, strict=True)]
    return linear.solve(null, reported, reduce(add, masked))


def fit_null(sites: list[Data]) -> logistic.LogisticState:
    state = logistic.start(logistic.null_theta(sites[0].covariates.shape[1]))
    while len(state.active):
        state = logistic.step(state, reduce(add, [logistic.likelihood_sums(None, None, s.covariates, s.case, state.ask) for s in sites]))
    return state


def fit_logistic(sites: list[Data], *, firth: bool = False, contributes: Any = None, held: bool = False) -> logistic.LogisticState:
    state = logistic.start(logistic.with_variant(fit_null(sites).theta, len(sites[0].frequency)), firth=firth, held=held)
    while len(state.active):
        at, inverse = state.active, state.inverse if firth else None
        parts = []
        for i, s in enumerate(sites):
            sums = logistic.likelihood_sums(s.dosage[:, at], s.frequency[at], s.covariates, s.case, state.ask, inverse)
            reported = np.ones(len(at)) if contributes is None else contributes[i, at]
            n = (sums.n * reported).astype(np.int64)
            parts.append(logistic.LikelihoodSums(sums.gradient * reported, sums.information * reported, sums.log_likelihood * reported, n))
        state = logistic.step(state, reduce(add, parts))
    return state


def fit_score(sites: list[Data], contributes: Any = None) -> linear.Association:
    reported = np.ones((len(sites), len(sites[0].frequency)), bool) if contributes is None else contributes
    theta = fit_null(sites).theta
    null = [logistic.likelihood_sums(None, None, s.covariates, s.case, theta) for s in sites]
    sums = [logistic.score_sums(s.dosage, s.frequency, s.covariates, s.case, theta) for s in sites]
    return logistic.score_test(
        null, reported, reduce(add, [logistic.ScoreSums(v.score * c, v.gwg * c, v.xwg * c) for v, c in zip(sums, reported, strict=True)])
    )


def compare(ours: linear.Association, model: Callable[[Any], Any], data: Data, persons: Any = slice(None), tolerance: float = 1e-6) -> None:
    """Each variant against ``model(design)`` of statsmodels; variant 5 does not vary."""
    for j in range(data.imputed.shape[1]):
        if j == 5:
            assert np.isnan([ours.beta[j], ours.standard_error[j], ours.p[j], ours.log10_p[j]]).all()
            continue
        fit = model(np.column_stack([data.covariates, data.imputed[:, j]])[persons])
        assert ours.beta[j] == pytest.approx(fit.params[-1], rel=tolerance)
        assert ours.standard_error[j] == pytest.approx(fit.bse[-1], rel=tolerance)
        assert ours.p[j] == pytest.approx(fit.pvalues[-1], rel=1e-5)
        assert ours.log10_p[j] == pytest.approx(np.log10(fit.pvalues[-1]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("sites", SPLITS)
def test_linear_is_that_of_statsmodels(sites: int) -> None:
    data = make()
    ours = fit_linear(data.sites(SPLITS[sites]))
    compare(ours, lambda x: sm.OLS(data.number, x).fit(), data)
    assert (ours.n == 600).all()


def test_linear_with_offsets_and_units_far_from_one() -> None:
    data, rng = make(seed=1), np.random.default_rng(1)
    odd = np.column_stack([np.ones(600), 1e6 + data.covariates[:, 1], 1e-5 * data.covariates[:, 2], 1980 + 8e3 * data.covariates[:, 3]])
    number = 1e5 + data.number
    raw = data._replace(covariates=odd, number=number)
    sites = raw.sites(SPLITS[6])
    scaling = linear.scaling_from(reduce(add, [linear.scaling_sums(s.covariates, s.number) for s in sites]))
    assert scaling[:, 0].tolist() == [0, 1]
    assert scaling[1, -1] == 1
    parts = [s._replace(**dict(zip(("covariates", "number"), linear.scaled(s.covariates, s.number, scaling), strict=True))) for s in sites]
    rng.shuffle(parts)
    compare(fit_linear(parts), lambda x: sm.OLS(data.number, x).fit(), data)


def test_a_site_that_suppresses_a_variant_is_excluded_from_it_alone() -> None:
    data = make(seed=2)
    sites = data.sites(SPLITS[6])
    # A covariate that is 1 at the third site only: where that site is silent it is all zeros, which must not matter.
    own = [np.column_stack([s.covariates, np.full(len(s.case), float(i == 2))]) for i, s in enumerate(sites)]
    sites = [s._replace(covariates=x) for s, x in zip(sites, own, strict=True)]
    reported = np.ones((6, 24), bool)
    reported[2, :8], reported[[0, 4], 8:10], reported[:, 11] = False, False, False
    who = np.repeat(np.arange(6), [len(s.case) for s in sites])
    ours, score = fit_linear(sites, reported), fit_score(sites, reported)
    state = fit_logistic(sites, contributes=reported)
    wald = logistic.wald(state)
    everything = np.vstack(own)
    for j in (0, 3, 8, 9, 20):
        rows = reported[who, j]
        design = np.column_stack([everything, data.imputed[:, j]])[rows]
        design = design[:, [k for k in range(design.shape[1]) if design[:, k].any()]]
        fit = sm.OLS(data.number[rows], design).fit()
        assert (ours.beta[j], ours.standard_error[j]) == pytest.approx((fit.params[-1], fit.bse[-1]), rel=1e-6)
        assert ours.n[j] == score.n[j] == wald.n[j] == rows.sum()
        full = sm.Logit(data.case[rows], design).fit(disp=0, method="newton", tol=1e-12)
        assert (wald.beta[j], wald.standard_error[j]) == pytest.approx((full.params[-1], full.bse[-1]), rel=1e-6)
        # The score statistic is evaluated at the null model of all sites: near, not equal.
        assert score.statistic[j] == pytest.approx(_score(data.case[rows], design), abs=0.05 * max(1, abs(wald.statistic[j])))
    assert np.isnan([ours.beta[11], score.beta[11], wald.beta[11]]).all()
    assert ours.n[11] == score.n[11] == wald.n[11] == 0


def _score(case: Any, design: Any) -> float:
    """z of the score test of the last column, by its definition."""
    null = sm.Logit(case, design[:, :-1]).fit(disp=0, method="newton", tol=1e-12)
    mu = null.predict()
    information = (design * (mu * (1 - mu))[:, None]).T @ design
    cross = information[:-1, -1]
    variance = information[-1, -1] - cross @ np.linalg.solve(information[:-1, :-1], cross)
    return float(design[:, -1] @ (case - mu) / np.sqrt(variance))


def test_sums_add_up_over_chunks_of_persons() -> None:
    data = make(seed=3)
    whole, parts = data.sites([]), data.sites(list(range(50, 600, 50)))
    theta = np.random.default_rng(0).normal(0, 0.3, (5, 24))
    inverse = np.random.default_rng(1).normal(0, 0.01, (15, 24))

    def sums(s: Data) -> list[Any]:
        null, variant = linear.null_sums(s.covariates, s.number), linear.variant_sums(s.dosage, s.frequency, s.covariates, s.number)
        score = logistic.score_sums(s.dosage, s.frequency, s.covariates, s.case, theta[:4, :1])
        full = logistic.likelihood_sums(s.dosage, s.frequency, s.covariates, s.case, theta, inverse)
        return [null, variant, score, full]

    for one, many in zip(zip(*map(sums, whole), strict=True), zip(*map(sums, parts), strict=True), strict=True):
        for name, value in vars(one[0]).items():
            np.testing.assert_allclose(getattr(reduce(add, many), name), value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sites", SPLITS)
def test_logistic_is_that_of_statsmodels(sites: int) -> None:
    data = make(seed=4)
    parts = data.sites(SPLITS[sites])
    state = fit_logistic(parts)
    assert state.converged.all()
    assert state.iteration < 10
    compare(logistic.wald(state), lambda x: sm.Logit(data.case, x).fit(disp=0, method="newton", tol=1e-12, maxiter=100), data)
    null = fit_null(parts)
    fit = sm.Logit(data.case, data.covariates).fit(disp=0, method="newton", tol=1e-12)
    np.testing.assert_allclose(null.theta[:, 0], fit.params, rtol=1e-8)
    np.testing.assert_allclose(null.log_likelihood, fit.llf, rtol=1e-12)
    score = fit_score(parts)
    wanted = [_score(data.case, np.column_stack([data.covariates, data.imputed[:, j]])) for j in range(24) if j != 5]
    np.testing.assert_allclose(np.delete(score.statistic, 5), wanted, rtol=1e-6)
    np.testing.assert_allclose(score.beta * score.standard_error**-2, score.statistic / score.standard_error, rtol=1e-12)
    assert np.isnan(score.beta[5])


def test_a_start_far_away_is_halved_back() -> None:
    data = make(seed=5)
    far = np.repeat(np.array([[0.0], [9.0], [-9.0], [4.0], [3.0]]), 24, axis=1)
    state = logistic.start(far)
    tried = []
    while len(state.active):
        tried.append(int(state.halvings.max()))
        at = state.active
        sums = logistic.likelihood_sums(data.dosage[:, at], data.frequency[at], data.covariates, data.case, state.ask)
        state = logistic.step(state, sums)
    assert max(tried) > 0
    assert state.converged.all()
    np.testing.assert_allclose(logistic.wald(state).beta, logistic.wald(fit_logistic([data])).beta, atol=1e-9)


def separated(seed: int = 6) -> Data:
    """Few cases; variant 0 is carried by cases alone, 1 by controls alone, others are rare."""
    data = make(seed=seed, rare=0.004, missing=0.0, intercept=-3.2)
    dosage, cases = data.dosage.copy(), np.flatnonzero(data.case)
    dosage[:, :2] = 0
    dosage[cases[:4], 0] = 1
    dosage[np.flatnonzero(data.case == 0)[:6], 1] = 1
    frequency = allele_frequency(genotype_counts(dosage))
    return data._replace(dosage=dosage, frequency=frequency, imputed=dosage.astype(float))


def test_separation_does_not_converge_and_is_not_reported() -> None:
    data = separated()
    state = fit_logistic(data.sites(SPLITS[2]))
    assert not state.converged[:2].any()
    assert np.isnan(logistic.wald(state).beta[:2]).all()
    assert logistic.needs_firth(data.frequency, int(data.case.sum()), int((1 - data.case).sum())).all()


def test_needs_firth_where_the_smaller_class_or_the_allele_is_rare() -> None:
    frequency = np.array([0.5, 0.9, 0.04, 0.96])
    assert logistic.needs_firth(frequency, 300, 500).tolist() == [False, False, False, False]
    assert logistic.needs_firth(frequency, 200, 500).tolist() == [False, False, True, True]
    assert logistic.needs_firth(frequency, 500, 200).tolist() == [False, False, True, True]
    assert logistic.needs_firth(frequency, 5000, 60_000).all()


def penalised_loss(x: Any, case: Any) -> Callable[[Any], float]:
    """Firth's penalised log likelihood, negative, as a function of the coefficients."""

    def loss(theta: Any) -> float:
        eta = x @ theta
        mu = 1 / (1 + np.exp(-eta))
        information = (x * (mu * (1 - mu))[:, None]).T @ x
        return -float((case * eta - np.logaddexp(0, eta)).sum() + 0.5 * np.linalg.slogdet(information)[1])

    return loss


@pytest.mark.parametrize("sites", SPLITS)
def test_firth_is_the_maximum_of_the_penalised_likelihood(sites: int) -> None:
    from scipy.optimize import minimize

    data = separated()
    state = fit_logistic(data.sites(SPLITS[sites]), firth=True)
    assert state.converged.all()
    result = logistic.wald(state)
    assert np.isnan(result.beta[5])
    for j in (0, 1, 2, 7, 12, 20):
        x = np.column_stack([data.covariates, data.imputed[:, j] - 2 * data.frequency[j]])
        loss = penalised_loss(x, data.case)
        begins = (np.zeros(5), state.theta[:, j] + 0.1)
        best = min((minimize(loss, begin, method="BFGS", options={"gtol": 1e-7}) for begin in begins), key=lambda found: found.fun)
        assert -state.log_likelihood[j] == pytest.approx(best.fun, rel=1e-10)
        np.testing.assert_allclose(state.theta[:, j], best.x, rtol=1e-4, atol=1e-5)
        # The stationary point exactly: the gradient by central differences is nothing there.
        steps = np.eye(5) * 1e-5
        gradient = np.array([(loss(state.theta[:, j] + s) - loss(state.theta[:, j] - s)) / 2e-5 for s in steps])
        assert np.abs(gradient).max() < 1e-6
        mu = 1 / (1 + np.exp(-x @ state.theta[:, j]))
        covariance = np.linalg.inv((x * (mu * (1 - mu))[:, None]).T @ x)
        assert result.standard_error[j] == pytest.approx(np.sqrt(covariance[-1, -1]), rel=1e-5)


@pytest.mark.parametrize("sites", SPLITS)
def test_firths_test_is_the_ratio_of_penalised_likelihoods(sites: int) -> None:
    """Against a maximum found by another method; without the effect the penalty is still that of all columns."""
    from scipy.optimize import minimize
    from scipy.stats import chi2

    data = separated()
    parts = data.sites(SPLITS[sites])
    state, held = fit_logistic(parts, firth=True), fit_logistic(parts, firth=True, held=True)
    assert held.converged.all()
    assert (held.theta[-1] == 0).all()
    result = logistic.likelihood_ratio(state, held)
    assert np.isnan(result.p[5])
    for j in (0, 1, 2, 7, 12, 20):
        x = np.column_stack([data.covariates, data.imputed[:, j] - 2 * data.frequency[j]])
        loss = penalised_loss(x, data.case)
        whole = minimize(loss, state.theta[:, j] + 0.1, method="BFGS", options={"gtol": 1e-7})
        without = minimize(lambda theta, loss=loss: loss(np.append(theta, 0.0)), np.zeros(4), method="BFGS", options={"gtol": 1e-7})
        expected = 2 * (without.fun - whole.fun)
        assert result.statistic[j] ** 2 == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert np.sign(result.statistic[j]) == np.sign(whole.x[-1])
        assert result.p[j] == pytest.approx(chi2.sf(expected, 1), rel=1e-4)
        assert result.log10_p[j] == pytest.approx(np.log10(result.p[j]), rel=1e-9)


def test_few_cases_are_not_called_significant_by_chance() -> None:
    """10 cases and 5,000 controls without an effect: the smallest of 900 p is what chance gives, where a Wald test gives 1e-8. (The ratio
    of so few cases is not exact either: 2.7 % of p are below .01.)"""
    random = np.random.default_rng(9)
    persons, variants = 5010, 900
    frequency = np.repeat([0.002, 0.01, 0.05], variants // 3)
    dosage = random.binomial(2, frequency, (persons, variants)).astype(np.int8)
    case = np.zeros(persons)
    case[:10] = 1
    pooled = allele_frequency(genotype_counts(dosage))
    data = Data(dosage, pooled, np.ones((persons, 1)), np.zeros(persons), case, dosage.astype(float))
    state, held = fit_logistic([data], firth=True), fit_logistic([data], firth=True, held=True)
    ratio, wald = logistic.likelihood_ratio(state, held), logistic.wald(state)
    assert np.nanmin(wald.p) < 1e-7
    assert np.nanmin(ratio.p) > 1e-5
    assert (ratio.p < 0.01).mean() < 0.04


def plink(folder: Path, data: Data, trait: Any, modifier: str) -> dict[str, Any]:
    """Columns of ``plink2 --glm`` (ALT effects), by name."""
    if shutil.which("plink2") is None:
        pytest.skip("plink2 is not installed")
    ids = [f"i{k}" for k in range(len(trait))]
    write_bed(folder / "x.bed", ids, [("1", k + 1, f"v{k}", "C", "A") for k in range(data.dosage.shape[1])], data.dosage)
    for name, columns in (("pheno", [trait]), ("covar", data.covariates.T[1:])):
        lines = ["\t".join(["#FID", "IID", *(f"{name}{k}" for k in range(len(columns)))])]
        lines += ["\t".join([i, i, *map(repr, map(float, row))]) for i, *row in zip(ids, *columns, strict=True)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    options = [*modifier.split(), "hide-covar", "cols=+ax,+beta,+orbeta,+se,+tz,+p"]
    command = ["plink2", "--bfile", "x", "--threads", "1", "--pheno", "pheno.txt", "--covar", "covar.txt", "--covar-variance-standardize"]
    subprocess.run([*command, "--glm", *options, "--out", "o"], cwd=folder, check=True, capture_output=True)
    (found,) = folder.glob("o.pheno0.glm.*")
    head, *rows = (line.split("\t") for line in found.read_text().splitlines())
    table = dict(zip(head, zip(*rows, strict=True), strict=True))
    number = {name: np.array([np.nan if v == "NA" else float(v) for v in table[name]]) for name in ("BETA", "SE", "P")}
    return {**number, "sign": np.where(np.array(table["A1"]) == "A", 1, -1)}


def agree(ours: linear.Association, theirs: dict[str, Any], tolerance: float) -> None:
    good = np.isfinite(theirs["BETA"])
    assert good.sum() >= 20
    beta = theirs["BETA"] * theirs["sign"]
    assert (np.abs(ours.beta - beta)[good] / theirs["SE"][good]).max() < tolerance
    np.testing.assert_allclose(ours.standard_error[good], theirs["SE"][good], rtol=tolerance)
    np.testing.assert_allclose(ours.p[good], theirs["P"][good], rtol=10 * tolerance)


def test_linear_is_that_of_plink(tmp_path: Path) -> None:
    data = make(seed=7, missing=0.0)
    agree(fit_linear(data.sites(SPLITS[6])), plink(tmp_path, data, data.number, ""), 1e-5)  # PLINK prints 6 digits


def test_logistic_is_that_of_plink(tmp_path: Path) -> None:
    data = make(seed=8, missing=0.0)
    agree(logistic.wald(fit_logistic(data.sites(SPLITS[6]))), plink(tmp_path, data, 1 + data.case, "no-firth"), 2e-5)


def test_firth_is_that_of_plink(tmp_path: Path) -> None:
    data = separated()
    ours = logistic.wald(fit_logistic(data.sites(SPLITS[6]), firth=True))
    agree(ours, plink(tmp_path, data, 1 + data.case, "firth"), 1e-3)  # PLINK stops at a change of 1e-4 or so


@given(hnp.arrays(np.float64, (4, 4, 3), elements=st.floats(-3, 3)), st.integers(0, 3))
def test_invert_is_the_inverse_and_leaves_out_what_depends(root: Any, dependent: int) -> None:
    matrices = np.einsum("kiv,kjv->ijv", root, root) + 0.5 * np.eye(4)[:, :, None]
    inverse, log_determinant, rank = linear.invert(matrices)
    np.testing.assert_allclose(np.einsum("ijv,jkv->ikv", matrices, inverse), np.repeat(np.eye(4)[:, :, None], 3, axis=2), atol=1e-8)
    np.testing.assert_allclose(log_determinant, np.linalg.slogdet(matrices.transpose(2, 0, 1))[1], rtol=1e-9, atol=1e-9)
    assert (rank == 4).all()
    order = [*range(dependent), *range(dependent + 1, 4)]
    again = np.empty((4, 4, 3))
    combination = np.eye(4)[:, order] @ np.full((3, 1), 0.7)
    basis = np.hstack([np.eye(4)[:, order], combination])  # the last row is a combination of the first three
    again = np.einsum("ia,ijv,jb->abv", basis, matrices, basis)
    inverse, _, rank = linear.invert(again)
    assert (rank == 3).all()
    assert not inverse[3].any()
    np.testing.assert_allclose(inverse[:3, :3], linear.invert(again[:3, :3])[0], rtol=1e-9)


def test_p_values_below_the_smallest_float_keep_their_logarithm() -> None:
    import mpmath
    from scipy.stats import norm

    for x, degrees in ((12.0, 3.0), (-60.0, 500.0), (300.0, 500.0), (45.0, 1e5), (1e150, 3.0), (2.0, 9.0), (0.0, 9.0)):
        with mpmath.workdps(40):
            exact = mpmath.log10(mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + mpmath.mpf(x) ** 2), regularized=True))
        ours = linear.t_log10_p(np.array([x]), np.array([degrees]))[0]
        assert ours == pytest.approx(float(exact), rel=1e-11, abs=1e-12)
    assert np.isnan(linear.t_log10_p(np.array([np.nan]), np.array([9.0])))[0]
    z = np.array([0.0, 1.0, -8.0, 60.0])
    np.testing.assert_allclose(linear.normal_log10_p(z), (norm.logsf(np.abs(z)) + np.log(2)) / np.log(10), rtol=1e-12, atol=1e-15)
    data = make(seed=9)
    strong = fit_linear([data._replace(number=2.0 * data.imputed[:, 0] + 0.01 * data.number)])
    assert strong.p[0] == 0
    assert -2000 < strong.log10_p[0] < -400
