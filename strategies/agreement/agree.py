"""Exchanges before the first round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedml.cohort.images.histograms import window_from
from fedml.contract.disclosure import read_aside, read_policy
from fedml.contract.replies import check_form
from fedml.errors import Reason, RunError, SiteError
from fedml.learning.statistics import constants_from
from fedml.learning.task import add_counts
from fedml.privacy.statistics import constants_or_stated, stated_constants
from fedml.runs.events import SiteTold
from fedml.strategies.agreement.agreement import Agreement, Tell
from fedml.strategies.exchange import Participation, answers, ask, request, wait_for_nodes
from fedml.study.sections import PARTS
from fedml.study.study import Study
from fedml.wire.records import (
    ASIDE,
    CONFIG,
    DATASET,
    DESCRIBED,
    HISTOGRAM,
    IMAGE_SHAPE,
    PERSONS,
    POLICY,
    SITE,
    SUMS,
    VOXELS,
    WINDOW,
    Phase,
    unpack,
)


def agree(study: Study, grid: Grid, tell: Tell = lambda _: None, *, train: bool = True) -> Agreement:
    """Exchanges before the first round: *describe* (names, panel keys, image shape, counts), *genotypes* where the study asks something of
    the variants, *voxels* (histograms) where it has percentiles, and *statistics* (sums over training persons).

    Args:
        tell: is given the matrix of site x check, whether it passes or not.
        train: whether a model is to be trained: then there have to be persons to train and to test on, and preprocessing constants.

    Raises:
        RunError: fewer sites than the quorum, a site that is not in the roster or there twice, variants that do not mean the same,
            nobody to test on.
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
    refused, persons = described.refused, _persons(study, seen, train)
    told = {site: _told(values) for site, values in seen.items()}
    agreed = Agreement(order, _image_shape(study, seen), None, {}, persons, refused, study.federation.sites, told=told)
    if "variants" in study.cohort.inputs:
        from fedml.strategies.agreement.variants import agree_variants

        agreed = agree_variants(study, grid, agreed, seen, tell)
    if not train:
        return agreed
    if study.privacy.unit != "none" and study.privacy.statistics == "stated":
        return replace(agreed, constants=stated_constants(study, agreed.layout(study)))
    if study.cohort.image is not None and (percentiles := study.cohort.image.preprocess) and percentiles.percentiles:
        agreed = _agree_window(study, grid, agreed, percentiles.percentiles)
    sums = _exchange(study, grid, agreed.nodes, Phase.STATISTICS, agreed.record())
    there = {node: site for node, site in agreed.nodes.items() if site in sums.answered}
    total = add_counts(unpack(a.message.content.array_records[SUMS]) for a in sums.answered.values())
    made = constants_from(total) if study.privacy.unit == "none" else constants_or_stated(total, study, agreed.layout(study))
    persons = {site: n for site, n in agreed.persons.items() if site in there.values()}
    return replace(agreed, nodes=there, constants={**made, **agreed.constants}, persons=persons, refused={**agreed.refused, **sums.refused})


def _agree_window(study: Study, grid: Grid, agreed: Agreement, percentiles: tuple[float, float]) -> Agreement:
    """``agreed`` with the window that the percentiles of all sites' voxels give.

    Raises:
        RunError: the quorum was missed, or the voxels do not tell two percentiles apart.
    """
    told = _exchange(study, grid, agreed.nodes, Phase.VOXELS, agreed.record())
    total = add_counts(unpack(a.message.content.array_records[VOXELS]) for a in told.answered.values())
    try:
        window = window_from(total[HISTOGRAM], percentiles)
    except ValueError as error:
        raise RunError(f"[cohort.image] percentiles give no window: {error}; state a window = [low, high] in their place.") from error
    there = {node: site for node, site in agreed.nodes.items() if site in told.answered}
    constants = {**agreed.constants, WINDOW: torch.tensor(window, dtype=torch.float32)}
    return replace(agreed, nodes=there, constants=constants, refused={**agreed.refused, **told.refused})


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


def _told(described: Mapping[str, Any]) -> SiteTold:
    """What a site says of itself, in plain values."""
    policy = read_policy(described[POLICY]).model_dump() if POLICY in described else None
    dataset = described[DATASET].tobytes().hex() if DATASET in described else None
    return {"policy": policy, "dataset": dataset, "quarantined": read_aside(described[ASIDE]) if ASIDE in described else None}


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


def _persons(study: Study, seen: Mapping[str, Mapping[str, Any]], train: bool) -> dict[str, dict[str, list[int]]]:
    """Persons a part and class at each site; refuses a study without a person to train on or to test on. Nobody counts patients that are
    protected: then there is none."""
    if study.privacy.unit == "patient":
        return {}
    persons: dict[str, dict[str, list[int]]] = {s: {p: d[PERSONS][i].tolist() for i, p in enumerate(PARTS)} for s, d in seen.items()}
    for part in ("train", "test") if train else ():
        if not sum(sum(parts[part]) for parts in persons.values()):
            raise RunError(f"no site has a person in the {part} part; change [cohort.split] or the sites' split files.")
    return persons
