"""How often intervals hold the truth, and how often tests of no difference reject, over simulated cohorts: the shipped functions, called.

    python -m fedml.experiments.bench.coverage                    # 500 cohorts of each situation, in some minutes
    python -m fedml.experiments.bench.coverage --cohorts 100 --only clusters

Of 500 cohorts, a right interval of 95 % holds the truth in 93.1 to 96.9 % (two standard errors); a right test of 5 % rejects in 3.1 to
6.9 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from scipy.special import expit, logit

from fedml.learning.differences import People, over_seeds, paired_bootstrap
from fedml.study.study import Study, validate
from fedml.tasks.across_sites import random_effects, within_sites
from fedml.tasks.clusters import design_counts
from fedml.tasks.counts import Counts
from fedml.tasks.drawn import statistic
from fedml.tasks.interval_tools import student
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task

Floats = npt.NDArray[np.float64]
COHORTS = 500
DRAWS = 1000  # of a bootstrap; the product takes 2,000
LARGE = 2_000_000  # persons whose mean stands for the truth

STUDY = validate(
    Study,
    {
        "study": {"name": "coverage"},
        "federation": {"sites": ["a", "b"], "rounds": 1},
        "cohort": {"inputs": ["clinical"], "target": "y", "clinical": {"columns": ["x"]}},
    },
    "coverage",
)
TASK = make_task(STUDY)


class Row(NamedTuple):
    """One line: what is measured, ``coverage`` or ``type I error``, how often, and in how many cohorts there was no interval or test."""

    situation: str
    what: str
    share: float
    above: float
    below: float
    refused: float


class _Limits:
    """Counts of intervals that hold the truth, lie above it or below it, or do not exist."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []
        self.none = 0

    def add(self, low: float, high: float, truth: float) -> None:
        if math.isnan(low) or math.isnan(high):
            self.none += 1
        else:
            self.seen.append((low > truth, high < truth))

    def row(self, situation: str, what: str = "coverage") -> Row:
        above, below = np.mean(self.seen, axis=0) if self.seen else (math.nan, math.nan)
        return Row(situation, what, 1 - above - below, above, below, self.none / max(self.none + len(self.seen), 1))


def counts_of(log_odds: Floats, case: npt.NDArray[Any]) -> Counts:
    """Counts of persons with these predicted log-odds."""
    z = torch.from_numpy(np.ascontiguousarray(log_odds))
    return TASK.counts(torch.stack([torch.zeros_like(z), z], 1), torch.from_numpy(case.astype(np.float32)))


# --- situations


def rare_cases(cohorts: int) -> Iterator[Row]:
    """Log loss, Brier score and AUROC of 300 persons of whom about 5 are cases."""
    share, distance, slope = 5 / 300, 2.0, 1.0
    rng = np.random.default_rng(1)

    def draw(persons: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        case = rng.random(persons) < share
        x = rng.normal(0, 1, persons) + distance * case
        return slope * (x * distance - distance**2 / 2 + logit(share)), case

    z, y = draw(LARGE)
    truth = {"log_loss": np.logaddexp(0, np.where(y, -z, z)).mean(), "brier": ((expit(z) - y) ** 2).mean(),
             "auroc": stats.norm.cdf(distance / math.sqrt(2))}  # fmt: skip
    found = {metric: _Limits() for metric in truth}
    for k in range(cohorts):
        counts = counts_of(*draw(300))
        for metric, seen in found.items():
            got = interval(counts, TASK, metric, seed=k, draws=DRAWS)
            seen.add(got.low, got.high, truth[metric])
    for metric, seen in found.items():
        yield seen.row(f"{metric}, 5 cases of 300")


def few_masks(cohorts: int) -> Iterator[Row]:
    """The mean Dice of 12 persons."""
    kinds: dict[str, Callable[[np.random.Generator, int], Floats]] = {
        "one peak, skewed": lambda rng, n: rng.beta(9, 2, n),
        "one peak, very skewed": lambda rng, n: rng.beta(4, 1, n),
        "one person in ten fails": lambda rng, n: np.where(rng.random(n) < 0.1, rng.beta(1, 4, n), rng.beta(30, 4, n)),
    }
    for name, draw in kinds.items():
        for persons in (12, 30):
            rng, seen = np.random.default_rng(2), _Limits()
            truth = float(draw(rng, LARGE).mean())
            for _ in range(cohorts):
                dice = draw(rng, persons)
                got = student([(persons, float(dice.sum()), float((dice**2).sum()))], 0.95, share=True)
                seen.add(got.low, got.high, truth)
            yield seen.row(f"Dice, {persons} persons, {name}")


class _Families:
    """75 families of 4; case or not, and scores, correlate within a family."""

    def __init__(self, seed: int, icc: float = 0.5) -> None:
        self.rng, self.icc, self.family = np.random.default_rng(seed), icc, np.repeat(np.arange(75), 4)

    def normal(self, icc: float) -> Floats:
        persons = len(self.family)
        return math.sqrt(icc) * self.rng.normal(0, 1, 75)[self.family] + math.sqrt(1 - icc) * self.rng.normal(0, 1, persons)

    def draw(self) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
        """Case, and log-odds of two equally good models."""
        case = self.normal(self.icc) > stats.norm.ppf(0.7)
        return case, self.normal(self.icc) + case, self.normal(self.icc) + case


def clusters(cohorts: int) -> Iterator[Row]:
    """Families of 4 with an intraclass correlation of 0.5: intervals and paired tests, with and without the cluster column."""
    families = _Families(3)
    grid = np.linspace(-9, 9, 4001)
    weight = stats.norm.pdf(grid) * (grid[1] - grid[0])
    truth = {"auroc": float(stats.norm.cdf(1 / math.sqrt(2))), "accuracy": 0.7 * stats.norm.cdf(0) + 0.3 * stats.norm.cdf(1),
             "log_loss": float(0.7 * weight @ np.logaddexp(0, grid) + 0.3 * weight @ np.logaddexp(0, -(grid + 1))),
             "brier": float(0.7 * weight @ expit(grid) ** 2 + 0.3 * weight @ (1 - expit(grid + 1)) ** 2)}  # fmt: skip
    found = {(metric, way): _Limits() for metric in truth for way in ("without the column", "with the column")}
    tests: dict[str, list[bool]] = {way: [] for way in ("without the column", "with the column")}
    for k in range(cohorts):
        case, a, b = families.draw()
        plain = counts_of(a, case)
        p = expit(a)
        design = design_counts("classes", np.stack([1 - p, p], 1), case.astype(np.float64), families.family)
        for (metric, way), seen in found.items():
            got = interval(plain | (design if way == "with the column" else {}), TASK, metric, seed=k, draws=DRAWS)
            seen.add(got.low, got.high, truth[metric])
        for way, rejected in tests.items():
            of = People(case, families.family if way == "with the column" else None)
            gap = paired_bootstrap(statistic("auroc", case, p), statistic("auroc", case, expit(b)), len(case), seed=k, of=of, draws=DRAWS)
            rejected.append(gap.p < 0.05)
    for (metric, way), seen in found.items():
        yield seen.row(f"{metric}, families of 4, {way}")
    for way, rejected in tests.items():
        yield Row(f"paired test, families of 4, {way}", "type I error", float(np.mean(rejected)), 0, 0, 0.0)


def paired_tests(cohorts: int) -> Iterator[Row]:
    """Two equally good models on the same persons, with few cases."""
    for persons, cases in ((300, 8), (300, 15), (300, 20), (300, 60), (60, 15), (60, 30)):
        rng, rejected, none = np.random.default_rng(4), list[bool](), 0
        for k in range(cohorts):
            case = np.arange(persons) < cases
            common = rng.normal(0, math.sqrt(0.5), persons) + case
            a, b = (common + rng.normal(0, math.sqrt(0.5), persons) for _ in "ab")
            gap = paired_bootstrap(
                statistic("auroc", case, expit(a)), statistic("auroc", case, expit(b)), persons, seed=k, of=People(case), draws=DRAWS
            )
            none += math.isnan(gap.p)
            rejected += [] if math.isnan(gap.p) else [gap.p < 0.05]
        share = float(np.mean(rejected)) if rejected else math.nan
        yield Row(f"paired test, {cases} cases of {persons}", "type I error", share, 0, 0, none / cohorts)


def seeds(cohorts: int) -> Iterator[Row]:
    """Two learners that are equally good: a linear rule on one half of 10 columns, and on the other. 200 persons; each of 10 seeds
    splits them anew, with 20 % of them tested."""
    for corrected in (False, True):
        rng, rejected = np.random.default_rng(5), list[bool]()
        for _ in range(cohorts):
            case = np.arange(200) % 2 == 0
            x = rng.normal(0, 1, (200, 10)) + 0.35 * case[:, None]
            gaps = []
            for _seed in range(10):
                order = rng.permutation(200)
                test, train = order[:40], order[40:]
                auroc = [_learned(x[:, cols], case, train, test) for cols in (slice(0, 5), slice(5, 10))]
                gaps.append(auroc[0] - auroc[1])
            rejected.append(over_seeds(gaps, overlap=40 / 160 if corrected else None).p < 0.05)
        how = "corrected" if corrected else "not corrected"
        yield Row(f"over 10 seeds that split anew, {how}", "type I error", float(np.mean(rejected)), 0, 0, 0.0)


def _learned(x: Floats, case: npt.NDArray[np.bool_], train: npt.NDArray[Any], test: npt.NDArray[Any]) -> float:
    own, other = x[train][case[train]].mean(0), x[train][~case[train]].mean(0)
    score = x[test] @ (own - other)
    rank, m, n = stats.rankdata(score), int(case[test].sum()), int((~case[test]).sum())
    return float((rank[case[test]].sum() - m * (m + 1) / 2) / (m * n))


def sites(cohorts: int) -> Iterator[Row]:
    """AUROC within 4 sites of different prevalence; the mean over 6 sites whose true AUROC differs, and the prediction for a seventh."""
    rng, seen = np.random.default_rng(6), _Limits()
    sizes, shares = (60, 80, 100, 120), (0.1, 0.2, 0.4, 0.6)
    for _ in range(cohorts):
        parts = {}
        for k, (persons, share) in enumerate(zip(sizes, shares, strict=True)):
            case = rng.random(persons) < share
            parts[str(k)] = counts_of(rng.normal(2 * share, 1, persons) + case, case)
        got = within_sites(parts)
        if got is not None:
            seen.add(got.auroc.low, got.auroc.high, float(stats.norm.cdf(1 / math.sqrt(2))))
    yield seen.row("AUROC within 4 sites")
    for tau in (0.0, 0.3):
        mean, further = _Limits(), _Limits()
        for _ in range(cohorts):
            error = rng.uniform(0.1, 0.3, 6)
            summary = random_effects(rng.normal(1.2, np.sqrt(tau**2 + error**2)), error, "logit")
            mean.add(summary.low, summary.high, float(expit(1.2)))
            further.add(summary.prediction_low, summary.prediction_high, float(expit(rng.normal(1.2, tau))))
        yield mean.row(f"mean over 6 sites, SD between sites {tau:g} on the logit scale")
        yield further.row(f"prediction for a further site, SD between sites {tau:g}")


SITUATIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "rare": rare_cases, "dice": few_masks, "clusters": clusters, "paired": paired_tests, "seeds": seeds, "sites": sites,
}  # fmt: skip


def main() -> None:
    """Prints a row for each situation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=COHORTS)
    parser.add_argument("--only", choices=list(SITUATIONS), default=None)
    asked = parser.parse_args()
    print(f"{asked.cohorts} cohorts of each situation")
    for name, find in SITUATIONS.items():
        if asked.only in (None, name):
            for row in find(asked.cohorts):
                print(line(row), flush=True)


def line(row: Row) -> str:
    """One row as text."""
    sides = f" (above {100 * row.above:.1f}, below {100 * row.below:.1f})" if row.what == "coverage" else ""
    none = f"; none in {100 * row.refused:.1f} %" if row.refused else ""
    share = "-" if math.isnan(row.share) else f"{100 * row.share:.1f} %"
    return f"{row.situation:58} {row.what:13} {share:>7}{sides}{none}"


if __name__ == "__main__":
    main()
