"""A checked request to a site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedml.clients.site.manifest import read_site
from fedml.errors import InputError, Reason, SiteError
from fedml.study.study import Study, shared_study
from fedml.wire.records import ANALYSES, CONFIG, Phase, config_record, holds


@dataclass(frozen=True)
class Request:
    """A checked request. ``trust``: why the approver trusts the centre with this study; "": without such a statement."""

    study: Study
    phase: Phase
    round: int
    config: dict[str, Any]
    name: str
    manifests: tuple[str, ...]
    trust: str = ""
    tell: Callable[[float], None] | None = None  # takes how much of a round's training is done, 0 to 1; None: nobody is told


def _study_of(content: RecordDict) -> tuple[Study, dict[str, Any]]:
    config = dict(config_record(content, CONFIG)) if holds(content, CONFIG, ConfigRecord) else {}
    try:
        return shared_study(str(config["study"])), config
    except (KeyError, ValueError, InputError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the message has no valid study: {error}") from error


def read_request(content: RecordDict, manifests: tuple[str, ...], name: str | None) -> Request:
    """The request in a message to the site with these ``manifests``; ``name``: of pooled sites.

    Raises:
        SiteError: the message is not a valid request.
    """
    study, config = _study_of(content)
    try:
        phase, number = Phase(str(config["phase"])), int(str(config["round"]))
    except (KeyError, ValueError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the message has no phase or round: {error}") from error
    if number < 0 or (number > study.federation.rounds and phase not in ANALYSES):  # the gate limits the steps of an analysis
        raise SiteError(Reason.ROUNDS, f"round {number} is not one of the study's {study.federation.rounds} rounds")
    name = name or read_site_once(manifests[0]).name
    if name in study.federation.evaluate_only and phase not in (Phase.DESCRIBE, Phase.EVALUATE):
        raise SiteError(Reason.OFF_PLAN, f"{phase} is requested of a site that only evaluates the final model ([federation] evaluate_only)")
    return Request(study, phase, number, config, name, manifests)


read_site_once = lru_cache(maxsize=4096)(lambda manifest: read_site(Path(manifest)))


def own_flips(request: Request, flips: np.ndarray[Any, Any]) -> bytes:
    """This site's row of the panel's orientation, which the server sends for all sites of the roster in its order."""
    sites = request.study.federation.sites
    if request.name not in sites or len(flips) % len(sites):
        raise SiteError(Reason.BAD_MESSAGE, "the orientations of the panel do not match the roster")
    rows = flips.reshape(len(sites), -1)
    return bytes(rows[sites.index(request.name)].tobytes())
