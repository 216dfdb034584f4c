"""What the gate holds an analysis of outcomes against: how often it was asked, the design of its run, and what was released before.

The sets of persons who have left by the end of each interval are compared with all sets about whom this site has released exact values
(``fedml.clients.site.released``): curves on another grid, or of a subset, may not differ from earlier ones by few persons.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedml.analytics import cox, glm
from fedml.clients.gate.pins import pin
from fedml.clients.site import released
from fedml.clients.site.manifest import Site
from fedml.clients.work import outcomes
from fedml.clients.work.outcome_people import floor_of
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.runs.log import write_whole
from fedml.wire.records import Phase

FILE = "analyses.json"
_REPEATS = 18  # of the same analysis, which asks the same questions; with max_analyses as many as [policy] max_runs by default
MOST: dict[Phase, int] = {  # requests of an analysis
    Phase.GRID: 1000, Phase.TIMES: 1, Phase.MOMENTS: 1, Phase.HAZARD: cox.STEPS, Phase.SCORE: cox.STEPS + 2, Phase.MEANS: 1,
    Phase.RESIDUALS: 1, Phase.ALONE: 1, Phase.REGRESSION: glm.STEPS + 1, Phase.DESCRIPTION: 2,
    Phase.WEIGHTED: 2,
}  # fmt: skip


def check(state: Path, site: Site, request: Request, given: Mapping[str, Any], run: str) -> None:
    """Raises ``SiteError`` if the request is one too many, changes the design within its run, or asks about few persons."""
    outcomes.check(request, given)
    if site.manifest.data.public:
        return
    if request.round >= MOST[request.phase]:
        raise SiteError(Reason.ROUNDS, f"{request.phase} is requested {request.round + 1} times, an analysis needs {MOST[request.phase]}")
    if request.phase in (*outcomes.OF_COX, Phase.REGRESSION, Phase.WEIGHTED):
        design = {name: hashlib.sha256(given[name].tobytes()).hexdigest() for name in ("edges", "centre", "scale") if name in given}
        pin(state, run, design, Reason.REPLAYED, "the design changed within the run")
    _count(state, request, given, site.manifest.policy.max_analyses, run)
    smallest = floor_of(request)
    sets = outcomes.leaving_sets(request, given)
    if near := released.any_too_near(state, sets, smallest):
        raise SiteError(
            Reason.TOO_FEW,
            f"exact values were released (study {near[1]}) about a group that differs by {near[0]} persons from those who have left by the "
            f"end of an interval, or are left after trimming; subtraction would reveal them, so at least {smallest} (min_count) persons "
            "must differ",
        )
    for persons in sets:
        released.note(state, persons, request.study.study.name)


def _count(state: Path, request: Request, given: Mapping[str, Any], most: int, run: str) -> None:
    """Counts different requests of a study: with enough of them, sums about persons could be solved for. The same request tells nothing
    new, so a run may be repeated. Questions about the grid go forward, so that a run learns one chain of ends."""
    path = state / FILE
    try:
        known: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        known = {}
    if request.phase is Phase.GRID:
        place, chains = (
            [int(given["model"][0]), *given["from"].tolist()],
            known.setdefault(request.study.sha256, {}).setdefault("chains", {}),
        )
        if run in chains and place <= chains[run]:
            raise SiteError(Reason.REPLAYED, "the grid is asked about again from an earlier time")
        if run not in chains and len(chains) >= most + _REPEATS:
            raise SiteError(Reason.REPLAYED, f"the grid was agreed on in {len(chains)} runs")
        chains[run] = place
        write_whole(path, json.dumps(known).encode())
        return
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + given[name].tobytes() for name in sorted(given))).hexdigest()[:32]
    asked = known.setdefault(request.study.sha256, {}).setdefault(str(request.phase), [])
    if digest in asked:
        return
    if len(asked) >= MOST[request.phase] * most:
        raise SiteError(
            Reason.REPLAYED, f"{request.phase} was requested with {len(asked)} different contents, as many as [policy] max_analyses allows"
        )
    asked.append(digest)
    write_whole(path, json.dumps(known).encode())
