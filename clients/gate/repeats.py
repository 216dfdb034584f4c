"""Requests that come again: refused, unless a run that stopped goes on and repeats one exactly as it was.

A coordinator that resumes a run has another number of Flower's for it, and names the one with which the run began (``resumes``). The gate
takes the message as one of that run: its agreement, its data and its course hold, and it is not another run of the study. The round in
progress is asked for again, with the same bytes in every record, so what leaves the site tells nothing new; noise of privacy is drawn anew
and charged to the ledger again. Everything needed for that is in the journal, so it holds after the site's own restart too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedml.clients.gate.history import asked_for, exactly
from fedml.clients.gate.journal import RecordNote
from fedml.clients.site.manifest import Policy
from fedml.errors import Reason, SiteError
from fedml.wire.records import Phase


class Key(NamedTuple):
    """What may be requested once."""

    run: str
    phase: str
    round: int


@dataclass(frozen=True)
class Before:
    """What was accepted before: requests with their contents, runs by study, and contents of last evaluations of this study."""

    accepted: Mapping[tuple[str, str, int], str]
    runs: Mapping[str, Collection[str]]
    evaluated: Collection[str]


def check_repeats(before: Before, policy: Policy, study: str, key: Key, records: Sequence[RecordNote], *, resumed: bool) -> bool:
    """Whether the request came before, with the same bytes, and may be answered again.

    Args:
        study: its SHA-256. records: of the request. resumed: the message says that it continues a run.

    Raises:
        SiteError: it was answered, or the study has more runs or evaluations than the policy allows.
    """
    runs = before.runs.get(study, ())
    if resumed and any(key.run in others for sha256, others in before.runs.items() if sha256 != study):
        raise SiteError(Reason.OFF_PLAN, f"run {key.run}, which the message continues, is of another study")
    if key.run not in runs and len(runs) >= policy.max_runs:
        raise SiteError(Reason.REPLAYED, f"the study already ran {policy.max_runs} times at this site, the limit of [policy] max_runs")
    if key.phase == Phase.ROUND and any(earlier[:2] == (key.run, Phase.EVALUATE) for earlier in before.accepted):
        raise SiteError(Reason.OFF_PLAN, "training is requested after the last evaluation of the run")
    known = before.accepted.get(key)
    if known is not None and not (resumed and known == exactly(records)):
        why = ", and this one, of a run that goes on, is not the same" if resumed else ""
        raise SiteError(Reason.REPLAYED, f"this request (run, phase, round) was accepted before: {tuple(key)}{why}")
    if key.phase == Phase.EVALUATE and asked_for(records) not in before.evaluated and len(before.evaluated) >= policy.max_evaluations:
        raise SiteError(
            Reason.REPLAYED,
            f"the test persons of this study were evaluated with {len(before.evaluated)} other models, [policy] max_evaluations allows "
            f"{policy.max_evaluations}; a run that gives the same weights again is answered",
        )
    return known is not None
