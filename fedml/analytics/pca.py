"""Principal components of the pooled genotypes: sites compute products, the server iterates until the components converge.

    state = start(variants, k=10, seed=0)
    while not state.done:                                            # at the server
        total = sum of site_product(blocks, frequency, state.basis)  # at each site, over its persons
        state = step(state, total)
    scores(dosage, frequency, state.loadings, state.eigenvalues)     # at a site: its persons' components

Genotypes are standardised as by Patterson, Price and Reich (2006, PLoS Genet 2:e190): Z = (dosage - 2p) / sqrt(2p(1 - p)) with the pooled
frequency p; missing calls and monomorphic variants are 0. The loadings are eigenvectors of Z'Z, a sum over persons and hence over sites.

Every product discloses something about a small site, so the number of requested columns is kept low: the best approximation is taken from
the span of all earlier columns (Rayleigh-Ritz on a block Krylov space; Knyazev 2001, SIAM J Sci Comput 23:517 for residuals as new
directions), and only directions of components that have not converged are requested. ``columns_asked`` counts them; a site can limit it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fedml.cohort.variants.frequency import Array, Dosage, centred

_WORKING = 1 << 22  # elements of a standardised chunk (32 MB)


@dataclass(frozen=True, eq=False)
class PcaState:
    """State of the iteration. ``basis`` (variants, columns): the next request; ``step`` takes its product."""

    basis: Array
    space: Array  # (variants, m) orthonormal: all columns requested so far, or their best combinations
    image: Array  # (variants, m): Z'Z times space
    loadings: Array  # (variants, k) orthonormal, largest component first; the largest entry of each is positive
    eigenvalues: Array  # (k,) of Z'Z; divided by the number of polymorphic variants, those of the relationship matrix
    k: int
    oversample: int
    tolerance: float
    steps: int = 0
    columns_asked: int = 0
    moved: float = np.inf  # largest principal angle between the last two approximations, radians
    angle: float = np.inf  # upper bound of the largest principal angle to the exact components, radians
    residual: float = np.inf  # largest of |Z'Z v - lambda v| / lambda
    done: bool = False


def start(variants: int, k: int, oversample: int = 4, seed: int = 0, tolerance: float = 5e-5) -> PcaState:
    """The first state: ``k`` + ``oversample`` random orthonormal columns.

    Args:
        tolerance: the iteration ends when ``moved``, ``angle`` and ``residual`` are all below it.

    Raises:
        ValueError: ``k`` is not between 1 and ``variants`` - 1.
    """
    if not 0 < k < variants:
        raise ValueError(f"{k} components of {variants} variants: there must be more variants than components")
    columns = min(k + max(1, oversample), variants)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((variants, columns)))[0]
    empty = np.zeros((variants, 0))
    return PcaState(basis, empty, empty, basis[:, :k], np.zeros(k), k, columns - k, tolerance)


def step(state: PcaState, product: Array) -> PcaState:
    """The next state from the sites' summed ``product`` (variants, columns) of ``state.basis``.

    The bound of the angle is that of Davis and Kahan (1970): the residual divided by the eigenvalue gap to the first component beyond k.
    Memory is at most 12 (k + oversample) columns: a longer history is reduced to the best 2 (k + oversample) combinations.
    """
    k, block = state.k, state.k + state.oversample
    space, image = np.hstack([state.space, state.basis]), np.hstack([state.image, product])
    small = space.T @ image
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    ritz = space @ vectors[:, :k]
    rest = image @ vectors[:, :k] - ritz * values[:k]
    size = np.linalg.norm(rest, axis=0)
    floor = 1e-13 * max(float(values[0]), 1e-300)  # a residual below it is rounding error
    rest, size = np.where(size > floor, rest, 0.0), np.where(size > floor, size, 0.0)
    gap = np.maximum(values[:k] - values[k], floor)
    angle = float(np.linalg.norm(rest / gap, 2))
    residual = float((size / np.maximum(values[:k], floor)).max())
    outside: Array = ritz - state.loadings @ (state.loadings.T @ ritz)
    moved = float(np.arcsin(min(1.0, float(np.linalg.norm(outside, 2)))))
    columns_asked = state.columns_asked + state.basis.shape[1]
    signs = np.where(ritz[np.abs(ritz).argmax(0), np.arange(k)] < 0, -1.0, 1.0)
    known = replace(state, loadings=ritz * signs, eigenvalues=values[:k], steps=state.steps + 1, columns_asked=columns_asked)
    known = replace(known, moved=moved, angle=angle, residual=residual)
    # A residual is a new direction for its component; components that have converged need none.
    moving = size / gap > state.tolerance / np.sqrt(k)
    basis = _new_directions(rest[:, moving] / size[moving], space)
    if basis.shape[1] == 0 or (state.steps > 0 and max(moved, angle, residual) < state.tolerance):
        return replace(known, basis=basis[:, :0], space=space[:, :0], image=image[:, :0], done=True)
    if space.shape[1] + basis.shape[1] > 6 * block:
        keep = vectors[:, : 2 * block]
        space, image = space @ keep, image @ keep
    return replace(known, basis=basis, space=space, image=image)


def _new_directions(columns: Array, space: Array) -> Array:
    """Orthonormal columns that span the part of ``columns`` outside ``space``; fewer if the columns are linearly dependent."""
    for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
        columns = columns - space @ (space.T @ columns)
    if columns.shape[1] == 0:
        return columns
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    kept = left[:, singular > 1e-8 * max(float(singular[0]), 1e-8)]
    kept = kept - space @ (space.T @ kept)
    out: Array = np.linalg.qr(kept)[0]
    return out


def inverse_deviation(frequency: Array) -> Array:
    """(variants,): 1 / sqrt(2p(1 - p)); 0 where the variant is monomorphic or has no call."""
    variance = 2 * frequency * (1 - frequency)
    usable = np.nan_to_num(variance) > 0
    return np.where(usable, 1 / np.sqrt(np.where(usable, variance, 1.0)), 0.0)


def site_product(blocks: Iterable[Dosage], frequency: Array, basis: Array) -> Array:
    """This site's summand of Z'Z ``basis``: (variants, columns). Computes Z in chunks of about 32 MB.

    Args:
        blocks: dosages (persons, variants) of some persons each, all variants.
        frequency: (variants,) pooled.
        basis: (variants, columns), from the server.
    """
    inverse = inverse_deviation(frequency)[:, None]
    weighted, out = basis * inverse, np.zeros_like(basis)
    rows = max(1, _WORKING // max(1, len(frequency)))
    for dosage in blocks:
        for at in range(0, len(dosage), rows):
            z = centred(dosage[at : at + rows], frequency)
            out += z.T @ (z @ weighted)
    return out * inverse


def scores(dosage: Dosage, frequency: Array, loadings: Array, eigenvalues: Array) -> Array:
    """(persons, k): the persons' components, Z v / sqrt(lambda). The sum of a component's squares over the persons of all sites is 1, as in
    PLINK's ``.eigenvec``; a component is 0 if its eigenvalue is 0."""
    positive = eigenvalues > 1e-12 * eigenvalues.max()
    inverse_root = np.where(positive, 1 / np.sqrt(np.where(positive, eigenvalues, 1.0)), 0.0)
    weighted = loadings * inverse_deviation(frequency)[:, None] * inverse_root
    rows = max(1, _WORKING // max(1, len(frequency)))
    return np.vstack([centred(dosage[at : at + rows], frequency) @ weighted for at in range(0, max(1, len(dosage)), rows)])
