"""Before the first round: who is there, what the sites' data have in common, and the preprocessing constants from their sums."""

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
from fedml.cohort.variants.model import to_text
from fedml.errors import Reason
from fedml.models.layout import Layout, make_layout
from fedml.runs.events import SiteTold
from fedml.study.study import Study
from fedml.wire.records import (
    AGREEMENT,
    FLIPS,
    IMAGE_SHAPE,
    PANEL,
    pack,
)


@dataclass(frozen=True)
class Agreement:
    """What all sites go by. ``nodes`` maps node id to site, in the roster's order; ``persons`` is site -> part -> persons a class.

    ``shared``: the variants that all sites have and how each site's are turned; ``roster``: the order in which sites are told that.
    ``counts``: site -> (4, variants) persons with 0, 1, 2 ALT alleles, missing (-1 where the site's policy lets nothing leave), if they
    were asked for.
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
    told: dict[str, SiteTold] = field(default_factory=dict)  # site -> policy, dataset, quarantined: what it says of itself

    def absent(self, study: Study) -> dict[str, str]:
        """Sites of the roster that did not agree, with the reason: they take no part in this run."""
        there = self.nodes.values()
        return {site: self.refused.get(site, str(Reason.NO_ANSWER)) for site in study.federation.sites if site not in there}

    @property
    def variants(self) -> int:
        """How many variants the panel has."""
        return len(self.shared.keys) if self.shared else 0

    @cached_property
    def panel(self) -> bytes:
        """The panel as it crosses the wire (``fedml.cohort.variants.model.to_text``)."""
        return to_text(self.shared.keys) if self.shared else b""

    @property
    def matching(self) -> dict[str, dict[str, int]]:
        """Site -> what was done to match its variants -> how many."""
        return self.shared.matching if self.shared else {}

    def layout(self, study: Study) -> Layout:
        """What the study's model is built for."""
        return make_layout(study, self.image_shape, self.panel)

    def part(self, chosen: Any) -> Agreement:
        """The same agreement about fewer variants: those ``chosen`` (as ``fedml.cohort.variants.harmonise.choose`` has it)."""
        return self if self.shared is None else replace(self, shared=choose(self.shared, chosen))

    def flips(self) -> npt.NDArray[np.uint8]:
        """(sites of the roster x variants,) uint8: 1 where a site's dosage counts the other allele."""
        rows = [self.shared.flips.get(site) if self.shared else None for site in self.roster]
        return np.concatenate([np.zeros(self.variants, np.uint8) if row is None else row for row in rows] or [np.zeros(0, np.uint8)])

    def record(self) -> RecordDict:
        """As it is sent along with every message after it was made."""
        values: dict[str, Any] = dict(self.constants)
        values[PANEL] = np.frombuffer(self.panel, dtype=np.uint8)
        values[FLIPS] = self.flips()
        values[IMAGE_SHAPE] = np.array(self.image_shape, dtype=np.int64)
        return RecordDict({AGREEMENT: pack(values)})


Tell = Callable[[list[Check]], None]
