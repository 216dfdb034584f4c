"""How often the best attacker is right: against closed forms, and against the optimal test carried out on simulated releases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from fedml.privacy.accounting import best_accuracy, delta_gaussian, epsilon, gaussian, sampled_gaussian
from fedml.privacy.claims import attacker, percent_up
from fedml.privacy.forecast import forecast
from tests.conftest import make_study


@pytest.mark.parametrize("z", [0.3, 0.5, 1.0, 2.0, 4.0, 30.0])
@pytest.mark.parametrize("times", [1, 2, 60, 5_000])
def test_gaussians_have_their_closed_form(z: float, times: int) -> None:
    assert best_accuracy(sampled_gaussian(1.0, z, times)) == pytest.approx(norm.cdf(math.sqrt(times) / (2 * z)), abs=1e-9)
    assert best_accuracy(gaussian(z) * min(times, 60)) == pytest.approx(norm.cdf(math.sqrt(min(times, 60)) / (2 * z)), abs=1e-9)


def test_its_ends() -> None:
    assert best_accuracy([]) == 0.5
    assert best_accuracy(gaussian(0.0)) == 1.0
    assert best_accuracy(sampled_gaussian(0.5, 0.0, 1)) == 1.0


@pytest.mark.parametrize(("q", "z"), [(0.01, 0.6), (0.1, 1.0), (0.5, 2.0)])
def test_one_sampled_release_has_its_closed_form(q: float, z: float) -> None:
    """With probability q the release is shifted by the unit: TV is q times that of the Gaussian."""
    assert best_accuracy(sampled_gaussian(q, z, 1)) == pytest.approx((1 + q * delta_gaussian(z, 0.0)) / 2, rel=2e-3)


def simulated(parts: list[tuple[float, float, int]], runs: int = 400_000) -> float:
    """How often the likelihood-ratio test is right on releases drawn with and without the unit: (rate, multiplier, steps) each."""
    random, right = np.random.default_rng(11), 0.0
    for there in (False, True):
        ratio = np.zeros(runs)
        for q, z, steps in parts:
            for _ in range(steps):
                shift = (random.random(runs) < q) if there else 0.0
                x = random.normal(0.0, z, runs) + shift
                ratio += np.log1p(q * np.expm1(x / z**2 - 1 / (2 * z**2)))
        right += float(((ratio > 0) == there).mean() + 0.5 * (ratio == 0).mean()) / 2
    return right


CASES = [
    [(0.1, 0.8, 20)],
    [(0.02, 0.6, 60)],
    [(0.3, 1.5, 40)],
    [(0.5, 3.0, 30), (1.0, 5.0, 1)],
    [(0.05, 0.7, 10), (0.2, 1.0, 10), (1.0, 4.0, 2)],
]


@pytest.mark.parametrize("parts", CASES)
def test_sampled_releases_against_the_optimal_test(parts: list[tuple[float, float, int]]) -> None:
    bound = best_accuracy([event for q, z, steps in parts for event in sampled_gaussian(q, z, steps)])
    found, error = simulated(parts), 3 * 0.5 / math.sqrt(800_000)
    assert found - error <= bound <= found + error + 0.002


def test_it_is_far_below_what_epsilon_alone_allows() -> None:
    """60 releases at epsilon 3: epsilon alone allows 95 % (e^3 / (1 + e^3)); the mechanism does not."""
    events = sampled_gaussian(1.0, 9.475, 60)
    spent = epsilon(events, 1e-4)
    assert 2.9 < spent <= 3.0
    assert best_accuracy(events) < 0.66 < 0.95 < math.exp(spent) / (1 + math.exp(spent))


def test_a_percentage_is_rounded_up_and_the_worst_part_counts() -> None:
    assert [percent_up(share) for share in (0.5, 0.6911, 0.69, 1.0)] == ["50.0", "69.2", "69.0", "100.0"]
    text = attacker("person", [gaussian(4.0), gaussian(1.0), []], 1e-5)
    assert "right in at most 69.2 % of cases" in text
    assert "probability of 1e-05" in text


@pytest.mark.parametrize("unit", ["site", "patient"])
def test_the_plan_states_it(unit: str) -> None:
    ranges = {f"x{k}": [0, 1] for k in (1, 2, 3)}
    more = {"persons": {"a": 50, "b": 50}} if unit == "patient" else {}
    study = make_study(privacy={"unit": unit, "noise_multiplier": 2.0, "ranges": ranges, **more}, training__batch_size=0)
    last = forecast(study).splitlines()[-1]
    assert last.startswith("Attacker    An attacker who knows everything but")
    assert f"at most {percent_up(norm.cdf(math.sqrt(2) / 4))} %" in last
