"""Roots and quantiles are those of scipy to the last bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedml.tasks.interval_tools import quantile
from fedml.tasks.root import root


def functions() -> list[tuple[Any, float, float]]:
    """Functions with a root between two places: polynomials, flat ones, steep ones, ones with a jump."""
    rng = np.random.default_rng(3)
    found: list[tuple[Any, float, float]] = []
    for _ in range(200):
        a, b, c = rng.normal(size=3)
        found += [(lambda x, a=a, b=b, c=c: (x - a) * (x * x + b * b + 0.1) + 0 * c, a - rng.random() * 9, a + rng.random() * 9)]
        found += [
            (lambda x, a=a, b=b: math.tanh(30 * (x - a)) + 1e-3 * b, a - 5, a + 3),
            (lambda x, a=a: (x - a) ** 3 + x - a, a - 1, a + 2),
        ]
        found += [(lambda x, a=a: 1.0 if x > a else -1.0, a - 4, a + 1), (lambda x, a=a: x - a, a, a + 1), (lambda x, a=a: x - a, a - 1, a)]
    return [(of, low, high) for of, low, high in found if (of(low) <= 0) == (of(high) > 0)]


def test_a_root_is_that_of_scipy() -> None:
    cases = functions()
    assert len(cases) >= 1000
    for of, low, high in cases:
        assert root(of, low, high) == brentq(of, low, high)


def test_without_a_root_between_them_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="same sign"):
        root(lambda x: x * x + 1, -1.0, 1.0)
    flat = (lambda x: (x - 2.0409191213851825) ** 9, 1.0409191213851825, 4.0409191213851825)
    with pytest.raises(RuntimeError):
        brentq(*flat)
    with pytest.raises(ValueError, match="100 steps"):
        root(*flat)


def test_quantiles_are_those_of_scipy() -> None:
    assert [quantile(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [
        norm.ppf(0.5 + level / 2) for level in (0.5, 0.8, 0.9, 0.95, 0.99)
    ]
