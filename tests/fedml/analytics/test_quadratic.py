"""The distribution of sums of chi-squares, against cases that are known exactly, published ones, and other methods."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedml.analytics.genetests import cauchy, set_tests, skat_o
from fedml.analytics.quadratic import davies, eigenvalues, kuonen, liu, ruben, survival, upper_tail
from fedml.analytics.unbalanced import widened
from tests.rare import dense_skat_o, mixture_sf


@pytest.mark.parametrize(("count", "q"), [(1, 3.84), (3, 10.0), (10, 25.0), (40, 30.0), (40, 80.0)])
def test_equal_weights_are_a_chi_square(count: int, q: float) -> None:
    exact = stats.chi2.sf(q / 2, count)
    log10_p, method = upper_tail(q, np.full(count, 2.0))
    assert method != "liu"
    assert 10**log10_p == pytest.approx(exact, abs=2e-9)


# Davies 1980, table 1: the first rows, sums of chi-squares of one degree of freedom (from Imhof 1961), P(Q < q) to four digits.
@pytest.mark.parametrize(
    ("lambdas", "q", "below"),
    [
        ((0.6, 0.3, 0.1), 0.1, 0.0542), ((0.6, 0.3, 0.1), 0.7, 0.4936), ((0.6, 0.3, 0.1), 2.0, 0.8760),
        ((0.6,) * 2 + (0.3,) * 2 + (0.1,) * 2, 0.2, 0.0064), ((0.6,) * 2 + (0.3,) * 2 + (0.1,) * 2, 2.0, 0.6002),
        ((0.6,) * 2 + (0.3,) * 2 + (0.1,) * 2, 6.0, 0.9839),
    ],
)  # fmt: skip
def test_published_values(lambdas: tuple[float, ...], q: float, below: float) -> None:
    values = np.array(lambdas)
    assert 1 - 10 ** upper_tail(q, values)[0] == pytest.approx(below, abs=6e-5)
    exact = ruben(values)
    assert exact is not None
    assert 1 - exact(np.array([q]))[0] == pytest.approx(below, abs=6e-5)


@pytest.mark.parametrize("seed", range(4))
def test_davies_is_imhofs_integral_and_rubens_mixture(seed: int) -> None:
    lambdas = np.sort(np.random.default_rng(seed).exponential(1, 12))[::-1]
    q = lambdas.sum() * np.array([0.3, 1.0, 2.0, 4.0])
    mine = [davies(x, lambdas) for x in q]
    np.testing.assert_allclose(mine, mixture_sf(q, lambdas), atol=1e-7)
    np.testing.assert_allclose(survival(lambdas)(q), mine, atol=3e-9)
    wide = np.array([3.0, 2.0, 0.7])
    np.testing.assert_allclose(ruben(wide)(q), [davies(x, wide, 1e-7, 200_000) for x in q], atol=2e-7)  # type: ignore[misc]


def test_of_two_weights_no_digit_is_lost() -> None:
    """By the integral over the first of the two, which has no oscillation."""
    lambdas = np.array([6.0, 1.0])
    for q in (0.5, 5.0, 30.0):
        assert 10 ** upper_tail(q, lambdas)[0] == pytest.approx(float(mixture_sf(q, lambdas)[0]), rel=2e-6)


def test_where_p_is_tiny_the_saddle_point_is_near() -> None:
    for count, q in ((4, 90.0), (30, 250.0), (10, 700.0)):
        log10_p, method = upper_tail(q, np.ones(count))
        assert method == "kuonen"
        assert log10_p == pytest.approx(stats.chi2.logsf(q, count) / math.log(10), abs=0.012)
    lambdas = np.array([5.0, 3, 2, 1, 1, 0.5])
    assert kuonen(20.0, lambdas) == pytest.approx(math.log10(float(mixture_sf(20.0, lambdas)[0])), abs=0.02)
    assert liu(20.0, lambdas) == pytest.approx(math.log10(float(mixture_sf(20.0, lambdas)[0])), abs=0.02)


def test_without_weights_nothing_is_significant() -> None:
    assert upper_tail(3.0, eigenvalues(np.zeros((3, 3)))) == (0.0, "none")


@pytest.mark.parametrize("size", [2, 6])
def test_skat_o_is_the_integral_of_lee_and_others(size: int) -> None:
    random = np.random.default_rng(size)
    root = random.normal(size=(size, size + 3))
    a = root @ root.T
    u = 1.5 * np.linalg.cholesky(a) @ random.normal(size=size)
    assert 10 ** skat_o(u, a)[0] == pytest.approx(dense_skat_o(u, a), rel=1e-3)


@pytest.mark.long
def test_skat_o_holds_its_level_for_correlated_scores() -> None:
    """1,000 draws of normal scores: shares below .05 and .01 within four standard errors, and SKAT's and burden's."""
    random = np.random.default_rng(5)
    root = random.normal(size=(5, 7))
    a = root @ root.T
    factor = np.linalg.cholesky(a)
    found = [set_tests(factor @ random.normal(size=5), a, np.ones(5), np.full(5, 0.01)) for _ in range(1000)]
    for name in ("burden", "skat", "skat_o", "acat_v", "combined"):
        p = 10.0 ** np.array([getattr(one, name) for one in found])
        for level in (0.05, 0.01):
            assert abs((p < level).mean() - level) < 4 * math.sqrt(level * (1 - level) / 1000), name


def test_cauchy_combines_ordinary_and_tiny_p() -> None:
    assert cauchy(np.log10([0.3, 0.02, 0.8]), np.array([1.0, 2, 1])) == pytest.approx(
        math.log10(stats.cauchy.sf(np.average(np.tan((0.5 - np.array([0.3, 0.02, 0.8])) * np.pi), weights=[1, 2, 1])))
    )
    assert cauchy(np.array([-300.0, -1.0]), np.ones(2)) == pytest.approx(-300 + math.log10(2), abs=1e-6)
    assert cauchy(np.array([-900.0, -1.0]), np.ones(2)) == pytest.approx(-900 + math.log10(2), abs=1e-6)
    assert cauchy(np.array([0.0, 0.0]), np.ones(2)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("trials", "chance"), [(60, 0.05), (200, 0.05), (40, 0.1), (500, 0.5)])
def test_scores_of_rare_cases_get_the_tail_of_the_binomial(trials: int, chance: float) -> None:
    """Cases among carriers, given their number: after widening, the normal p is near the exact two-sided one (between its values with and
    without the observed number, as the saddle point takes no account of steps), where the plain one is far too small."""
    variance, third = trials * chance * (1 - chance), trials * chance * (1 - chance) * (1 - 2 * chance)
    for z in (2.5, 3.5, 4.5):
        cases = math.ceil(trials * chance + z * math.sqrt(variance))
        score = cases - trials * chance
        cover = widened(np.array([score]), np.array([[variance]]), np.ones(1), np.array([variance]), np.array([third]))
        p = 2 * stats.norm.sf(score / math.sqrt(cover[0, 0]))
        above = stats.binom.sf(cases, trials, chance) + stats.binom.cdf(math.floor(trials * chance - score) - 1, trials, chance)
        at_least = stats.binom.sf(cases - 1, trials, chance) + stats.binom.cdf(math.floor(trials * chance - score), trials, chance)
        assert 0.8 * above < p < 1.2 * at_least
        plain = 2 * stats.norm.sf(score / math.sqrt(variance))
        assert p > plain or chance == 0.5
