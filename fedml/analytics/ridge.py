"""Whole-genome regression in the steps of REGENIE (Mbatchou et al. 2021, Nature Genetics 53:1097), from sums over sites.

Level 0: within blocks of consecutive variants, ridge regression of the trait for several ridge parameters, fitted without one fold of
persons at a time; a person's predictions, one for each block and parameter, come from the fit without their own fold. Level 1: a second
ridge over these predictions, fitted in the same way; its parameter is that with the least error in the folds left out. A person's
prediction without the blocks of one chromosome (leave one chromosome out) is the offset of the tests on that chromosome.

    sums = FoldSums(xx, xy, yy, n)                           # of all sites: (folds, K, K), (folds, K), (folds,), (folds,)
    block = block_sums(g, x, y, fold, folds)                 # at a site, of one block: gg, xg, gy by fold; additive over sites
    fitted = level_zero(sums, block, penalties(h2, P))       # at the server
    w = g @ fitted.weights[:, r, k] - x @ fitted.shift[:, r, k]              # at a site, of a person in fold k: parameter r
    predictions = level_one(...)                             # at the server, from W'W, W'x, W'y by fold

Genotypes g are dosage minus twice the pooled frequency, 0 where missing. Genotypes and trait are residuals of the covariates x (with a
column of ones) over all persons, and have variance 1; predictions of level 0 are centred and have variance 1, over all persons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.analytics.linear import invert
from fedml.cohort.variants.frequency import Array

Folds = npt.NDArray[np.int64]
_CONSTANT = 1e-10  # a column is constant if its variance is at most this share of its mean square


class FoldSums(NamedTuple):
    """By fold: x'x (F, K, K), x'y (F, K), y'y (F,) and persons (F,). Additive over sites."""

    xx: Array
    xy: Array
    yy: Array
    n: Array


class BlockSums(NamedTuple):
    """Of the variants of a block by fold: g'g (F, b, b), x'g (F, K, b), g'y (F, b). Additive over sites."""

    gg: Array
    xg: Array
    gy: Array


class LevelSums(NamedTuple):
    """Of the predictions of level 0 by fold: w'w (F, L, L), x'w (F, K, L) and w'y (F, L). Additive over sites."""

    ww: Array
    xw: Array
    wy: Array


@dataclass(frozen=True, eq=False)
class Trait:
    """The trait's regression on the covariates: ``alpha`` (K,), ``deviation`` of its residuals, and degrees of freedom ``free``;
    ``inverse`` (K, K) of x'x."""

    alpha: Array
    deviation: float
    free: float
    inverse: Array


class Blocked(NamedTuple):
    """Level 0 of one block: a person's predictions are g ``weights`` - x ``shift``. ``weights`` (b, R, F), ``shift`` (K, R, F)."""

    weights: Array
    shift: Array


class Scaled(NamedTuple):
    """Level 1's sums with standardised predictions and trait, by fold: s (F, L, L), t (F, L), and the trait's squares (F,); with the
    predictions' ``mean`` and ``deviation`` (L,), infinite where they are constant."""

    s: Array
    t: Array
    yy: Array
    mean: Array
    deviation: Array


def penalties(heritabilities: Sequence[float], count: int) -> Array:
    """(R,) ridge parameters count (1 - h2) / h2, of ``count`` predictors that explain the share h2 of the variance."""
    h2 = np.array(heritabilities, np.float64)
    out: Array = count * (1 - h2) / h2
    return out


def fold_sums(x: Array, y: Array, fold: Folds, folds: int) -> FoldSums:
    """A site's ``FoldSums``; x (persons, K), y and ``fold`` (persons,)."""
    parts = [fold == k for k in range(folds)]
    return FoldSums(
        np.stack([x[k].T @ x[k] for k in parts]),
        np.stack([x[k].T @ y[k] for k in parts]),
        np.array([float(y[k] @ y[k]) for k in parts]),
        np.array([float(k.sum()) for k in parts]),
    )


def block_sums(g: Array, x: Array, y: Array, fold: Folds, folds: int) -> BlockSums:
    """A site's ``BlockSums`` of the genotypes ``g`` (persons, b)."""
    parts = [fold == k for k in range(folds)]
    return BlockSums(
        np.stack([g[k].T @ g[k] for k in parts]),
        np.stack([x[k].T @ g[k] for k in parts]),
        np.stack([y[k] @ g[k] for k in parts]),
    )


def trait(sums: FoldSums) -> Trait:
    """The trait's regression on the covariates over all folds."""
    total, product = sums.xx.sum(0), sums.xy.sum(0)
    inverted, _, rank = invert(total[..., None])
    inverse = inverted[..., 0]
    alpha = inverse @ product
    free = float(sums.n.sum()) - float(rank[0])
    left = float(sums.yy.sum() - product @ alpha)
    return Trait(alpha, float(np.sqrt(max(left, 0.0) / max(free, 1.0))), free, inverse)


def level_zero(sums: FoldSums, block: BlockSums, ridge: Array) -> Blocked:
    """The ridge regressions of a block without each fold, for the parameters ``ridge`` (R,); variants without variance have weight 0."""
    known = trait(sums)
    adjust = known.inverse @ block.xg.sum(0)  # (K, b): regression of the genotypes on the covariates
    gg = np.stack(
        [g - xg.T @ adjust - adjust.T @ xg + adjust.T @ xx @ adjust for g, xg, xx in zip(block.gg, block.xg, sums.xx, strict=True)]
    )
    gy = np.stack([
        gy - xg.T @ known.alpha - adjust.T @ (xy - xx @ known.alpha)
        for gy, xg, xy, xx in zip(block.gy, block.xg, sums.xy, sums.xx, strict=True)
    ])  # fmt: skip
    variance, raw = np.einsum("kjj->j", gg) / known.free, np.einsum("kjj->j", block.gg) / known.free
    varies = variance > _CONSTANT * np.maximum(raw, 1e-300)
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    gg = gg * scale[:, None] * scale
    gy = gy * scale / known.deviation
    folds, size = gy.shape
    weights = np.zeros((size, len(ridge), folds))
    for k in range(folds):
        values, vectors = np.linalg.eigh(gg.sum(0) - gg[k])
        along = vectors.T @ (gy.sum(0) - gy[k])
        weights[:, :, k] = vectors @ (along[:, None] / (np.maximum(values, 0.0)[:, None] + ridge))
    weights *= scale[:, None, None]
    return Blocked(weights, np.einsum("cj,jrk->crk", adjust, weights))


def scaled(sums: FoldSums, level: LevelSums, ones: Array) -> Scaled:
    """Level 1's sums for standardised predictions and residuals of the trait. ``ones`` (K,): 1 where a covariate is an intercept, of all
    persons or of a site's."""
    known, n = trait(sums), sums.n
    total = np.einsum("c,kcl->kl", ones, level.xw)
    mean = total.sum(0) / n.sum()
    variance = (np.einsum("kll->l", level.ww) - n.sum() * mean**2) / (n.sum() - 1)
    varies = variance > _CONSTANT * np.maximum(mean**2, 1e-300)
    deviation = np.where(varies, np.sqrt(np.where(varies, variance, 1.0)), np.inf)
    s = np.stack([
        ww - np.outer(t, mean) - np.outer(mean, t) + count * np.outer(mean, mean)
        for ww, t, count in zip(level.ww, total, n, strict=True)
    ]) / (deviation[:, None] * deviation)  # fmt: skip
    rest = sums.xy - sums.xx @ known.alpha  # (F, K): x'(y - x alpha)
    t = level.wy - np.einsum("kcl,c->kl", level.xw, known.alpha) - (rest @ ones)[:, None] * mean
    squares = sums.yy - 2 * sums.xy @ known.alpha + np.einsum("c,kcd,d->k", known.alpha, sums.xx, known.alpha)
    return Scaled(s, t / deviation / known.deviation, squares / known.deviation**2, mean, deviation)


class Chosen(NamedTuple):
    """Level 1: weights (L, F) of the standardised predictions, the index of the chosen parameter, and the error of each parameter:
    mean square of residuals in units of the trait's variance, or minus the log likelihood of a person."""

    weights: Array
    chosen: int
    errors: Array


def level_one(level: Scaled, ridge: Array, persons: float) -> Chosen:
    """The ridge regressions of a quantitative trait over the predictions, without each fold, for the parameters ``ridge`` (R,)."""
    folds, size = level.t.shape
    weights, errors = np.zeros((len(ridge), size, folds)), np.zeros(len(ridge))
    for k in range(folds):
        values, vectors = np.linalg.eigh(level.s.sum(0) - level.s[k])
        along = vectors.T @ (level.t.sum(0) - level.t[k])
        for r, penalty in enumerate(ridge):
            b = vectors @ (along / (np.maximum(values, 0.0) + penalty))
            weights[r, :, k] = b
            errors[r] += level.yy[k] - 2 * b @ level.t[k] + b @ level.s[k] @ b
    best = int(np.argmin(errors))
    return Chosen(weights[best], best, errors / persons)


class Offset(NamedTuple):
    """A person in fold k has the prediction g ``weights[:, k]`` - x ``shift[:, k]``. ``weights`` (P, F), ``shift`` (K, F)."""

    weights: Array
    shift: Array


@dataclass(frozen=True, eq=False)
class Whole:
    """Both levels: the ``blocks`` of level 0 and their chromosomes, the standardisation of their predictions, and level 1's weights
    (L, F), which give predictions in the trait's unit (log-odds) times ``unit``; ``ones`` (K,) as in ``scaled``."""

    blocks: tuple[Blocked, ...]
    contigs: tuple[str, ...]
    level: Scaled
    weights: Array
    unit: float
    ones: Array

    def offset(self, without: str | None) -> Offset:
        """The predictions without the blocks of a chromosome, which is read from ``weights`` by leaving out its variants: the weights are
        those of all variants, the shift is without them."""
        c = self.unit * self.weights / self.level.deviation[:, None]
        weights, shift, at = list[Array](), np.zeros((len(self.ones), self.weights.shape[1])), 0
        for block, contig in zip(self.blocks, self.contigs, strict=True):
            here = slice(at, at + block.weights.shape[1])
            at = here.stop
            weights.append(np.einsum("jrk,rk->jk", block.weights, c[here]))
            if contig != without:
                shift += np.einsum("crk,rk->ck", block.shift, c[here]) + self.ones[:, None] * (self.level.mean[here] @ c[here])
        return Offset(np.concatenate(weights), shift)
