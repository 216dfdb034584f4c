"""Privacy audit: a lower bound on epsilon from one run with canaries.

A canary is an artificial person (or, for unit ``site``, a site's update) that is easy to detect; a fair coin decides whether it takes part.
The attack guesses the coins from the information that the claim's adversary has; a small epsilon limits the number of correct guesses.

    coins = toss(100, seed)                                 # True: takes part
    canaries = canary_persons(cohort, study, layout, 25, random)
    evidence = Evidence(25)                                 # per round: the observed update, and each canary's expected effect
    evidence.add(seen, known, effects, Noise(variance, parts))
    lower_bound(evidence.scores(), coins, delta)            # Finding: a lower bound of epsilon at 95 % confidence

The bound: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv:2305.08846), theorem 5.2 and corollary
5.4. Coins are independent; guesses are made for the canaries whose scores are furthest from the boundary between included and excluded; the
number of guesses is fixed beforehand, and if several numbers are tried, each is tested at its share of the error (Bonferroni).

Scores: the observations are regressed on the canaries' expected effects, weighted by the noise. With much noise this is the inner product
of the canary's gradient with the updates (Nasr et al. 2023, arXiv:2302.07956; Andrew et al. 2023, arXiv:2302.03098); with little noise it
also separates canaries of similar direction. The bound holds for any scores.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedml.cohort.persons import Cohort, select
from fedml.modalities.layout import Layout
from fedml.modalities.modality import require
from fedml.modalities.registry import inputs_of
from fedml.models.fusion import build_model, load
from fedml.privacy.dpsgd import clipped_sum
from fedml.privacy.statistics import stated_ranges
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task, built

Vector = npt.NDArray[np.float64]
CONFIDENCE = 0.95
SHARES = (1.0, 0.5, 0.2)  # shares of the canaries for which a guess is made
COORDINATES = 2**19  # largest number of a model's parameters that the audit uses
_POOL = 4  # candidates per canary
_TRAIN = 0  # the part of a canary person
_EPSILON_LIMIT = 100.0


@dataclass(frozen=True)
class Finding:
    """Epsilon is at least ``epsilon`` with ``confidence``: ``correct`` of ``guesses`` were right, on ``canaries`` canaries.

    ``estimate`` is not a bound: the epsilon of a Gaussian mechanism with scores of the same separation (Andrew et al. 2023, section 3);
    None if fewer than two canaries are included, or fewer than two are not.
    """

    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    estimate: float | None


def toss(count: int, seed: int | None = None) -> npt.NDArray[np.bool_]:
    """(count,) fair coins, from ``seed`` or else from the operating system."""
    return np.random.default_rng(secrets.randbits(128) if seed is None else [seed, 1]).random(count) < 0.5


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Upper bound of the probability of so many correct guesses for an (epsilon, delta) mechanism: corollary 5.4 of Steinke et al. 2023.

    ``P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i`` with B ~ Binomial(r, e**epsilon / (1 + e**epsilon)), m canaries, r guesses, v of
    them correct.

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries, epsilon below 0, or delta outside [0, 1].
    """
    from scipy.stats import binom

    if not (0 <= correct <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(f"{correct} of {guesses} guesses on {canaries} canaries, epsilon {epsilon}, delta {delta} are inconsistent")
    right = 1 / (1 + math.exp(-epsilon))
    beyond = float(binom.sf(correct - 1, guesses, right))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))  # P[v > B >= v - i] for i = 1, 2, ...
    slope = float((below / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, beyond + 2 * canaries * delta * slope)


def epsilon_at_least(canaries: int, guesses: int, correct: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon that so many correct guesses reject at ``confidence``, by bisection, rounded down; 0 if they reject none.

    Raises:
        ValueError: as ``p_value``.
    """
    low, high = 0.0, _EPSILON_LIMIT
    if p_value(canaries, guesses, correct, low, delta) >= 1 - confidence:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, correct, middle, delta) < 1 - confidence else (low, middle)
    return low


def lower_bound(
    scores: Sequence[float] | Vector, included: npt.NDArray[np.bool_], delta: float, *, confidence: float = CONFIDENCE,
    shares: Sequence[float] = SHARES,
) -> Finding:  # fmt: skip
    """The lower bound of epsilon from ``scores`` (higher: rather included) and the coins ``included``; both (canaries,).

    A canary is guessed to be included if its score is in the upper of two clusters. For each of ``shares``, fixed beforehand, guesses are
    made for that share of the canaries, those furthest from the clusters' boundary; each number is tested at
    ``(1 - confidence) / len(shares)``, and the best bound counts.
    """
    scores = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.0)
    distance = scores - _boundary(scores)
    right = (distance > 0) == included
    order = np.argsort(-np.abs(distance), kind="stable")
    found = []
    for share in shares:
        guesses = max(1, round(share * len(scores)))
        correct = int(right[order[:guesses]].sum())
        adjusted = 1 - (1 - confidence) / len(shares)
        found.append((epsilon_at_least(len(scores), guesses, correct, delta, adjusted), guesses, correct))
    epsilon, guesses, correct = max(found)
    return Finding(epsilon, confidence, len(scores), guesses, correct, _estimate(scores, included, delta))


def _boundary(scores: Vector) -> float:
    """The boundary between two clusters of ``scores``: the split with the least variance within clusters (exact 2-means)."""
    ordered = np.sort(scores)
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return float(ordered.mean()) if len(ordered) else 0.0
    count = np.arange(1, len(ordered))
    before = np.cumsum(ordered)[:-1]
    between = before**2 / count + (ordered.sum() - before) ** 2 / (len(ordered) - count)
    at = int(between.argmax())
    return float((ordered[at] + ordered[at + 1]) / 2)


def _estimate(scores: Vector, included: npt.NDArray[np.bool_], delta: float) -> float | None:
    from fedml.privacy.accounting import epsilon_gaussian

    inside, outside = scores[included], scores[~included]
    if min(len(inside), len(outside)) < 2:
        return None
    spread = math.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    difference = float(inside.mean() - outside.mean())
    return epsilon_gaussian(spread / difference, delta) if difference > 0 and spread > 0 else 0.0


class Evidence:
    """Sums over rounds from which each canary's score is computed; memory is (canaries, canaries). Final.

    Model: seen = known x a + effects x e + noise, where a is free, and e is +1/2 for an included canary and -1/2 otherwise. The scores are
    the best linear estimate of e (generalised least squares, prior variance 1/4); a canary with little information has a score near 0 and
    is among the last to be guessed.
    """

    def __init__(self, canaries: int) -> None:
        self.gram = np.zeros((canaries + 1, canaries + 1))
        self.seen = np.zeros(canaries + 1)

    def add(self, seen: Vector, known: Vector, effects: Vector, noise: Noise) -> None:
        """Adds a round.

        Args:
            seen: (coordinates,) the released update.
            known: (coordinates,) the expected update with half of each canary's effect.
            effects: (canaries, coordinates) expected update with the canary minus expected update without it.
            noise: covariance of the released update.
        """
        columns = np.vstack([known[None], effects])
        weighted = noise.whiten(columns)
        self.gram += weighted @ columns.T
        self.seen += weighted @ seen

    def scores(self) -> Vector:
        """(canaries,): estimates of e."""
        ridge = np.diag(np.r_[1e-12 * max(self.gram[0, 0], 1e-300), np.full(len(self.gram) - 1, 4.0)])
        found: Vector = np.linalg.lstsq(self.gram + ridge, self.seen, rcond=None)[0]
        return found[1:]


@dataclass(frozen=True)
class Noise:
    """Covariance of a released update: ``variance`` in each coordinate, plus ``parts`` (k, coordinates), each with a random sign."""

    variance: float
    parts: Vector

    def whiten(self, rows: Vector) -> Vector:
        """(n, coordinates): ``rows`` times the inverse covariance (Woodbury)."""
        if not self.parts.any():
            return rows / self.variance
        inner = self.variance * np.eye(len(self.parts)) + self.parts @ self.parts.T
        out: Vector = (rows - np.linalg.solve(inner, self.parts @ rows.T).T @ self.parts) / self.variance
        return out


class Gradients:
    """Clipped gradients of persons at given weights, as vectors, computed by the training code. Final.

    Of a model with more than ``COORDINATES`` parameters, a random subset of that size is used.
    """

    def __init__(self, study: Study, layout: Layout, random: np.random.Generator) -> None:
        self.model: nn.Module = build_model(study, layout).eval()  # without dropout, which gives the mean
        self.task: Task = make_task(study)
        self.norm = study.privacy.clipping_norm
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.size = min(count, COORDINATES)
        self.kept = None if count <= COORDINATES else np.sort(random.choice(count, COORDINATES, replace=False))

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Sets the model's state by name (parameters and constants)."""
        state = self.model.state_dict()
        load({k: state[k] for k in weights}, weights)

    def vector(self, values: dict[str, torch.Tensor]) -> Vector:
        """(coordinates,): the vector of tensors by parameter name."""
        flat = torch.cat([values[name].flatten() for name in self.names]).double().numpy()
        return flat if self.kept is None else flat[self.kept]

    def sum(self, cohort: Cohort, rows: npt.NDArray[np.int64]) -> Vector:
        """(coordinates,): the sum of the clipped gradients of the persons in ``rows``."""
        sizes = np.zeros(len(cohort)) if len(rows) == 1 else None  # one person is one batch, so sizes are not needed
        return self.vector(clipped_sum(self.model, cohort, rows, self.task, self.norm, sizes=sizes))

    def each(self, cohort: Cohort) -> Vector:
        """(persons, coordinates): every person's clipped gradient."""
        return np.stack([self.sum(cohort, np.array([row])) for row in range(len(cohort))])


def canary_persons(
    cohort: Cohort, study: Study, layout: Layout, count: int, random: np.random.Generator, gradients: Gradients, noise: Noise
) -> Cohort:
    """``count`` artificial training persons with the inputs of ``cohort``, chosen so that their ``gradients`` are easy to detect.

    Candidates are atypical persons: a few clinical values far out and the others in the middle, images of stripes, random genotypes, random
    labels. They are chosen greedily: each next canary has the largest gradient, relative to ``noise``, orthogonal to those chosen before.
    """
    pool = _candidates(cohort, study, layout, _POOL * count, random)
    vectors = gradients.each(pool)
    gram = noise.whiten(vectors) @ vectors.T
    chosen: list[int] = []
    for _ in range(count):
        remaining = gram.diagonal().copy()
        remaining[chosen] = -1.0
        best = int(remaining.argmax())
        chosen.append(best)
        if remaining[best] > 0:
            gram = gram - np.outer(gram[:, best], gram[best]) / (remaining[best] + 1e-9)
    return select(pool, np.sort(np.array(chosen, dtype=np.int64)))


def _candidates(cohort: Cohort, study: Study, layout: Layout, count: int, random: np.random.Generator) -> Cohort:
    ranges = stated_ranges(study, layout)
    ids = tuple(f"canary-{cohort.site}-{n + 1:05d}" for n in range(count))
    task, stated = make_task(study), ranges.get("target")
    between = None if stated is None else (float(stated[0, 0]), float(stated[1, 0]))
    labels = built(task.labels.canary, task.name, "an audit with canary persons")(count, between, random)
    inputs = {
        modality.name: require(modality.canary, modality, "canary")(value, study, ranges[f"preprocess.{modality.name}"], count, random)
        for modality, value in inputs_of(cohort)
    }
    return Cohort(cohort.site, ids, labels, np.full(count, _TRAIN, dtype=np.int8), inputs)


def direction(seed: int, canary: int, number: int, size: int) -> Vector:
    """(size,): the unit vector that a canary of unit ``site`` adds in round ``number``, uniform on the sphere.

    It differs in each round, so that canaries can be distinguished even if there are more of them than parameters.
    """
    drawn = np.random.default_rng([seed, 2, canary, number]).normal(size=size)
    out: Vector = drawn / np.linalg.norm(drawn)
    return out
