"""What the figures of all sites together do not show: how well a model does *within* sites, and what a further site may expect.

    within_sites({"oslo": counts, "porto": counts}, None, level=0.95)      # AUROC over pairs of persons of one site
    random_effects(values, errors, "logit")                                # mean over sites, and the prediction interval of a new site

**Pairs within sites.** The AUROC of all sites compares every person of the class with every person of the others, also of another site. A
model that only knows the site's prevalence is then better than a guess. The within-site AUROC (stratified, or adjusted for the site: Janes
and Pepe 2008, Biometrics 64:1) is the share of concordant pairs among the pairs of persons of one site; each site weighs by its number of
pairs. Its variance is that of DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44:837) at each site, from the site's histogram, and its
limits are on the logit scale. ``site_alone``: the AUROC of a score that is the share of cases of the person's site, among these persons.

**Random effects.** Sites are taken as a sample of sites: y_i = mu + u_i + e_i on the scale of the measure, Var(u) = tau² by restricted
maximum likelihood (Viechtbauer 2005, J Educ Behav Stat 30:261), the interval of mu by Hartung and Knapp (2001, Stat Med 20:3875). The
prediction interval of the true value at a further site does not take tau² for known: it is over the confidence distribution of tau², as
that of Nagashima, Noma and Furukawa (2019, Stat Methods Med Res 28:1689), here from the generalised Q (Viechtbauer 2007, Stat Med 26:37).
With tau² taken for known (Higgins, Thompson and Spiegelhalter 2009) it held 88 % of further sites, so 97 % (6 sites, SD 0.3 on the logit
scale: ``experiments/bench/coverage.py``). A site's error is that of its own interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.tasks.classification_counts import BEYOND, concordant, noised
from fedml.tasks.clusters import effect_of, widened
from fedml.tasks.interval_tools import Floats, Interval, expit, mean_of, no_interval, quantile
from fedml.tasks.intervals import interval
from fedml.tasks.root import root
from fedml.tasks.task import Task

Counts = Mapping[str, npt.NDArray[Any]]
FEW = 5  # persons of a class; with fewer, the normal interval of an AUROC is too narrow
_QUANTILES = 400  # of the confidence distribution of the variance between sites
FEW_MASKS = 30  # persons; a rare failure is easily in none of fewer
LEAST_SITES = 3  # with two sites, a spread between sites is one number without a spread of its own


@dataclass(frozen=True)
class Within:
    """The AUROC over pairs of one site: with its interval. ``pairs``: all pairs of a person of the class and another; ``crossing``: the
    share of them whose persons are of two sites; ``site_alone``: the AUROC of the site's share of cases as a score."""

    auroc: Interval
    pairs: int
    crossing: float
    site_alone: float


@dataclass(frozen=True)
class Summary:
    """Of a measure over ``sites``: mean, its limits, and those of a further site (NaN with fewer than ``LEAST_SITES``).

    ``tau2``: variance between sites on ``scale``; ``i2``: share of the variance of the sites' values that is between sites. ``left_out``:
    sites without an interval.
    """

    mean: float
    low: float
    high: float
    prediction_low: float
    prediction_high: float
    tau2: float
    i2: float
    scale: str
    sites: int
    left_out: tuple[str, ...]
    method: str


def within_sites(by_site: Mapping[str, Counts], one: int | None = None, *, level: float = 0.95) -> Within | None:
    """Of class (or label) number ``one`` against the rest, or the mean over all that have one; None if the counts hold no scores of
    persons, are noised, or are of one site, where every pair is within it.

    Args:
        by_site: counts of one part.
    """
    parts = [p for p in by_site.values() if "histogram" in p and float(p["persons"][0]) > 0]
    if len(parts) < 2 or any(noised(p) for p in parts):
        return None
    ranked = range(len(parts[0]["histogram"])) if one is None or len(parts[0]["histogram"]) == 1 else (one,)
    found = [w for w in (_within(parts, c, level) for c in ranked) if w is not None]
    if not found:
        return None
    return Within(
        mean_of([w.auroc for w in found], level), sum(w.pairs for w in found),
        float(np.average([w.crossing for w in found], weights=[w.pairs for w in found])), float(np.mean([w.site_alone for w in found])),
    )  # fmt: skip


def _within(parts: Sequence[Counts], c: int, level: float) -> Within | None:
    tables = [p["histogram"][c] for p in parts]
    sides = np.array([t.sum(1, dtype=np.float64) for t in tables])  # (sites, others and own)
    inside, pairs = sides.prod(1), float(sides[:, 0].sum() * sides[:, 1].sum())
    if not inside.sum():
        return None
    beyond = [float(p[BEYOND][c]) if BEYOND in p else 0.0 for p in parts]
    there = inside > 0
    share = np.array([(concordant(t) + b) / n if n else 0.0 for t, b, n in zip(tables, beyond, inside, strict=True)]).clip(0, 1)
    weight = inside / inside.sum()
    value = float(weight @ share)
    few = int(sides[there].sum(0).min())
    variance = sum(float(weight[k]) ** 2 * auroc_variance(tables[k], float(share[k])) for k in np.flatnonzero(there))
    if few < FEW:
        found = no_interval(value, level, f"fewer than {FEW} persons of a class at the sites with pairs of their own")
    elif value in (0.0, 1.0) or variance <= 0:
        found = no_interval(value, level, "the pairs within sites do not differ")
    else:
        half = quantile(level) * math.sqrt(variance) / (value * (1 - value))
        low, high = (expit(_logit(value) + sign * half) for sign in (-1, 1))
        found = Interval(value, low, high, level, "DeLong at each site, logit scale")
        found = widened(found, effect_of(parts, "auroc"), (0.0, 1.0))
    return Within(found, round(pairs), 1 - float(inside.sum()) / pairs, _site_alone(sides))


def auroc_variance(histogram: npt.NDArray[Any], auroc: float) -> float:
    """DeLong's variance of the AUROC of one (2, bins) histogram, ties one half; that of Hanley and McNeil (1982) where a class has one
    person, at an AUROC that is half a pair from 0 and 1."""
    negative, positive = histogram.astype(np.float64)
    n, m = float(negative.sum()), float(positive.sum())
    if min(n, m) < 2:
        edge = 0.5 / (n * m)
        a = min(max(auroc, edge), 1 - edge)
        q1, q2 = a / (2 - a) - a * a, 2 * a * a / (1 + a) - a * a
        return (a * (1 - a) + (m - 1) * q1 + (n - 1) * q2) / (n * m)
    of_own = (np.cumsum(negative) - negative / 2) / n  # of a person of the class in each bin: the share of others below
    of_others = 1 - (np.cumsum(positive) - positive / 2) / m
    own = positive @ (of_own - positive @ of_own / m) ** 2 / (m - 1) / m
    return float(own + negative @ (of_others - negative @ of_others / n) ** 2 / (n - 1) / n)


def _site_alone(sides: Floats) -> float:
    """From (sites, others and own) persons: concordant pairs when each person's score is the site's share of the class."""
    sides = sides[sides.sum(1) > 0]
    share = sides[:, 1] / sides.sum(1)
    levels, place = np.unique(share, return_inverse=True)
    table = np.stack([np.bincount(place.ravel(), weights=side, minlength=len(levels)) for side in sides.T])
    return concordant(table) / float(table.sum(1).prod())


# --- a sample of sites


def summary_of(task: Task, by_site: Mapping[str, Counts], *, seed: int, level: float = 0.95) -> Summary | None:
    """Of the task's main measure, from each site's own value and interval; None if fewer than ``LEAST_SITES`` sites have both."""
    measure = task.described(task.measure)
    scale = {(0.0, 1.0): "logit", (-1.0, 1.0): "Fisher's z"}.get(measure.bounds or (math.nan, math.nan), "identity")
    values, errors, out = list[float](), list[float](), list[str]()
    for site, counts in by_site.items():
        if not float(counts["persons"][0]) > 0:
            continue
        found = interval([counts], task, task.measure, seed=seed, level=level)
        placed = _placed(found, scale, _edge(counts))
        if placed is None:
            out.append(site)
        else:
            values.append(placed[0])
            errors.append(placed[1])
    if len(values) < LEAST_SITES:
        return None
    return random_effects(values, errors, scale, left_out=tuple(out), level=level)


def _edge(counts: Counts) -> float:
    """How near to 0 and 1 a share of these persons can be known."""
    persons = float(counts["persons"][0])
    if "histogram" in counts:
        pairs = counts["histogram"].sum(-1, dtype=np.float64).prod(-1)
        persons = float(pairs.max(initial=0)) or persons
    return 0.5 / max(persons, 1.0)


def _placed(found: Interval, scale: str, edge: float) -> tuple[float, float] | None:
    """Value and standard error of a site on the scale, from its interval; of a value at the end of its range from the other limit."""
    if not all(map(math.isfinite, (found.value, found.low, found.high))) or not found.low < found.high:
        return None
    to, _ = _SCALES[scale]
    z = quantile(found.level)
    if scale != "logit":
        return to(found.value), (to(found.high) - to(found.low)) / (2 * z)
    value, low, high = (min(max(v, edge), 1 - edge) for v in (found.value, found.low, found.high))
    if found.high >= 1 - edge:
        return to(value), max(to(value) - to(low), 1e-9) / z
    if found.low <= edge:
        return to(value), max(to(high) - to(value), 1e-9) / z
    return to(value), (to(high) - to(low)) / (2 * z)


def random_effects(
    values: Sequence[float] | Floats, errors: Sequence[float] | Floats, scale: str, *, left_out: tuple[str, ...] = (), level: float = 0.95,
    tau2: Callable[[Floats, Floats], float] | None = None,
) -> Summary:  # fmt: skip
    """The summary of (sites,) ``values`` with standard ``errors``, both on ``scale``: logit, Fisher's z or identity.

    Args:
        tau2: (values, variances) -> variance between sites; None: ``reml``.

    Raises:
        ValueError: fewer than two sites, or an error that is not positive.
    """
    from scipy.special import stdtrit

    y, v = np.asarray(values, dtype=np.float64), np.asarray(errors, dtype=np.float64) ** 2
    k = len(y)
    if k < 2 or len(v) != k or not (v > 0).all():
        raise ValueError(f"{k} sites with errors {list(errors)} have no summary")
    between = (tau2 or reml)(y, v)
    weight = 1 / (v + between)
    mean = float(weight @ y / weight.sum())
    error = math.sqrt(float(weight @ (y - mean) ** 2) / ((k - 1) * float(weight.sum())))
    half = float(stdtrit(k - 1, 0.5 + level / 2)) * error
    least, most = further_site(y, v, level) if k >= LEAST_SITES else (math.nan, math.nan)
    _, back = _SCALES[scale]
    low, high = back(mean - half), back(mean + half)
    least, most = (back(x) if math.isfinite(x) else math.nan for x in (least, most))
    fixed = 1 / v
    typical = (k - 1) * float(fixed.sum()) / (float(fixed.sum()) ** 2 - float((fixed**2).sum()))  # Higgins and Thompson 2002
    shown = "" if scale == "identity" else f", {scale} scale"
    method = (
        f"random effects of {k} sites, REML with Hartung and Knapp{shown}; prediction interval over the confidence distribution of the "
        "variance between sites (generalised Q)"
    )
    return Summary(back(mean), low, high, least, most, between, between / (between + typical), scale, k, left_out, method)


def further_site(y: Floats, v: Floats, level: float) -> tuple[float, float]:
    """Limits of the true value at a further site, on the scale of (sites,) ``y`` with variances ``v``.

    The generalised Q at the true tau² has the chi-square distribution of k - 1 degrees of freedom, so each of its quantiles gives a tau² (0
    where Q is below it even there). At each, a further site is the mean plus t times the root of tau² and the mean's variance (Hartung and
    Knapp); the limits are quantiles of the mean of these distributions.
    """
    from scipy.special import gammaincinv, stdtr

    free = len(y) - 1
    wanted = 2 * gammaincinv(free / 2, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)  # quantiles of chi-square
    spread = float(np.ptp(y)) ** 2 + float(v.max())
    grid = np.r_[0.0, np.geomspace(1e-6, 1e6, 2_000) * spread]
    tau2 = np.interp(-wanted, -_generalised(grid, y, v)[0], grid)
    q, mean, total = _generalised(tau2, y, v)
    scale = np.maximum(np.sqrt(tau2 + q / (free * total)), 1e-12)  # sites that are alike to the last digit

    def missed(tail: float, x: float) -> float:
        return float(stdtr(free, (x - mean) / scale).mean()) - tail

    far = 1e4 * math.sqrt(spread)
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = (root(partial(missed, tail), float(y.min()) - far, float(y.max()) + far) for tail in tails)
    return low, high


def _generalised(tau2: Floats, y: Floats, v: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each (values,) ``tau2``: Q, the mean, and the sum of weights."""
    weight = 1 / (v[None] + tau2[:, None])
    total = weight.sum(1)
    mean = weight @ y / total
    return (weight * (y[None] - mean[:, None]) ** 2).sum(1), mean, total


def reml(y: Floats, v: Floats) -> float:
    """The variance between sites that maximises the restricted likelihood, by Fisher scoring; not below 0."""
    tau2 = max(float(np.var(y, ddof=1)) - float(v.mean()), 0.0)
    for _ in range(200):
        w = 1 / (v + tau2)
        r = y - w @ y / w.sum()
        # Score and information of the restricted likelihood; P = W - W 1 (1' W 1)^-1 1' W.
        trace = float(w.sum() - (w**2).sum() / w.sum())
        square = float((w**2).sum() - 2 * (w**3).sum() / w.sum() + ((w**2).sum() / w.sum()) ** 2)
        step = (float((w**2) @ r**2) - trace) / square
        new = max(tau2 + step, 0.0)
        if abs(new - tau2) <= 1e-12 * (1 + tau2):
            return new
        tau2 = new
    return tau2


def dersimonian_laird(y: Floats, v: Floats) -> float:
    """The variance between sites by moments (DerSimonian and Laird 1986, Control Clin Trials 7:177)."""
    w = 1 / v
    q = float(w @ (y - w @ y / w.sum()) ** 2)
    return max((q - (len(y) - 1)) / float(w.sum() - (w**2).sum() / w.sum()), 0.0)


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _same(x: float) -> float:
    return x


_SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "logit": (_logit, expit), "Fisher's z": (math.atanh, math.tanh), "identity": (_same, _same),
}  # fmt: skip


def plain(task: Task, by_site: Mapping[str, Counts], *, seed: int) -> dict[str, Any]:
    """``within_sites`` and ``summary_of`` for JSON; what there is not is left out.

    ``within``, ``mean`` and ``further`` are {value, low, high, method}: AUROC of pairs within sites, the mean over sites and what a
    further site may have. ``pairs``, ``crossing``, ``site_alone``: see ``Within``; ``measure``, ``tau2``, ``i2``, ``scale``, ``sites``,
    ``left_out``: see ``Summary``.
    """
    out: dict[str, Any] = {}
    if "auroc" in {m.name for m in task.measures} and (within := within_sites(by_site)) is not None:
        out |= {"within": _estimate(within.auroc.value, within.auroc.low, within.auroc.high, within.auroc.method)}
        out |= {"pairs": within.pairs, "crossing": within.crossing, "site_alone": within.site_alone}
    if (found := summary_of(task, by_site, seed=seed)) is not None:
        how, further = found.method.split("; ")
        out |= {"measure": task.measure, "mean": _estimate(found.mean, found.low, found.high, how)}
        out |= {"further": _estimate(found.mean, found.prediction_low, found.prediction_high, further)}
        out |= {"tau2": found.tau2, "i2": found.i2, "scale": found.scale, "sites": found.sites, "left_out": list(found.left_out)}
    return out


def notes(task: Task, persons: float) -> list[str]:
    """What an interval of few masks does not hold."""
    if task.measure != "dice_mean_person" or not 0 < persons < FEW_MASKS:
        return []
    return [
        f"Few persons: a failure that happens to one person in ten is absent from {persons:.0f} persons with a probability of "
        f"{100 * 0.9**persons:.0f} %, and no interval of these persons includes it."
    ]


def _estimate(value: float, low: float, high: float, method: str) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "method": method}


def recorded(found: Mapping[str, Any], part: str) -> dict[str, float]:
    """``plain`` as metrics of a tracked run: ``test/auroc_within`` with its limits, and those of a further site."""
    out: dict[str, float] = {}
    if "within" in found:
        out |= {f"auroc_within{end}": found["within"][name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))}
        out |= {"pairs_across_sites": found["crossing"], "auroc_site_alone": found["site_alone"]}
    if "mean" in found:
        name = found["measure"]
        out |= {f"{name}_sites_mean": found["mean"]["value"], f"{name}_further_site_low": found["further"]["low"]}
        out |= {f"{name}_further_site_high": found["further"]["high"]}
    return {f"{part}/{name}": value for name, value in out.items() if math.isfinite(value)}
