"""Comparison of two treatments by weights from a propensity score: what a site sums over its persons, and the estimates from the sums.

    sums = site_sums(z, y, treated, weights_of(eta, treated, how), at)      # at a site
    effects(arms_of(sums, at, information, meat), level, binary=True)        # of all sites

Means are divided by the sum of weights in each arm, so stabilised weights would give the same estimates and errors. Variances are those of
the stacked estimating equations of the propensity model and both weighted means, so that they allow for the score being estimated
(Lunceford and Davidian 2004, Stat Med 23:2937; Stefanski and Boos 2002, Am Stat 56:29). Who is left out by trimming is taken as given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import norm

Floats = npt.NDArray[Any]
Estimand = Literal["ate", "att", "overlap"]


class Weighing(NamedTuple):
    """How persons are weighted: ``trim``: 0 where the score is below it or above 1 - it."""

    estimand: Estimand
    trim: float


class Weights(NamedTuple):
    """(persons,) weights; their derivative by the log odds; and weight times the residual of the propensity model."""

    weight: Floats
    slope: Floats
    cross: Floats


def weights_of(eta: Floats, treated: npt.NDArray[np.bool_], how: Weighing) -> Weights:
    """From log odds ``eta`` of treatment (Li, Morgan and Zaslavsky 2018, JASA 113:390)."""
    score, other = expit(eta), expit(-eta)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        odds = np.where(treated, other / score, score / other)  # of the other treatment
        sign = np.where(treated, -1.0, 1.0)
        weight, slope = {
            "ate": (np.where(treated, 1 / score, 1 / other), sign * odds),
            "att": (np.where(treated, 1.0, odds), np.where(treated, 0.0, odds)),
            "overlap": (np.where(treated, other, score), sign * score * other),
        }[how.estimand]
        cross = weight * np.where(treated, other, -score)
    left_out = (score < how.trim) | (other < how.trim)
    return Weights(*(np.where(left_out, 0.0, one) for one in (weight, slope, cross)))


def site_sums(z: Floats, y: Floats, treated: npt.NDArray[np.bool_], weights: Weights, at: Floats) -> dict[str, Floats]:
    """Sums over the persons of a site, of each arm (control, treated): ``z`` (persons, C) standardised covariates, ``at`` (2,).

    Returns ``counts`` (2, 2): persons, persons with a weight above 0; ``columns`` (3, 2, C): sum z, z^2, w z; ``crude`` (2, 2): sum
    d, d^2 of d = y - at; ``arms`` (2, 4): sum w, w^2, w d, (w d)^2; and with x = (1, z), whose coefficients are those of the propensity
    model, ``slope`` and ``cross`` (2, 1 + C): sum of d x times the weights' derivative, and times weight and residual.
    """
    one, counts, columns, crude, arms = np.hstack([np.ones((len(z), 1)), z]), list[Any](), list[Any](), list[Any](), list[Any]()
    slope, cross = list[Any](), list[Any]()
    for arm, mask in enumerate((~treated, treated)):
        w, x, d = weights.weight[mask], z[mask], y[mask] - at[arm]
        counts.append([len(w), (w > 0).sum()])
        columns.append([x.sum(0), (x**2).sum(0), w @ x])
        crude.append([d.sum(), (d**2).sum()])
        arms.append([w.sum(), (w**2).sum(), w @ d, ((w * d) ** 2).sum()])
        slope.append((weights.slope[mask] * d) @ one[mask])
        cross.append((weights.cross[mask] * d) @ one[mask])
    return {
        "counts": np.array(counts, np.int64), "columns": np.array(columns).transpose(1, 0, 2).copy(),
        "crude": np.array(crude), "arms": np.array(arms), "slope": np.array(slope), "cross": np.array(cross),
    }  # fmt: skip


class Arms(NamedTuple):
    """Of the two arms (control, treated): ``persons``; crude and weighted ``mean``s (2,) and their covariances (2, 2); ``spread``: the
    standard deviation of the outcome within arms, before weighting."""

    persons: Floats
    crude: Floats
    crude_covariance: Floats
    mean: Floats
    covariance: Floats
    spread: float


def arms_of(sums: Mapping[str, Floats], at: Floats, information: Floats, meat: Floats) -> Arms:
    """From the sums of all sites about ``at`` (2,); precise where ``at`` is near the means.

    Args:
        sums: with ``slope`` and ``cross`` (2, width) at the places of all coefficients of the propensity model.
        information, meat: (width, width) of the propensity model (``fedml.analytics.glm.Solved``).
    """
    n, (d, squares) = sums["counts"][:, 0].astype(float), sums["crude"].T
    w, _, wd, own = sums["arms"].T
    crude, weighted = d / n, wd / w
    rest = np.maximum(squares - n * crude**2, 0)  # about the mean of each arm
    # A person adds to the mean of an arm: its own w d, and what it adds to the coefficients times the mean's slope by them.
    pull = np.linalg.solve(information, sums["slope"].T / w)  # (width, 2)
    mixed = pull.T @ (sums["cross"] / w[:, None]).T
    covariance = np.diag(own / w**2) + mixed + mixed.T + pull.T @ meat @ pull
    spread = float(np.sqrt(rest.sum() / (n.sum() - 2)))
    return Arms(n, at + crude, np.diag(rest / n**2), at + weighted, covariance, spread)


def balance(sums: Mapping[str, Floats], centre: Floats, scale: Floats) -> list[dict[str, float]]:
    """Of each column: means of both arms and their standardised difference, before and after weighting.

    The difference is divided, before and after, by the root mean of the arms' variances before weighting (Austin 2009, Stat Med 28:3083).
    """
    n, w = sums["counts"][:, :1].astype(float), sums["arms"][:, :1]
    before, after = sums["columns"][0] / n, sums["columns"][2] / w
    spread = np.sqrt(np.maximum(sums["columns"][1] / n - before**2, 0).mean(0))
    rows = []
    for column in range(before.shape[1]):
        row = dict[str, float]()
        for name, means in (("before", before[:, column]), ("after", after[:, column])):
            row[f"control_{name}"], row[f"treated_{name}"] = (float(m) for m in centre[column] + scale[column] * means)
            row[f"smd_{name}"] = float((means[1] - means[0]) / spread[column]) if spread[column] > 0 else float("nan")
        rows.append(row)
    return rows


def effects(arms: Arms, level: float, *, binary: bool) -> dict[str, Any]:
    """The differences of means, crude and weighted; of two classes also the ratio of risks; and the E-value of the ratio.

    Of a number, the ratio is approximate: exp(0.91 d) of the difference d in standard deviations (VanderWeele and Ding 2017, table 2).
    """
    z = float(norm.ppf(0.5 + level / 2))
    out: dict[str, Any] = {}
    for name, mean, own in (("crude", arms.crude, arms.crude_covariance), ("weighted", arms.mean, arms.covariance)):
        out[name] = _estimate(float(mean[1] - mean[0]), _error(np.array([-1.0, 1.0]), own), z)
    if binary and (arms.mean <= 0).any():
        return {**out, "ratio": None, "e_value": None}
    if binary:
        log, error = float(np.log(arms.mean[1] / arms.mean[0])), _error(np.array([-1.0, 1.0]) / arms.mean, arms.covariance)
    else:
        log, error = (0.91 * out["weighted"][key] / arms.spread if arms.spread > 0 else 0.0 for key in ("estimate", "error"))
    ratio = _estimate(log, error, z)
    ratio |= {key: float(np.exp(ratio[key])) for key in ("estimate", "lower", "upper")} | {"log_error": ratio.pop("error")}
    return {**out, "ratio": ratio, "e_value": e_value(ratio["estimate"], ratio["lower"], ratio["upper"])}


def _error(by: Floats, covariance: Floats) -> float:
    return float(np.sqrt(np.maximum(by @ covariance @ by, 0.0)))


def _estimate(value: float, error: float, z: float) -> dict[str, Any]:
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else None
    return {"estimate": value, "error": error, "lower": value - z * error, "upper": value + z * error, "p": p}


def e_value(ratio: float, lower: float, upper: float) -> dict[str, float]:
    """How strongly, as risk ratios, a confounder that was not measured would have to be tied to treatment and outcome to explain the ratio
    away, and to move the limit that is nearer to 1 (VanderWeele and Ding 2017, Ann Intern Med 167:268). 1: nothing is needed."""

    def own(value: float) -> float:
        value = max(value, 1 / value)
        return float(value + np.sqrt(value * (value - 1)))

    near = lower if ratio >= 1 else upper
    return {"estimate": own(ratio), "limit": 1.0 if lower <= 1 <= upper else own(near)}
