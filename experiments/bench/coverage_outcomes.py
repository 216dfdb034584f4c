"""How often intervals of analyses of outcomes hold the truth, and how often tests of no difference reject, over simulated federations.

    python -m fedml.experiments.bench.coverage_outcomes [--federations 500] [--only survival]

Each federation is three sites of 150, 100 and 200 persons that differ in baseline hazard, treatment and censoring; analyses run over the
local engine, from the sites' files to ``outcomes.json``. The sites declare their data public, so that no
intervals are merged. Of 500, a right interval of 95 % holds the truth in 93.1 to 96.9 % (two standard errors), a right
test of 5 % rejects in 3.1 to 6.9 %.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedml.experiments.runs.run import run_nodes
from fedml.study.study import Study, validate

SIZES, FEDERATIONS = (150, 100, 200), 500
STEP, UNTIL, HORIZON, HAZARD = 20.0, 2400.0, 1000.0, 1 / 900
AGE, ARM, EFFECT = 0.5, -0.6, 0.5  # log hazard ratios of age (in standard deviations) and arm B; the effect of the treatment on y
BASE = (0.0, 0.3, -0.3)  # log hazard of each site
CATEGORIES = {"arm": ["A", "B"], "coin": ["h", "t"]}  # the coin has no effect
Seen = dict[str, list[bool]]


def study_of(model: str, target: Any, **sections: Any) -> Study:
    """A study over the three sites. ``model``: its section, as TOML."""
    plan = {
        "study": {"name": "coverage", "question": "coverage", "purpose": "DUO:0000042", "seed": 1},
        "cohort": {"inputs": ["clinical"], "target": target, "clinical": {"columns": ["age", "arm", "coin"], "categories": CATEGORIES}},
        "model": tomllib.loads(model), "federation": {"sites": [f"s{at}" for at in range(len(SIZES))]}, **sections,
    }  # fmt: skip
    return validate(Study, plan, "coverage")


def survival_study(groups: str, cox: list[str] | None = None) -> Study:
    """Curves of ``groups``, and a Cox model."""
    times: dict[str, Any] = {
        "time_unit": "days",
        "grid": f"{STEP:g} days",
        "until": UNTIL,
        "horizons": [HORIZON],
        "curves": {"groups": groups},
    }
    times |= {"cox": {"covariates": cox, "baseline": "site"}} if cox else {}
    return study_of('task = "survival"', {"time": "time", "event": "event"}, survival=times)


def write(folder: Path, number: int) -> list[dict[str, str]]:
    """Writes the sites of federation ``number``; returns the nodes. Arm B is given more often to the old and at the second site."""
    random, nodes = np.random.default_rng([11, number]), []
    for site, persons in enumerate(SIZES):
        age = random.normal(size=persons).round(4)
        arm = random.random(persons) < 1 / (1 + np.exp(-(0.7 * age + 0.5 * (site == 1))))
        balanced = random.random(persons) < 0.5  # of survival, so that curves have a truth without adjustment
        time_ = random.exponential(np.exp(-(AGE * age + ARM * balanced + BASE[site])) / HAZARD)
        leaves = random.uniform(300, (2600, 3200, 2900)[site], persons)
        place = folder / f"s{site}"
        place.mkdir()
        ids, names = [f"p{at}" for at in range(persons)], np.array(["A", "B"])
        own = pd.DataFrame({"id": ids, "time": np.ceil(np.minimum(time_, leaves)), "event": (time_ <= leaves).astype(int)})
        own["y"] = EFFECT * arm + 0.5 * age + 0.3 * site + random.normal(size=persons)
        own.to_csv(place / "persons.csv", index=False)
        coin = np.array(["h", "t"])[random.integers(0, 2, persons)]
        for name, given in (("balanced", balanced), ("confounded", arm)):
            pd.DataFrame({"id": ids, "age": age, "arm": names[given.astype(int)], "coin": coin}).to_csv(place / f"{name}.csv", index=False)
            data = f'persons = "persons.csv"\nclinical = {{ path = "{name}.csv" }}\n'
            (place / f"{name}.toml").write_text(f'[site]\nname = "s{site}"\n[data]\n{data}public = true\n')
        nodes.append({name: str((place / f"{name}.toml").resolve()) for name in ("balanced", "confounded")})
    return nodes


def truth() -> dict[str, float]:
    """Survival at ``HORIZON`` in arm A and the difference of restricted means (of rounded times) over the sites' persons."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    share = np.array(SIZES) / sum(SIZES)
    times = np.arange(0, HORIZON + STEP / 2, STEP)

    def curve(arm: int) -> Any:
        rate = HAZARD * np.exp(AGE * nodes[:, None] + ARM * arm + np.array(BASE))  # (nodes, sites)
        return np.exp(-times[:, None, None] * rate) @ share @ weights / weights.sum()

    a, b = curve(0), curve(1)
    return {"survival": float(a[-1]), "difference": float((b[:-1] - a[:-1]).sum() * STEP)}


def analyse(study: Study, nodes: list[dict[str, str]], which: str, job: Any) -> dict[str, Any]:
    """``outcomes.json`` of the analysis over the local engine."""
    with tempfile.TemporaryDirectory() as name:
        run_nodes(study, [{"manifest": node[which]} for node in nodes], Path(name), job)
        found: dict[str, Any] = json.loads((Path(name) / "outcomes.json").read_text())
        return found


def holds(row: dict[str, Any], value: float) -> bool:
    """Whether ``lower`` to ``upper`` holds ``value``."""
    return bool(row["lower"] <= value <= row["upper"])


def survival(nodes: list[dict[str, str]], seen: Seen) -> None:
    """Curves and the difference of arms; log-rank of the coin; a Cox model stratified by site."""
    true = truth()
    found = analyse(survival_study("arm"), nodes, "balanced", "survival")["curves"]
    group = found["groups"]["A"]
    at = [k for k, end in enumerate(group["time"]) if end <= HORIZON][-1]
    if group["time"][at] == HORIZON:  # an end that was not merged away
        low, high = (group["survival"][end][at] for end in ("lower", "upper"))
        seen[f"Kaplan-Meier at {HORIZON:g} days"].append(low <= true["survival"] <= high)
    (gap,) = found["differences"]
    seen["difference of restricted means"].append(holds(gap, true["difference"]))
    found = analyse(survival_study("coin", ["age", "arm", "coin"]), nodes, "balanced", "survival")
    seen["log-rank (type I error)"].append(found["curves"]["log_rank"]["p"] < 0.05)
    seen["log-rank by site (type I error)"].append(found["curves"]["log_rank_by_site"]["p"] < 0.05)
    rows = {row["term"]: row for row in found["cox"]["coefficients"]}
    for kind in ("model", "robust"):
        seen[f"Cox, age, {kind} SE"].append(holds(rows["age"][kind], AGE))
        seen[f"Cox, arm, {kind} SE"].append(holds(rows["arm=B"][kind], ARM))
        seen[f"Cox, coin, Wald, {kind} SE (type I error)"].append(rows["coin=t"][kind]["p"] < 0.05)


def weighted(nodes: list[dict[str, str]], seen: Seen) -> None:
    """The effect of a treatment that depends on age and site; weights for everyone, for the treated and of overlap."""
    for estimand in ("ate", "att", "overlap"):
        study = study_of('task = "regression"', "y", treatment={"column": "arm", "covariates": ["age"], "estimand": estimand})
        found = analyse(study, nodes, "confounded", "glm")["treatment"]
        seen[f"treatment, weighted, {estimand}"].append(holds(found["weighted"], EFFECT))
    seen["treatment, crude (is biased)"].append(holds(found["crude"], EFFECT))


PARTS: dict[str, Callable[[list[dict[str, str]], Seen], None]] = {"survival": survival, "treatment": weighted}


def main() -> None:
    """Prints a row for each interval and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--federations", type=int, default=FEDERATIONS)
    parser.add_argument("--only", choices=list(PARTS), default=None)
    asked = parser.parse_args()
    for name, measure in PARTS.items():
        if asked.only not in (None, name):
            continue
        seen: Seen = defaultdict(list)
        began = time.process_time()
        for number in range(asked.federations):
            with tempfile.TemporaryDirectory() as folder:
                measure(write(Path(folder), number), seen)
        print(f"{name}: {asked.federations} federations, {time.process_time() - began:.0f} s of CPU")
        for what, each in seen.items():
            print(f"  {what:52} {100 * np.mean(each):5.1f} %  of {len(each)}", flush=True)


if __name__ == "__main__":
    main()
