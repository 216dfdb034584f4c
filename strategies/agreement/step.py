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
from fedml.wire.records import ANALYSIS, CONFIG, Phase, pack, unpack

Arrays = dict[str, Any]
Traffic = dict[str, SiteRow]  # head and length of a site's journal are those of its last reply


def take(
    study: Study,
    grid: Grid,
    agreement: Agreement,
    phase: Phase,
    number: int,
    given: Mapping[str, Any],
    traffic: Traffic | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Arrays]:
    """Site -> its sums, in the roster's order.

    Args:
        agreement: with the panel of this step (``Agreement.part``).
        number: index of this step within its phase.
        given: arrays of the step's request (``fedml.analytics.forms``).
        traffic: bytes sent and received are added to it.
        own: site -> arrays that are added to its request.

    Raises:
        RunError: a site did not answer; the message names the site and the reason.
    """
    basis = given["basis"].shape[1] if "basis" in given else 0
    shapes = reply_shapes(study, phase, agreement.variants, basis)
    content = {**agreement.record(), CONFIG: request(study, phase, number)}
    asked = dict.fromkeys(agreement.nodes.values(), pack(given)) if own is None else {s: pack({**given, **own[s]}) for s in own}
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
        out[answer.site] = unpack(answer.message.content.array_records[ANALYSIS])
        if traffic is not None:
            row = traffic.setdefault(answer.site, {"bytes_out": 0, "bytes_in": 0, "journal": None})
            row["bytes_out"] += answer.bytes_out
            row["bytes_in"] += answer.bytes_in
            row["journal"] = row["journal"] if answer.journal is None else list(answer.journal)
    return out
