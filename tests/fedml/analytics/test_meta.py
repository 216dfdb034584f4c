"""Combined estimates against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from statsmodels.stats.meta_analysis import combine_effects

from fedml.analytics.meta import combine

NUMBER = st.floats(-3, 3)
ERROR = st.floats(0.01, 2)


@given(st.lists(st.tuples(NUMBER, ERROR), min_size=2, max_size=8))
def test_it_is_that_of_statsmodels(sites: list[tuple[float, float]]) -> None:
    beta, error = np.array(sites).T
    found = combine(beta[:, None], error[:, None])
    theirs = combine_effects(beta, error**2, method_re="dl")
    assert found.beta[0] == pytest.approx(theirs.mean_effect_fe, abs=1e-9)
    assert found.standard_error[0] == pytest.approx(theirs.sd_eff_w_fe, rel=1e-9)
    # statsmodels does not set a negative variance between sites to 0, as DerSimonian and Laird do.
    random = (theirs.mean_effect_re, theirs.sd_eff_w_re) if theirs.tau2 > 0 else (theirs.mean_effect_fe, theirs.sd_eff_w_fe)
    assert (found.random_beta[0], found.random_standard_error[0]) == pytest.approx(random, rel=1e-6, abs=1e-9)
    assert found.q[0] == pytest.approx(theirs.q, abs=1e-9)
    assert found.i2[0] == pytest.approx(max(theirs.i2, 0), abs=1e-9)
    assert found.q_log10_p[0] == pytest.approx(chi2.logsf(theirs.q, len(sites) - 1) / np.log(10), rel=1e-6, abs=1e-9)
    assert found.log10_p[0] == pytest.approx((norm.logsf(abs(found.beta[0] / found.standard_error[0])) + np.log(2)) / np.log(10), abs=1e-9)


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
