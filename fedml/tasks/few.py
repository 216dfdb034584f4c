"""What few persons did to the counts of sites: cells that may be rounded, and scores that were not sent (``Task.grouped``).

A site does not say whether it rounded, because that would tell about the few. These functions err on the side of saying that it may have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from fedml.tasks.classification_counts import BEYOND, noised
from fedml.tasks.multilabel import TABLES
from fedml.tasks.survival_counts import withheld as untimed

Counts = Mapping[str, npt.NDArray[Any]]
FEW = 10  # persons; a cell of more is not taken for one that was rounded up


def may_be_rounded(counts: Counts) -> bool:
    """Whether cells of one site's counts of right and wrong answers may be rounded: no cell and no bin has one person, which no site
    sends that rounds, and a cell has few persons."""
    cells = counts.get("confusion", counts.get(TABLES))
    if cells is None or not cells.sum() or noised(counts) or (cells == 1).any():
        return False
    as_sent = "histogram" in counts and not counts[BEYOND].any()  # otherwise its bins were spread over the scale
    return not (as_sent and (counts["histogram"] == 1).any()) and int(cells.min()) <= FEW


def withheld(counts: Counts) -> bool:
    """Whether one site sent no scores of its persons, of whom a class has too few."""
    return untimed(counts) or (
        "histogram" in counts and not noised(counts) and bool(counts["persons"].sum()) and not counts["histogram"].any()
    )


def few_notes(by_site: Mapping[str, Counts]) -> list[str]:
    """What a reader of the measures has to know, as sentences; none if all counts are exact."""
    out = []
    if rounded := [site for site, counts in by_site.items() if may_be_rounded(counts)]:
        out.append(
            f"Approximate: {_named(rounded)} may have rounded counts of right and wrong answers of fewer persons than min_count (to 0 or "
            "to min_count), so accuracy, F1 and the like, and their intervals, are approximate there and over all sites. Where you may "
            "read the data, fedml predict gives every person's prediction."
        )
    if missing := [site for site, counts in by_site.items() if withheld(counts)]:
        persons = [sum(float(by_site[site]["persons"].sum()) for site in some) for some in (missing, by_site)]
        out.append(
            f"Scores of {persons[1] - persons[0]:,.0f} of {persons[1]:,.0f} persons: {_named(missing)} sent none, because a class has "
            "fewer persons there than min_count. AUROC and calibration are of the others."
        )
    return out


def _named(sites: Sequence[str]) -> str:
    shown = list(sites[:5]) + ([f"{len(sites) - 5} more sites"] if len(sites) > 5 else [])
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
