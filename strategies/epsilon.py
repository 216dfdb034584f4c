"""What a run has spent of privacy, for its record: epsilon of the requested releases, also of a run that was resumed or failed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedml.runs.events import NO_PRIVACY, NOT_RESUMED, ClaimRow, Privacy
from fedml.runs.log import last, read_log
from fedml.runs.rows import NONE_AGAIN, Again
from fedml.study.study import Study

if TYPE_CHECKING:
    from fedml.privacy.claims import Claim


def again_of(run: Path) -> Again:
    """How many messages of the run may have been answered twice, because it was resumed."""
    event = last(read_log(run)[0], NOT_RESUMED)
    return Again(event.rounds_again, event.evaluations_again)


def privacy_record(study: Study, requested: Mapping[str, int], again: Again = NONE_AGAIN) -> Privacy:
    """The privacy event: epsilon with unit, adjacency and scope for the run's releases, for each site or for all.

    Args:
        requested: site -> number of rounds requested from it. Where the metrics decide how many there are (``patience``), epsilon is that
        of all rounds of the study: a number that depends on persons is no part of a promise.
        again: what a resumed run may have requested twice. A site's noise is new each time, so it counts; the server's is not released
        before the checkpoint with it is on the disk, so a round in progress has released nothing.
    """
    if study.privacy.unit == "none":
        return NO_PRIVACY
    from fedml.privacy.releases import claims

    if study.training.patience:
        requested = dict.fromkeys(requested, study.federation.rounds)
    if study.privacy.unit == "patient":
        requested = {site: n + again.rounds for site, n in requested.items()}
    by_site = claims(study, requested, again.rounds + again.evaluations)
    worst = max(by_site.values(), key=lambda c: c.epsilon, default=None)
    rows = {site: _claim_row(c) for site, c in by_site.items()}
    spent, sentence = (None, None) if worst is None else (worst.epsilon, worst.sentence())
    return Privacy(unit=study.privacy.unit, epsilon=spent, delta=study.privacy.delta, claims=rows, sentence=sentence)


def _claim_row(c: Claim) -> ClaimRow:
    return {
        "unit": c.unit, "adjacency": c.adjacency, "epsilon": c.epsilon, "delta": c.delta, "covers": list(c.covers),
        "not_covered": list(c.not_covered), "events_json": c.events_json, "epsilon_rdp": c.epsilon_rdp, "sentence": c.sentence(),
    }  # fmt: skip
