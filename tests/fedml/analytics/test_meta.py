"""Combined estimates against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp
from scipy.stats import norm
from statsmodels.stats.meta_analysis import combine_effects

from fedml.analytics.meta import combine

NUMBER = st.integers(-3000, 3000).map(lambda k: k / 1000)
ERROR = st.integers(10, 2000).map(lambda k: k / 1000)


def log10_sf(q: float, free: int) -> float:
    """By integration, in 40 digits."""
    with mp.workdps(40):
        return float(mp.log10(mp.gammainc(mp.mpf(free) / 2, mp.mpf(max(q, 0.0)) / 2, regularized=True)))  # q is rounded, also below 0


@given(st.lists(st.tuples(NUMBER, ERROR), min_size=2, max_size=8))
def test_it_is_that_of_statsmodels(sites: list[tuple[float, float]]) -> None:
    beta, error = np.array(sites).T
    found = combine(beta[:, None], error[:, None])
    theirs = combine_effects(beta, error**2, method_re="dl")
    assert found.beta[0] == pytest.approx(theirs.mean_effect_fe, rel=1e-6, abs=1e-9)
    assert found.standard_error[0] == pytest.approx(theirs.sd_eff_w_fe, rel=1e-6)
    # statsmodels does not set a negative variance between sites to 0, as DerSimonian and Laird do.
    random = (theirs.mean_effect_re, theirs.sd_eff_w_re) if theirs.tau2 > 0 else (theirs.mean_effect_fe, theirs.sd_eff_w_fe)
    assert (found.random_beta[0], found.random_standard_error[0]) == pytest.approx(random, rel=1e-6, abs=1e-9)
    assert found.q[0] == pytest.approx(theirs.q, rel=1e-6, abs=1e-9)
    assert found.i2[0] == pytest.approx(max(theirs.i2, 0) if theirs.q > 1e-12 else 0, rel=1e-6, abs=1e-9)
    assert found.q_log10_p[0] == pytest.approx(log10_sf(theirs.q, len(sites) - 1), rel=1e-6, abs=1e-6)
    assert found.log10_p[0] == pytest.approx(
        (norm.logsf(abs(found.beta[0] / found.standard_error[0])) + np.log(2)) / np.log(10), rel=1e-6, abs=1e-9
    )


def test_a_site_without_an_estimate_has_no_part() -> None:
    beta, error = (
        np.array([[1.0, 1.0, np.nan], [2.0, np.nan, np.nan], [4.0, 5.0, np.nan]]),
        np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]),
    )
    found, two = combine(beta, error), combine(beta[[0, 2]], error[[0, 2]])
    for ours, theirs in zip(found, two, strict=True):
        assert ours[1] == theirs[1]
        assert np.isnan(ours[2])


def test_one_site_is_itself_and_does_not_differ_from_any() -> None:
    found = combine(np.array([[0.7]]), np.array([[0.2]]))
    assert (found.beta[0], found.standard_error[0]) == pytest.approx((0.7, 0.2))
    assert (found.random_beta[0], found.random_standard_error[0]) == pytest.approx((0.7, 0.2))
    assert np.isnan(found.q[0])
    assert np.isnan(found.q_log10_p[0])
    assert np.isnan(found.i2[0])
