"""A wide table has the same sums and batches, bit for bit, as one that is summed and converted as a whole, and takes less memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fedml.cohort.inputs import Table
from fedml.modalities import modality
from fedml.modalities.modality import table_sums


def matrix(persons: int, columns: int, order: str) -> np.ndarray:
    random = np.random.default_rng(persons * columns)
    values = random.normal(3, 50, (persons, columns))
    values[random.random(values.shape) < 0.1] = np.nan
    return np.asarray(values, order=order)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("persons", "columns"), [(400, 30), (401, 31), (1000, 11), (3, 7), (1, 5), (2000, 1), (2000, 2), (0, 4)])
def test_sums_by_blocks_are_those_of_the_whole(persons: int, columns: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = matrix(persons, columns, order)
    rows = np.flatnonzero(np.arange(persons) % 3 != 0)
    for block in (1, 4 * max(persons, 1), 1 << 22):
        monkeypatch.setattr(modality, "_BLOCK", block)
        for chosen, found in ((values, table_sums(values)), (values[rows], table_sums(values, rows))):
            zeros = np.where(np.isnan(chosen), 0.0, chosen)
            zeros = np.asarray(zeros, order="F" if chosen.flags.f_contiguous and not chosen.flags.c_contiguous else "C")
            expected = np.stack([(~np.isnan(chosen)).sum(0).astype(float), zeros.sum(0), (zeros**2).sum(0)])
            assert found.tobytes() == expected.tobytes(), (block, len(chosen))


def test_a_wide_matrix_is_summed_without_copies_of_it() -> None:
    values = matrix(300, 60_000, "C")
    rows = np.arange(200)
    tracemalloc.start()
    try:
        table_sums(values, rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < values.nbytes  # as a whole: the rows, these filled, and squared, 2/3 each, so twice the matrix


def test_batches_of_a_wide_table_are_those_of_a_narrow_one() -> None:
    values = matrix(90, 60_000, "C")
    present = np.ones(90, dtype=bool)
    wide, narrow = Table("omics", values, present), Table("omics", values[:, :900], present)
    rows = np.array([5, 0, 88, 5])
    tracemalloc.start()
    try:
        batch = wide.tensors(rows, None)["omics"].numpy()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch.dtype == np.float32
    assert batch.tobytes() == values[rows].astype(np.float32).tobytes()
    assert batch[:, :900].tobytes() == narrow.tensors(rows, None)["omics"].numpy().tobytes()
    assert peak < values.nbytes / 4  # no float32 copy of the table, which is half of it
