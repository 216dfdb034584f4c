"""Lines made of whole columns, against Python's own formatting of each cell."""

from __future__ import annotations

import numpy as np
import pytest

from fedml.analytics import lines


def test_numbers_have_nine_digits_and_are_the_closest_ones() -> None:
    random = np.random.default_rng(1)
    ends = np.array([0.0, -0.0, 1.0, -1.0, 1e9, 123456789.0, 999999999.4, 1e22, 1e23, 5e-324, 1.7e308, -2.5e-7, 0.1, 1 / 3])
    values = np.concatenate([ends, random.normal(size=5000) * 10.0 ** random.integers(-40, 40, 5000), random.normal(size=5000)])
    found = lines.numbers(values).to_pylist()
    wanted = [float(f"{value:.9g}") for value in values.tolist()]
    differs = [at for at, (text, value) in enumerate(zip(found, wanted, strict=True)) if float(text) != value]
    # A tenth digit of exactly 5 may be rounded either way.
    assert len(differs) <= 3
    for at in differs:
        assert float(found[at]) == pytest.approx(wanted[at], rel=1.1e-9)
    assert all(len(text.lstrip("-").replace(".", "").split("e")[0].strip("0")) <= 9 for text in found)
    assert "-0" not in found
    assert lines.numbers(np.array([np.nan, np.inf, -np.inf])).to_pylist() == [lines.NA] * 3


def test_columns_of_other_kinds() -> None:
    assert lines.column(np.array([1, -2])).to_pylist() == ["1", "-2"]
    assert lines.column(np.array([True, False])).to_pylist() == ["True", "False"]
    assert lines.column(np.array(["a\tb", "", None, "c\nd"], object)).to_pylist() == ["a b", lines.NA, lines.NA, "c d"]


def test_a_row_is_a_line() -> None:
    columns = [lines.column(np.array(["x", "y"], object)), lines.column(np.array([0.5, np.nan])), lines.column(np.array([1, 2]))]
    assert lines.lines_of(columns) == b"x\t0.5\t1\ny\t#NA\t2\n"
