"""What a bundle holds: the sources of a run, and the files that follow from them.

    SOURCES          the run's folder, byte for byte, and versions.json
    derived(record)  everything else: made anew from the sources by whoever verifies, and held against what the bundle says

So a figure can be false in a bundle only if the sources say so too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy.typing as npt

import fedml
from fedml.experiments.checklists.fill import checklists_json, checklists_markdown
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.evidence.signing import canonical
from fedml.experiments.report import embedded, render, report_facts
from fedml.experiments.runs.record import Record, exchanges, read_record
from fedml.runs.events import body
from fedml.runs.log import COUNTS, EVENTS, EXAMPLES, LAYOUT, MODEL, PANEL, STUDY

FORMAT = "fedml-bundle/1"
CRATE, MANIFEST, SIGNATURE, VERSIONS = "ro-crate-metadata.json", "manifest.json", "signature.json", "versions.json"
REPORT, CARD, TOML, AUDIT = "report.html", "model_card.md", "study.toml", "audit.json"
REQUIRED = (STUDY, EVENTS, MODEL, PANEL, LAYOUT, COUNTS)
OPTIONAL = (TOML, AUDIT)
_DISTRIBUTION = "fedml-cohorts"


def is_source(name: str) -> bool:
    """Is a file of this name from the run's folder, and not made of others?"""
    return name in (*REQUIRED, *OPTIONAL, VERSIONS) or (name.startswith(f"{EXAMPLES}/") and name.endswith(".png"))


def read_sources(run: Path) -> dict[str, bytes]:
    """The files of a run's folder that a bundle holds; those it may lack are left out where they are not there."""
    found = [run / name for name in (*REQUIRED, *OPTIONAL) if (run / name).is_file()]
    found += sorted(path for path in (run / EXAMPLES).glob("*.png") if path.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in found}


def versions_file(run: Mapping[str, str]) -> bytes:
    """versions.json: packages at the run as its log has them; interpreter, platform, packages and the code that made the bundle."""
    named = {re.split(r"[\s\[<>=!~;(]", line)[0] for line in metadata.requires(_DISTRIBUTION) or () if "extra ==" not in line}
    made = {name: metadata.version(name) for name in sorted({_DISTRIBUTION, *named})}
    here = {"python": platform.python_version(), "implementation": platform.python_implementation()}
    here |= {"system": platform.system(), "machine": platform.machine(), "code_sha256": code_digest()}
    return canonical({"run": dict(run), "bundle": {**here, "packages": made}})


@lru_cache
def code_digest() -> str:
    """SHA-256 over this software's own files: with the same code and the same sources, derived files are the same to the letter."""
    out = hashlib.sha256()
    package = Path(fedml.__file__).parent
    for at, folders, names in os.walk(package, followlinks=True):  # in a checkout some of its folders are links
        folders.sort()
        for path in (Path(at) / name for name in sorted(names) if name.endswith((".py", ".toml"))):
            data = path.read_bytes()
            out.update(f"{path.relative_to(package).as_posix()}:{len(data)}:".encode() + data)
    return out.hexdigest()


@contextmanager
def record_of(sources: Mapping[str, bytes]) -> Iterator[Record]:
    """The record that ``sources`` make, in a folder of its own that is gone afterwards. Their names have been checked."""
    with tempfile.TemporaryDirectory(prefix="fedml-evidence-") as folder:
        run = Path(folder) / "run"
        (run / EXAMPLES).mkdir(parents=True)
        for name, data in sources.items():
            (run / name).write_bytes(data)
        if not any(name.startswith(f"{EXAMPLES}/") for name in sources):
            (run / EXAMPLES).rmdir()
        yield read_record(run)


def derived(record: Record) -> dict[str, bytes]:
    """Name -> bytes of every file that follows from the run's own, without the crate's description of them."""
    page, more = render(record), report_facts(record)
    return {
        "metrics.json": canonical(
            {
                "final": {"metrics": record.final.metrics, "groups": record.final.groups},
                "rounds": [{"round": e.round, "metrics": e.metrics} for e in record.rounds],
            }
        ),
        "policies.json": canonical({s.name: s.policy if s.policy is not None else "not disclosed" for s in record.sites}),
        "journals.json": canonical({s.name: journal_rows(record, s.name) or "not told" for s in record.sites}),
        "privacy.json": canonical({"asked": asked(record), **body(record.privacy)}),
        REPORT: page.encode(),
        CARD: model_card(record, more).encode(),
        "checklists.md": checklists_markdown(record, more).encode(),
        "checklists.json": checklists_json(record, more).encode(),
        "figures.json": canonical({"figures": figures(record), "report": embedded(page)}),
    }


def asked(record: Record) -> dict[str, int]:
    """Site -> the rounds it was asked for, which is what it may have released: all of those, for each that agreed."""
    return {site: len(record.rounds) for site in record.agreed.sites}


def journal_rows(record: Record, site: str) -> list[dict[str, Any]]:
    """What the site told of its own journal, reply by reply, each row chained to the one before it by SHA-256."""
    rows, chain = list[dict[str, Any]](), "0" * 64
    for event in exchanges(record.rounds, record.final):
        told = event.sites[site]["journal"] if site in event.sites else None
        if told:
            row = {"event": event.kind, "round": event.round, "head": told[0], "entries": told[1]}
            chain = hashlib.sha256(chain.encode() + canonical(row)).hexdigest()
            rows.append({**row, "chain": chain})
    return rows


def counts_by_site(record: Record) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Site -> ``PART/NAME`` -> counts, in the roster's order, as they came."""
    out: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for site in record.study.federation.sites:
        own = {f"{part}/{name}": v for part, by_site in record.counts.items() for name, v in by_site.get(site, {}).items()}
        if own:
            out[site] = own
    return out


def figures(record: Record) -> dict[str, dict[str, Any]]:
    """``PART/WHO/METRIC`` -> value, and the place in the bundle from which it was computed. Intervals are among the report's figures."""
    out: dict[str, dict[str, Any]] = {}
    groups = {f"test@{label}": own for label, own in record.final.groups.items()}
    for part, scores in {**record.final.metrics, **groups}.items():
        for who, own in {"all": scores["all"], **scores["sites"]}.items():
            where = f"{COUNTS}#{'*' if who == 'all' else who}/{part}"
            out |= {f"{part}/{who}/{name}": {"value": value, "from": where} for name, value in own.items()}
    for site, claim in record.privacy.claims.items():
        where = f"privacy.json#/claims/{site}/events_json"
        out[f"privacy/{site or 'site'}/epsilon"] = {"value": claim["epsilon"], "delta": claim["delta"], "from": where}
    return out
