"""Comparison of two treatments by weights from a propensity score: what a site sums over its persons, and the estimates from the sums.

    sums = site_sums(z, y, treated, weights, at)             # at a site
    effects(arms, level, binary=True)                        # of all sites

Means are divided by the sum of weights in each arm, so stabilised weights would give the same estimates and errors. Variances are
sandwiches (HC0) of the weighted regression on the treatment, with the propensity score treated as known; for ``ate`` weights that is
conservative in large samples (Lunceford and Davidian 2004, Stat Med 23:2937).
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


def weights_of(eta: Floats, treated: npt.NDArray[np.bool_], estimand: Estimand, trim: float) -> Floats:
    """(persons,) weights from log odds ``eta`` of treatment (Li, Morgan and Zaslavsky 2018, JASA 113:390); 0 where the score is below
    ``trim`` or above 1 - ``trim``."""
    score, other = expit(eta), expit(-eta)
    with np.errstate(divide="ignore", over="ignore"):
        own = {
            "ate": np.where(treated, 1 / score, 1 / other),
            "att": np.where(treated, 1.0, score / other),
            "overlap": np.where(treated, other, score),
        }[estimand]
    out: Floats = np.where((score < trim) | (other < trim), 0.0, own)
    return out


def site_sums(z: Floats, y: Floats, treated: npt.NDArray[np.bool_], weights: Floats, at: Floats) -> dict[str, Floats]:
    """Sums over the persons of a site, of each arm (control, treated): ``z`` (persons, C) standardised covariates, ``at`` (2,).

    Returns ``counts`` (2, 2): persons, persons with a weight above 0; ``columns`` (3, 2, C): sum z, z^2, w z; ``crude`` (2, 2): sum
    d, d^2 of d = y - at; ``arms`` (2, 4): sum w, w^2, w d, (w d)^2.
    """
    counts, columns, crude, arms = list[Any](), list[Any](), list[Any](), list[Any]()
    for arm, mask in enumerate((~treated, treated)):
        w, x, d = weights[mask], z[mask], y[mask] - at[arm]
        counts.append([len(w), (w > 0).sum()])
        columns.append([x.sum(0), (x**2).sum(0), w @ x])
        crude.append([d.sum(), (d**2).sum()])
        arms.append([w.sum(), (w**2).sum(), w @ d, ((w * d) ** 2).sum()])
    return {
        "counts": np.array(counts, np.int64), "columns": np.array(columns).transpose(1, 0, 2).copy(),
        "crude": np.array(crude), "arms": np.array(arms),
    }  # fmt: skip


class Arms(NamedTuple):
    """Of the two arms (control, treated): ``persons``; crude and weighted ``mean``s (2,) and their variances; ``spread``: the standard
    deviation of the outcome within arms, before weighting."""

    persons: Floats
    crude: Floats
    crude_variance: Floats
    mean: Floats
    variance: Floats
    spread: float


def arms_of(sums: Mapping[str, Floats], at: Floats) -> Arms:
    """From the sums of all sites about ``at`` (2,); precise where ``at`` is near the means."""
    n, (d, squares) = sums["counts"][:, 0].astype(float), sums["crude"].T
    w, _, wd, meat = sums["arms"].T
    crude, weighted = d / n, wd / w
    rest = np.maximum(squares - n * crude**2, 0)  # about the mean of each arm
    return Arms(n, at + crude, rest / n**2, at + weighted, meat / w**2, float(np.sqrt(rest.sum() / (n.sum() - 2))))


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
    for name, mean, variance in (("crude", arms.crude, arms.crude_variance), ("weighted", arms.mean, arms.variance)):
        out[name] = _estimate(float(mean[1] - mean[0]), float(np.sqrt(variance.sum())), z)
    if binary and (arms.mean <= 0).any():
        return {**out, "ratio": None, "e_value": None}
    if binary:
        log, error = float(np.log(arms.mean[1] / arms.mean[0])), float(np.sqrt((arms.variance / arms.mean**2).sum()))
    else:
        log, error = (0.91 * out["weighted"][key] / arms.spread if arms.spread > 0 else 0.0 for key in ("estimate", "error"))
    ratio = _estimate(log, error, z)
    ratio |= {key: float(np.exp(ratio[key])) for key in ("estimate", "lower", "upper")} | {"log_error": ratio.pop("error")}
    return {**out, "ratio": ratio, "e_value": e_value(ratio["estimate"], ratio["lower"], ratio["upper"])}


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
