"""Genotype counts and small cells against plain loops; Hardy-Weinberg against exact integers and PLINK 2."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedml.cohort.variants import frequency as f
from tests.conftest import write_bed

dosages = hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-1, 2))
triples = st.tuples(*[st.integers(0, 40)] * 3)


def exact_p(hom_ref: int, het: int, hom_alt: int, mid_p: bool) -> Fraction:
    """By the definition, in whole numbers."""
    n, ref, alt = hom_ref + het + hom_alt, 2 * hom_ref + het, 2 * hom_alt + het
    ways = {
        h: Fraction(factorial(n) * 2**h, factorial((ref - h) // 2) * factorial(h) * factorial((alt - h) // 2))
        for h in range(ref % 2, min(ref, alt) + 1, 2)
    }
    total = sum(w for w in ways.values() if w <= ways[het])
    ties = sum(w for w in ways.values() if w == ways[het])
    return (total - Fraction(ties, 2) * mid_p) / sum(ways.values())


@given(dosages, st.booleans())
def test_counts_are_those_of_a_loop_in_either_memory_order(dosage: Any, fortran: bool) -> None:
    counts = f.genotype_counts(np.asfortranarray(dosage) if fortran else dosage)
    assert counts.tolist() == [[int((column == g).sum()) for column in dosage.T] for g in (0, 1, 2, -1)]


@given(dosages, st.integers(0, 12), st.data())
def test_counts_and_groups_add_up_over_chunks_of_persons(dosage: Any, cut: int, data: Any) -> None:
    groups = data.draw(hnp.arrays(np.bool_, (3, len(dosage))))
    whole = f.group_counts(dosage, groups)
    parts = f.group_counts(dosage[:cut], groups[:, :cut]) + f.group_counts(dosage[cut:], groups[:, cut:])
    np.testing.assert_array_equal(parts, whole)
    for group, counts in zip(groups, whole, strict=True):
        np.testing.assert_array_equal(counts, f.genotype_counts(dosage[group]))


@given(dosages, st.integers(-1, 6), st.data())
def test_alleles_of_few_carriers_are_withheld(dosage: Any, min_count: int, data: Any) -> None:
    groups = np.vstack([np.ones((1, len(dosage)), bool), data.draw(hnp.arrays(np.bool_, (2, len(dosage))))])
    found = f.withheld(f.group_counts(dosage, groups), min_count)
    told = f.folded(f.genotype_counts(dosage), min_count)
    for at, own in enumerate(dosage.T.tolist()):
        carriers = [
            sum(own[p] in alleles for p in range(len(own)) if group[p]) for group in groups for alleles in ((1, 2), (0, 1))
        ]  # fmt: skip
        few = any(1 <= count < min_count for count in carriers)
        assert found[at] == (few or any(1 <= count < min_count for count in told[:3, at]))


@given(dosages, st.integers(-1, 6))
def test_folded_counts_have_the_same_alleles_and_calls(dosage: Any, min_count: int) -> None:
    counts = f.genotype_counts(dosage)
    told = f.folded(counts, min_count)
    assert (told >= 0).all()
    assert np.array_equal(told[1] + 2 * told[2], counts[1] + 2 * counts[2])
    assert np.array_equal(told[:3].sum(0), counts[:3].sum(0))
    assert np.array_equal(told[3], counts[3])
    if min_count <= 1:
        assert np.array_equal(told, counts)


def test_what_is_withheld_and_what_is_told_in_alleles() -> None:
    counts = np.array([[90, 8, 2, 1], [96, 0, 4, 0], [95, 3, 2, 0], [97, 3, 0, 0], [100, 0, 0, 0], [90, 2, 8, 0]]).T
    assert f.withheld(counts[None], 5).tolist() == [False, True, False, True, False, True]
    assert f.folded(counts, 5)[:, 0].tolist() == [88, 12, 0, 1]
    assert f.folded(counts, 5)[:, 2].tolist() == [93, 7, 0, 0], "five carriers"
    assert not f.withheld(counts[None], 1).any()


def test_a_missing_call_and_an_absent_allele_hide_nothing() -> None:
    dosage = np.array([[0, 0, 0, 0, 0, -1], [0, 0, 0, 1, 1, 1]], np.int8).T
    all_persons = np.ones((1, 6), bool)
    assert f.withheld(f.group_counts(dosage, all_persons), 4).tolist() == [False, True]
    assert not f.withheld(f.group_counts(dosage, all_persons), 1).any()


def test_frequency_and_call_rate() -> None:
    counts = np.array([[1, 0, 5], [2, 0, 0], [1, 0, 0], [4, 3, 0]])
    np.testing.assert_allclose(f.allele_frequency(counts), [0.5, np.nan, 0.0])
    np.testing.assert_allclose(f.call_rate(counts), [0.5, 0.0, 1.0])
    np.testing.assert_allclose(f.minor_allele_frequency(np.array([[1], [0], [9], [0]])), [0.1])


@given(dosages)
def test_centred_imputes_the_mean(dosage: Any) -> None:
    frequency = np.nan_to_num(f.allele_frequency(f.genotype_counts(dosage)))
    wanted = np.where(dosage < 0, 2 * frequency, dosage) - 2 * frequency
    np.testing.assert_allclose(f.centred(dosage, frequency), wanted, atol=1e-15)


@settings(max_examples=400)
@given(triples, st.booleans())
def test_hardy_weinberg_is_exact(counts: tuple[int, int, int], mid_p: bool) -> None:
    p = f.hardy_weinberg_p(*counts, mid_p=mid_p)
    if sum(counts) == 0:
        assert np.isnan(p[0])
    else:
        np.testing.assert_allclose(p, float(exact_p(*counts, mid_p)), rtol=1e-12)


@pytest.mark.parametrize("counts", [(800, 300, 40), (1, 1299, 0), (600, 600, 600), (1990, 1, 9), (900, 0, 900)])
def test_hardy_weinberg_is_exact_for_many_persons(counts: tuple[int, int, int]) -> None:
    wanted = exact_p(*counts, False)
    p = float(f.hardy_weinberg_p(*counts)[0])
    assert p == pytest.approx(float(wanted), rel=1e-11, abs=0) if wanted > Fraction(1, 10**300) else p < 1e-299


def test_hardy_weinberg_of_a_population_is_uniform_or_rarer_and_symmetric() -> None:
    rng = np.random.default_rng(0)
    q = rng.uniform(0.05, 0.5, 4000)
    counts = np.stack([rng.multinomial(300_000, [(1 - x) ** 2, 2 * x * (1 - x), x * x]) for x in q]).T
    p = f.hardy_weinberg_p(*counts)
    np.testing.assert_allclose(p, f.hardy_weinberg_p(*counts[::-1]), rtol=1e-9)
    share = (p < np.array([[0.01], [0.1], [0.5]])).mean(1)
    assert (np.abs(share - [0.01, 0.1, 0.5]) < 5 * np.sqrt(np.array([0.0099, 0.09, 0.25]) / 4000)).all()
    np.testing.assert_array_less(f.hardy_weinberg_p(*counts, mid_p=True), p)


def test_hardy_weinberg_is_that_of_plink(tmp_path: Path) -> None:
    if shutil.which("plink2") is None:
        pytest.skip("plink2 is not installed")
    rng = np.random.default_rng(1)
    q, inbred = rng.beta(0.5, 1, 300).clip(0.01, 0.99), rng.choice([0.0, 0.1, 0.6, -0.05], 300)
    share = np.clip([(1 - q) ** 2 + inbred * q * (1 - q), 2 * q * (1 - q) * (1 - inbred), q * q + inbred * q * (1 - q)], 0, 1)
    dosage = np.stack([rng.choice(3, 700, p=s / s.sum()) for s in share.T], axis=1).astype(np.int8)
    dosage[rng.random(dosage.shape) < 0.05] = -1
    keys = [("1", k + 1, f"v{k}", "C", "A") for k in range(300)]
    write_bed(tmp_path / "x.bed", [f"i{k}" for k in range(700)], keys, dosage)
    counts = f.genotype_counts(dosage)
    for mid_p in (False, True):
        command = ["plink2", "--bfile", "x", "--threads", "1", "--hardy", *(["midp"] if mid_p else []), "--out", f"o{mid_p}"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        lines = (tmp_path / f"o{mid_p}.hardy").read_text().splitlines()
        theirs = [float(line.split("\t")[-1]) for line in lines[1:]]
        assert len(theirs) == 300
        assert min(theirs) < 1e-20
        np.testing.assert_allclose(f.hardy_weinberg_p(*counts[:3], mid_p=mid_p), theirs, rtol=1e-5)
