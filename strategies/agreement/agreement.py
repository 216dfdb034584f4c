"""The agreement of the sites before the first round: participants, shared data format, and preprocessing constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import RecordDict

from fedml.cohort.variants.checks import Check
from fedml.cohort.variants.harmonise import Panel, choose
from fedml.cohort.variants.keys import to_text
from fedml.errors import Reason
from fedml.modalities.layout import Layout, make_layout
from fedml.runs.events import SiteDisclosure
from fedml.runs.rows import ColumnRow
from fedml.study.study import Study
from fedml.wire.records import (
    AGREEMENT,
    CLASS_WEIGHTS,
    FLIPS,
    IMAGE_SHAPE,
    PANEL,
    pack,
)


@dataclass(frozen=True)
class Agreement:
    """The values that all sites use. ``nodes`` maps node id to site, in the roster's order; ``persons``: site -> part -> persons per class.

    ``shared``: the panel of variants and the orientation of each site's dosages; ``roster``: the order of the sites in ``flips()``.
    ``counts``: site -> (7, variants) persons with 0, 1, 2 ALT alleles, missing, and so on (``fedml.strategies.agreement.variants``); -1
    where the site's policy withholds them; empty unless the study needs them. ``external``: node id -> site, of sites that only evaluate
    the final model.
    """

    nodes: dict[int, str]
    image_shape: tuple[int, ...] = ()
    shared: Panel | None = None
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    persons: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    roster: tuple[str, ...] = ()
    build: str = ""
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    disclosures: dict[str, SiteDisclosure] = field(default_factory=dict)  # site -> its policy, dataset digest and excluded persons
    class_weights: npt.NDArray[np.float32] | None = None  # (classes,), if the study takes them from the persons of all sites
    external: dict[int, str] = field(default_factory=dict)
    columns: dict[str, dict[str, ColumnRow]] | None = None  # what the record says of the sites' training persons, if anything

    def absent(self, study: Study, *, evaluating: bool = False) -> dict[str, str]:
        """Sites that take no part in this run, with the reason: of those that train, or with ``evaluating`` of the whole roster."""
        present = [*self.nodes.values(), *self.external.values()]
        roster = study.federation.sites if evaluating else study.federation.training
        return {site: self.refused.get(site, str(Reason.NO_ANSWER)) for site in roster if site not in present}

    @property
    def everyone(self) -> dict[int, str]:
        """Node id -> site, of all sites that take part, in the roster's order."""
        both = {**self.nodes, **self.external}
        place = {site: at for at, site in enumerate(self.roster or both.values())}
        return dict(sorted(both.items(), key=lambda item: place[item[1]]))

    @property
    def variants(self) -> int:
        """Number of variants in the panel."""
        return len(self.shared.keys) if self.shared else 0

    @cached_property
    def panel(self) -> bytes:
        """The panel in wire format (``fedml.cohort.variants.model.to_text``)."""
        return to_text(self.shared.keys) if self.shared else b""

    @property
    def matching(self) -> dict[str, dict[str, int]]:
        """Site -> kind of match -> number of variants."""
        return self.shared.matching if self.shared else {}

    def layout(self, study: Study) -> Layout:
        """The layout of the study's model: its inputs and their shapes."""
        return make_layout(study, self.image_shape, self.panel)

    def part(self, chosen: Any) -> Agreement:
        """The same agreement for the ``chosen`` variants only (an argument of ``fedml.cohort.variants.harmonise.choose``)."""
        return self if self.shared is None else replace(self, shared=choose(self.shared, chosen))

    def flips(self) -> npt.NDArray[np.uint8]:
        """(sites of the roster x variants,) uint8: 1 where a site's dosage counts the other allele."""
        rows = [self.shared.flips.get(site) if self.shared else None for site in self.roster]
        return np.concatenate([np.zeros(self.variants, np.uint8) if row is None else row for row in rows] or [np.zeros(0, np.uint8)])

    def record(self) -> RecordDict:
        """The record that the server sends with every later message."""
        values: dict[str, Any] = dict(self.constants)
        if self.class_weights is not None:
            values[CLASS_WEIGHTS] = self.class_weights
        values[PANEL] = np.frombuffer(self.panel, dtype=np.uint8)
        values[FLIPS] = self.flips()
        values[IMAGE_SHAPE] = np.array(self.image_shape, dtype=np.int64)
        return RecordDict({AGREEMENT: pack(values)})


ReportChecks = Callable[[list[Check]], None]
