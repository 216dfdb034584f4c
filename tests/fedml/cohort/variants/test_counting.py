"""Counts and sums over packed genotypes, against the same of the dosages as a plain array."""

from __future__ import annotations

import numpy as np
import pytest

from fedml.cohort.variants import frequency as f
from fedml.cohort.variants.counting import counts_of, products
from fedml.cohort.variants.packed import Packed

KINDS = ("stored", "turned", "any order", "sparse", "absent")


def view(kind: str, random: np.random.Generator, persons: int, variants: int) -> tuple[Packed, np.ndarray]:
    """A view of a packed table, and what it should hold."""
    dosage = random.choice(np.array([-1, 0, 1, 2], np.int8), (persons, variants), p=[0.1, 0.4, 0.3, 0.2])
    columns = np.arange(variants)
    if kind == "any order":
        columns = random.integers(0, variants, variants)
    elif kind == "sparse":
        columns = np.sort(random.choice(variants, max(1, variants // 4), replace=False))
    elif kind == "absent":
        columns = np.where(random.random(variants) < 0.2, -1, columns)
    flip = random.random(len(columns)) < (0 if kind == "stored" else 0.4)
    rows = random.permutation(persons)[: max(1, persons * 2 // 3)]
    plain = dosage[rows][:, np.maximum(columns, 0)]
    plain = np.where(flip & (plain >= 0), 2 - plain, plain).astype(np.int8)
    plain[:, columns < 0] = -1
    return Packed.of(dosage).aligned(columns, flip).take(rows), plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("persons", [1, 2, 14, 16, 255, 256, 800])  # the fields of a vertical count hold 3, 15 and 255
def test_they_are_those_of_the_dosages(kind: str, persons: int) -> None:
    random = np.random.default_rng(persons)
    for variants in (1, 3, 4, 31, 32, 33, 700):
        table, plain = view(kind, random, persons, variants)
        assert (table[:] == plain).all()
        begin, end = sorted(random.integers(0, table.shape[1] + 1, 2).tolist())
        assert (table.block(begin, end) == plain[:, begin:end]).all()
        groups = random.random((4, len(plain))) < 0.6
        groups[2] = groups[0]  # counted once
        wanted = np.stack([[(plain[group] == code).sum(0) for code in (0, 1, 2, -1)] for group in groups])
        np.testing.assert_array_equal(counts_of(table, [np.flatnonzero(group) for group in groups]), wanted)
        np.testing.assert_array_equal(counts_of(table, [np.zeros(0, np.intp)])[0], 0)
        weights = random.normal(size=(3, len(plain)))
        if (found := products(table, np.arange(len(plain)), weights, begin, end)) is not None:
            part = plain[:, begin:end]
            np.testing.assert_allclose(found.dosage, weights @ np.maximum(part, 0), atol=1e-9)
            np.testing.assert_allclose(found.missing, weights @ (part < 0), atol=1e-9)


def test_sums_are_made_of_packed_genotypes_where_a_file_has_the_panel_in_its_order() -> None:
    for kind in ("stored", "turned"):
        table, _ = view(kind, np.random.default_rng(1), 50, 40)
        assert products(table, np.arange(len(table)), np.ones((1, len(table))), 0, 40) is not None


def test_a_variant_is_rarer_than_a_p_value_where_the_test_says_so() -> None:
    random = np.random.default_rng(2)
    persons = random.integers(0, 400, 4000)
    het = random.binomial(persons, random.random(4000) ** 2)
    ref = random.binomial(persons - het, 0.7)
    counts = ref, het, persons - het - ref
    p = np.nan_to_num(f.hardy_weinberg_p(*counts), nan=1.0)
    for below in (1e-300, 1e-6, 1e-3, 0.05, 0.5, 1.0):
        np.testing.assert_array_equal(f.rarer_than(*counts, below), p < below)
    assert 0.1 < (p < 1e-6).mean() < 0.9
    assert not f.rarer_than([], [], [], 0.1).size
    assert f.rarer_than([1_500_000], [0], [1_500_000], 1e-6).all()
