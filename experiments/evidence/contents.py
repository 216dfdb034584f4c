"""The contents of a bundle: the sources of a run, and the files derived from them.

    sources          the files of the run's folder, unchanged, and versions.json
    derived(record)  all other files: the verifier derives them again from the sources and compares them with those of the bundle

A figure in a bundle can therefore be false only if the sources are false.
"""

from __future__ import annotations

import hashlib
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedml.experiments.checklists.fill import checklists_json, checklists_markdown
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.evidence.publication import AUTHORS, CITATION, HOW_TO, ZENODO, citation, how_to_check, publication_of, zenodo
from fedml.experiments.evidence.signing import canonical
from fedml.experiments.report.page import embedded, render, report_facts
from fedml.experiments.report.page import figures as report_figures
from fedml.experiments.runs.record import ANALYSES, TRAININGS, Record, exchanges, job_of, read_record
from fedml.runs.events import body
from fedml.runs.log import COUNTS, EVENTS, EXAMPLES, LAYOUT, MODEL, PANEL, RECEIVED, SHARED, STEPS, STUDY, SUMS
from fedml.runs.rows import NONE_AGAIN, Again
from fedml.runs.software import code_digest, words
from fedml.study.code_section import DISTRIBUTION
from fedml.study.sources import FOLDER as CODE
from fedml.study.start import FILE as START

FORMAT = "fedml-bundle/1"
CRATE, MANIFEST, SIGNATURE, VERSIONS = "ro-crate-metadata.json", "manifest.json", "signature.json", "versions.json"
REPORT, CARD, TOML, AUDIT = "report.html", "model_card.md", "study.toml", "audit.json"
REQUIRED = (STUDY, EVENTS, MODEL, PANEL, LAYOUT, COUNTS)
OPTIONAL = (TOML, AUDIT, START, RECEIVED, AUTHORS)
OF_ANALYSIS = (STUDY, EVENTS, STEPS, SUMS)  # required of a run of an analysis
ALSO_OF_ANALYSIS = (TOML, AUTHORS, SHARED)
_FOLDERS = ((CODE, ".py"), (EXAMPLES, ".png"))  # folders of sources, and how their files end


def is_source(name: str) -> bool:
    """Whether a file of this name is a source of some kind of run, as opposed to derived."""
    return name in (*REQUIRED, *OPTIONAL, *OF_ANALYSIS, *ALSO_OF_ANALYSIS, VERSIONS) or any(
        name.startswith(f"{place}/") and name.endswith(end) for place, end in _FOLDERS
    )


def read_sources(run: Path) -> dict[str, bytes]:
    """Name -> bytes of the source files in a run's folder. Files that do not exist are omitted."""
    analysis = job_of(run) in ANALYSES
    names = (*OF_ANALYSIS, *ALSO_OF_ANALYSIS) if analysis else (*REQUIRED, *OPTIONAL)
    found = [run / name for name in names if (run / name).is_file()]
    if analysis:
        return {path.name: path.read_bytes() for path in found}
    found += sorted(path for place, end in _FOLDERS for path in (run / place).glob(f"*{end}") if path.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in found}


def versions_file(run: Mapping[str, str]) -> bytes:
    """The bytes of versions.json: the packages of the run, from its log; the interpreter, platform, packages and code of the bundle."""
    named = {re.split(r"[\s\[<>=!~;(]", line)[0] for line in metadata.requires(DISTRIBUTION) or () if "extra ==" not in line}
    packages = {name: metadata.version(name) for name in sorted({DISTRIBUTION, *named})}
    machine = {"python": platform.python_version(), "implementation": platform.python_implementation()}
    machine |= {"system": platform.system(), "machine": platform.machine(), "code_sha256": code_digest()}
    return canonical({"run": dict(run), "bundle": {**machine, "packages": packages}})


def software_text(record: Record, bundled: str) -> str:
    """Which code made the run, its sites' answers and the bundle, as far as it is told and not the same.

    Args:
        bundled: SHA-256 of the code that wrote the bundle.
    """
    code = record.start.code
    if code is None:
        return "the run does not say by which code of this software it was made"
    others = {"the bundle was written by": bundled, "this verification is by": code_digest()}
    others |= {f"{site.name} answered by": (site.policy or {}).get("code_sha256") or code["sha256"] for site in record.sites}
    found = [f"{who} other code, {digest[:12]}" for who, digest in others.items() if digest != code["sha256"]]
    return "; ".join([f"the run was made by {words(code)}", *found])


@contextmanager
def record_of(sources: Mapping[str, bytes]) -> Iterator[Record]:
    """The record of ``sources``, written to a temporary folder that is removed afterwards. The caller must have checked the names."""
    with tempfile.TemporaryDirectory(prefix="fedml-evidence-") as folder:
        run = Path(folder) / "run"
        run.mkdir()
        for name, data in sources.items():
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_bytes(data)
        yield read_record(run, (*TRAININGS, *ANALYSES))


def derived(record: Record) -> dict[str, bytes]:
    """Name -> bytes of every derived file, without ro-crate-metadata.json."""
    found, shown = figures(record), report_figures(record)
    page, more, stated = render(record, shown), report_facts(record, shown), publication_of(record.run)
    return {
        "metrics.json": canonical(
            {
                "final": {"metrics": record.final.metrics, "groups": record.final.groups, "across": shown.get("across", {})},
                "rounds": [{"round": e.round, "metrics": e.metrics} for e in record.rounds],
            }
        ),
        "policies.json": canonical({s.name: s.policy if s.policy is not None else "not disclosed" for s in record.sites}),
        "journals.json": canonical({s.name: journal_rows(record, s.name) or "not reported" for s in record.sites}),
        "privacy.json": canonical({"asked": rounds_requested(record), **_again(record), **body(record.privacy)}),
        REPORT: page.encode(),
        CITATION: citation(record, stated).encode(),
        ZENODO: zenodo(record, stated).encode(),
        HOW_TO: how_to_check(record).encode(),
        CARD: model_card(record, more).encode(),
        "checklists.md": checklists_markdown(record, more).encode(),
        "checklists.json": checklists_json(record, more).encode(),
        "figures.json": canonical({"figures": found, "report": embedded(page)}),
    }


def rounds_requested(record: Record) -> dict[str, int]:
    """Site -> number of rounds requested of it, each of which it may have released: all rounds, for each site that agreed and trains; what
    a resumed run may have requested twice is apart (``requested_again``)."""
    return {site: len(record.rounds) for site in record.agreed.sites if site in record.study.federation.training}


def _again(record: Record) -> dict[str, Any]:
    return {"again": requested_again(record)._asdict()} if record.resumed else {}


def requested_again(record: Record) -> Again:
    """How many requests a run that was resumed may have made twice."""
    return Again(record.resumed[-1].rounds_again, record.resumed[-1].evaluations_again) if record.resumed else NONE_AGAIN


def journal_rows(record: Record, site: str) -> list[dict[str, Any]]:
    """Head and length of the site's journal, as sent with each reply; each row is chained to the row before by SHA-256."""
    events = ((e.kind, e.round, e.sites[site]["journal"]) for e in exchanges(record.rounds, record.final) if site in e.sites)
    return chained(events)


def chained(replies: Iterable[tuple[str, int, Sequence[Any] | None]]) -> list[dict[str, Any]]:
    """Rows of journals.json. ``replies``: kind and number of an exchange, and head and length of the journal; None: not reported."""
    rows, chain = list[dict[str, Any]](), "0" * 64
    for kind, number, journal in replies:
        if journal:
            row = {"event": kind, "round": number, "head": journal[0], "entries": journal[1]}
            chain = hashlib.sha256(chain.encode() + canonical(row)).hexdigest()
            rows.append({**row, "chain": chain})
    return rows


def counts_by_site(record: Record) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Site -> ``PART/NAME`` -> counts as received, sites in the order of the roster."""
    out: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for site in record.study.federation.sites:
        counts = {f"{part}/{name}": v for part, by_site in record.counts.items() for name, v in by_site.get(site, {}).items()}
        if counts:
            out[site] = counts
    return out


def figures(record: Record) -> dict[str, dict[str, Any]]:
    """``PART/SITE/METRIC`` (SITE ``all``: all sites) -> value, and its source in the bundle. Intervals are with the report's figures."""
    out: dict[str, dict[str, Any]] = {}
    groups = {f"test@{label}": scores for label, scores in record.final.groups.items()}
    for part, scores in {**record.final.metrics, **groups}.items():
        for site_name, values in {"all": scores["all"], **scores["sites"]}.items():
            where = f"{COUNTS}#{'*' if site_name == 'all' else site_name}/{part}"
            out |= {f"{part}/{site_name}/{name}": {"value": value, "from": where} for name, value in values.items()}
    for site, claim in record.privacy.claims.items():
        where = f"privacy.json#/claims/{site}/events_json"
        out[f"privacy/{site or 'site'}/epsilon"] = {"value": claim["epsilon"], "delta": claim["delta"], "from": where}
    return out
