"""Tests whether a variant lies in the regions of a selection; used by the readers of every format.

spans = merged(selection)                           # canonical contig -> ranges of positions
check_contigs(spans, source.contigs, path)
inside = Inside(spans)
inside("chr22", 17_000_000)
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
Spans = dict[str, list[tuple[int, int]]]  # canonical contig -> (first, last), both included, disjoint and ascending


def merged(selection: Selection) -> Spans:
    """The selection's regions by contig; regions that overlap or touch are merged into one."""
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
    """A predicate: called with a contig as written and a position, True if ``spans`` contain it. ``seen``: the contigs of all calls."""

    def __init__(self, spans: Spans) -> None:
        self.spans = spans
        self.seen: dict[str, list[int]] = {}  # first, last + 1, first, last + 1, ...

    def __call__(self, contig: str, position: int) -> bool:
        bounds = self.seen.get(contig)
        if bounds is None:
            spans = self.spans.get(canonical_contig(contig), [])
            bounds = self.seen[contig] = list(itertools.chain.from_iterable((first, last + 1) for first, last in spans))
        return bisect.bisect_right(bounds, position) % 2 == 1


def check_contigs(spans: Spans, contigs: Iterable[str], path: Path) -> None:
    """Checks that the file has the contig of every span.

    Raises:
        InputError: a span's contig is not among the file's ``contigs``.
    """
    present = list(dict.fromkeys(canonical_contig(name) for name in contigs))
    for contig in spans:
        if contig not in present:
            names = ", ".join(present[:10]) + (", ..." if len(present) > 10 else "")
            raise InputError(f"{path}: has no contig {contig}, only {names or 'none'}; correct [cohort.variants] regions.")
