"""Is a variant within the regions that a selection names? Shared by the readers of each format.

spans = merged(selection)                           # canonical contig -> stretches
inside = Inside(path, spans)
inside("chr22", 17_000_000); inside.check(contigs)
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import final

from fedml.cohort.variants.model import Selection
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

TO_THE_END = 2**31 - 1
Spans = dict[str, list[tuple[int, int]]]  # canonical contig -> (first, last), both included, apart and ascending


def merged(selection: Selection) -> Spans:
    """The selection's regions; those that overlap or touch are one."""
    out: Spans = {}
    for contig, first, last in sorted(selection.spans()):
        spans = out.setdefault(contig, [])
        if spans and first <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((first, last))
    return out


@final
class Inside:
    """Called with a contig as written and a position: is that within ``spans``? ``seen`` are the contigs that were asked about."""

    def __init__(self, spans: Spans) -> None:
        self.spans = spans
        self.seen: dict[str, list[int]] = {}  # first, last + 1, first, last + 1, ...

    def __call__(self, contig: str, position: int) -> bool:
        bounds = self.seen.get(contig)
        if bounds is None:
            own = self.spans.get(canonical_contig(contig), [])
            bounds = self.seen[contig] = list(itertools.chain.from_iterable((first, last + 1) for first, last in own))
        return bisect.bisect_right(bounds, position) % 2 == 1


def check_contigs(spans: Spans, contigs: Iterable[str], path: Path) -> None:
    """Is each span's contig one of the file's ``contigs``?

    Raises:
        InputError: one is not.
    """
    there = {canonical_contig(name): name for name in contigs}
    for contig in spans:
        if contig not in there:
            some = ", ".join(list(there)[:10]) + (", ..." if len(there) > 10 else "")
            raise InputError(f"{path}: has no contig {contig}, only {some or 'none'}; correct [cohort.variants] regions.")
