"""The state that every step of an association analysis uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from fedml.cohort.variants.keys import Keys, columns_of
from fedml.runs.log import emit
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.recorded import Recorded, keep_agreement
from fedml.strategies.agreement.step import Arrays, Traffic, take
from fedml.strategies.agreement.variants import Counts
from fedml.strategies.gwas.intercepts import Intercepts
from fedml.strategies.rounds import agreed_event, check_reporter
from fedml.study.gwas_section import Gwas
from fedml.study.study import Study
from fedml.wire.records import Phase

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """State of one analysis: the study, the connection to the sites or their recorded answers, the agreement, genotype counts by site, and
    network traffic.
    ``everyone``: of all persons, or of the men alone (variants on Y); ``asked``: steps so far."""

    study: Study
    grid: Grid | Recorded
    run: Path
    agreement: Agreement
    plan: Gwas
    counts: Counts
    traffic: Traffic
    everyone: bool = True
    asked: Counter[Phase] = field(default_factory=Counter)

    def take(self, about: Agreement, phase: Phase, given: Mapping[str, Any]) -> dict[str, Arrays]:
        """Site -> its sums of the next step of ``phase``, about everyone or the men (``fedml.strategies.agreement.step.take``)."""
        number = self.asked[phase]
        self.asked[phase] += 1
        who = {forms.EVERYONE: np.array([self.everyone], np.uint8)}
        return take(self.study, self.grid, about, phase, number, {**given, **who}, self.traffic)

    def of(self, chosen: npt.NDArray[np.bool_], *, everyone: bool) -> Work:
        """The analysis of the ``chosen`` variants (variants,) alone, at the sites that report any of them."""
        sites = [site for site, row in zip(self.sites, self.reported, strict=True) if row[chosen].any()]
        nodes = {node: site for node, site in self.agreement.nodes.items() if site in sites}
        counts = {site: self.counts[site][:, chosen] for site in sites}
        return Work(
            self.study, self.grid, self.run, replace(self.agreement.part(chosen), nodes=nodes), self.plan, counts, self.traffic,
            everyone, self.asked,
        )  # fmt: skip

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
    def keys(self) -> Keys:
        """The panel's variants."""
        return columns_of(self.agreement.shared.keys if self.agreement.shared else ())

    @cached_property
    def pooled(self) -> npt.NDArray[np.int64]:
        """(7, variants): genotype counts, sites out of Hardy-Weinberg equilibrium, and persons with one copy, summed over the sites that
        report the variant."""
        return pooled_counts(self.counts)

    @cached_property
    def reported(self) -> npt.NDArray[np.bool_]:
        """(sites, variants): True where the site reports the variant, False where it lacks it or withholds its counts."""
        return np.stack([reported(self.counts[site]) for site in self.sites])


def begin(study: Study, grid: Grid, run: Path, traffic: Traffic) -> Work:
    """The sites' agreement, written to the run's record, and what follows works with.

    Raises:
        RunError: as ``fedml.strategies.agreement.agree``.
    """
    assert study.gwas is not None  # noqa: S101 - the command has checked
    agreement = agree(study, grid, check_reporter(run), train=False)
    nodes = {node: site for node, site in agreement.nodes.items() if agreement.shared is not None and site in agreement.shared.flips}
    agreement = replace(agreement, nodes=nodes)
    emit(run, replace(agreed_event(agreement, disclosures=None, parameters=0), image_shape=[]))  # images are not read
    if traffic.run is not None:
        keep_agreement(run, agreement)
    return Work(study, grid, run, agreement, study.gwas, agreement.counts, traffic)


class Fitted(NamedTuple):
    """Of the variants of ``work``: estimates and tests, each test's name, each site's own estimates combined, and facts for the record."""

    work: Work
    result: Association
    method: npt.NDArray[np.str_]
    meta: Combined
    facts: dict[str, Any]
