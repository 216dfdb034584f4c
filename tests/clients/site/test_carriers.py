"""Whom the rules about carriers of a gene's rare variants count: found by hand, and held against every combination of drawn columns."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fedml.clients.site.carriers import counted, gathered, objections

N = 200


def columns(*carriers: Any, persons: int = N) -> Any:
    out = np.zeros((persons, len(carriers)), np.int64)
    for at, own in enumerate(carriers):
        out[list(own), at] = 1
    return out


EVERYONE = np.ones((1, N), bool)
RANK = np.arange(N)


def used(counts: Any, groups: Any = EVERYONE, fewest: int = 5) -> list[set[int]]:
    return [set(np.flatnonzero(column).tolist()) for column in counted(counts, groups, RANK, fewest).T]


def test_columns_of_different_persons_stay() -> None:
    assert used(columns(range(5), range(10, 30))) == [set(range(5)), set(range(10, 30))]


def test_a_column_of_few_carriers_is_left_out() -> None:
    assert used(columns(range(4), range(10, 30))) == [set(), set(range(10, 30))]


def test_few_who_carry_both_are_counted_in_the_rarer_and_at_least_five_are_left_out_of_the_other() -> None:
    """Two persons carry both: they leave the larger column, with three more, so that five are missing and not two."""
    rare, common = used(columns(range(8), range(6, 40)))
    assert rare == set(range(8))
    assert len(common) == 34 - 5
    assert not common & {6, 7}


def test_many_who_carry_both_stay_in_both() -> None:
    assert used(columns(range(12), range(5, 40))) == [set(range(12)), set(range(5, 40))]


def test_a_column_within_another_keeps_its_carriers_to_itself() -> None:
    """Otherwise the larger less the smaller would be all that the smaller is."""
    rare, common = used(columns(range(10, 18), range(10, 40)))
    assert rare == set(range(10, 18))
    assert common == set(range(18, 40))


def test_the_same_carriers_in_two_columns_are_in_one() -> None:
    assert used(columns(range(20), range(20))) == [set(range(20)), set()]


def test_a_column_that_has_one_carrier_more_than_another_is_left_out() -> None:
    assert used(columns(range(20), range(21))) == [set(range(20)), set()]


def test_few_of_a_level_are_not_counted() -> None:
    """Two of twelve carriers are of one level: they and three others are left out; where none would remain, the column is."""
    groups = np.stack([np.ones(N, bool), np.arange(N) < 100, np.arange(N) >= 100])
    (left,) = used(columns([*range(10), *range(100, 120)]), groups)
    assert left == {*range(10), *range(100, 120)}
    (left,) = used(columns([*range(20), 100, 101]), groups)
    assert not left & {100, 101}
    assert len(left) in (0, 15)


def test_where_nearly_everybody_carries_something_nothing_is_told() -> None:
    assert used(columns(range(100), range(95, 197))) == [set(), set()]


def test_a_minimum_of_one_changes_nothing() -> None:
    some = columns(range(1), range(3), range(2, 5))
    assert np.array_equal(counted(some, EVERYONE, RANK, 1), some)


def test_of_variants_that_are_told_alone_a_column_may_not_be_less_by_few() -> None:
    """A told variant of 20 carriers and one of 3 that is not: with the 3 in the column, subtraction would give their sum."""
    dosage = np.zeros((N, 2), np.int8)
    dosage[:20, 0], dosage[30:33, 1] = 1, 1
    hidden = np.array([False, True])
    column = np.zeros(2, np.int64)
    assert np.flatnonzero(gathered(dosage, column, hidden, EVERYONE, 5)[:, 0]).tolist() == list(range(20))
    dosage[30:36, 1] = 1
    assert len(np.flatnonzero(gathered(dosage, column, hidden, EVERYONE, 5)[:, 0])) == 26


def test_a_variant_that_is_not_told_is_not_alone_in_a_column() -> None:
    dosage = np.zeros((N, 1), np.int8)
    dosage[:6] = 1
    assert not gathered(dosage, np.zeros(1, np.int64), np.array([True]), EVERYONE, 5).any()
    assert gathered(dosage, np.zeros(1, np.int64), np.array([False]), EVERYONE, 5).sum() == 6


def test_a_missing_call_is_no_allele() -> None:
    dosage = np.full((N, 1), -1, np.int8)
    dosage[:6] = 2
    assert gathered(dosage, np.zeros(1, np.int64), np.array([False]), EVERYONE, 5).sum() == 12


@pytest.mark.parametrize("seed", range(25))
def test_no_combination_of_drawn_columns_is_about_few_persons(seed: int) -> None:
    """Carriers drawn at random, nested and shared, in two levels. After the rules: counts, pairs, levels, and who is left out are of none
    or at least five, as far as carriers of a level are not few to begin with; and with every small integer weight, no combination of
    columns weighs only fewer than five persons."""
    random = np.random.default_rng(seed)
    drawn = random.random((N, 4)) < random.uniform(0.02, 0.3, 4)
    drawn[:, 3] = drawn[:, 0] | (random.random(N) < 0.02)
    before = drawn.astype(np.int64) * random.integers(1, 3, (N, 4))
    groups = np.stack([np.ones(N, bool), random.random(N) < 0.3])
    groups = np.concatenate([groups, ~groups[1:]])
    after = counted(before, groups, random.permutation(N), 5)
    assert not list(objections(after, groups, 5))
    assert np.array_equal(np.where(after > 0, before, 0), after)
    carried = after > 0
    for group in groups:
        for at in range(4):
            own = int((carried[group, at]).sum())
            assert own == 0 or own >= 5
            left = int((before[group, at] > 0).sum()) - own
            assert left == 0 or left >= 5 or own == 0  # few carriers of a level, whom nobody is told of
    for a, b in itertools.combinations(range(4), 2):
        both = int((carried[:, a] & carried[:, b]).sum())
        assert both == 0 or both >= 5
    for weights in itertools.product(range(-2, 3), repeat=4):
        told = after @ np.array(weights)
        if carried @ np.abs(weights) @ np.ones(N) > 0:
            assert int((told != 0).sum()) >= 5


def test_the_check_of_a_reply_finds_each_kind_of_few() -> None:
    assert next(iter(objections(columns(range(4)), EVERYONE, 5))) == "a column has few carriers"
    assert "few persons carry two columns" in list(objections(columns(range(10), range(8, 30)), EVERYONE, 5))
    assert list(objections(columns(range(10), range(30)), EVERYONE, 5)) == ["a column has few carriers of its own"]
    assert list(objections(columns(range(197)), EVERYONE, 5)) == ["few persons carry no column"]
    assert not list(objections(columns(range(10), range(20, 40)), EVERYONE, 5))
