"""The exchanges between server and sites before the first round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedml.cohort.images.histograms import window_from
from fedml.cohort.variants.checks import Check
from fedml.contract.disclosure import read_excluded_counts, read_policy
from fedml.contract.plausible import check_plausible
from fedml.contract.replies import check_form
from fedml.errors import Reason, RunError, SiteError
from fedml.learning.statistics import constants_from, neutral_constants
from fedml.modalities.registry import refuse_unbuilt
from fedml.privacy.statistics import constants_or_stated, stated_constants
from fedml.runs.events import SiteDisclosure
from fedml.strategies.agreement.agreement import Agreement, ReportChecks
from fedml.strategies.agreement.columns import column_checks, described_columns
from fedml.strategies.agreement.external import lacking, with_external
from fedml.strategies.exchange import Participation, answers, ask, request, wait_for_nodes
from fedml.study.section import PARTS
from fedml.study.study import Study
from fedml.tasks.classification_loss import inverse_weights
from fedml.tasks.counts import add_counts
from fedml.wire.records import (
    CONFIG,
    DATASET,
    DESCRIBED,
    EXCLUDED,
    HISTOGRAM,
    IMAGE_SHAPE,
    PERSONS,
    POLICY,
    SITE,
    SUMS,
    VOXELS,
    WINDOW,
    Phase,
    array_record,
    config_record,
    unpack,
)

STARTING_SECONDS = 240  # for the processes of a simulation on a busy machine


def agree(study: Study, grid: Grid, tell: ReportChecks = lambda _: None, *, train: bool = True) -> Agreement:
    """Runs the exchanges before the first round: *describe* (names, panel keys, image shape, counts), *genotypes* if the study needs counts
    of the variants, *voxels* (intensity histograms) if it sets percentiles, and *statistics* (sums over training persons).

    Args:
        tell: called with the table of checks, also if a check fails.
        train: True if a model will be trained; the sites then need training and test persons, and preprocessing constants are computed.

    Raises:
        RunError: fewer sites than the quorum, a site that is not in the roster or answers twice, variants that cannot be harmonised, or no
            person in the training or test part.
    """
    refuse_unbuilt(study)
    if train and not study.federation.training:
        raise RunError("[federation] evaluate_only names every site, so no model is trained; test a finished one with fedml evaluate.")
    agreed, every = ask_who(study, grid)
    descriptions, external = {site: every[site] for site in agreed.nodes.values()}, agreed.external
    shape = _image_shape(study, descriptions)
    agreed = replace(agreed, image_shape=shape, persons=_persons(study, every, train))
    checks: list[Check] = [check for site in external.values() for check in lacking(study, site, every[site], shape)]
    if "variants" in study.cohort.inputs:
        from fedml.strategies.agreement.variants import agree_variants

        def remember(found: list[Check]) -> None:
            checks[:] = [*found, *checks]
            if not external or any(check.verdict == "fail" for check in found):
                tell(checks)

        agreed = agree_variants(study, grid, agreed, descriptions, remember)
        agreed, more = with_external(study, agreed, every)
        checks += more
    if checks and external:
        tell(checks)
    if not train:
        return agreed
    if study.privacy.unit != "none" and study.privacy.statistics == "stated":
        return replace(agreed, constants=stated_constants(study, agreed.layout(study)))
    if study.cohort.image is not None and (percentiles := study.cohort.image.preprocess) and percentiles.percentiles:
        agreed = _agree_window(study, grid, agreed, percentiles.percentiles)
    neutral = neutral_constants(study)
    if not study.traits.standardised and set(study.cohort.inputs) == set(study.cohort.by_site):  # no site has a sum to send
        constants = {**neutral, **agreed.constants}
        return replace(agreed, constants=constants, class_weights=_class_weights(study, agreed.persons))
    sums = _exchange(study, grid, agreed.nodes, Phase.STATISTICS, agreed.record())
    answered = {node: site for node, site in agreed.nodes.items() if site in sums.answered}
    by_name = {site: unpack(array_record(a.message.content, SUMS)) for site, a in sums.answered.items()}
    if study.privacy.unit == "none" and (columns := column_checks(study, by_name)):
        tell([*checks, *columns])
    total = add_counts(by_name.values())
    computed = constants_from(total) if study.privacy.unit == "none" else constants_or_stated(total, study, agreed.layout(study))
    present = [*answered.values(), *agreed.external.values()]
    persons = {site: n for site, n in agreed.persons.items() if site in present}
    constants, refused = {**computed, **neutral, **agreed.constants}, {**agreed.refused, **sums.refused}
    weights = _class_weights(study, persons)
    told = described_columns(study, by_name, agreed.disclosures) if study.privacy.unit == "none" else None
    return replace(agreed, nodes=answered, constants=constants, persons=persons, refused=refused, class_weights=weights, columns=told)


def ask_who(study: Study, grid: Grid) -> tuple[Agreement, dict[str, Mapping[str, Any]]]:
    """Who takes part, without anything agreed yet; and what each site describes, in the roster's order.

    Raises:
        RunError: fewer sites than the quorum, a site that is not in the roster or answers twice.
    """
    described = _exchange(study, grid, wait_for_nodes(grid, study), Phase.DESCRIBE, RecordDict())
    by_site: dict[str, tuple[int, dict[str, Any]]] = {}
    for answer in described.answered.values():
        name = str(config_record(answer.message.content, SITE)["name"])
        if name in by_site:
            raise RunError(f"two nodes answer as site {name}; run one client per site.")
        by_site[name] = (answer.message.metadata.src_node_id, unpack(array_record(answer.message.content, DESCRIBED)))
    nodes, external = (
        {by_site[site][0]: site for site in names if site in by_site}
        for names in (study.federation.training, study.federation.evaluate_only)
    )
    every: dict[str, Mapping[str, Any]] = {site: by_site[site][1] for site in study.federation.sites if site in by_site}
    summaries = {site: _site_summary(values) for site, values in every.items()}
    persons, roster = _persons(study, every, train=False), study.federation.sites
    return Agreement(nodes, persons=persons, refused=described.refused, roster=roster, disclosures=summaries, external=external), every


def _class_weights(study: Study, persons: Mapping[str, Mapping[str, list[int]]]) -> npt.NDArray[np.float32] | None:
    """The weights of classes from the training persons that the sites described, if the study asks for them."""
    if study.training.class_weights != "inverse":
        return None
    return inverse_weights(np.sum([parts["train"] for site, parts in persons.items() if site in study.federation.training], axis=0))


def _agree_window(study: Study, grid: Grid, agreed: Agreement, percentiles: tuple[float, float]) -> Agreement:
    """``agreed`` with the intensity window computed from the percentiles of all sites' voxels.

    Raises:
        RunError: the quorum was missed, or the two percentiles are equal.
    """
    histograms = _exchange(study, grid, agreed.nodes, Phase.VOXELS, agreed.record())
    total = add_counts(unpack(array_record(a.message.content, VOXELS)) for a in histograms.answered.values())
    try:
        window = window_from(total[HISTOGRAM], percentiles)
    except ValueError as error:
        raise RunError(f"[cohort.image] percentiles give no window: {error}; set window = [low, high] instead of percentiles.") from error
    answered = {node: site for node, site in agreed.nodes.items() if site in histograms.answered}
    constants = {**agreed.constants, WINDOW: torch.tensor(window, dtype=torch.float32)}
    return replace(agreed, nodes=answered, constants=constants, refused={**agreed.refused, **histograms.refused})


def _exchange(study: Study, grid: Grid, nodes: Mapping[int, str], phase: Phase, content: RecordDict) -> Participation:
    """The answers by site. Nodes without a registered name are identified by their node id.

    A site's name is the name with which the node's key was registered; a node that answers with another name is refused.

    Raises:
        RunError: fewer sites than the quorum answered.
    """
    participation = Participation()
    config = request(study, phase, 0)
    unnamed = {f"node {node}" for node, name in nodes.items() if not name}
    # Nodes without a name are simulated, or in this process: the first message also waits for the processes that play them.
    seconds = study.federation.timeout + (STARTING_SECONDS if unnamed and phase is Phase.DESCRIBE else 0)
    messages = [ask(node, RecordDict({**content, CONFIG: config}), "query", seconds) for node in nodes]

    claimed: dict[str, str] = {}

    def check(site: str, reply: RecordDict) -> None:
        name = str(config_record(reply, SITE)["name"]) if phase is Phase.DESCRIBE and site in unnamed else site
        if name not in study.federation.sites:
            raise SiteError(Reason.NOT_IN_ROSTER, "the node answers with a name that is not in the roster")
        claimed[site] = name
        check_form(study, phase, name, reply, None)
        check_plausible(study, phase, reply, None)

    for answer in answers(grid, messages, {k: v or f"node {k}" for k, v in nodes.items()}, seconds, check):
        # A node without a registered name (in this process, in a simulation) is named in a refusal by the name with which it answered.
        participation.add(answer if answer.reason is None else replace(answer, site=claimed.get(answer.site, answer.site)))
    for site in study.federation.sites:
        if phase is Phase.DESCRIBE and not unnamed and site not in nodes.values():
            participation.refused[site] = str(Reason.NO_ANSWER)
    participation.check_quorum(study, phase, claimed)
    return participation


def _site_summary(described: Mapping[str, Any]) -> SiteDisclosure:
    """A site's policy, data set digest and excluded persons, as JSON values."""
    policy = read_policy(described[POLICY]).model_dump() if POLICY in described else None
    dataset = described[DATASET].tobytes().hex() if DATASET in described else None
    return {
        "policy": policy,
        "dataset": dataset,
        "quarantined": read_excluded_counts(described[EXCLUDED]) if EXCLUDED in described else None,
    }


def _image_shape(study: Study, descriptions: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """(channels, *size): the study's image shape, or else the shape that all sites with images share; () without images.

    Raises:
        RunError: the study states no shape and the sites' images differ, or no site has images.
    """
    if "image" not in study.cohort.inputs:
        return ()
    if study.cohort.image is not None and not study.cohort.image.encoded:
        return (study.cohort.image.channels, *study.cohort.image.size)
    shapes = {site: tuple(int(n) for n in d[IMAGE_SHAPE]) for site, d in descriptions.items() if IMAGE_SHAPE in d}
    if len(set(shapes.values())) != 1:
        found = ", ".join(f"{site} {shape}" for site, shape in shapes.items()) or "no site has images"
        raise RunError(f"the sites' images differ in (channels, *size): {found}; resample them or set [cohort.image] in the study.")
    return next(iter(shapes.values()))


def _persons(study: Study, descriptions: Mapping[str, Mapping[str, Any]], train: bool) -> dict[str, dict[str, list[int]]]:
    """Site -> part -> persons per class. Empty under patient-level privacy, where sites do not send exact counts.

    Raises:
        RunError: a model will be trained, but no site that trains has a person in the training or test part.
    """
    if study.privacy.unit == "patient":
        return {}
    persons: dict[str, dict[str, list[int]]] = {
        site: {part: values[PERSONS][i].tolist() for i, part in enumerate(PARTS)} for site, values in descriptions.items()
    }
    for part in ("train", "test") if train else ():
        if not sum(sum(parts[part]) for site, parts in persons.items() if site in study.federation.training):
            raise RunError(f"no site has a person in the {part} part; change [cohort.split] or the sites' split files.")
    return persons
