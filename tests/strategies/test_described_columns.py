"""What the record of a run says of the sites' columns: rounded moments of enough persons, and nothing of few."""

from __future__ import annotations

import numpy as np
import pytest

from fedml.runs.events import SiteDisclosure
from fedml.strategies.agreement.columns import MOST_DESCRIBED, described_columns
from tests.conftest import make_study

COLUMNS = ["x1", "x2", "x3"]


def sums(*columns: np.ndarray) -> dict[str, np.ndarray]:
    known = [c[~np.isnan(c)] for c in columns]
    return {"preprocess.clinical": np.array([[len(c), c.sum(), (c**2).sum()] for c in known]).T}


def site(public: bool, min_count: int = 5) -> SiteDisclosure:
    return {"policy": {"public": public, "min_count": min_count}, "dataset": None, "quarantined": None}


def test_moments_are_those_of_the_persons_with_four_digits() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(120, 20, 50)
    x[:7] = np.nan
    found = described_columns(make_study(), {"a": sums(x, np.full(50, np.nan), np.arange(50.0))}, {"a": site(False)})
    assert found is not None
    assert found["a"]["x1"] == {"known": 43, "mean": float(f"{np.nanmean(x):.4g}"), "sd": float(f"{np.nanstd(x):.4g}")}
    assert found["a"]["x2"] == {"known": 0, "mean": None, "sd": None}


@pytest.mark.parametrize(("ones", "told"), [(0, True), (1, False), (4, False), (5, True), (46, False), (45, True), (50, True)])
def test_a_mean_of_zeros_and_ones_does_not_count_few_persons(ones: int, told: bool) -> None:
    """Its mean times its persons is how many have a one. A site whose data are public has no few."""
    x = (np.arange(50) < ones).astype(float)
    for public in (False, True):
        found = described_columns(make_study(), {"a": sums(x, x, x)}, {"a": site(public)})
        assert found is not None
        assert (found["a"]["x1"]["mean"] is not None) == (told or public)


def test_the_larger_of_study_and_site_is_the_limit_and_few_values_are_none() -> None:
    x = np.where(np.arange(50) < 8, 3.0 + np.arange(50), np.nan)
    found = described_columns(make_study(), {"a": sums(x, x, x), "b": sums(x, x, x)}, {"a": site(False, 9), "b": site(False, 5)})
    assert found is not None
    assert found["a"]["x1"] == {"known": 0, "mean": None, "sd": None}
    assert found["b"]["x1"]["known"] == 8
    assert found["b"]["x1"]["mean"] == 6.5


def test_nothing_is_said_of_a_site_that_does_not_disclose_its_limits() -> None:
    hidden: SiteDisclosure = {"policy": None, "dataset": None, "quarantined": None}
    x = np.arange(50.0)
    assert described_columns(make_study(), {"a": sums(x, x, x), "b": sums(x, x, x)}, {"a": hidden, "b": hidden}) == {}


def test_a_wide_table_is_not_described() -> None:
    names = [f"c{k}" for k in range(MOST_DESCRIBED + 1)]
    study = make_study(cohort__clinical={"columns": names})
    assert described_columns(study, {"a": sums(*np.ones((len(names), 20)))}, {}) is None
