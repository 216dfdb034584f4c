"""Before the first round: who is there, what the sites' data have in common, and the preprocessing constants from their sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedml.cohort.variants import agree_panel, from_text, to_text
from fedml.errors import Reason, RunError, SiteError
from fedml.learning.statistics import constants_from, constants_or_stated, stated_constants
from fedml.learning.task import add_counts
from fedml.models.fusion import Layout
from fedml.records import AGREEMENT, CONFIG, DESCRIBED, IMAGE_SHAPE, PANEL, PERSONS, SITE, SUMS, Phase, pack, unpack
from fedml.replies import check_form
from fedml.study import PARTS, Study
from strategies.exchange import Participation, answers, ask, request, wait_for_nodes


@dataclass(frozen=True)
class Agreement:
    """What all sites go by. ``nodes`` maps node id to site, in the roster's order; ``persons`` is site -> part -> persons a class."""

    nodes: dict[int, str]
    image_shape: tuple[int, ...] = ()
    panel: bytes = b""
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    persons: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    matching: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def absent(self, study: Study) -> dict[str, str]:
        """Sites of the roster that did not agree, with the reason: they take no part in this run."""
        there = self.nodes.values()
        return {site: self.refused.get(site, str(Reason.NO_ANSWER)) for site in study.federation.sites if site not in there}

    @property
    def layout(self) -> Layout:
        """What the model is built for."""
        return Layout(self.image_shape, self.panel.count(b"\n"))

    def record(self) -> RecordDict:
        """As it is sent along with every message after it was made."""
        values: dict[str, Any] = dict(self.constants)
        values[PANEL] = np.frombuffer(self.panel, dtype=np.uint8)
        values[IMAGE_SHAPE] = np.array(self.image_shape, dtype=np.int64)
        return RecordDict({AGREEMENT: pack(values)})


def agree(study: Study, grid: Grid, say: Callable[[str], None] = lambda _: None) -> Agreement:
    """Two exchanges: *describe* (names, panel keys, image shape, counts) and *statistics* (sums over training persons).

    Raises:
        RunError: fewer sites than the quorum, a site that is not in the roster or there twice, nothing in common, nobody to test on.
    """
    nodes = wait_for_nodes(grid, study)
    described = _exchange(study, grid, nodes, Phase.DESCRIBE, RecordDict())
    by_site: dict[str, tuple[int, dict[str, Any]]] = {}
    for answer in described.answered.values():
        name = str(answer.message.content.config_records[SITE]["name"])
        if name in by_site:
            raise RunError(f"two nodes say that they are {name}; a site runs one client.")
        by_site[name] = (answer.message.metadata.src_node_id, unpack(answer.message.content.array_records[DESCRIBED]))
    roster = [site for site in study.federation.sites if site in by_site]
    order = {by_site[site][0]: site for site in roster}
    seen = {site: by_site[site][1] for site in roster}
    panel, matching = _panel(study, seen)
    refused = described.refused
    agreed = Agreement(order, _image_shape(study, seen), panel, {}, _persons(study, seen), matching, refused)
    say(f"{len(roster)} sites described their data")
    if study.privacy.unit != "none" and study.privacy.statistics == "stated":
        return replace(agreed, constants=stated_constants(study, agreed.layout))
    sums = _exchange(study, grid, order, Phase.STATISTICS, agreed.record())
    told = {node: site for node, site in order.items() if site in sums.answered}
    total = add_counts(unpack(a.message.content.array_records[SUMS]) for a in sums.answered.values())
    made = constants_from(total) if study.privacy.unit == "none" else constants_or_stated(total, study, agreed.layout)
    persons = {site: n for site, n in agreed.persons.items() if site in told.values()}
    return replace(agreed, nodes=told, constants=made, persons=persons, refused={**refused, **sums.refused})


def _exchange(study: Study, grid: Grid, nodes: Mapping[int, str], phase: Phase, content: RecordDict) -> Participation:
    """The answers by site; below the quorum the run ends. Nodes without a registered name are told apart by their id.

    The name under which a node's key was registered is the site's: a node that answers under another is refused.
    """
    who = Participation()
    config = request(study, phase, 0)
    messages = [ask(node, RecordDict({**content, CONFIG: config}), "query", study.federation.timeout) for node in nodes]
    unnamed = {f"node {node}" for node, name in nodes.items() if not name}

    def check(site: str, reply: RecordDict) -> None:
        name = str(reply.config_records[SITE]["name"]) if phase is Phase.DESCRIBE and site in unnamed else site
        if name not in study.federation.sites:
            raise SiteError(Reason.NOT_IN_ROSTER, "it answers under a name that the roster lacks")
        check_form(study, phase, name, reply, None)

    for answer in answers(grid, messages, {k: v or f"node {k}" for k, v in nodes.items()}, study.federation.timeout, check):
        who.add(answer)
    for site in study.federation.sites:
        if phase is Phase.DESCRIBE and not unnamed and site not in nodes.values():
            who.refused[site] = str(Reason.NO_ANSWER)
    who.check_quorum(study, phase)
    return who


def _image_shape(study: Study, seen: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """The study's image shape, or the one that all sites with images have."""
    if "image" not in study.cohort.inputs:
        return ()
    if study.cohort.image is not None:
        return (study.cohort.image.channels, *study.cohort.image.size)
    shapes = {site: tuple(int(n) for n in d[IMAGE_SHAPE]) for site, d in seen.items() if IMAGE_SHAPE in d}
    if len(set(shapes.values())) != 1:
        told = ", ".join(f"{site} {shape}" for site, shape in shapes.items()) or "no site has images"
        raise RunError(f"the sites' images differ in (channels, *size): {told}; resample them or give [cohort.image] in the study.")
    return next(iter(shapes.values()))


def _panel(study: Study, seen: Mapping[str, Mapping[str, Any]]) -> tuple[bytes, dict[str, dict[str, int]]]:
    """The variants that every site with variants has, and what was done to match them."""
    if "variants" not in study.cohort.inputs:
        return b"", {}
    keys = {site: from_text(d[PANEL].tobytes()) for site, d in seen.items() if PANEL in d}
    if not keys:
        raise RunError("no site has variants, but the study's inputs list them.")
    panel, counts = agree_panel(keys, study.cohort.variants.match)
    if not panel:
        raise RunError(
            f"the sites share no variant by {study.cohort.variants.match}; compare their genome builds, "
            'or set [cohort.variants] match = "rsid".'
        )
    return to_text(panel), {site: dict(c) for site, c in counts.items()}


def _persons(study: Study, seen: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Persons a part and class at each site; refuses a study without a person to train on or to test on. Nobody counts patients that are
    protected: then there is none."""
    if study.privacy.unit == "patient":
        return {}
    persons: dict[str, dict[str, list[int]]] = {s: {p: d[PERSONS][i].tolist() for i, p in enumerate(PARTS)} for s, d in seen.items()}
    for part in ("train", "test"):
        if not sum(sum(parts[part]) for parts in persons.values()):
            raise RunError(f"no site has a person in the {part} part; change [cohort.split] or the sites' split files.")
    return persons
