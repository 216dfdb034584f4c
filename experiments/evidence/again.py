"""An analysis computed again from the sums in its record, by the code that computed it over the sites, and the files that follow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedml.experiments.evidence.contents import CRATE, MANIFEST, REPORT, SIGNATURE, chained
from fedml.experiments.evidence.publication import CITATION, HOW_TO, ZENODO, citation, how_to_check, publication_of, zenodo
from fedml.experiments.evidence.signing import canonical
from fedml.experiments.report.association import render_association
from fedml.experiments.report.outcomes import render_outcomes
from fedml.experiments.report.page import embedded
from fedml.experiments.runs.record import Record
from fedml.runs.events import Event
from fedml.runs.log import EVENTS, GWAS_TABLE, MANHATTAN, OUTCOMES_FILES, QQ, SHARED, STEPS, STUDY, SUMS, read_log
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.recorded import Recorded, agreement_of
from fedml.strategies.agreement.step import Traffic

# Of an association study the index follows from the table, and the metadata have the day.
FILES = (*OUTCOMES_FILES, GWAS_TABLE, MANHATTAN, QQ)


@dataclass(frozen=True)
class Again:
    """``files``: name -> bytes of what the analysis writes. ``page``: its report. ``events``: of its log, after the agreement.
    ``recorded``: the steps."""

    files: dict[str, bytes]
    page: str
    events: list[Event]
    recorded: Recorded


def again(record: Record) -> Again:
    """Computes the analysis of a record again.

    Raises:
        RunError, ValueError: the record's sums are not those of this analysis; crafted ones may raise any error.
    """
    run = record.run
    shared = (run / SHARED).read_bytes() if (run / SHARED).is_file() else None
    recorded = Recorded(record.study, (run / STEPS).read_bytes(), (run / SUMS).read_bytes())
    agreement = agreement_of(record.study, record.agreed, shared)
    with tempfile.TemporaryDirectory(prefix="fedml-again-") as folder:
        out = Path(folder)
        JOBS[record.start.job](record, recorded, out, agreement)
        files = {name: (out / name).read_bytes() for name in FILES if (out / name).is_file()}
        events = read_log(out)[0]
        for name in (STUDY, EVENTS):
            (out / name).write_bytes((run / name).read_bytes())
        render = render_association if record.start.job == "gwas" else render_outcomes
        return Again(files, render(out), events, recorded)


def _outcomes(record: Record, recorded: Recorded, out: Path, agreement: Agreement) -> object:
    from fedml.strategies.outcomes.jobs import ANALYSES
    from fedml.strategies.outcomes.work import Work

    return ANALYSES[record.start.job](Work(record.study, recorded, out, agreement, time.monotonic(), Traffic()))


def _associate(record: Record, recorded: Recorded, out: Path, agreement: Agreement) -> object:
    from fedml.strategies.gwas.run import analyse
    from fedml.strategies.gwas.work import Work

    assert record.study.gwas is not None  # noqa: S101 - a run of this kind has the section
    work = Work(record.study, recorded, out, agreement, record.study.gwas, agreement.counts, Traffic())
    return analyse(work, time.monotonic())


JOBS: Mapping[str, Callable[[Record, Recorded, Path, Agreement], object]] = {
    "gwas": _associate, "survival": _outcomes, "glm": _outcomes, "describe": _outcomes,
}  # fmt: skip


def signers(found: Again) -> dict[str, list[Any]]:
    """Site -> the signatures on its steps, None where one is not signed."""
    out: dict[str, list[Any]] = {}
    for step in found.recorded.answered:
        for site, row in step.rows.items():
            out.setdefault(site, []).append(row.get("witness"))
    return out


def derived_of_analysis(record: Record, found: Again | None = None) -> dict[str, bytes]:
    """Name -> bytes of every derived file, without ro-crate-metadata.json. ``found``: the analysis computed again, if it is known."""
    found, stated = again(record) if found is None else found, publication_of(record.run)
    signed = [site for site, own in signers(found).items() if all(own)]
    steps = found.recorded.answered
    journals = {
        site: chained((str(step.phase), step.number, step.rows[site]["journal"]) for step in steps if site in step.rows)
        for site in record.agreed.sites
    }
    return {
        **found.files,
        "journals.json": canonical({site: rows or "not reported" for site, rows in journals.items()}),
        "figures.json": canonical({"report": embedded(found.page)}),
        REPORT: found.page.encode(), CITATION: citation(record, stated).encode(), ZENODO: zenodo(record, stated).encode(),
        HOW_TO: how_to_check(record, signed).encode(),
    }  # fmt: skip


def bare(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that the crate describes."""
    return {name: data for name, data in files.items() if name not in (CRATE, MANIFEST, SIGNATURE)}
