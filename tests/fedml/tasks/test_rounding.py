"""Rounding of small numbers of persons: the total stays, and no number is small or negative."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedml.tasks.counts import rounded_cells

TABLES = arrays(np.int64, st.sampled_from([(1,), (2,), (5,), (2, 2), (3, 3)]), elements=st.one_of(st.integers(0, 9), st.integers(0, 60)))


@settings(max_examples=300)
@given(TABLES, st.integers(1, 12))
def test_no_cell_is_small_and_the_total_stays(table: np.ndarray[tuple[int, ...], np.dtype[np.int64]], smallest: int) -> None:
    out = rounded_cells(table, smallest)
    assert out.sum() == table.sum()
    assert (out >= 0).all()
    if table.sum() >= smallest:
        assert ((out == 0) | (out >= smallest)).all()
    if ((table == 0) | (table >= smallest)).all():
        assert (out == table).all()


def test_nine_persons_in_three_cells() -> None:
    """Each is nearer to 5 than to 0, and 15 persons would be 6 too many."""
    assert rounded_cells(np.array([[3, 3], [0, 3]]), 5).tolist() == [[9, 0], [0, 0]]
    assert rounded_cells(np.array([4, 5]), 5).tolist() == [0, 9]
    assert rounded_cells(np.array([[10, 3], [1, 7]]), 5).tolist() == [[9, 5], [0, 7]]
