"""What a record needs of tasks and inputs, whose code loads PyTorch: computed where PyTorch is loaded anyway (``fedml.tracking.knowing``),
and handed as JSON to the process that records.

    Known.parse(known.text()) == known
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

TESTED, CHOSEN = ("external", "test"), ("val",)  # the parts with intervals of a run, and of one of a sweep's
ALL = ""  # in the place of a site's name: all sites


@dataclass(frozen=True)
class Watched:
    """The metric by which models of a study are compared. ``higher``: a higher value is better."""

    name: str
    higher: bool


@dataclass(frozen=True)
class Interface:
    """Of a saved model: the schema of its inputs and outputs as MLflow writes it, and the packages that it needs."""

    signature: Mapping[str, str | None]
    requirements: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """Of a finished run. ``limits``: part -> site, or ``ALL`` -> interval of the watched metric; ``across``: metric -> value between sites;
    ``model``: None if the run has no model."""

    limits: Mapping[str, Mapping[str, tuple[float, float]]]
    across: Mapping[str, float]
    model: Interface | None

    def text(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> Known:
        """The inverse of ``text``."""
        found = json.loads(text)
        limits = {part: {site: (low, high) for site, (low, high) in sites.items()} for part, sites in found["limits"].items()}
        model = found["model"]
        return Known(limits, found["across"], model and Interface(model["signature"], tuple(model["requirements"])))
