"""Sites that only evaluate the final model: what they lack of what the sites that train agreed on.

They have no part in the agreement: an input, an image shape or a variant that such a site lacks changes nothing for the others. It is told
by name, and a site that cannot evaluate the model at all is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedml.cohort.variants.checks import Check
from fedml.cohort.variants.harmonise import draft_panel
from fedml.cohort.variants.keys import from_text
from fedml.errors import Reason
from fedml.modalities.registry import modalities_of
from fedml.strategies.agreement.agreement import Agreement
from fedml.study.study import Study
from fedml.wire.records import BUILD, IMAGE_SHAPE, NOTES, PANEL

Described = Mapping[str, Any]


def lacking(study: Study, site: str, described: Described, shape: tuple[int, ...]) -> Iterator[Check]:
    """Warnings about inputs that ``site`` does not have, and about images of another shape than the agreed ``shape``."""
    for modality in modalities_of(study):
        keys = modality.declared()
        if keys and not keys.keys() & described.keys():
            yield Check(site, modality.name, "none", "warn", f"external validation at {site} is of persons without this input")
    own = tuple(int(n) for n in described.get(IMAGE_SHAPE, ()))
    if own and own != shape:
        fix = f"the model takes images of {shape} (channels, *size); resample those of {site}, or it cannot evaluate the model"
        yield Check(site, "image shape", str(own), "warn", fix)


def with_external(study: Study, agreed: Agreement, described: Mapping[str, Described]) -> tuple[Agreement, list[Check]]:
    """``agreed`` with the orientation of each external site's variants, and the checks of those sites.

    A site of another genome build, or with a smaller share of the model's variants than ``min_shared``, is left out with ``bad-data``.
    """
    if agreed.shared is None:
        return agreed, []
    spec, shared, checks, left_out = study.cohort.variants, agreed.shared, list[Check](), set[str]()
    flips, matching = dict(shared.flips), dict(shared.matching)
    asked = [site for site in agreed.external.values() if PANEL in described[site]]
    at = {key: place for place, key in enumerate(shared.keys)} if asked else {}
    for site in asked:
        build = described[site][BUILD].tobytes().decode()
        keys, notes = from_text(described[site][PANEL].tobytes()), described[site][NOTES].tolist()
        both = draft_panel({"": shared.keys, site: keys}, spec.match, [""], {site: notes})
        share, other = len(both.keys) / max(len(shared.keys), 1), _other_build(study, build, agreed.build)
        if other or share < spec.min_shared:
            fix = f"lift the file over to {agreed.build}" if other else f"the study requires {spec.min_shared:.0%} of the model's variants"
            value = build if other else f"{share:.1%}"
            what = "genome build" if other else "variants of the model"
            checks.append(Check(site, what, value, "fail", f"{site} is left out: it cannot evaluate the model; {fix}"))
            left_out.add(site)
            continue
        flips[site] = np.zeros(len(shared.keys), np.uint8)
        flips[site][[at[key] for key in both.keys]] = both.flips[site]
        matching[site] = both.matching.get(site, {})
        lacks, doubt = len(shared.keys) - len(both.keys), int(both.doubtful[site].sum())
        fix = "missing for each of its persons, who get the mean of the sites that train" if lacks else ""
        checks.append(Check(site, "variants of the model", f"{len(both.keys)} of {len(shared.keys)}", "warn" if lacks else "ok", fix))
        if doubt:
            fix = "taken as the file writes them; give the file on the forward strand"
            checks.append(Check(site, "A/T or C/G of unknown strand", str(doubt), "warn", fix))
    external = {node: site for node, site in agreed.external.items() if site not in left_out}
    refused = {**agreed.refused, **dict.fromkeys(left_out, str(Reason.BAD_DATA))}
    return replace(agreed, shared=replace(shared, flips=flips, matching=matching), external=external, refused=refused), checks


def _other_build(study: Study, own: str, agreed: str) -> bool:
    spec = study.cohort.variants
    return bool(agreed) and own != agreed and (bool(spec.build) or spec.match == "position")
