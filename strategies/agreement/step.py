"""One step of an analysis: the server requests sums from every site of the agreement, and every site must answer.

A training round can continue without a site. An analysis cannot, because the results of earlier steps include that site's persons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedml.analytics.forms import reply_shapes
from fedml.contract.replies import check_form
from fedml.errors import RunError
from fedml.runs.events import SiteRow
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.recorded import Recorded, note
from fedml.strategies.exchange import Answer, answers, ask, request
from fedml.study.study import Study
from fedml.wire.records import AGREEMENT, ANALYSIS, CONFIG, Phase, array_record, pack, unpack

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Traffic:
    """What is noted of the steps: of each site the bytes of all of them, and the head of its journal in its last reply (``rows``); and
    with a run's folder each step with its sums (``fedml.strategies.agreement.recorded``)."""

    run: Path | None = None
    rows: dict[str, SiteRow] = field(default_factory=dict)

    def add(self, site: str, step: SiteRow) -> None:
        row = self.rows.setdefault(site, {"bytes_out": 0, "bytes_in": 0, "journal": None})
        row["bytes_out"] += step["bytes_out"]
        row["bytes_in"] += step["bytes_in"]
        row["journal"] = row["journal"] if step["journal"] is None else step["journal"]


class BySite(dict[str, Any]):
    """Site -> array: one of a request's arrays that is not the same for all sites."""


def take(
    study: Study, grid: Grid | Recorded, agreement: Agreement, phase: Phase, number: int, given: Mapping[str, Any],
    traffic: Traffic | None = None,
) -> dict[str, Arrays]:  # fmt: skip
    """Site -> its sums, in the roster's order.

    Args:
        agreement: with the panel of this step (``Agreement.part``).
        number: index of this step within its phase.
        given: arrays of the step's request (``fedml.analytics.forms``), some of them ``BySite``.
        grid: the connection to the sites, or their recorded answers. traffic: bytes sent and received are added to it.

    Raises:
        RunError: a site did not answer; the message names the site and the reason.
    """
    shapes = reply_shapes(study, phase, agreement.variants, given)
    content = {**agreement.record(), CONFIG: request(study, phase, number)}
    same = {name: value for name, value in given.items() if not isinstance(value, BySite)}
    own = {name: value for name, value in given.items() if isinstance(value, BySite)}
    if isinstance(grid, Recorded):
        sent = {site: {**same, **{name: own[name][site] for name in own}} for site in agreement.nodes.values()}
        found = grid.answer(phase, number, sent, unpack(array_record(RecordDict(content), AGREEMENT)), shapes)
        for site, row in found.rows.items():
            if traffic is not None:
                traffic.add(site, row)
        return found.sums
    packed = None if own else pack(same)
    asked = {site: packed or pack({**same, **{name: own[name][site] for name in own}}) for site in agreement.nodes.values()}
    messages = [
        ask(node, RecordDict({**content, ANALYSIS: asked[site]}), "query", study.federation.timeout)
        for node, site in agreement.nodes.items()
    ]
    out, rows = dict[str, Arrays](), dict[str, SiteRow]()
    for answer in answers(
        grid, messages, agreement.nodes, study.federation.timeout, lambda site, reply: check_form(study, phase, site, reply, shapes)
    ):
        if answer.reason is not None:
            raise RunError(
                f"{phase}, step {number}: {answer.site} did not answer ({answer.reason}), and an analysis needs every site until its end; "
                "repair the site or run again without it (the site's log gives the details)."
            )
        out[answer.site] = unpack(array_record(answer.message.content, ANALYSIS))
        rows[answer.site] = _row(answer)
    if traffic is not None:
        for site, row in rows.items():
            traffic.add(site, row)
        if traffic.run is not None:
            note(traffic.run, phase, number, rows, out)
    return out


def _row(answer: Answer) -> SiteRow:
    journal = None if answer.journal is None else list(answer.journal)
    row: SiteRow = {"bytes_out": answer.bytes_out, "bytes_in": answer.bytes_in, "journal": journal}
    return row if answer.witness is None else {**row, "witness": answer.witness._asdict()}
