"""REGENIE's two steps (Mbatchou et al. 2021, Methods) on one matrix of all persons, step by step as in the paper: for tests.

Nothing here is the project's: plain NumPy, one fold, one block and one person's set at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Dense(NamedTuple):
    """Leave-one-chromosome-out predictions (persons, contigs), and the parameter chosen at level 1."""

    loco: dict[str, Any]
    chosen: int
    level0: Any


def residuals(x: Any, v: Any) -> Any:
    return v - x @ np.linalg.lstsq(x, v, rcond=None)[0]


def ridge(x: Any, y: Any, penalty: float) -> Any:
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def logistic_ridge(w: Any, y: Any, offset: Any, penalty: float) -> Any:
    beta = np.zeros(w.shape[1])
    for _ in range(100):
        mu = 1 / (1 + np.exp(-(offset + w @ beta)))
        hessian = (w * (mu * (1 - mu))[:, None]).T @ w + penalty * np.eye(len(beta))
        move = np.linalg.solve(hessian, w.T @ (y - mu) - penalty * beta)
        beta += move
        if np.abs(move).max() < 1e-13:
            break
    return beta


def logistic(x: Any, y: Any) -> Any:
    theta = np.zeros(x.shape[1])
    for _ in range(50):
        mu = 1 / (1 + np.exp(-x @ theta))
        theta += np.linalg.solve((x * (mu * (1 - mu))[:, None]).T @ x, x.T @ (y - mu))
    return theta


def step_one(g: Any, contigs: list[str], x: Any, y: Any, fold: Any, *, block: int, h2: Any, binary: bool = False) -> Dense:
    """``g`` (persons, variants) dosages, nan if missing, ``contigs`` of the variants, ``x`` covariates with ones, ``fold`` (persons,)."""
    g = np.where(np.isnan(g), np.nanmean(g, axis=0), g)
    n, free = len(y), len(y) - np.linalg.matrix_rank(x)
    g = residuals(x, g)
    g = g / np.sqrt((g**2).sum(0) / free)
    plain = residuals(x, y.astype(float))
    deviation = np.sqrt((plain**2).sum() / free)
    trait, folds = plain / deviation, np.unique(fold)
    columns, places = [], []
    for contig in dict.fromkeys(contigs):
        at = [i for i, c in enumerate(contigs) if c == contig]
        for start in range(0, len(at), block):
            own = g[:, at[start : start + block]]
            for share in h2:
                prediction = np.zeros(n)
                for k in folds:
                    inside = fold != k
                    prediction[~inside] = own[~inside] @ ridge(own[inside], trait[inside], g.shape[1] * (1 - share) / share)
                columns.append((prediction - prediction.mean()) / prediction.std(ddof=1))
                places.append(contig)
    w = np.stack(columns, axis=1)
    offset = x @ logistic(x, y) if binary else None
    fits, errors = [], []
    for share in h2:
        penalty = w.shape[1] * (1 - share) / share * (3 / np.pi**2 if binary else 1.0)
        betas, error = {}, 0.0
        for k in folds:
            inside = fold != k
            if offset is None:
                betas[k] = ridge(w[inside], trait[inside], penalty)
                error += ((trait[~inside] - w[~inside] @ betas[k]) ** 2).sum()
            else:
                betas[k] = logistic_ridge(w[inside], y[inside], offset[inside], penalty)
                eta = offset[~inside] + w[~inside] @ betas[k]
                error -= (y[~inside] * eta - np.logaddexp(0, eta)).sum()
        fits.append(betas)
        errors.append(error)
    best = int(np.argmin(errors))
    loco = {}
    for contig in ["", *dict.fromkeys(contigs)]:
        others = np.array([place != contig for place in places])
        prediction = np.zeros(n)
        for k in folds:
            rows = fold == k
            prediction[rows] = w[np.ix_(rows, others)] @ fits[best][k][others]
        loco[contig] = prediction * (1.0 if binary else deviation)
    return Dense(loco, best, w)


def linear_tests(g: Any, x: Any, y: Any) -> Any:
    """(variants, 2): effect and standard error of each variant, least squares with covariates; nan dosages are the mean."""
    g = np.where(np.isnan(g), np.nanmean(g, axis=0), g)
    g, y = residuals(x, g), residuals(x, y)
    beta = (g * y[:, None]).sum(0) / (g**2).sum(0)
    rest = ((y[:, None] - g * beta) ** 2).sum(0) / (len(y) - np.linalg.matrix_rank(x) - 1)
    return np.stack([beta, np.sqrt(rest / (g**2).sum(0))], axis=1)
