"""One step of an analysis: every site that agreed is asked for its sums, and all of them have to answer.

A round of training may go on without a site; a sum may not, for what was computed before it holds that site's persons.
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
Traffic = dict[str, SiteRow]


def take(
    study: Study, grid: Grid, agreement: Agreement, phase: Phase, number: int, given: Mapping[str, Any], traffic: Traffic | None = None
) -> dict[str, Arrays]:
    """Site -> its sums, in the roster's order.

    Args:
        agreement: with the panel that this step is about (``Agreement.part``).
        number: of this step among those of its phase.
        given: what the step's request holds (``fedml.analytics.forms``).
        traffic: what was sent and received is added to it.

    Raises:
        RunError: a site did not answer; the message names it and its reason.
    """
    basis = given["basis"].shape[1] if "basis" in given else 0
    shapes = reply_shapes(study, phase, agreement.variants, basis)
    content = {**agreement.record(), ANALYSIS: pack(given), CONFIG: request(study, phase, number)}
    messages = [ask(node, RecordDict(dict(content)), "query", study.federation.timeout) for node in agreement.nodes]
    out: dict[str, Arrays] = {}
    for answer in answers(
        grid, messages, agreement.nodes, study.federation.timeout, lambda site, reply: check_form(study, phase, site, reply, shapes)
    ):
        if answer.reason is not None:
            raise RunError(
                f"{phase}, step {number}: {answer.site} did not answer ({answer.reason}); an analysis needs every site to its end: "
                "mend that site, or run again without it. The site's own log tells the reason behind its code."
            )
        out[answer.site] = unpack(answer.message.content.array_records[ANALYSIS])
        if traffic is not None:
            row = traffic.setdefault(answer.site, {"bytes_out": 0, "bytes_in": 0, "journal": None})
            row["bytes_out"] += answer.bytes_out
            row["bytes_in"] += answer.bytes_in
            row["journal"] = row["journal"] if answer.journal is None else list(answer.journal)
    return out
