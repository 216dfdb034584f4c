"""Which persons count as carriers of a gene's rare variants, so that no sum about a gene is about few persons.

A *column* is one variant, or several rare variants of a kind that are counted together; its value is a person's number of ALT alleles (a
missing call is none). ``counted`` changes the columns of one gene by rules that look at genotypes and covariates and never at the outcome,
so that the tests stay valid. After it (``fewest`` = min_count, below 2 changes nothing):

1. each column has no carrier or at least ``fewest``, among everyone and in each level of a covariate;
2. no person, or at least ``fewest``, carries both of two columns, so that no cell of their covariance counts few persons;
3. each column has at least ``fewest`` carriers who carry no other column of the gene. So in every linear combination of the columns these
   persons have the same weight: none isolates fewer (no choice of weights, and no difference of two masks);
4. in each level at least ``fewest`` persons carry no column;
5. who carries a column and is not counted in it: nobody or at least ``fewest`` persons, among everyone and in each level, so that a
   difference to a count of all carriers is not about few.

A variant that the site tells on its own (``fedml.cohort.variants.ploidy.site_table``) is in a column of its own whole or not at all there,
except that it shares rule 5; one that it does not tell is never alone in a column: of several such in one column, persons are left out
until rule 1 holds for these alone, so that subtracting the told ones from the column does not leave few persons.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
_STEPS = 50


def gathered(dosage: npt.NDArray[np.int8], column: Counts, hidden: Bools, groups: Bools, fewest: int) -> Counts:
    """(persons, columns) alleles of each column.

    Args:
        dosage: (persons, variants) of one gene, -1 where missing.
        column: (variants,) the column of each variant.
        hidden: (variants,) the site does not tell of this variant alone.
        groups: (groups, persons): everyone, and the levels of covariates.
    """
    alleles = np.maximum(dosage, 0).astype(np.int64)
    out = np.zeros((len(dosage), int(column.max(initial=-1)) + 1), np.int64)
    for at in range(out.shape[1]):
        own = column == at
        whole, few = alleles[:, own & ~hidden].sum(1), alleles[:, own & hidden].sum(1)
        if fewest > 1:
            few = few if int(own.sum()) > 1 else np.zeros_like(few)
            while (left := _in_small_groups(few > 0, groups, fewest)).any():
                few[left] = 0
        out[:, at] = whole + few
    return out


def counted(columns: Counts, groups: Bools, rank: Counts, fewest: int) -> Counts:
    """The alleles that are counted of ``columns`` (persons, columns), as ``gathered`` gives them; 0 in all of a column that is left out.

    Args:
        rank: (persons,) an order of the persons that has nothing to do with them; it decides who is left out besides.
    """
    if fewest <= 1:
        return columns
    carried = columns > 0
    kept = dict[int, Bools]()  # column -> its carriers who are counted
    for at in np.argsort(carried.sum(0), kind="stable").tolist():  # the rarest first: those that come later give way
        if carried[:, at].any() and (left := _fitted(carried[:, at], kept, groups, rank, fewest)) is not None:
            kept[at] = left
    nobody = ~np.any(list(kept.values()), axis=0) if kept else np.ones(len(columns), bool)
    out = np.zeros_like(columns)
    if all(int((nobody & group).sum()) >= fewest for group in groups if group.any()):
        for at, persons in kept.items():
            out[persons, at] = columns[persons, at]
    return out


def _fitted(own: Bools, kept: dict[int, Bools], groups: Bools, rank: Counts, fewest: int) -> Bools | None:
    """Those of the carriers ``own`` (persons,) of a column who are counted next to the columns ``kept``; None: the column is left out."""
    others = np.sum(list(kept.values()), axis=0) if kept else np.zeros(len(own), np.int64)
    out = np.zeros_like(own)
    for _ in range(_STEPS):
        more = np.zeros_like(own)
        left = own & ~out
        for other in kept.values():
            both, alone = left & other, other & (others == 1)
            if 0 < int(both.sum()) < fewest or int((alone & ~left).sum()) < fewest:
                more |= both
        more |= _in_small_groups(left, groups, fewest)
        if int((left & (others == 0)).sum()) < fewest:
            return None
        more |= _filled(out | more, own, groups, rank, fewest)
        if not (more & ~out).any():
            return left
        out |= more
    return None


def _in_small_groups(persons: Bools, groups: Bools, fewest: int) -> Bools:
    """(persons,) those of ``persons`` who are, with fewer than ``fewest``, in one of the groups."""
    out = np.zeros_like(persons)
    for group in groups:
        inside = persons & group
        if 0 < int(inside.sum()) < fewest:
            out |= inside
    return out


def _filled(out: Bools, own: Bools, groups: Bools, rank: Counts, fewest: int) -> Bools:
    """``out`` with more of the carriers ``own``, until at least ``fewest`` or none are left out in each group, where there are so many."""
    out = out.copy()
    for group in groups:
        lacking = fewest - int((out & group).sum())
        if 0 < lacking < fewest:
            more = np.flatnonzero(own & group & ~out)
            out[more[np.argsort(rank[more], kind="stable")][:lacking]] = True
    return out


def objections(counts: Counts, groups: Bools, fewest: int) -> Iterator[str]:
    """What is about few persons in the sums of ``counts`` (persons, columns) of one gene, by rules 1 to 4, counted anew."""
    carriers = (counts > 0).astype(np.int64)
    for group in groups:
        inside = carriers[group]
        if _few(inside.sum(0), fewest):
            yield "a column has few carriers"
        if carriers.any() and group.any() and int((inside.sum(1) == 0).sum()) < fewest:
            yield "few persons carry no column"
    if _few(carriers.T @ carriers, fewest):
        yield "few persons carry two columns"
    alone = carriers[carriers.sum(1) == 1].sum(0)
    if (alone[carriers.any(0)] < fewest).any():
        yield "a column has few carriers of its own"


def _few(persons: Counts, fewest: int) -> bool:
    return bool(((persons > 0) & (persons < fewest)).any())
