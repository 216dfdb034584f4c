"""Federated principal components are those of the pooled genotypes, whatever the split."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml.analytics import pca
from fedml.cohort.variants.frequency import allele_frequency, genotype_counts
from tests.conftest import public_data


def run(sites: list[Any], frequency: Any, k: int, blocks: int = 1, **options: Any) -> pca.PcaState:
    state = pca.start(len(frequency), k, **options)
    while not state.done:
        assert state.steps < 100
        parts = [pca.site_product(np.array_split(site, blocks), frequency, state.basis) for site in sites]
        state = pca.step(state, np.sum(parts, axis=0))
    return state


def standardised(dosage: Any, frequency: Any) -> Any:
    """By the definition."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (dosage - 2 * frequency) / np.sqrt(2 * frequency * (1 - frequency))
    return np.where((dosage < 0) | (frequency <= 0) | (frequency >= 1), 0, z)


def angle(first: Any, second: Any) -> float:
    """Largest principal angle, by its sine."""
    return float(np.arcsin(min(1.0, np.linalg.norm(second - first @ (first.T @ second), 2))))


def population(persons: int, variants: int, seed: int, groups: int = 4) -> Any:
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.1, 0.9, variants)
    own = rng.beta(base * 10, (1 - base) * 10, (groups, variants))
    dosage = rng.binomial(2, own[rng.integers(0, groups, persons)]).astype(np.int8)
    dosage[rng.random(dosage.shape) < 0.02] = -1
    dosage[:, 3], dosage[:, 7] = 0, -1  # monomorphic; no genotype called
    return dosage


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 4))
def test_any_split_gives_the_pooled_components(seed: int, pieces: int, blocks: int) -> None:
    dosage = population(150, 90, seed)
    frequency = allele_frequency(genotype_counts(dosage))
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, 150, pieces - 1))
    state = run(np.split(dosage, cuts), frequency, 3, blocks, seed=seed, tolerance=1e-7)
    z = standardised(dosage, np.nan_to_num(frequency))
    values, vectors = np.linalg.eigh(z.T @ z)
    assert angle(state.loadings, vectors[:, ::-1][:, :3]) < 1e-6
    np.testing.assert_allclose(state.eigenvalues, values[::-1][:3], rtol=1e-10)
    np.testing.assert_allclose(state.loadings[[3, 7]], 0, atol=1e-7)
    scores = np.vstack([pca.scores(part, frequency, state.loadings, state.eigenvalues) for part in np.split(dosage, cuts)])
    left = np.linalg.svd(z, full_matrices=False)[0][:, :3]
    np.testing.assert_allclose(np.abs(scores), np.abs(left), atol=1e-5)
    np.testing.assert_allclose((scores**2).sum(0), 1, rtol=1e-9)


def test_the_same_seed_gives_the_same_bits_and_the_largest_loading_is_positive() -> None:
    dosage = population(100, 60, 1)
    frequency = allele_frequency(genotype_counts(dosage))
    first, second = (run([dosage], frequency, 2, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.loadings, second.loadings)
    assert (first.loadings[np.abs(first.loadings).argmax(0), [0, 1]] > 0).all()
    assert first.columns_asked < run([dosage], frequency, 2, seed=5, tolerance=1e-10).columns_asked


def test_more_components_than_rank_end_and_their_scores_are_zero() -> None:
    dosage = population(3, 40, 2)
    frequency = allele_frequency(genotype_counts(dosage))
    state = run([dosage], frequency, 6)
    z = standardised(dosage, np.nan_to_num(frequency))
    np.testing.assert_allclose(state.eigenvalues, np.append(np.linalg.svd(z)[1], [0, 0, 0]) ** 2, atol=1e-9)
    assert not pca.scores(dosage, frequency, state.loadings, state.eigenvalues)[:, 3:].any()
    assert pca.scores(dosage[:0], frequency, state.loadings, state.eigenvalues).shape == (0, 6)


def test_all_variants_may_be_in_the_basis() -> None:
    dosage = np.random.default_rng(0).binomial(2, 0.4, (50, 6)).astype(np.int8)
    frequency = allele_frequency(genotype_counts(dosage))
    state = run([dosage], frequency, 5)
    z = standardised(dosage, frequency)
    np.testing.assert_allclose(state.eigenvalues, np.linalg.eigvalsh(z.T @ z)[::-1][:5], rtol=1e-9)
    assert state.columns_asked == 6
    with pytest.raises(ValueError, match="more variants"):
        pca.start(5, 5)


class Real(NamedTuple):
    dosage: Any
    pieces: dict[int, list[Any]]  # rows by number of sites
    frequency: Any
    loadings: Any  # (variants, 10) exact
    eigenvalues: Any


@pytest.fixture(scope="module")
def real() -> Real:
    """HapMap3 and 1000 Genomes, pooled, and the exact components from the persons' Gram matrix."""
    from bed_reader import open_bed

    folder = public_data("genotypes_hapmap3_1kg")
    panel = public_data("vcf_1kg_chr21") / "integrated_call_samples_v3.20130502.ALL.panel"
    first, second = (open_bed(folder / f"{n}_thinned_autosomal_overlap.bed") for n in ("HM3", "1kg.ref.phase1_release_v3.20101123"))
    place = {name: k for k, name in enumerate(second.sid)}  # 190 of the variants stand in another order
    order = np.array([place[name] for name in first.sid])
    assert (first.allele_1 == second.allele_1[order]).all()
    dosage = np.vstack([first.read(dtype="int8"), second.read(dtype="int8")[:, order]])
    dosage[dosage < 0] = -1
    hapmap = dict(line.split()[1::5] for line in (folder / "relationships_w_pops_121708.txt").read_text().splitlines()[1:])
    thousand = dict(line.split()[0:3:2] for line in panel.read_text().splitlines()[1:])
    site = {"CEU": 0, "TSI": 0, "YRI": 1, "LWK": 1, "MKK": 1, "ASW": 1, "CHB": 2, "JPT": 2, "CHD": 2, "GIH": 3, "MEX": 3}
    where = [site[hapmap[i]] for i in first.iid] + [4 if thousand.get(i) in ("EUR", "AMR") else 5 for i in second.iid]
    rows = np.arange(len(dosage))
    pieces = {2: np.split(rows, [len(first.iid)]), 6: [rows[np.array(where) == s] for s in range(6)]}
    frequency = allele_frequency(genotype_counts(dosage))
    z = standardised(dosage, frequency)
    values, vectors = np.linalg.eigh(z @ z.T)
    values, vectors = values[::-1][:10], vectors[:, ::-1][:, :10]
    return Real(dosage, pieces, frequency, z.T @ vectors / np.sqrt(values), values)


@pytest.mark.parametrize(("sites", "k"), [(2, 10), (6, 10), (6, 4)])
def test_real_genotypes_of_two_studies(real: Real, sites: int, k: int) -> None:
    pieces = [real.dosage[rows] for rows in real.pieces[sites]]
    assert len({len(p) for p in pieces}) == sites
    assert sum(map(len, pieces)) == 2049
    state = run(pieces, real.frequency, k)
    off = angle(state.loadings, real.loadings[:, :k])
    print(f"{sites} sites, {k} components: {state.steps} steps, {state.columns_asked} columns, {off:.1e} rad (bound {state.angle:.1e})")
    assert off < 1e-4
    assert off < 2 * state.angle
    assert state.columns_asked < 15 * k
    np.testing.assert_allclose(state.eigenvalues, real.eigenvalues[:k], rtol=1e-7)
