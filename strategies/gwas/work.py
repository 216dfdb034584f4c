"""The state that every step of an association analysis uses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedml.analytics import forms
from fedml.analytics.linear import Association
from fedml.analytics.meta import Combined
from fedml.cohort.variants.frequency import pooled_counts, reported
from fedml.cohort.variants.model import Variant
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.step import Traffic
from fedml.strategies.agreement.variants import Counts
from fedml.strategies.gwas.intercepts import Intercepts
from fedml.study.gwas_section import Gwas
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

    @cached_property
    def intercepts(self) -> Intercepts:
        """Where the sites' sums belong in the model's. By default a binary outcome has an intercept for each site: hospitals differ in
        their share of cases, and in their laboratories."""
        each = self.plan.intercept == "site" or (self.plan.intercept == "auto" and forms.kind(self.study) == "logistic")
        return Intercepts(len(self.sites), forms.sizes(self.study, 0)["K"], each)

    @property
    def keys(self) -> tuple[Variant, ...]:
        """The panel's variants."""
        return self.agreement.shared.keys if self.agreement.shared else ()

    @cached_property
    def pooled(self) -> npt.NDArray[np.int64]:
        """(5, variants): genotype counts, and sites out of Hardy-Weinberg equilibrium, summed over the sites that report the variant."""
        return pooled_counts(self.counts)

    @cached_property
    def reported(self) -> npt.NDArray[np.bool_]:
        """(sites, variants): True where the site reports the variant, False where it lacks it or withholds its counts."""
        return np.stack([reported(self.counts[site]) for site in self.sites])


class Fitted(NamedTuple):
    """Of the variants of ``work``: estimates and tests, each test's name, each site's own estimates combined, and facts for the record."""

    work: Work
    result: Association
    method: npt.NDArray[np.str_]
    meta: Combined
    facts: dict[str, Any]
