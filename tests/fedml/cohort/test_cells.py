"""Allele counts by population and sex: what a site tells is exact, and no subtraction of what it tells is about few persons."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fedml.cohort.variants.cells import (
    AC,
    AN,
    HEMIZYGOTES,
    HOMOZYGOTES,
    Block,
    Table,
    cell_calls,
    reveals_few,
    site_alleles,
    unsafe_genotypes,
)
from fedml.cohort.variants.frequency import few, group_counts
from fedml.cohort.variants.ploidy import DIPLOID, MT, X, Y
from fedml.study.frequencies_section import Frequencies

PLAN = Frequencies(population="group", populations=("A", "B", "C"), by_sex=True)
GROUPS = PLAN.groups()


def cells_of(dosage: Any, population: Any, sex: Any, where: Any) -> Table:
    """Sex 0 man, 1 woman, 2 unknown; population 0 to 2, 3 unknown."""
    masks = np.stack([(population == p) & (sex == s) for p in range(4) for s in range(3)])
    return Table(cell_calls(group_counts(dosage, masks), where), masks.sum(1).reshape(4, 3), where)


def drawn(seed: int, persons: int = 160, variants: int = 400) -> tuple[Any, Any, Any, Any]:
    random = np.random.default_rng(seed)
    population, sex = random.choice(4, persons, p=[0.5, 0.28, 0.12, 0.1]), random.choice(3, persons, p=[0.47, 0.47, 0.06])
    frequency = random.beta(0.4, 2.0, variants)
    dosage = random.binomial(2, frequency, (persons, variants)).astype(np.int8)
    where = np.repeat(np.array([DIPLOID, X, Y, MT], np.int8), variants // 4)
    one = ((where == X) & (sex == 0)[:, None]) | (where == Y) | (where == MT)
    dosage[one] = 2 * (random.random((persons, variants)) < frequency)[one]
    dosage[(random.random((persons, variants)) < 0.02)] = -1
    dosage[((where == Y) & (sex != 0)[:, None]) | ((where == X) & (sex == 2)[:, None])] = -1
    return dosage, population, sex, where


@pytest.mark.parametrize("seed", range(4))
def test_what_is_told_is_counted_from_the_persons(seed: int) -> None:
    dosage, population, sex, where = drawn(seed)
    table = cells_of(dosage, population, sex, where)
    told = site_alleles(table, GROUPS, np.zeros(dosage.shape[1], bool), 5)
    everything = site_alleles(table, GROUPS, np.zeros(dosage.shape[1], bool), 1)
    assert (everything >= 0).all()
    one = ((where == X) & (sex == 0)[:, None]) | (where == Y) | (where == MT)
    for at, (p, s) in enumerate(GROUPS):
        rows = ((population == p) | (p < 0)) & ((sex == s) | (s < 0))
        calls, single = dosage[rows], one[rows]
        copies = np.where(single, calls // 2, calls)
        has = calls >= 0
        expected = {
            AC: np.where(has, copies, 0).sum(0),
            AN: np.where(has, np.where(single, 1, 2), 0).sum(0),
            HOMOZYGOTES: (has & ~single & (calls == 2)).sum(0),
            HEMIZYGOTES: (has & single & (calls == 2)).sum(0),
        }
        for row, counted in expected.items():
            np.testing.assert_array_equal(everything[at, row], counted)
            given = told[at, row] >= 0
            np.testing.assert_array_equal(told[at, row][given], counted[given])
    assert (told[:, AN] >= 0).mean() > 0.2  # it does tell something
    assert (told[1:, HOMOZYGOTES] >= 0).any()


def differences(groups: list[tuple[int, int]], given: Any) -> list[Any]:
    """The cells (4, 3) of every set of persons whose numbers follow, with signs -1, 0 and 1, from at most three of the groups told."""
    members = []
    for (p, s), yes in zip(groups, given, strict=True):
        if yes:
            cells = np.zeros((4, 3), int)
            cells[slice(None) if p < 0 else p, slice(None) if s < 0 else s] = 1
            members.append(cells)
    sums = list(members)
    for count in (2, 3, 4):
        for chosen in combinations(range(len(members)), count):
            first, *others = sorted(chosen, key=lambda at: -members[at].sum())
            left = members[first] - sum(members[at] for at in others)
            if left.min() >= 0 and left.any():
                sums.append(left)
    return sums


@pytest.mark.parametrize("seed", range(3))
def test_no_difference_of_what_is_told_is_about_few_persons(seed: int) -> None:
    """An adversary who subtracts told groups from one another, up to four of them, reads of no set of 1 to 4 carriers."""
    dosage, population, sex, where = drawn(seed, variants=120)
    table = cells_of(dosage, population, sex, where)
    told = site_alleles(table, GROUPS, np.zeros(dosage.shape[1], bool), 5)
    assert not reveals_few(table, GROUPS, told, 5).any()
    looked = 0
    for at in range(0, dosage.shape[1], 3):
        for row in (AN, HOMOZYGOTES):
            for cells in differences(GROUPS, told[:, row, at] >= 0):
                none, het, hom, ref, alt = (table.calls[..., at] * cells[..., None]).sum((0, 1))
                looked += 1
                counts = np.array([none, het, hom] if row == HOMOZYGOTES else [none + het, het + hom, ref, alt])
                assert not few(counts, 5).any(), (at, row, cells)
    assert looked > 1_000


def test_a_table_that_tells_a_small_cell_or_what_is_left_of_one_is_found_by_the_gate() -> None:
    dosage, population, sex, where = drawn(1)
    table = cells_of(dosage, population, sex, where)
    honest = site_alleles(table, GROUPS, np.zeros(dosage.shape[1], bool), 5)
    everything = site_alleles(table, GROUPS, np.zeros(dosage.shape[1], bool), 1)
    assert not reveals_few(table, GROUPS, honest, 5).any()
    found = reveals_few(table, GROUPS, everything, 5)
    withheld = (honest[:, AN] < 0).any(0)
    assert found[withheld].mean() > 0.95
    # The total and every population but the smallest, as if nobody had thought of subtraction.
    naive = np.full_like(everything, -1)
    for at, (p, s) in enumerate(GROUPS):
        if s < 0 and p in (-1, 0, 1):
            naive[at] = everything[at]
            naive[at, HOMOZYGOTES] = -1
    rest = table.block(table.members(2, -1) | table.members(3, -1))
    small = table.unsafe(rest, 5)
    assert small.sum() > 10
    assert reveals_few(table, GROUPS, naive, 5)[small].all()
    wrong = honest.copy()
    wrong[0, AC] += wrong[0, AC] > 0
    assert reveals_few(table, GROUPS, wrong, 5)[honest[0, AC] > 0].all()


def test_a_number_that_is_not_told_could_be_several() -> None:
    """With k carriers or more, k + 1 copies and "homozygotes not told" would mean one homozygote, if 0 were told."""
    calls = np.zeros((5, 3), np.int64)
    calls[:3] = np.array([[40, 6, 0], [40, 4, 1], [40, 9, 0]]).T
    none = np.zeros(3, np.int64)
    assert unsafe_genotypes(Block(calls, none, none), 5).tolist() == [True, True, False]


def test_hidden_variants_tell_nothing_and_a_study_without_populations_has_one_group() -> None:
    dosage, population, sex, where = drawn(2)
    table = cells_of(dosage, population, sex, where)
    hidden = np.zeros(dosage.shape[1], bool)
    hidden[::2] = True
    assert (site_alleles(table, GROUPS, hidden, 5)[..., hidden] == -1).all()
    assert Frequencies().groups() == [(-1, -1)]
    assert Frequencies().names() == [""]
    assert PLAN.names()[:5] == ["", "_XY", "_XX", "_A", "_A_XY"]
