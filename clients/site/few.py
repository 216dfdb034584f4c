"""What few training persons have: an input, a value of a column, a category, a gap, a variant's alternative allele. What is learned from
it, and its sums, would be about those persons alone.

A value that few persons have cannot be told from others afterwards: where nearly everybody has the same value, the column counts as
missing for everybody; a category of few counts as the most common one; gaps of few are filled with the most common category or the
median, and so is the row of a table that few do not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedml.cohort.inputs import Input, Table
from fedml.cohort.persons import Cohort
from fedml.cohort.variants.genotypes import genotype_counts
from fedml.cohort.variants.model import Dosages
from fedml.cohort.wide.matrix import Matrix
from fedml.errors import Reason, SiteError
from fedml.study.study import Study

Values = npt.NDArray[np.float64]


@lru_cache(maxsize=4096)  # of a table that nothing is taken from, it is the same object
def without_few(cohort: Cohort, study: Study, smallest: int) -> Cohort:
    """``cohort`` without what 1 to ``smallest`` - 1 training persons have. The same object if there is nothing of that kind.

    Raises:
        SiteError: no input is left.
    """
    rows, inputs = cohort.rows("train"), dict[str, Input]()
    spec = study.cohort.clinical
    categories = () if spec is None else tuple(at for at, name in enumerate(spec.columns) if name in spec.categories)
    for name, value in cohort.inputs.items():
        there = value.has(len(cohort))[rows]
        if 0 < int(there.sum()) < smallest:
            continue
        if 0 < int((~there).sum()) < smallest:
            value = _complete(value, rows[~there])
        if isinstance(value, Table):
            inputs[name] = _table(value, rows, smallest, categories if name == "clinical" else ())
        elif isinstance(value, Matrix):
            inputs[name] = _matrix(value, rows, smallest)
        else:
            inputs[name] = _variants(value, rows, smallest) if isinstance(value, Dosages) else value
    if not inputs:
        raise SiteError(Reason.TOO_FEW, f"each of the study's inputs is there for fewer than {smallest} training persons")
    same = inputs.keys() == cohort.inputs.keys() and all(inputs[name] is cohort.inputs[name] for name in inputs)
    return cohort if same else replace(cohort, inputs=inputs)


def changes(cohort: Cohort, study: Study, smallest: int) -> Iterator[str]:
    """Sentences about what ``without_few`` leaves out or changes, for the site's own screen."""
    try:
        after = without_few(cohort, study, smallest)
    except SiteError as error:
        yield str(error)
        return
    for name, value in cohort.inputs.items():
        new = after.inputs.get(name)
        if new is None:
            yield f"{name} is left out: fewer than {smallest} training persons have it"
        elif isinstance(value, Table) and isinstance(new, Table):
            names = study.cohort.clinical.columns if name == "clinical" and study.cohort.clinical else ()
            for at in np.flatnonzero(~((value.values == new.values) | (np.isnan(value.values) & np.isnan(new.values))).all(0)):
                column = f"column {names[at]}" if names else f"{name}: column {at + 1}"
                yield _change(column, bool(np.isnan(new.values[:, at]).all()), smallest)
        elif isinstance(new, Matrix) and new.hidden is not None and new.fill is not None:
            for at in np.flatnonzero(new.hidden | ~np.isnan(new.fill)):
                yield _change(f"{name}: column {at + 1}", bool(new.hidden[at]), smallest)
        elif (
            isinstance(value, Dosages)
            and isinstance(new, Dosages)
            and (few := int(_few_variants(value, cohort.rows("train"), smallest).sum()))
        ):
            yield f"{few} variants are left out: fewer than {smallest} training persons have another genotype than the others"


def _change(column: str, out: bool, smallest: int) -> str:
    done = "is left out" if out else "gets the most common category, or the median, for a category or gap of few persons"
    return f"{column} {done}: it would tell about fewer than {smallest} training persons"


def _complete(value: Input, absent: npt.NDArray[np.int64]) -> Input:
    """With a row of missing values for persons without one, so that a model does not learn from who they are. Images stay as they are."""
    if not isinstance(value, Table | Matrix | Dosages):
        return value
    present = value.present.copy()
    present[absent] = True
    return replace(value, present=present)


def _table(table: Table, rows: npt.NDArray[np.int64], smallest: int, categories: tuple[int, ...]) -> Table:
    train = table.present.copy()
    train[np.setdiff1d(np.arange(len(train)), rows)] = False
    values = table.values.copy()
    for at in range(values.shape[1]):
        column: Values = values[:, at]  # a view: what is written is in ``values``
        known = column[train & ~np.isnan(column)]
        levels, persons = np.unique(known, return_counts=True)
        if 0 < len(known) < smallest or 0 < len(known) - persons.max(initial=0) < smallest:
            column[:] = np.nan
            continue
        if not len(known):
            continue
        common = levels[persons.argmax()] if at in categories else np.median(known)
        if at in categories:
            column[np.isin(column, levels[persons < smallest])] = common
        gaps = int(train.sum()) - len(known)
        if 0 < gaps < smallest:
            column[table.present & np.isnan(column)] = common
    return table if np.array_equal(values, table.values, equal_nan=True) else replace(table, values=values)


def _matrix(matrix: Matrix, rows: npt.NDArray[np.int64], smallest: int) -> Matrix:
    """``_table`` of a matrix on disk, some columns at a time: which columns are hidden, and the medians that fill gaps."""
    train = rows[matrix.present[rows]]
    if not len(train):
        return matrix
    hidden, fill = np.zeros(matrix.shape[1], bool), np.full(matrix.shape[1], np.nan, np.float32)
    for start, block in matrix.column_blocks(train):
        columns = np.arange(block.shape[1])
        block.sort(axis=0)  # missing numbers last
        known = (~np.isnan(block)).sum(0)
        low, high = (block[np.clip(place, 0, len(block) - 1), columns] for place in ((known - 1) // 2, known // 2))
        # A value that more than half of the persons have is their median. Where fewer may be enough, every value is counted.
        common = (block == high).sum(0)
        for at in np.flatnonzero((known > 0) & (known < 2 * smallest)):
            common[at] = np.unique(block[: known[at], at], return_counts=True)[1].max()
        here, gaps, others = slice(start, start + len(columns)), len(train) - known, known - common
        hidden[here] = ((known > 0) & (known < smallest)) | ((others > 0) & (others < smallest))
        few = ~hidden[here] & (known > 0) & (gaps > 0) & (gaps < smallest)
        fill[here] = np.where(few, (low.astype(np.float64) + high) / 2, np.nan)
    return replace(matrix, hidden=hidden, fill=fill) if hidden.any() or not np.isnan(fill).all() else matrix


def _few_variants(value: Dosages, rows: npt.NDArray[np.int64], smallest: int) -> npt.NDArray[np.bool_]:
    """(variants,) where 1 to ``smallest`` - 1 training persons have another genotype than the others, or a genotype at all."""
    counts = genotype_counts(value, rows)[:3]
    known, others = counts.sum(0), counts.sum(0) - counts.max(0)
    return ((known > 0) & (known < smallest)) | ((others > 0) & (others < smallest))  # type: ignore[no-any-return]


def _variants(value: Dosages, rows: npt.NDArray[np.int64], smallest: int) -> Dosages:
    few = _few_variants(value, rows, smallest)
    if not few.any():
        return value
    if isinstance(value.dosage, np.ndarray):
        return replace(value, dosage=np.where(few, np.int8(-1), value.dosage))
    return replace(value, dosage=value.dosage.aligned(np.where(few, -1, np.arange(len(few))), np.zeros(len(few), bool)))
