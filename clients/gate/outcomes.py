"""What the gate holds an analysis of outcomes against: how often it was asked, the design of its run, and what was released before.

The sets of persons who have left by the end of each interval are compared with all sets about whom this site has released exact values
(``fedml.clients.site.released``): curves on another grid, or of a subset, may not differ from earlier ones by few persons. Nor may a column
differ from an earlier one in the values of few persons.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedml.analytics import cox, glm, grid, outcome_forms
from fedml.clients.gate.pins import pin
from fedml.clients.site import released
from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.clients.work import outcomes
from fedml.clients.work.outcome_people import cells_of, floor_of
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.runs.log import write_whole
from fedml.wire.records import Phase

FILE = "analyses.json"
_REPEATS = 18  # of the same analysis, which asks the same questions; with max_analyses as many as [policy] max_runs by default
MOST: dict[Phase, int] = {  # requests of an analysis
    Phase.GRID: 1000, Phase.TIMES: 1, Phase.MOMENTS: 1, Phase.HAZARD: cox.STEPS, Phase.SCORE: cox.STEPS + 2, Phase.MEANS: 1,
    Phase.RESIDUALS: 1, Phase.ALONE: 1, Phase.REGRESSION: glm.STEPS + 1, Phase.DESCRIPTION: 2,
    Phase.WEIGHTED: 2, Phase.CENSORING: 1, Phase.TREATED: 1,
    Phase.STANDARDISED: 2,
}  # fmt: skip


def check(state: Path, site: Site, request: Request, given: Mapping[str, Any], run: str) -> None:
    """Raises ``SiteError`` if the request is one too many, changes the design within its run, or asks about few persons."""
    outcomes.check(request, given)
    if site.manifest.data.public:
        return
    if request.round >= MOST[request.phase]:
        raise SiteError(Reason.ROUNDS, f"{request.phase} is requested {request.round + 1} times, an analysis needs {MOST[request.phase]}")
    if request.phase in (*outcome_forms.OF_COX, Phase.REGRESSION, Phase.WEIGHTED, Phase.TREATED, Phase.STANDARDISED):
        design = {name: hashlib.sha256(given[name].tobytes()).hexdigest() for name in ("edges", "centre", "scale", "free") if name in given}
        pin(state, run, design, Reason.REPLAYED, "the design changed within the run")
    _count(state, request, given, site.manifest.policy.max_analyses, run)
    smallest = floor_of(request)
    sets = outcomes.leaving_sets(request, given)
    if near := released.any_too_near(state, sets, smallest):
        raise SiteError(
            Reason.TOO_FEW,
            f"exact values were released (study {near[1]}) about a group that differs by {near[0]} persons from those who have left by the "
            "end of an interval, are left after trimming, or have a level; subtraction would reveal them, so at least "
            f"{smallest} (min_count) persons must differ",
        )
    _check_columns(state, request, smallest)
    for persons in sets:
        released.note(state, persons, request.study.study.name)


def _check_columns(state: Path, request: Request, smallest: int) -> None:
    """Raises ``SiteError`` if a column of the analysis differs from one of an earlier analysis in few persons; else notes them."""
    told, path, ids = outcomes.columns_told(request), state / FILE, load_cohort(request.manifests, request.study).ids
    digest = hashlib.sha256("\0".join(ids).encode())
    for rows, values in told:
        digest.update(rows.tobytes() + values.tobytes())
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    seen = known.setdefault(request.study.sha256, {}).setdefault("columns", [])
    if digest.hexdigest() in seen:
        return
    columns, sets = [([ids[row] for row in rows], values.tolist()) for rows, values in told], outcomes.level_sets(request)
    if near := released.column_too_near(state, columns, smallest) or released.any_too_near(state, sets, smallest):
        raise SiteError(
            Reason.TOO_FEW,
            f"exact sums were released (study {near[1]}) of a column, or of a level, that differs in {near[0]} persons from one of this; "
            f"subtraction would reveal them, so at least {smallest} (min_count) persons must differ",
        )
    released.note_columns(state, columns, request.study.study.name)
    for persons in sets:
        released.note(state, persons, request.study.study.name)
    seen.append(digest.hexdigest())
    write_whole(path, json.dumps(known).encode())


def _count(state: Path, request: Request, given: Mapping[str, Any], most: int, run: str) -> None:
    """Counts different requests of a study: with enough of them, sums about persons could be solved for. The same request tells nothing
    new, so a run may be repeated. Questions about the grid follow each other, so that a run learns one chain of ends."""
    path = state / FILE
    try:
        known: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        known = {}
    if request.phase is Phase.GRID:
        own = known.setdefault(request.study.sha256, {})
        _follow(own.setdefault("chains", {}), request, given, most, run)
        model, grids = int(given["model"][0]), own.setdefault("grids", [])
        if (begun := [model, hashlib.sha256(given["edges"].tobytes()).hexdigest()[:32]]) not in grids:
            if sum(other[0] == model for other in grids) >= most:
                raise SiteError(Reason.REPLAYED, "the grid is asked about from more beginnings than [policy] max_analyses allows")
            grids.append(begun)
        write_whole(path, json.dumps(known).encode())
        return
    if request.phase is Phase.DESCRIPTION:
        if not given["limits"].any():
            return
        most = 1  # histograms between two limits tell how many are between them, however few
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + given[name].tobytes() for name in sorted(given))).hexdigest()[:32]
    asked = known.setdefault(request.study.sha256, {}).setdefault(str(request.phase), [])
    if digest in asked:
        return
    if len(asked) >= (1 if request.phase is Phase.DESCRIPTION else MOST[request.phase] * most):
        raise SiteError(
            Reason.REPLAYED, f"{request.phase} was requested with {len(asked)} different contents, as many as [policy] max_analyses allows"
        )
    asked.append(digest)
    write_whole(path, json.dumps(known).encode())


def _follow(chains: dict[str, list[int]], request: Request, given: Mapping[str, Any], most: int, run: str) -> None:
    """Raises ``SiteError`` unless a question about the grid follows the run's last one: about the same interval from the end on that was
    answered, or about the next interval, which begins at that end. Questions about starts of a centre's choice would tell when each person
    leaves. A chain is the model, the start, the least end, and the end that is answered."""
    model, (start, least) = int(given["model"][0]), given["from"].tolist()
    if run not in chains:
        if len(chains) >= most + _REPEATS:
            raise SiteError(Reason.REPLAYED, f"the grid was agreed on in {len(chains)} runs")
        follows = start == -1
    elif chains[run][0] != model:
        follows = chains[run][0] < model and start == -1
    else:
        _, last, before, end = chains[run]
        follows = least > before and (least >= end if start == last else start == end)
    if not follows:
        raise SiteError(Reason.REPLAYED, "a question about the grid follows the answer to the last one")
    chains[run] = [model, start, least, grid.next_end(cells_of(request, model), given["edges"], start, least)]
