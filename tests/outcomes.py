"""Sites with times to an event, groups and covariates; analyses of outcomes over them, by the local engine or through the sites' gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Context, Message, RecordDict

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.gate import Gate
from fedml.clients.gate.local import app as client_app
from fedml.clients.service import prepare_state
from fedml.clients.site.manifest import find_sites, read_site
from fedml.flower.grid import InProcessGrid
from fedml.strategies.server import app as server_app
from fedml.study.study import Study, validate

CATEGORIES = {"arm": ["A", "B"], "stage": ["I", "II", "III"], "cell": ["x", "y"]}
COVARIATES = ["age", "sex", "arm", "stage"]


@dataclass(frozen=True)
class Drawn:
    """How sites are drawn: ``persons`` of each, whether a site is without events, entries (left truncation), two causes, and the policy."""

    persons: tuple[int, ...] = (240, 90, 310)
    silent: int | None = None
    entry: bool = False
    causes: int = 1
    step: float = 30.0
    policy: str = "public = true\n"
    seed: int = 3


def write_sites(folder: Path, drawn: Drawn = Drawn()) -> pd.DataFrame:
    """Writes the sites s0, s1 ... into ``folder``/sites; returns all persons in one table."""
    random, parts = np.random.default_rng(drawn.seed), []
    for number, n in enumerate(drawn.persons):
        table = pd.DataFrame({
            "id": [f"s{number}-{at}" for at in range(n)], "age": random.normal(60, 10, n).round(1), "sex": random.integers(0, 2, n),
            "arm": random.choice(["A", "B"], n), "stage": random.choice(["I", "II", "III"], n, p=[0.5, 0.3, 0.2]),
            "cell": random.choice(["x", "y"], n),
        })  # fmt: skip
        eta = 0.04 * (table.age - 60) + 0.3 * table.sex - 0.5 * (table.arm == "B") + 0.7 * (table.stage == "III") + 0.2 * number
        time, leaves = random.exponential(700 * np.exp(-eta)), random.uniform(100, 2000, n)
        table["entry"] = np.floor(random.uniform(0, 0.6, n) * np.minimum(time, leaves)) if drawn.entry else 0.0
        table["time"] = np.ceil(np.minimum(time, leaves)) + 1
        event = (time <= leaves) & (number != drawn.silent)
        table["event"] = np.where(event, random.integers(1, drawn.causes + 1, n), 0)
        table["y"] = (0.5 * eta + random.normal(size=n)).round(3)
        table["b"] = (random.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
        table["exposure"] = random.uniform(0.5, 2.0, n).round(2)
        table["count"] = random.poisson(table.exposure * np.exp(0.5 + 0.4 * eta))
        place = folder / "sites" / f"s{number}"
        place.mkdir(parents=True)
        table[["id", "time", "event", "entry", "y", "b", "count", "exposure"]].to_csv(place / "persons.csv", index=False)
        table["w"] = np.random.default_rng([drawn.seed, number, 9]).uniform(0.2, 3.0, n).round(2)
        table[["id", "age", "sex", "arm", "stage", "cell", "w"]].to_csv(place / "clinical.csv", index=False)
        data = 'persons = "persons.csv"\nclinical = { path = "clinical.csv" }\n'
        (place / "site.toml").write_text(f'[site]\nname = "s{number}"\n[data]\n{data}{drawn.policy}')
        parts.append(table.assign(site=number))
    pooled = pd.concat(parts, ignore_index=True)
    pooled["grid"] = np.ceil(pooled.time / drawn.step)  # the number of the interval, from 1
    pooled["first"] = np.floor(pooled.entry / drawn.step)
    return pooled


def study_of(drawn: Drawn = Drawn(), *, until: float = 3000.0, **sections: Any) -> Study:
    """A study of survival with ``[survival.curves]`` and ``[survival.cox]`` (``curves``, ``cox``), or of ``glm`` or ``describe``."""
    target: Any = {"time": "time", "event": "event"}
    if drawn.causes > 1:
        target |= {"events": {"death": 1, "relapse": 2}, "event_of_interest": "death"}
    if drawn.entry:
        target["entry"] = "entry"
    task, more = sections.pop("task", "survival"), sections.pop("more", {})
    extra = sections.pop("columns", ())
    survival = {
        "time_unit": "days",
        "grid": f"{drawn.step:g} days",
        "until": until,
        "horizons": [900.0, until],
        **sections.pop("survival", {}),
    }
    survival |= {name: sections.pop(name) for name in ("curves", "cox") if name in sections}
    plan = {
        "study": {"name": sections.pop("name", "trial"), "question": "Which arm lives longer?", "purpose": "DUO:0000042", "seed": 1},
        "cohort": {"inputs": ["clinical"], "target": sections.pop("target", target),
                   "clinical": {"columns": ["age", "sex", "arm", "stage", "cell", *extra], "categories": CATEGORIES}, **more},
        "model": {"task": task},
        "federation": {"sites": [f"s{n}" for n in range(len(drawn.persons))]},
        **({"survival": survival} if task == "survival" else {}),
        **sections,
    }  # fmt: skip
    return validate(Study, plan, "test")


def run_job(
    study: Study, folder: Path, out: Path, job: str, handlers: Sequence[Callable[[Message, Context], Message]] = ()
) -> dict[str, Any]:
    """``outcomes.json`` of a run over ``folder``/sites, through ``handlers`` if there are any."""
    found, _ = find_sites(folder / "sites", study.federation.sites)

    def answer(message: Message, context: Context) -> Message:
        return (handlers[context.node_id - 1] if handlers else client_app)(message, context)

    out.mkdir(parents=True)
    config: dict[str, Any] = {"study": study.canonical, "run": str(out), "job": job}
    grid = InProcessGrid(answer, [{"manifest": str(site.file)} for site in found.values()], config)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    result: dict[str, Any] = json.loads((out / "outcomes.json").read_text())
    return result


def gates_of(study: Study, folder: Path, run: int = 1) -> list[Callable[[Message, Context], Message]]:
    """The gates of all sites, which approved the study."""

    def through(gate: Gate) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            message.metadata.__dict__["_run_id"] = run
            return gate.handle(message, context)

        return handle

    handlers = []
    for name in study.federation.sites:
        site = read_site(folder / "sites" / name)
        state = prepare_state(site)
        approve(state, study, "Dr. Test")
        handlers.append(through(Gate(site, state)))
    return handlers
