"""Level 1 of a whole-genome regression (``fedml.analytics.ridge``) for two classes: logistic ridge regression over the predictions of
level 0, with the covariates' log-odds of the model without variants as offset, without each fold and for each ridge parameter.

    state = start(level, ridge, weight)
    while len(state.active):                                 # at the server
        sums = sum of likelihood(w, x, y, fold, ask) over sites          # ask: of the active fits, in the units of w
        state = step(state, sums)
    chosen(state)

The sites send the gradient of each fit, and no second derivatives: weighted products of the predictions at many coefficients would tell
more of few persons than one product does. The server starts from the products that it has, times the mean weight, and improves them by
the gradients (BFGS; Nocedal and Wright 2006, Numerical Optimization, section 6.1), to the same maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.analytics.ridge import Chosen, Scaled
from fedml.cohort.variants.frequency import Array

STEPS = 40
_CONVERGED = 1e-15  # of the log likelihood: the next step's gain (half of g' H^-1 g) at which a fit has converged
_HALVINGS = 12


class Ask(NamedTuple):
    """What sites are asked about A fits: coefficients ``beta`` (L, A) of the predictions, in their own units, the constant (A,) that is
    taken from the log-odds, and the fold (A,) that each fit leaves out."""

    beta: Array
    constant: Array
    fold: npt.NDArray[np.int64]


class LogisticSums(NamedTuple):
    """Over the persons who are not in a fit's fold: gradient (L, A) and sum of residuals (A,); log likelihoods (2, A) of these persons and
    of those in the fold. Additive over sites."""

    gradient: Array
    rest: Array
    log_likelihood: Array


@dataclass(frozen=True, eq=False)
class RidgeState:
    """The fits, fold by fold within each parameter: ``beta`` (A, L) at which they are asked, of standardised predictions; the best so far
    with its value and gradient; the inverse Hessian (A, L, L); ``outside`` (A,): log likelihood of the fold left out."""

    level: Scaled
    penalty: Array
    fold: npt.NDArray[np.int64]
    beta: Array
    best: Array
    value: Array
    gradient: Array
    inverse: Array
    outside: Array
    halvings: npt.NDArray[np.int64]
    active: npt.NDArray[np.int64]
    converged: npt.NDArray[np.bool_]
    steps: int = 0

    @property
    def ask(self) -> Ask:
        """What is asked of the active fits."""
        beta = self.beta[self.active].T / self.level.deviation[:, None]
        return Ask(beta, self.level.mean @ beta, self.fold[self.active])


def start(level: Scaled, ridge: Array, weight: float) -> RidgeState:
    """All fits at 0. ``weight``: the mean of p (1 - p) over persons in the model without variants."""
    folds, size = level.t.shape
    fits = folds * len(ridge)
    penalty, fold = np.repeat(ridge, folds), np.tile(np.arange(folds), len(ridge))
    inverse = np.empty((fits, size, size))
    for k in range(folds):
        values, vectors = np.linalg.eigh(weight * (level.s.sum(0) - level.s[k]))
        for at in np.flatnonzero(fold == k):
            inverse[at] = (vectors / (np.maximum(values, 0.0) + penalty[at])) @ vectors.T
    blank = np.zeros((fits, size))
    return RidgeState(
        level, penalty, fold, blank, blank, np.full(fits, -np.inf), blank, inverse, np.zeros(fits), np.zeros(fits, np.int64),
        np.arange(fits), np.zeros(fits, bool),
    )  # fmt: skip


def step(state: RidgeState, sums: LogisticSums) -> RidgeState:
    """The next state from the pooled ``sums`` at ``state.ask``. After ``STEPS`` exchanges the fits that are left count as not converged."""
    at = state.active
    beta = state.beta[at]
    gradient = ((sums.gradient - state.level.mean[:, None] * sums.rest) / state.level.deviation[:, None]).T - state.penalty[at, None] * beta
    value = sums.log_likelihood[0] - 0.5 * state.penalty[at] * (beta**2).sum(1)
    done = state.converged.copy()
    new_beta, best, best_value, best_gradient = state.beta.copy(), state.best.copy(), state.value.copy(), state.gradient.copy()
    inverse, outside, halvings = state.inverse.copy(), state.outside.copy(), state.halvings.copy()
    for row, fit in enumerate(at):
        better = value[row] >= state.value[fit] - 1e-10 * abs(value[row])
        if not better and halvings[fit] < _HALVINGS:
            halvings[fit] += 1
            new_beta[fit] = best[fit] + (beta[row] - best[fit]) / 2
            continue
        if np.isfinite(state.value[fit]):
            inverse[fit] = _updated(inverse[fit], beta[row] - best[fit], best_gradient[fit] - gradient[row])
        halvings[fit] = 0
        best[fit], best_value[fit], best_gradient[fit], outside[fit] = beta[row], value[row], gradient[row], sums.log_likelihood[1, row]
        move = inverse[fit] @ gradient[row]
        done[fit] = 0.5 * float(gradient[row] @ move) < _CONVERGED * max(abs(value[row]), 1.0)
        new_beta[fit] = beta[row] + move
    number = state.steps + 1
    active = np.flatnonzero(~done) if number < STEPS else np.zeros(0, np.int64)
    return replace(
        state, beta=new_beta, best=best, value=best_value, gradient=best_gradient, inverse=inverse, outside=outside, halvings=halvings,
        active=active, converged=done, steps=number,
    )  # fmt: skip


def _updated(inverse: Array, moved: Array, change: Array) -> Array:
    """The inverse Hessian after a step ``moved`` that changed the (negative) gradient by ``change``."""
    along = float(moved @ change)
    if along <= 1e-14 * float(np.linalg.norm(moved) * np.linalg.norm(change)) or along <= 0:
        return inverse
    image = inverse @ change
    out: Array = (
        inverse
        + (along + float(change @ image)) / along**2 * np.outer(moved, moved)
        - (np.outer(image, moved) + np.outer(moved, image)) / along
    )
    return out


def chosen(state: RidgeState, persons: float) -> Chosen:
    """Weights (L, F) of the parameter with the largest log likelihood in the folds left out."""
    folds, size = state.level.t.shape
    outside = state.outside.reshape(-1, folds).sum(1)
    best = int(np.argmax(outside))
    weights = state.best.reshape(-1, folds, size)[best].T
    return Chosen(weights, best, -outside / persons)


def likelihood(w: Array, eta: Array, y: Array, fold: npt.NDArray[np.int64], ask: Ask) -> LogisticSums:
    """A site's sums: ``w`` (persons, L), ``eta`` (persons,) log-odds of the model without variants, y and ``fold`` (persons,)."""
    whole = log_odds(w, eta, ask)
    small = np.exp(-np.abs(whole))
    mu = np.where(whole >= 0, 1.0, small) / (1 + small)
    each = y[:, None] * whole - np.maximum(whole, 0) - np.log1p(small)
    out = fold[:, None] == ask.fold
    rest = np.where(out, 0.0, y[:, None] - mu)
    return LogisticSums(w.T @ rest, rest.sum(0), np.stack([np.where(out, 0.0, each).sum(0), np.where(out, each, 0.0).sum(0)]))


def log_odds(w: Array, eta: Array, ask: Ask) -> Array:
    """(persons, A) log-odds of each fit."""
    out: Array = eta[:, None] + w @ ask.beta - ask.constant
    return out
