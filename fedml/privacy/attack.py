"""How much a study really tells about who was in it: a lower bound on epsilon from one run with canaries.

A canary is a person (or, for unit ``site``, a site's update) made to be noticed; a fair coin decides whether it takes part. Whoever sees
what the claim's adversary sees guesses the coins; privacy with a small epsilon allows only so many right guesses.

    coins = toss(100, seed)                                 # True: takes part
    canaries = canary_persons(cohort, study, layout, 25, random)
    evidence = Evidence(25)                                 # round by round: what was seen, what each canary would have added
    evidence.add(seen, known, effects, Noise(variance, parts))
    lower_bound(evidence.scores(), coins, delta)            # Finding: epsilon is at least so much, at 95 % confidence

The bound: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv:2305.08846), theorem 5.2 and corollary
5.4. Coins are independent; a guess is made where scores are furthest from the boundary between in and out; on how many canaries is fixed
beforehand, and where several numbers are tried, each is tested at its share of the error (Bonferroni).

Scores: what was seen is regressed on what each canary would have added, weighted by the noise. With much noise that is the inner product
of the canary's gradient with the updates (Nasr et al. 2023, arXiv:2302.07956; Andrew et al. 2023, arXiv:2302.03098); with little it keeps
canaries apart that point the same way. However scores are made, the bound holds.
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
from fedml.learning.task import Task
from fedml.learning.tasks import make_task
from fedml.modalities.layout import Layout
from fedml.modalities.modality import require
from fedml.modalities.registry import inputs_of
from fedml.models.fusion import build_model, load
from fedml.privacy.dpsgd import clipped_sum
from fedml.privacy.statistics import stated_ranges
from fedml.study.study import Study

Vector = npt.NDArray[np.float64]
CONFIDENCE = 0.95
SHARES = (1.0, 0.5, 0.2)  # of the canaries: on how many a guess is made
COORDINATES = 2**19  # of a model that are looked at; of a larger one, so many
_POOL = 4  # candidates for each canary
_TRAIN = 0  # the part of a canary person
_EPSILON_LIMIT = 100.0


@dataclass(frozen=True)
class Finding:
    """Epsilon is at least ``epsilon`` with ``confidence``: ``correct`` of ``guesses`` were right, on ``canaries`` canaries.

    ``estimate`` is no bound: the epsilon of the Gaussian mechanism whose scores would lie as far apart (Andrew et al. 2023, section 3);
    None where scores of neither side, or of one only, are there.
    """

    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    estimate: float | None


def toss(count: int, seed: int | None = None) -> npt.NDArray[np.bool_]:
    """(count,) fair coins; without a seed from the operating system."""
    return np.random.default_rng(secrets.randbits(128) if seed is None else [seed, 1]).random(count) < 0.5


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """At most how likely so many right guesses are for a mechanism with (epsilon, delta): corollary 5.4 of Steinke et al. 2023.

    ``P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i`` with B ~ Binomial(r, e**epsilon / (1 + e**epsilon)), m canaries, r guesses, v of
    them right.

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries, epsilon below 0, or delta outside [0, 1].
    """
    from scipy.stats import binom

    if not (0 <= correct <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(f"{correct} of {guesses} guesses on {canaries} canaries, epsilon {epsilon}, delta {delta} do not go together")
    right = 1 / (1 + math.exp(-epsilon))
    beyond = float(binom.sf(correct - 1, guesses, right))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))  # P[v > B >= v - i] for i = 1, 2, ...
    slope = float((below / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, beyond + 2 * canaries * delta * slope)


def epsilon_at_least(canaries: int, guesses: int, correct: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon that so many right guesses rule out at ``confidence``, by bisection from below; 0 if they rule out none.

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
    """What ``scores`` (higher: rather in) prove about epsilon, given who really was ``included``; both (canaries,).

    A canary is guessed to be in if its score lies in the upper of the two groups into which they fall. For each of ``shares``, fixed
    beforehand, so many canaries are guessed on, those furthest from the groups' boundary; each number is tested at
    ``(1 - confidence) / len(shares)``, and the best counts.
    """
    scores = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.0)
    away = scores - _middle(scores)
    right = (away > 0) == included
    order = np.argsort(-np.abs(away), kind="stable")
    found = []
    for share in shares:
        guesses = max(1, round(share * len(scores)))
        correct = int(right[order[:guesses]].sum())
        alone = 1 - (1 - confidence) / len(shares)
        found.append((epsilon_at_least(len(scores), guesses, correct, delta, alone), guesses, correct))
    epsilon, guesses, correct = max(found)
    return Finding(epsilon, confidence, len(scores), guesses, correct, _estimate(scores, included, delta))


def _middle(scores: Vector) -> float:
    """Between the two groups of ``scores``: the split with the least variance within (k-means of two, exactly)."""
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
    apart = float(inside.mean() - outside.mean())
    return epsilon_gaussian(spread / apart, delta) if apart > 0 and spread > 0 else 0.0


class Evidence:
    """Sums over rounds from which each canary's score follows; memory is (canaries, canaries). Final.

    Seen = known x a + effects x e + noise, where a is free and e, a half for who is in and minus a half for who is out, is what the coins
    decide: the best linear estimate of e (generalised least squares, prior variance 1/4), so a canary about which little is known stays
    near 0, where no guess is made on it.
    """

    def __init__(self, canaries: int) -> None:
        self.gram = np.zeros((canaries + 1, canaries + 1))
        self.seen = np.zeros(canaries + 1)

    def add(self, seen: Vector, known: Vector, effects: Vector, noise: Noise) -> None:
        """One more round.

        Args:
            seen: (coordinates,) what was released.
            known: (coordinates,) what is expected of it, each canary counting a half.
            effects: (canaries, coordinates) what more is expected if a canary is in than if it is out.
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
    """Covariance of what is seen: ``variance`` in each coordinate, and ``parts`` (k, coordinates), each with a chance sign."""

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
    """Clipped gradients of persons at given weights, as vectors, by the code that trains. Final.

    Of a model with more than ``COORDINATES`` parameters, so many drawn by ``random`` are looked at.
    """

    def __init__(self, study: Study, layout: Layout, random: np.random.Generator) -> None:
        self.model: nn.Module = build_model(study, layout).eval()  # without dropout: its mean
        self.task: Task = make_task(study)
        self.norm = study.privacy.clipping_norm
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.size = min(count, COORDINATES)
        self.kept = None if count <= COORDINATES else np.sort(random.choice(count, COORDINATES, replace=False))

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Sets all state of the model by name (learned and constants)."""
        state = self.model.state_dict()
        load({k: state[k] for k in weights}, weights)

    def vector(self, values: dict[str, torch.Tensor]) -> Vector:
        """(coordinates,) of arrays by parameter."""
        flat = torch.cat([values[name].flatten() for name in self.names]).double().numpy()
        return flat if self.kept is None else flat[self.kept]

    def sum(self, cohort: Cohort, rows: npt.NDArray[np.int64]) -> Vector:
        """(coordinates,): the clipped gradients of the persons in ``rows``, summed."""
        sizes = np.zeros(len(cohort)) if len(rows) == 1 else None  # one person is one batch: no need to measure
        return self.vector(clipped_sum(self.model, cohort, rows, self.task, self.norm, sizes=sizes))

    def each(self, cohort: Cohort) -> Vector:
        """(persons, coordinates): every person's clipped gradient."""
        return np.stack([self.sum(cohort, np.array([row])) for row in range(len(cohort))])


def canary_persons(
    cohort: Cohort, study: Study, layout: Layout, count: int, random: np.random.Generator, gradients: Gradients, noise: Noise
) -> Cohort:
    """``count`` training persons with the inputs that ``cohort`` has, whose ``gradients`` are as easily told apart as found.

    Candidates are persons whom nobody resembles: a few clinical values far out and the others in the middle, images of stripes, random
    genotypes, random labels. Of them one is taken after the other, always the one that stands out most from ``noise`` across those taken.
    """
    pool = _candidates(cohort, study, layout, _POOL * count, random)
    vectors = gradients.each(pool)
    gram = noise.whiten(vectors) @ vectors.T
    taken: list[int] = []
    for _ in range(count):
        left = gram.diagonal().copy()
        left[taken] = -1.0
        best = int(left.argmax())
        taken.append(best)
        if left[best] > 0:
            gram = gram - np.outer(gram[:, best], gram[best]) / (left[best] + 1e-9)
    return select(pool, np.sort(np.array(taken, dtype=np.int64)))


def _candidates(cohort: Cohort, study: Study, layout: Layout, count: int, random: np.random.Generator) -> Cohort:
    ranges = stated_ranges(study, layout)
    ids = tuple(f"canary-{cohort.site}-{n + 1:05d}" for n in range(count))
    if study.model.task == "regression":
        low, high = ranges["target"][:, 0]
        labels = np.where(random.random(count) < 0.5, low, high)
    else:
        labels = random.integers(0, len(study.cohort.classes), count).astype(np.float64)
    inputs = {
        modality.name: require(modality.canary, modality, "canary")(value, study, ranges[f"preprocess.{modality.name}"], count, random)
        for modality, value in inputs_of(cohort)
    }
    return Cohort(cohort.site, ids, labels, np.full(count, _TRAIN, dtype=np.int8), inputs)


def direction(seed: int, canary: int, number: int, size: int) -> Vector:
    """(size,) the unit vector along which a canary of unit ``site`` moves in round ``number``, uniform on the sphere.

    A new one each round: in a small model more canaries than parameters stay apart that way.
    """
    drawn = np.random.default_rng([seed, 2, canary, number]).normal(size=size)
    out: Vector = drawn / np.linalg.norm(drawn)
    return out
