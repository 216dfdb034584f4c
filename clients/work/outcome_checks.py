"""The gate's check of a reply of an analysis of outcomes: is a number in it about few persons? From the cohort and the reply alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedml.clients.work import describe
from fedml.clients.work.outcome_people import analysed, cells_of, grid_model
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.wire.records import Phase


def check_small(request: Request, given: Mapping[str, Any], reply: Mapping[str, Any], min_count: int) -> None:
    """Raises ``SiteError`` if a number of ``reply`` is about 1 to ``min_count`` - 1 persons."""
    text = f"numbers about fewer than {min_count} persons (min_count) would be sent"
    if request.phase is Phase.DESCRIPTION:
        describe.check_small(request, reply, min_count)
        return
    people = analysed(request.manifests, request.study)
    counted = request.study.traits.label == "count"  # events are no persons
    for name in ("persons", *([] if counted else ["events"])):
        if name in reply and (0 < int(reply[name][0]) < min_count or 0 < len(people.rows) - int(reply[name][0]) < min_count):
            raise SiteError(Reason.TOO_FEW, text)
    if "counts" in reply and ((reply["counts"] > 0) & (reply["counts"] < min_count)).any():
        raise SiteError(Reason.TOO_FEW, text)
    edges = given.get("edges")
    if edges is None or people.times is None or request.phase is Phase.GRID:
        return
    cells = cells_of(request, grid_model(request.phase)).counts
    ends = np.flatnonzero(edges)
    sums = np.diff(np.concatenate([np.zeros((len(cells), 1), np.int64), np.cumsum(cells, 1)[:, ends]], 1), axis=1)
    if ((sums > 0) & (sums < min_count)).any():
        raise SiteError(Reason.TOO_FEW, f"an interval: {text}")
