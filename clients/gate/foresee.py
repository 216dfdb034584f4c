"""What the gate would refuse of a study, told before a run."""

from __future__ import annotations

from collections.abc import Iterator

from fedml.clients.gate.approvals import approval_of
from fedml.clients.gate.bounds import objections
from fedml.clients.gate.charge import check_budget, check_delta
from fedml.clients.gate.checks import limits
from fedml.clients.gate.trust import check_level, level_of
from fedml.clients.site.manifest import Site
from fedml.clients.work.people import analysed
from fedml.clients.work.polygenic import few_columns
from fedml.errors import InputError, SiteError
from fedml.study.study import Study


def would_refuse(site: Site, study: Study, persons: int | None, trust: str = "") -> Iterator[str]:
    """Sentences about what in the plan this site's policy does not allow.

    Args:
        persons: of this site, who train, or who test where it only evaluates; None: not known, what depends on it is not examined.
        trust: why the approver trusts the centre; "": as the study's approval says, if there is one.
    """
    policy = site.manifest.policy
    try:
        approval = approval_of(site.state, study.sha256) if site.state.exists() else None
    except InputError as error:
        yield str(error)
        approval = None
    level = "trusted" if trust else level_of(site, approval)
    try:
        check_level(level, study, site)
        check_budget(study, policy)
        check_delta(study, policy, persons or 0)
    except SiteError as error:
        yield str(error)
    if study.federation.rounds > policy.max_rounds:
        yield f"it has {study.federation.rounds} rounds, [policy] max_rounds allows {policy.max_rounds}"
    if policy.purposes is not None and study.study.purpose not in policy.purposes:
        yield f'purpose "{study.study.purpose}" is not allowed by [policy] purposes'
    allowed = limits(policy, study)
    trains = site.name not in study.federation.evaluate_only
    if persons is not None and persons < allowed.min_persons:
        yield f"{persons} {'training' if trains else 'test'} persons, min_persons requires {allowed.min_persons}"
    if persons is not None and study.gwas is not None:
        try:
            count = len(analysed((str(site.file.resolve()),), study).rows)
        except InputError as error:  # relatives cannot be found
            yield str(error)
        else:
            plan = study.gwas.polygenic
            if plan is not None and (why := few_columns(study, count, max(plan.block, len(plan.ridge)))):
                yield why
    if trains and level != "trusted" and study.privacy.unit != "patient" and not site.manifest.data.public and persons is not None:
        yield from objections(study, policy, allowed.min_count, persons)
