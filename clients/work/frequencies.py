"""The site's part of ``fedml frequencies``: its persons by population and sex, their allele counts, and the gate's check of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.clients.work.people import Analysed
from fedml.cohort.groups import POPULATION, reportable_indices
from fedml.cohort.persons import Cohort
from fedml.cohort.variants.cells import Table, cell_calls, reveals_few, site_alleles
from fedml.cohort.variants.model import Dosages
from fedml.errors import Reason, SiteError
from fedml.study.study import Study

Mask = npt.NDArray[np.bool_]


def cell_masks(cohort: Cohort, people: Analysed, study: Study) -> Mask:
    """(cells, persons) of the persons analysed: by population, last the unknown; in each men, women, and those of unknown sex."""
    assert study.frequencies is not None  # noqa: S101 - the form of the request was checked
    count, persons = len(study.frequencies.populations), len(people.rows)
    codes = cohort.groups[POPULATION][people.rows] if POPULATION in cohort.groups else np.full(persons, -1)
    sexes = [*people.sexes, ~people.sexes.any(0)]
    return np.stack([(codes == place) & sex for place in (*range(count), -1) for sex in sexes])


def _table(dosages: Dosages, masks: Mask, counts: npt.NDArray[np.int64]) -> Table:
    return Table(cell_calls(counts, dosages.where), masks.sum(1).reshape(-1, 3), dosages.where)


def told(study: Study, dosages: Dosages, masks: Mask, counts: npt.NDArray[np.int64], hidden: Mask, min_count: int) -> dict[str, Any]:
    """The sums of the reply. ``counts``: (cells, 4, variants) of ``masks``; ``hidden``: variants of which nothing leaves the site."""
    assert study.frequencies is not None  # noqa: S101
    return {"alleles": site_alleles(_table(dosages, masks, counts), study.frequencies.groups(), hidden, min_count)}


def check_told(
    study: Study, dosages: Dosages, masks: Mask, counts: npt.NDArray[np.int64], alleles: npt.NDArray[np.int64], min_count: int
) -> None:
    """Raises ``SiteError`` if ``alleles`` of a reply would reveal fewer than ``min_count`` persons, or are not the site's."""
    assert study.frequencies is not None  # noqa: S101
    if reveals_few(_table(dosages, masks, counts), study.frequencies.groups(), alleles, min_count).any():
        raise SiteError(Reason.TOO_FEW, f"alleles: numbers about fewer than {min_count} persons (min_count) would be sent")


def released_sets(cohort: Cohort, people: Analysed, study: Study, min_count: int) -> list[npt.NDArray[np.int64]]:
    """Rows of the cohort of every set of persons about whom counts may leave the site: everyone, each population that is large enough, the
    rest, and the men and the women of each where nobody follows by subtraction (on X, counts tell the two apart)."""
    cells = cell_masks(cohort, people, study).reshape(-1, 3, len(people.rows))
    sizes = cells[:-1].any(1).sum(1)
    alone = reportable_indices(sizes, len(people.rows), min_count)
    rest = np.ones(len(people.rows), bool)
    for place in alone:
        rest &= ~cells[place].any(0)
    blocks = [cells[place] for place in alone] + [cells.any(0) & rest]
    found = [np.ones(len(people.rows), bool), *(block.any(0) for block in blocks)]
    for block in (cells.any(0), *blocks):
        counts = block.sum(1)
        if not ((counts > 0) & (counts < min_count)).any():
            found += list(block)
    return [people.rows[mask] for mask in found if mask.any()]
