"""One step of an analysis: the server requests sums from every site of the agreement, and every site must answer.

A training round can continue without a site. An analysis cannot, because the results of earlier steps include that site's persons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedml.analytics.forms import reply_shapes
from fedml.contract.replies import check_form
from fedml.errors import RunError
from fedml.runs.events import SiteRow
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.exchange import answers, ask, request
from fedml.study.study import Study
from fedml.wire.records import ANALYSIS, CONFIG, Phase, array_record, pack, unpack

Arrays = dict[str, Any]
Traffic = dict[str, SiteRow]  # head and length of a site's journal are those of its last reply


class BySite(dict[str, Any]):
    """Site -> array: one of a request's arrays that is not the same for all sites."""


def take(
    study: Study, grid: Grid, agreement: Agreement, phase: Phase, number: int, given: Mapping[str, Any], traffic: Traffic | None = None
) -> dict[str, Arrays]:
    """Site -> its sums, in the roster's order.

    Args:
        agreement: with the panel of this step (``Agreement.part``).
        number: index of this step within its phase.
        given: arrays of the step's request (``fedml.analytics.forms``), some of them ``BySite``.
        traffic: bytes sent and received are added to it.

    Raises:
        RunError: a site did not answer; the message names the site and the reason.
    """
    shapes = reply_shapes(study, phase, agreement.variants, given)
    content = {**agreement.record(), CONFIG: request(study, phase, number)}
    same = {name: value for name, value in given.items() if not isinstance(value, BySite)}
    own = {name: value for name, value in given.items() if isinstance(value, BySite)}
    packed = None if own else pack(same)
    asked = {site: packed or pack({**same, **{name: own[name][site] for name in own}}) for site in agreement.nodes.values()}
    messages = [
        ask(node, RecordDict({**content, ANALYSIS: asked[site]}), "query", study.federation.timeout)
        for node, site in agreement.nodes.items()
    ]
    out: dict[str, Arrays] = {}
    for answer in answers(
        grid, messages, agreement.nodes, study.federation.timeout, lambda site, reply: check_form(study, phase, site, reply, shapes)
    ):
        if answer.reason is not None:
            raise RunError(
                f"{phase}, step {number}: {answer.site} did not answer ({answer.reason}), and an analysis needs every site until its end; "
                "repair the site or run again without it (the site's log gives the details)."
            )
        out[answer.site] = unpack(array_record(answer.message.content, ANALYSIS))
        if traffic is not None:
            row = traffic.setdefault(answer.site, {"bytes_out": 0, "bytes_in": 0, "journal": None})
            row["bytes_out"] += answer.bytes_out
            row["bytes_in"] += answer.bytes_in
            row["journal"] = row["journal"] if answer.journal is None else list(answer.journal)
    return out
