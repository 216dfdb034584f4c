"""What stands beside the figures of all sites together: pairs within sites, the spread between sites, those a subgroup is compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedml.experiments.report.markup import Cell, Number, paragraph, table, written
from fedml.experiments.report.pointers import pointer
from fedml.experiments.report.words import join, named
from fedml.experiments.runs.record import Record

Found = Mapping[str, Any]
CLUSTERED = (
    " Persons who belong together ([cohort] cluster) are no independent draws: each interval is widened by the design effect that the "
    "sites tell of the measure, with Student's t for the number of clusters."
)


def general(method: str) -> str:
    """The name of a method without the degrees of freedom, which differ from row to row: ``Student's t, logit scale``."""
    return re.sub(r", [0-9]+ degrees of freedom", "", method)


def sites(record: Record, found: Found) -> list[str]:
    """The table of what holds within and between sites; nothing where the record gives neither."""
    across = found.get("across")
    if not across:
        return []
    rows: list[list[Cell]] = []
    text = ""
    if "within" in across:
        rows += [["AUROC, all pairs of persons", Number(pointer("scores", "all", "metrics", "auroc"), "estimate")]]
        rows += [["AUROC, pairs of persons of one site", Number(pointer("across", "within"), "estimate")]]
        rows += [["AUROC of the site's name alone", Number(pointer("across", "site_alone"))]]
        rows += [["pairs whose persons are of two sites", Number(pointer("across", "crossing"), "percent")]]
        text = (
            f"The AUROC of all sites also compares persons of different sites: {written(across['crossing'], 'percent')} of its pairs. A "
            "score that knows of a person only the share of cases at the site has an AUROC of "
            f"{written(across['site_alone'])} in these persons. Within sites, differences between sites move nothing; each site counts by "
            "its pairs. "
            f"Its interval: {across['within']['method'].removeprefix('none: ')}."
        )
    if "mean" in across:
        name = named(record, across["measure"])
        rows += [[f"{name}, mean over {across['sites']} sites", Number(pointer("across", "mean"), "estimate")]]
        rows += [[f"{name}, 95 % prediction for a further site", Number(pointer("across", "further"), "estimate")]]
        text += (
            f" Mean and prediction: {across['mean']['method']}; {across['further']['method']}. The prediction says between which limits "
            "the true value at a further site such as these would lie; with few sites it is wide."
        )
        if across["left_out"]:
            text += f" Without {join(across['left_out'])}, where no interval is known."
    return [table(found, "Within and between sites", ["", "value"], rows), paragraph(text.strip(), kind="note")]


def references(found: Found) -> tuple[dict[str, str], str]:
    """Label of a group -> the name of the row that is of all persons of the sites that report it, one for each set of sites; a sentence."""
    groups, named_by, out = found["scores"]["groups"], dict[tuple[str, ...], str](), dict[str, str]()
    for label, group in groups.items():
        if group is None or not group.get("reference"):
            continue
        told = tuple(group["sites"])
        if told not in named_by:
            named_by[told] = label
            out[label] = f"all persons at {join(list(told))}"
    sets = "the rows of all persons are of those sites alone, so that a group is compared with the persons of the same sites."
    return out, f"A group's sites differ from group to group: {sets}" if len(out) > 1 else f"Compared with: {sets}"
