"""What a reply costs: charged to the site's ledger before the reply is computed."""

from __future__ import annotations

from typing import Any

from fedml.clients.gate.ledger import Ledger
from fedml.clients.site.manifest import Policy
from fedml.clients.site.read import load_cohort
from fedml.clients.work import genomics
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.privacy.releases import counted_parts, message_events
from fedml.study.section import PartName
from fedml.study.study import Study
from fedml.wire.records import ANALYSES, OUTCOMES, Phase


def check_budget(study: Study, policy: Policy) -> None:
    """Raises ``SiteError`` if the site has a budget and the study releases anything that a budget cannot count."""
    if policy.max_epsilon <= 0 or policy.allow_unprotected:
        return
    if study.privacy.unit != "patient":
        why = "has no privacy of a patient"
    elif study.privacy.metrics != "private":
        why = 'releases exact counts of held-out persons ([privacy] metrics = "exact")'
    else:
        return
    text = f'[policy] max_epsilon is {policy.max_epsilon:g} and allow_unprotected is false, but study "{study.study.name}" {why}'
    raise SiteError(Reason.BUDGET, text)


def check_delta(study: Study, policy: Policy, persons: int) -> None:
    """Raises ``SiteError`` if a delta is not below 1 / ``persons``: releasing one of them completely would satisfy it."""
    for key, delta in (("[privacy] delta", study.privacy.delta), ("[policy] delta", policy.delta)):
        if study.privacy.unit == "patient" and persons > 1 and delta * persons >= 1:
            raise SiteError(
                Reason.BUDGET, f"{key} is {delta:g}, and {persons} persons take part: it must be below 1 / {persons}; 1e-5 is usual"
            )


def charge(ledger: Ledger, policy: Policy, request: Request, run: str) -> None:
    """Charges the reply's releases to the ledger. Raises ``SiteError`` if a budget would be exceeded."""
    study = request.study
    check_budget(study, policy)
    cohort = load_cohort(request.manifests, study)
    note: dict[str, Any] = {
        "run": run,
        "study": study.sha256,
        "study_name": study.study.name,
        "phase": request.phase,
        "round": request.round,
    }

    def persons(part: PartName) -> list[str]:
        return [cohort.ids[row] for row in cohort.rows(part)]

    if study.privacy.unit != "patient":
        if request.phase in OUTCOMES:
            from fedml.clients.work.outcomes import persons as analysed  # SciPy's statistics take half a second to import

            ledger.note_unprotected(analysed(request), **note)
        elif request.phase in ANALYSES:
            ledger.note_unprotected(genomics.persons(request), **note)
        elif request.phase is Phase.ROUND and (trained := persons("train")):
            ledger.note_unprotected(trained, **note)
        elif request.phase is Phase.EVALUATE and request.name in study.federation.evaluate_only:
            ledger.note_unprotected(persons("test"), **note)
        return
    # Exact counts about held-out persons have no epsilon: the plan states it, and the ledger lists them without one.
    counted = [row for part in counted_parts(study, request.phase, request.round) for row in persons(part)]
    if counted and study.privacy.metrics == "exact":
        ledger.note_unprotected(counted, **note)
    released = message_events(study, request.name, request.phase, request.round)
    parts = [(ids, events) for part, events in released.items() if events and (ids := persons(part))]
    for ids, _ in parts:
        check_delta(study, policy, len(ids))
    if parts:
        ahead = study.federation.rounds - request.round if request.phase is Phase.ROUND else 0
        ledger.charge_all(parts, **note, max_epsilon=policy.max_epsilon, delta=policy.delta, ahead=ahead)
