"""Logistic regression of a binary trait on each variant in turn, with covariates: the pooled solution from sums over sites.

    state = start(null_theta(K))                                     # 1. null model (covariates): one "variant" without a dosage
    while len(state.active):
        state = step(state, sum of likelihood_sums(None, None, X, y, state.theta))
    sums = sum of score_sums(dosage, frequency, X, y, theta)         # 2. score test of all variants: one exchange
    score_test([null sums of each site], contributes, sums)
    state = start(with_variant(theta, variants))                     # 3. the full model of selected variants
    while len(state.active):                                         #    (dosage and frequency of state.active only)
        state = step(state, sum of likelihood_sums(dosage, frequency, X, y, state.ask))
    wald(state)
    state = start(with_variant(theta, variants), firth=True)         # 4. for rare alleles: Firth's penalised likelihood
        ... likelihood_sums(dosage, frequency, X, y, state.ask, state.inverse)
    held = start(with_variant(theta, variants), firth=True, held=True)           # 5. the same without an effect of the variant
    likelihood_ratio(state, held)

X is (persons, K) float64 with a column of ones (covariates first scaled by ``fedml.analytics.linear.scaled``; y stays 0 and 1), y
(persons,), theta (K + 1, variants) with the variant last; missing dosages count as 2 x the pooled frequency. Symmetric matrices are sent as
their upper triangle, row by row. All sums are additive over sites and over chunks of persons. A site with small cells contributes 0 to the
variant. Use some thousands of variants at a time: the server's state has P x P numbers per variant.

Firth's likelihood (1993, Biometrika 80:27; Heinze and Schemper 2002, Stat Med 21:2409) needs each person's leverage, which needs the pooled
information at the same theta. Therefore the server sends an inverse information with theta: normally that of the previous theta, with one
exchange per iteration; at convergence both belong to the same theta. Variants whose likelihood decreases with it, or that have not
converged after ten exchanges (for instance, all carriers are cases), need two exchanges per iteration: the information at a theta, then the
gradient with it. Both ways give the exact solution.

Its test is the likelihood ratio: of few carriers the likelihood is not a parabola, and a Wald test calls chance significant (10 cases,
5,000 controls, one variant: 1.4e-8, and 6.5e-5 by the ratio). Without an effect, too, the penalty is that of the whole model (Heinze and
Schemper 2002, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.analytics.linear import DEPENDENT, Association, invert, normal_log10_p, patterns
from fedml.cohort.variants.frequency import Array, Dosage, centred, chunks

Index = npt.NDArray[np.int64]

ITERATIONS = 25  # Newton needs fewer than 10; with separation, steps shrink by 1/e per iteration and do not reach _CONVERGED
FIRTH_ITERATIONS = 60
_LAGGING = 10  # exchanges in which Firth's leverages may come from the previous theta
_CONVERGED = 1e-7  # standard errors; a variant has converged when its step is smaller
_HALVINGS = 12
_CELLS = 1 << 17  # persons x variants processed together, sized for the processor's cache
_PERSONS = 2048


@dataclass(frozen=True, eq=False)
class LikelihoodSums:
    """At the requested theta: gradient (P, variants), information (P(P + 1)/2, variants), log likelihood (variants,), persons
    (variants,)."""

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
    """Newton iterations of many variants at once. ``active``: the variants of the next request, which sends ``ask`` (Firth: and
    ``inverse``)."""

    theta: Array  # (P, variants): the next theta to evaluate; of converged variants, the solution
    covariance: Array  # (P, P, variants): inverse information at the last accepted theta
    log_likelihood: Array  # (variants,), penalised for Firth, at the last accepted theta
    active: Index
    converged: npt.NDArray[np.bool_]
    n: Index
    firth: bool
    iteration: int
    accepted: Array  # (P, variants): the last theta that increased the likelihood
    direction: Array  # (P, variants): from ``accepted``
    halvings: Index
    rank: Index  # (variants,): of the information at the first theta
    fresh: npt.NDArray[np.bool_]  # Firth: ``inverse`` belongs to the requested theta
    exact: npt.NDArray[np.bool_]  # Firth: only steps with fresh leverages are taken
    held: bool  # the variant's coefficient stays 0

    @property
    def ask(self) -> Array:
        """(P, active): the theta at which the sums of the active variants are requested."""
        return self.theta[:, self.active]

    @property
    def inverse(self) -> Array:
        """(P(P + 1)/2, active): inverse pooled information for the leverages; 0 before the first reply, so that its leverages are 0."""
        rows, columns = np.triu_indices(len(self.theta))
        return self.covariance[rows, columns][:, self.active]


def null_theta(covariates: int) -> Array:
    """(K, 1) zeros: the starting point of the null model."""
    return np.zeros((covariates, 1))


def with_variant(theta: Array, variants: int) -> Array:
    """(K + 1, variants): the null model's ``theta`` (K, 1) with a coefficient 0 for each variant."""
    return np.vstack([np.repeat(theta, variants, axis=1), np.zeros((1, variants))])


def start(theta: Array, *, firth: bool = False, held: bool = False) -> LogisticState:
    """The state before the first exchange, from ``theta`` (P, variants); ``held``: its last row is not estimated."""
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
        rank=np.zeros(variants, np.int64),
        fresh=np.zeros(variants, np.bool_),
        exact=np.ones(variants, np.bool_),
        held=held,
    )


def step(state: LogisticState, sums: LikelihoodSums) -> LogisticState:
    """The next state from the pooled ``sums`` at ``state.ask``: Newton's next theta, or half the last step if the likelihood decreased.

    A variant has converged when Newton's step is below 1e-7 standard errors (this step is still taken; with lagging Firth leverages the
    previous step must be below too). After ``ITERATIONS`` (``FIRTH_ITERATIONS``) exchanges it counts as not converged.
    """
    size, at, firth = len(state.theta), state.active, state.firth
    rows, columns = np.triu_indices(size)
    information = np.zeros((size, size, len(at)))
    information[rows, columns] = information[columns, rows] = sums.information
    inverse, log_determinant, rank = invert(information)
    value = sums.log_likelihood + (0.5 * log_determinant if firth else 0.0)
    here, before = state.theta[:, at], state.accepted[:, at]
    better = np.isfinite(value) & ((value >= state.log_likelihood[at] - 1e-9 * np.abs(value)) | (state.halvings[at] >= _HALVINGS))
    full_rank = rank >= state.rank[at]  # at extreme theta the weights vanish, and with them the determinant
    if firth:
        better &= full_rank
    free = size - state.held
    newton = np.zeros((size, len(at)))
    solved = invert(information[:free, :free])[0] if state.held else inverse
    newton[:free] = np.einsum("ijv,jv->iv", solved, sums.gradient[:free])
    converged = better & full_rank & (np.einsum("iv,iv->v", newton, sums.gradient) < _CONVERGED**2)
    again = np.zeros(len(at), np.bool_)
    fresh, exact = state.fresh[at], state.exact[at]
    if firth:
        last = np.einsum("iv,ijv,jv->v", here - before, information, here - before)
        converged &= fresh | (~exact & (last < _CONVERGED**2))
        again = ~fresh & np.where(better, exact, ~exact)  # request the same theta again, with its own leverages
        exact = exact | again | (state.iteration + 1 >= _LAGGING)
        exact &= state.iteration > 0
    theta, accepted, direction = state.theta.copy(), state.accepted.copy(), state.direction.copy()
    accepted[:, at] = np.where(better, here, before)
    direction[:, at] = np.where(again, 0.0, np.where(better, newton, direction[:, at] / 2))
    theta[:, at] = accepted[:, at] + direction[:, at]
    covariance = state.covariance.copy()
    covariance[:, :, at] = np.where(better, inverse, covariance[:, :, at])
    over = state.iteration + 1 >= (FIRTH_ITERATIONS if firth else ITERATIONS)
    return replace(
        state,
        theta=theta,
        covariance=covariance,
        log_likelihood=_put(state.log_likelihood, at, np.where(better, value, state.log_likelihood[at])),
        active=at[:0] if over else at[~converged],
        converged=_put(state.converged, at, converged),
        n=_put(state.n, at, sums.n),
        iteration=state.iteration + 1,
        accepted=accepted,
        direction=direction,
        halvings=_put(state.halvings, at, np.where(better, 0, state.halvings[at] + 1)),
        rank=rank if state.iteration == 0 else state.rank,
        fresh=_put(state.fresh, at, again),
        exact=_put(state.exact, at, exact),
    )


def _put(values: npt.NDArray[Any], at: Index, new: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = values.copy()
    out[at] = new
    return out


def likelihood_sums(
    dosage: Dosage | None,
    frequency: Array | None,
    covariates: Array,
    trait: Array,
    theta: Array,
    inverse: Array | None = None,
    offset: Array | None = None,
) -> LikelihoodSums:
    """A site's sums at ``theta`` (P, variants), one theta per variant; without ``dosage``, of the null model, P = K.

    Args:
        dosage: (persons, variants) of the requested variants, with their pooled ``frequency`` (variants,).
        inverse: (P(P + 1)/2, variants): if given, the gradient is Firth's, (y - mu + h(1/2 - mu)) x, where h is a person's leverage.
        offset: (persons,) log-odds that are not estimated, such as those of a whole-genome regression.
    """
    size, variants = theta.shape
    k = covariates.shape[1]
    rows, columns = np.triu_indices(size)
    pair, inner = np.triu_indices(k), columns < k
    out = LikelihoodSums(
        np.zeros(theta.shape), np.zeros((len(rows), variants)), np.zeros(variants), np.full(variants, len(trait), np.int64)
    )
    for at in range(0, len(trait), _PERSONS):
        x, y = covariates[at : at + _PERSONS], trait[at : at + _PERSONS, None]
        products = x[:, pair[0]] * x[:, pair[1]]
        width = max(1, _CELLS // len(x))
        for begin in range(0, variants, width):
            part = slice(begin, begin + width)
            eta = x @ theta[:k, part]
            if offset is not None:
                eta += offset[at : at + _PERSONS, None]
            g = None
            if dosage is not None and frequency is not None:
                g = centred(dosage[at : at + _PERSONS, part], frequency[part])
                eta += g * theta[k, part]
            small = np.exp(-np.abs(eta))
            mu = np.where(eta >= 0, 1.0, small) / (1 + small)
            weight = small / (1 + small) ** 2
            out.log_likelihood[part] += (y * eta - np.maximum(eta, 0) - np.log1p(small)).sum(0)
            rest = y - mu
            if inverse is not None:
                rest += weight * _leverage(inverse[:, part], inner, pair, products, x, g) * (0.5 - mu)
            out.gradient[:k, part] += x.T @ rest
            out.information[inner, part] += products.T @ weight
            if g is not None:
                out.gradient[k, part] += np.einsum("ij,ij->j", g, rest)
                weight *= g
                out.information[~inner, part] += np.vstack([x.T @ weight, np.einsum("ij,ij->j", g, weight)])
    return out


def _leverage(inverse: Array, inner: npt.NDArray[np.bool_], pair: tuple[Index, Index], products: Array, x: Array, g: Array | None) -> Array:
    """(persons, variants): x' C x of each person, where C is the inverse information. Times the weight it is the hat matrix's diagonal."""
    twice = np.where(pair[0] == pair[1], 1.0, 2.0)[:, None]
    out: Array = products @ (inverse[inner] * twice)
    if g is not None:
        variant = inverse[~inner]  # the variant's row of C: with each covariate, then with itself
        out += g * (2 * (x @ variant[:-1]) + g * variant[-1])
    return out


def wald(state: LogisticState) -> Association:
    """Coefficient, standard error and two-sided Wald test of each variant; nan where the iteration did not converge or the variant depends
    linearly on the covariates. Standard errors come from the unpenalised information, for Firth too."""
    variance = state.covariance[-1, -1]
    good = state.converged & (variance > 0)
    beta = np.where(good, state.theta[-1], np.nan)
    error = np.where(good, np.sqrt(np.maximum(variance, 0.0)), np.nan)
    return _by_normal(beta, error, state.n)


def likelihood_ratio(state: LogisticState, held: LogisticState) -> Association:
    """As ``wald``, with the two-sided p value of the (penalised) likelihood ratio of ``state`` to ``held``, the fit without the variant's
    effect; ``statistic`` is its signed root. nan where either did not converge."""
    fitted = wald(state)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(np.maximum(2 * (state.log_likelihood - held.log_likelihood), 0.0))
    statistic = np.where(held.converged & np.isfinite(fitted.beta), np.copysign(root, fitted.beta), np.nan)
    log10_p = normal_log10_p(statistic)
    known = np.isfinite(statistic)
    beta, error = np.where(known, fitted.beta, np.nan), np.where(known, fitted.standard_error, np.nan)
    return Association(beta, error, statistic, 10.0**log10_p, log10_p, fitted.n)


def score_sums(dosage: Dosage, frequency: Array, covariates: Array, trait: Array, theta: Array, offset: Array | None = None) -> ScoreSums:
    """A site's sums for a block of variants at the null model's ``theta`` (K, 1); dosage (persons, variants), frequency (variants,),
    ``offset`` (persons,) as in ``likelihood_sums``."""
    persons, variants = dosage.shape
    eta = (covariates @ theta)[:, 0]
    if offset is not None:
        eta = eta + offset
    small = np.exp(-np.abs(eta))
    rest, weight = trait - np.where(eta >= 0, 1.0, small) / (1 + small), small / (1 + small) ** 2
    weighted = (covariates * weight[:, None]).T
    out = ScoreSums(np.empty(variants), np.empty(variants), np.empty((covariates.shape[1], variants)))
    for part in chunks(persons, variants, 1 << 20):
        g = centred(dosage[:, part], frequency[part])
        out.score[part], out.gwg[part], out.xwg[:, part] = rest @ g, np.einsum("i,ij,ij->j", weight, g, g), weighted @ g
    return out


def score_test(null: Sequence[LikelihoodSums], contributes: npt.NDArray[np.bool_], sums: ScoreSums) -> Association:
    """Score test of each variant, with one-step estimates: beta = U / V, standard error 1 / sqrt(V), z = U / sqrt(V).

    The null model is that of all sites. If some sites do not contribute to a variant, its gradient over the others is not 0 and is
    projected out of U (Neyman's C(alpha) test, 1959).

    Args:
        null: ``likelihood_sums`` of the null model at the theta of ``sums``, one per site.
        contributes: (sites, variants) bool: the site's sums are in ``sums``.
    """
    variants = contributes.shape[1]
    u, v, n = np.full(variants, np.nan), np.full(variants, np.nan), np.zeros(variants, np.int64)
    rows, columns = np.triu_indices(len(null[0].gradient))
    information = np.zeros((len(null[0].gradient), len(null[0].gradient), 1))
    for sites, at in patterns(contributes):
        total = sum((null[i] for i in sites[1:]), null[sites[0]])
        information[rows, columns] = information[columns, rows] = total.information
        projected = invert(information)[0][..., 0] @ sums.xwg[:, at]
        left = sums.gwg[at] - np.einsum("ij,ij->j", sums.xwg[:, at], projected)
        u[at] = sums.score[at] - total.gradient[:, 0] @ projected
        v[at] = np.where(left > DEPENDENT * sums.gwg[at], left, np.nan)
        n[at] = total.n[0]
    return _by_normal(u / v, 1 / np.sqrt(v), n)


def _by_normal(beta: Array, error: Array, n: Index) -> Association:
    log10_p = normal_log10_p(beta / error)
    return Association(beta, error, beta / error, 10.0**log10_p, log10_p, n)


def balance(cases: int, controls: int) -> float:
    """Effective number of persons of a binary outcome, 4 / (1 / cases + 1 / controls), divided by all persons (Willer, Li and Abecasis
    2010, Bioinformatics 26:2190): 1 where there are as many cases as controls."""
    return 4.0 * cases * controls / (cases + controls) ** 2


def needs_firth(frequency: Array, cases: npt.ArrayLike, controls: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(variants,): True where the plain likelihood is unreliable: fewer than 20 minor alleles are expected in the smaller class, or the
    smaller class has less than a tenth of all persons. Variants that do not converge need Firth too (``~state.converged``)."""
    smaller, total = np.minimum(cases, controls), np.add(cases, controls)
    minor = 2 * smaller * np.minimum(frequency, 1 - frequency)
    out: npt.NDArray[np.bool_] = (minor < 20) | (smaller < 0.1 * total)
    return out
