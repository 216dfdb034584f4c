"""The state that every step of an association analysis uses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedml.cohort.variants.model import Variant
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.step import Traffic
from fedml.strategies.agreement.variants import Counts
from fedml.study.sections import Gwas
from fedml.study.study import Study

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """State of one analysis: the study, the connection to the sites, the agreement, genotype counts by site, and network traffic."""

    study: Study
    grid: Grid
    run: Path
    agreement: Agreement
    plan: Gwas
    counts: Counts
    traffic: Traffic

    @property
    def sites(self) -> list[str]:
        """The participating sites, in the roster's order."""
        return list(self.agreement.nodes.values())

    @property
    def keys(self) -> tuple[Variant, ...]:
        """The panel's variants."""
        return self.agreement.shared.keys if self.agreement.shared else ()

    @cached_property
    def pooled(self) -> npt.NDArray[np.int64]:
        """(7, variants): genotype counts, sites out of Hardy-Weinberg equilibrium, and persons with one copy, summed over the sites that
        report the variant."""
        total: npt.NDArray[np.int64] = np.sum([np.where(table < 0, 0, table) for table in self.counts.values()], axis=0, dtype=np.int64)
        return total

    @cached_property
    def reported(self) -> npt.NDArray[np.bool_]:
        """(sites, variants): True where the site reports the variant, False where it withholds the variant's counts."""
        return np.stack([self.counts[site][0] >= 0 for site in self.sites])
