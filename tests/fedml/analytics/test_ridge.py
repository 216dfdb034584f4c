"""Both levels of a whole-genome regression from sums over sites are those of the published algorithm on the pooled matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedml.analytics import logistic as wald
from fedml.analytics import ridge, ridge_logistic
from tests.dense_regenie import logistic, step_one

H2 = (0.01, 0.25, 0.5, 0.75, 0.99)
BLOCK, FOLDS = 12, 4


def drawn(seed: int, *, binary: bool) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    persons, variants = 500, 70
    contigs = ["1"] * 30 + ["2"] * 25 + ["7"] * 15
    g = random.binomial(2, random.uniform(0.1, 0.5, variants), (persons, variants)).astype(float)
    g[:, 5] = 1.0  # constant
    site = random.integers(0, 3, persons)
    x = np.column_stack([site == 0, site == 1, site == 2, random.normal(size=(persons, 2))]).astype(float)
    y = (g - g.mean(0)) @ random.normal(0, 0.2, variants) + x @ [1.0, 2.0, 0.5, 0.3, 0.1] + random.normal(size=persons)
    if binary:
        y = (y > np.quantile(y, 0.6)).astype(float)
    g[random.random(g.shape) < 0.02] = np.nan
    return g, contigs, x, y, site, random.integers(0, FOLDS, persons)


def test_firths_fit_takes_an_offset() -> None:
    """As a covariate whose coefficient is 1: of the penalised likelihood by Newton's method on the dense matrix."""
    random = np.random.default_rng(5)
    x, offset = np.column_stack([np.ones(200), random.normal(size=200)]), random.normal(size=200)
    g = random.binomial(2, 0.03, 200).astype(np.int8)
    y = (random.random(200) < 1 / (1 + np.exp(-offset - 0.5))).astype(float)
    frequency = np.array([g.mean() / 2])
    state = wald.start(wald.with_variant(wald.null_theta(2), 1), firth=True)
    while len(state.active):
        state = wald.step(state, wald.likelihood_sums(g[:, None], frequency, x, y, state.ask, state.inverse, offset))
    whole, theta = np.column_stack([x, g - 2 * frequency[0]]), np.zeros(3)
    for _ in range(500):
        mu = 1 / (1 + np.exp(-(whole @ theta + offset)))
        weight = mu * (1 - mu)
        inverse = np.linalg.inv((whole * weight[:, None]).T @ whole)
        leverage = weight * np.einsum("ij,jk,ik->i", whole, inverse, whole)
        move = inverse @ (whole.T @ (y - mu + leverage * (0.5 - mu)))
        theta += move / max(1.0, np.abs(move).max() / 0.5)
    assert state.converged.all()
    assert np.abs(state.theta[:, 0] - theta).max() < 1e-6 * np.sqrt(inverse[2, 2])


@pytest.mark.parametrize("binary", [False, True])
def test_two_levels_from_sums_are_those_of_the_pooled_matrix(binary: bool) -> None:
    g, contigs, x, y, site, fold = drawn(3, binary=binary)
    usable = [j for j in range(g.shape[1]) if j != 5]
    dense = step_one(g[:, usable], [contigs[j] for j in usable], x, y, fold, block=BLOCK, h2=H2, binary=binary)
    c = np.nan_to_num(g - np.nanmean(g, axis=0))[:, usable]
    names = [contigs[j] for j in usable]
    parts, ones = [site == s for s in range(3)], np.array([1, 1, 1, 0, 0.0])

    def pooled(make: Any) -> Any:
        of_site = [make(rows) for rows in parts]
        return type(of_site[0])(*(np.sum(values, axis=0) for values in zip(*of_site, strict=True)))

    sums = pooled(lambda rows: ridge.fold_sums(x[rows], y[rows], fold[rows], FOLDS))
    blocks, places, at = [], [], []
    for contig in dict.fromkeys(names):
        own = [i for i, name in enumerate(names) if name == contig]
        for start in range(0, len(own), BLOCK):
            columns = own[start : start + BLOCK]
            block = pooled(lambda rows, columns=columns: ridge.block_sums(c[rows][:, columns], x[rows], y[rows], fold[rows], FOLDS))
            blocks.append(ridge.level_zero(sums, block, ridge.penalties(H2, len(usable))))
            places.append(contig)
            at.append(columns)
    w = np.concatenate([
        np.stack([c[i, columns] @ b.weights[:, :, fold[i]] - x[i] @ b.shift[:, :, fold[i]] for i in range(len(y))])
        for b, columns in zip(blocks, at, strict=True)
    ], axis=1)  # fmt: skip
    assert np.allclose((w - w.mean(0)) / w.std(0, ddof=1), dense.level0, atol=1e-8)

    def level(rows: Any) -> ridge.LevelSums:
        own = [rows & (fold == k) for k in range(FOLDS)]
        return ridge.LevelSums(*(np.stack(part) for part in zip(*((w[o].T @ w[o], x[o].T @ w[o], y[o] @ w[o]) for o in own), strict=True)))

    scaled = ridge.scaled(sums, pooled(level), ones)
    count = w.shape[1]
    if binary:
        theta = logistic(x, y)
        mu = 1 / (1 + np.exp(-x @ theta))
        state = ridge_logistic.start(scaled, ridge.penalties(H2, count) * 3 / np.pi**2, float((mu * (1 - mu)).mean()))
        asked = 0
        while len(state.active):
            asked += len(state.active)
            ask = state.ask
            state = ridge_logistic.step(state, pooled(lambda o, ask=ask: ridge_logistic.likelihood(w[o], x[o] @ theta, y[o], fold[o], ask)))
        assert state.converged.all()
        print("steps", state.steps, "columns", asked)
        found = ridge_logistic.chosen(state, len(y))
    else:
        found = ridge.level_one(scaled, ridge.penalties(H2, count), len(y))
    assert found.chosen == dense.chosen
    whole = ridge.Whole(tuple(blocks), tuple(places), scaled, found.weights, 1.0 if binary else ridge.trait(sums).deviation, ones)
    for contig, expected in dense.loco.items():
        offset = whole.offset(contig or None)
        there = np.array([name != contig for name in names])
        ours = np.array([c[i, there] @ offset.weights[there, fold[i]] - x[i] @ offset.shift[:, fold[i]] for i in range(len(y))])
        assert np.abs(ours - expected).max() < 1e-6 * expected.std(), contig
