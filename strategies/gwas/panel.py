"""Which variants an analysis chooses of the panel, and what it tells of the persons before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from fedml.analytics.forms import UNKNOWN
from fedml.cohort.variants.builds import Build
from fedml.cohort.variants.keys import Keys
from fedml.cohort.variants.ploidy import Y, places
from fedml.contract.disclosure import HIDDEN
from fedml.errors import RunError
from fedml.runs.events import Step
from fedml.runs.log import emit
from fedml.strategies.gwas.work import Work
from fedml.study.gwas_section import Gwas


def spaced(keys: Keys, candidates: npt.NDArray[np.int64], spacing: int) -> npt.NDArray[np.int64]:
    """The ``candidates`` that are at least ``spacing`` bases after the previously selected variant on their contig."""
    if not spacing:
        return candidates
    contig, position = keys.contig[candidates], keys.position[candidates]
    order, selected, last = np.lexsort((position, contig)), list[int](), dict[int, int]()
    for at, on, where in zip(candidates[order].tolist(), contig[order].tolist(), position[order].tolist(), strict=True):
        if where - last.get(on, -spacing) >= spacing:
            selected.append(at)
            last[on] = where
    return np.array(sorted(selected), dtype=np.int64)


def tested_together(work: Work, *, by_contig: bool) -> Iterator[tuple[npt.NDArray[np.bool_], bool, str]]:
    """Variants that are tested together (variants,), whether among everyone (on Y: among the men), and with ``by_contig`` their contig."""
    where = places(work.keys, cast(Build, work.agreement.build))
    on_y = np.zeros(len(work.keys), bool) if where is None else where == Y
    if by_contig:
        for at in dict.fromkeys(work.keys.contig.tolist()):
            yield (work.keys.contig == at) & ~on_y, True, work.keys.contigs[at]
    else:
        yield ~on_y, True, ""
    yield on_y, False, "Y"


def tell_relatives(run: Path, plan: Gwas, persons: Mapping[str, int], relatives: Mapping[str, int]) -> None:
    """Emits what the sites tell of relatives (site -> persons to leave out so that no pair is left; ``HIDDEN``, ``UNKNOWN``), where an
    analysis that counts everyone as unrelated would be wrong."""
    if plan.relatives == "unrelated":
        return
    many = [f"{site} {n} of {persons[site]}" for site, n in relatives.items() if n > 0]
    few = [site for site, n in relatives.items() if n == HIDDEN]
    unknown = [site for site, n in relatives.items() if n == UNKNOWN]
    texts = []
    if many:
        texts.append(f"persons to leave out until no two have a kinship above {plan.max_kinship:g}: {', '.join(many)}")
    if few:
        texts.append(f"few at {', '.join(few)}")
    if many or few:
        why = "they count as unrelated persons, so that p values of a heritable trait are too small"
        texts.append(f'{why}; set [gwas] relatives = "unrelated"')
    if unknown:
        texts.append(f"not known at {', '.join(unknown)}: too few common autosomal variants")
    if texts:
        emit(run, Step(doing=f"relatives: {'; '.join(texts)}", done=0, total=None, log=True))


def enough_persons(plan: Gwas, columns: int, persons: Mapping[str, int]) -> None:
    """Raises ``RunError`` if a site has fewer persons than the components' ``columns``: its gate would refuse, because of as many columns
    as persons the genotypes could be solved for."""
    site, fewest = min(persons.items(), key=lambda pair: pair[1])
    if columns > fewest:
        raise RunError(
            f"{plan.components} components need {columns} or more columns of every site's genotypes, and {site} has {fewest} persons, "
            "which must not be fewer; lower [gwas] components, or raise [gwas] pca_tolerance."
        )
