"""A wide table has the same sums and batches, bit for bit, as one that is summed and converted as a whole, and takes less memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from fedml.cohort.inputs import Table
from fedml.modalities import modality
from fedml.modalities.modality import table_sums
from fedml.networks import preprocess
from fedml.networks.preprocess import TablePreprocess


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


@pytest.mark.parametrize("persons", [1, 7, 64])
def test_a_wide_batch_is_standardised_with_the_same_bits(persons: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = 3000
    layer, x = TablePreprocess(columns), torch.from_numpy(matrix(persons, columns, "C").astype(np.float32))
    generator = torch.Generator().manual_seed(1)
    layer.mean.normal_(3, 50, generator=generator)
    layer.std.uniform_(1e-3, 60, generator=generator)
    layer.std[5::9] = 0.0  # constant columns
    layer.std[7], x[0, 7] = 2e-38, 3e38  # beyond what float32 holds
    before = x.clone()
    expected = torch.where(torch.isnan(x), 0.0, (x - layer.mean) * torch.where(layer.std > 0, 1 / layer.std, 0.0))
    assert torch.isinf(expected[0, 7])
    for part in (1, 1 << 12, 1 << 16):
        monkeypatch.setattr(preprocess, "_PART", part)
        for wide in (0, 1 << 30):
            monkeypatch.setattr(preprocess, "_WIDE", wide)
            assert layer(x).numpy().tobytes() == expected.numpy().tobytes(), (part, wide)
    assert x.numpy().tobytes() == before.numpy().tobytes(), "the batch itself stays raw"
    monkeypatch.setattr(preprocess, "_WIDE", 0)
    leaf = torch.nan_to_num(x[:, 10:12]).requires_grad_()
    narrow = TablePreprocess(2)
    narrow.std.fill_(4.0)
    narrow(leaf).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.full((persons, 2), 0.25)), "a gradient with respect to the numbers is still there"
    layer.mean[3], x[:, 3] = float("inf"), float("inf")
    assert torch.isnan(layer(x)[:, 3]).all(), "infinite numbers do not become the mean"
