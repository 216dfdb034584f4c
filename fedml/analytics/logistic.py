"""Logistic regression of a yes-or-no trait on each variant in turn, with covariates: from sums over sites, to the pooled solution.

    state = start(null_theta(K))                                     # 1. covariates alone: one "variant" without a dosage
    while len(state.active):
        state = step(state, sum of likelihood_sums(None, None, X, y, state.theta))
    sums = sum of score_sums(dosage, frequency, X, y, theta)         # 2. score test of all variants: one exchange
    score_test([null sums of each site], contributes, sums)
    state = start(with_variant(theta, variants))                     # 3. the full model of the variants that matter
    while len(state.active):                                         #    (dosage and frequency of state.active only)
        state = step(state, sum of likelihood_sums(dosage, frequency, X, y, state.ask))
    wald(state)
    state = start(with_variant(theta, variants), firth=True)         # 4. where few carry the allele: Firth's penalised likelihood
        ... likelihood_sums(dosage, frequency, X, y, state.ask, state.inverse)

X is (persons, K) float64 with a column of ones (``fedml.analytics.linear.scaled`` first), y (persons,) of 0 and 1, theta (K + 1, variants) with
the variant last; missing dosages count as 2 x the pooled frequency. Symmetric matrices travel as their upper triangle, row after row.
All sums add up over sites and over chunks of persons. A site with small cells adds nothing to the variant.

Firth (1993, Biometrika 80:27; Heinze and Schemper 2002, Stat Med 21:2409) needs each person's leverage, which needs the pooled information at
the same theta. One exchange an iteration: the server sends theta and the inverse information at the theta before. Where the iteration
stands still both are the same theta's, so the solution is the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedml.analytics.frequency import Array, Dosage, centred
from fedml.analytics.linear import DEPENDENT, Association, invert, normal_log10_p, patterns

Index = npt.NDArray[np.int64]

ITERATIONS = 25  # Newton needs fewer than 10; a separated variant's step shrinks by 1/e an iteration and never gets as small as _STILL
FIRTH_ITERATIONS = 60
_STILL = 1e-7  # a step of so many standard errors is the last
_LONGEST = 5.0  # a step's largest change of a coefficient, in units of its column's scale: the next theta may not overshoot into saturation
_HALVINGS = 12
_CELLS = 1 << 17  # persons x variants worked on together: what fits in the processor's cache
_PERSONS = 2048


@dataclass(frozen=True, eq=False)
class LikelihoodSums:
    """At the theta asked: gradient (P, variants), information (P(P + 1)/2, variants), log likelihood (variants,) and persons."""

    gradient: Array
    information: Array
    log_likelihood: Array
    n: Index

    def __add__(self, other: LikelihoodSums) -> LikelihoodSums:
        return LikelihoodSums(
            self.gradient + other.gradient,
            self.information + other.information,
            self.log_likelihood + other.log_likelihood,
            self.n + other.n,
        )


@dataclass(frozen=True, eq=False)
class ScoreSums:
    """At the null theta: g'(y - mu) (variants,), g'Wg (variants,), X'Wg (K, variants)."""

    score: Array
    gwg: Array
    xwg: Array

    def __add__(self, other: ScoreSums) -> ScoreSums:
        return ScoreSums(self.score + other.score, self.gwg + other.gwg, self.xwg + other.xwg)


@dataclass(frozen=True, eq=False)
class LogisticState:
    """Newton iterations of many variants at once. ``active`` are the variants to ask about: send ``ask`` (and ``inverse`` for Firth)."""

    theta: Array  # (P, variants): to be tried next; of variants that are done, the solution
    covariance: Array  # (P, P, variants): inverse information, at the last theta that was looked at
    log_likelihood: Array  # (variants,), penalised for Firth, of the last theta that was accepted
    active: Index
    converged: npt.NDArray[np.bool_]
    n: Index
    firth: bool
    iteration: int
    accepted: Array  # (P, variants): the last theta that was better than the one before
    direction: Array  # (P, variants): from ``accepted``
    halvings: Index

    @property
    def ask(self) -> Array:
        """(P, active): where the sums of the active variants are wanted."""
        return self.theta[:, self.active]

    @property
    def inverse(self) -> Array:
        """(P(P + 1)/2, active): inverse pooled information for the leverages; 0 before the first answer, which then has none."""
        rows, columns = np.triu_indices(len(self.theta))
        return self.covariance[rows, columns][:, self.active]


def null_theta(covariates: int) -> Array:
    """(K, 1) of zeros: where the model of the covariates alone begins."""
    return np.zeros((covariates, 1))


def with_variant(theta: Array, variants: int) -> Array:
    """(K + 1, variants): the null model's ``theta`` (K, 1) with a coefficient 0 for each variant."""
    return np.vstack([np.repeat(theta, variants, axis=1), np.zeros((1, variants))])


def start(theta: Array, *, firth: bool = False) -> LogisticState:
    """The state before the first exchange, from ``theta`` (P, variants)."""
    size, variants = theta.shape
    blank = np.zeros((size, variants))
    return LogisticState(
        theta=theta,
        covariance=np.zeros((size, size, variants)),
        log_likelihood=np.full(variants, -np.inf),
        active=np.arange(variants),
        converged=np.zeros(variants, np.bool_),
        n=np.zeros(variants, np.int64),
        firth=firth,
        iteration=0,
        accepted=theta,
        direction=blank,
        halvings=np.zeros(variants, np.int64),
    )


def step(state: LogisticState, sums: LikelihoodSums) -> LogisticState:
    """The state after the pooled ``sums`` at ``state.ask`` have come in: Newton's next theta, or half the last step if that made it worse.

    A variant is done when Newton's step is below 1e-7 standard errors (that step is still taken; for Firth the one before must have been
    small too, as the leverages lag behind), or unconverged after ``ITERATIONS`` (``FIRTH_ITERATIONS``).
    """
    size, at = len(state.theta), state.active
    rows, columns = np.triu_indices(size)
    information = np.zeros((size, size, len(at)))
    information[rows, columns] = information[columns, rows] = sums.information
    inverse, log_determinant, _ = invert(information)
    value = sums.log_likelihood + (0.5 * log_determinant if state.firth else 0.0)
    here = state.theta[:, at]
    # Firth's first answer came without leverages: it only serves to know the information.
    first = state.firth and state.iteration == 0
    newton = np.zeros_like(here) if first else np.einsum("ijv,jv->iv", inverse, sums.gradient)
    slack = 1e-9 * np.maximum(1.0, np.abs(value))
    better = (value >= state.log_likelihood[at] - slack) | (state.halvings[at] >= _HALVINGS)
    better &= np.isfinite(value)
    scale = np.sqrt(np.maximum(information[np.arange(size), np.arange(size)], 0.0) / np.maximum(sums.n, 1))
    longest = np.abs(newton * scale).max(0)
    newton = newton * np.minimum(1.0, _LONGEST / np.maximum(longest, 1e-300))
    decrement = np.sqrt(np.maximum(np.einsum("iv,iv->v", newton, sums.gradient), 0.0))
    last = np.einsum("iv,ijv,jv->v", here - state.accepted[:, at], information, here - state.accepted[:, at])
    still = better & (decrement < _STILL) & (not first)
    if state.firth:
        still &= (np.sqrt(np.maximum(last, 0.0)) < _STILL) & (state.iteration > 1)
    accepted, direction, halvings = state.accepted.copy(), state.direction.copy(), state.halvings.copy()
    accepted[:, at] = np.where(better, here, accepted[:, at])
    direction[:, at] = np.where(better, newton, direction[:, at] / 2)
    halvings[at] = np.where(better, 0, halvings[at] + 1)
    theta, covariance, likelihood = state.theta.copy(), state.covariance.copy(), state.log_likelihood.copy()
    theta[:, at] = accepted[:, at] + direction[:, at]
    covariance[:, :, at] = np.where(better | (state.iteration == 0), inverse, covariance[:, :, at])
    likelihood[at] = np.where(better, value, likelihood[at])
    converged, n = state.converged.copy(), state.n.copy()
    converged[at] = still & (inverse[-1, -1] > 0)
    n[at] = sums.n
    over = state.iteration + 1 >= (FIRTH_ITERATIONS if state.firth else ITERATIONS)
    return replace(
        state,
        theta=theta,
        covariance=covariance,
        log_likelihood=likelihood,
        active=at[:0] if over else at[~still],
        converged=converged,
        n=n,
        iteration=state.iteration + 1,
        accepted=accepted,
        direction=direction,
        halvings=halvings,
    )
