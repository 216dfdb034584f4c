"""How far a site trusts the centre, which chooses every message of a run.

    distrusted   only what reveals nothing exact about persons to a centre that chooses every message: privacy of one patient, with noised
                 metrics, of inputs whose description needs no data
    curious      studies without that privacy too. Messages must follow from the plan (``fedml.clients.gate.course``), the plan must be
                 within the site's bounds (``fedml.clients.gate.bounds``), and answers are about enough persons
    trusted      as curious, without the bounds on messages and plan: only for a study that a person approved with ``--trust-centre``

Public data (``[data] public = true``) are answered as for a curious centre.
"""

from __future__ import annotations

from typing import Literal

from fedml.clients.gate.approvals import Approval
from fedml.clients.site.manifest import Site
from fedml.errors import Reason, SiteError
from fedml.study.study import Study

Level = Literal["distrusted", "curious", "trusted"]


def level_of(site: Site, approval: Approval | None = None) -> Level:
    """The level for a study with this approval; None: without a statement of the approver."""
    if approval is not None and approval.trust:
        return "trusted"
    return "curious" if site.manifest.data.public and site.manifest.policy.centre == "distrusted" else site.manifest.policy.centre


def exact_answers(study: Study) -> list[str]:
    """What the study would release that is exact, or could be: why a distrusted centre is refused. Empty: nothing."""
    plan = study.privacy
    if plan.unit != "patient":
        return ["it has no privacy of one patient"]
    found = []
    if plan.metrics != "private":
        found.append('its metrics are exact ([privacy] metrics = "exact")')
    if "variants" in study.cohort.inputs and not study.cohort.variants.stated:
        found.append(
            "the list of a site's variants is sent as it is, and a rare variant can identify a person (a study states the variants with "
            '[cohort.variants] listed = ["CONTIG:POSITION:REF:ALT", ...])'
        )
    return found


def unchecked(study: Study, site: Site) -> str:
    """Why a curious centre is refused in a study with own code, or at a site that does not train; "" if it is not.

    The site has seen no round, so it cannot tell the run's result from weights that were chosen to read persons out of exact counts.
    """
    if study.code is not None and not site.manifest.data.public:
        return "its own code computes what the checks of a message rest on ([code])"
    if site.name not in study.federation.evaluate_only or site.manifest.data.public or not exact_answers(study):
        return ""
    return (
        f"[federation] evaluate_only names {site.name}, which sees no round and cannot check that the weights are the run's result, and "
        "its metrics are exact"
    )


def check_level(level: Level, study: Study, site: Site) -> None:
    """Raises ``SiteError`` if a centre of this ``level`` may not be answered in this study at ``site``."""
    if level == "curious" and (reason := unchecked(study, site)):
        raise SiteError(
            Reason.DISTRUSTED,
            f'study "{study.study.name}": {reason}. To allow it, approve it with --trust-centre "REASON"; a study with [privacy] '
            'unit = "patient" and metrics = "private" needs no trust',
        )
    if level == "distrusted" and (why := exact_answers(study)):
        raise SiteError(
            Reason.DISTRUSTED,
            f'[policy] centre is "distrusted", and study "{study.study.name}" releases exact values: {"; ".join(why)}. To allow it, set '
            '[policy] centre = "curious", or approve it with --trust-centre "REASON"',
        )


def words(level: Level, study: Study, site: Site) -> str:
    """What the level means for this study at ``site``, for the person who approves it."""
    if level == "curious" and (reason := unchecked(study, site)):
        return f"curious: every request will be refused, because {reason}"
    if level == "distrusted":
        why = exact_answers(study)
        return f"distrusted: every request will be refused, because {'; '.join(why)}" if why else "distrusted: only noised values leave"
    if level == "trusted":
        return "trusted: a centre that does not follow the plan can read single persons from the answers"
    return "curious: a message that does not follow from the plan is refused; exact values of groups of persons leave"
