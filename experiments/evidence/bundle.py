"""``fedml bundle``: a finished run as a signed RO-Crate, with all files that a verification needs.

RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) with the Process Run Crate profile 0.5 (https://w3id.org/ro/wfrun/process/0.5): the study is
the action's object, this software its instrument, the other files its results. ``docs/evidence.md`` lists the files.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedml.errors import InputError
from fedml.experiments.evidence.again import derived_of_analysis
from fedml.experiments.evidence.archive import pack
from fedml.experiments.evidence.contents import (  # fmt: skip
    CARD,
    CRATE,
    FORMAT,
    MANIFEST,
    OF_ANALYSIS,
    REPORT,
    REQUIRED,
    SIGNATURE,
    TOML,
    VERSIONS,
    derived,
    read_sources,
    record_of,
    versions_file,
)
from fedml.experiments.evidence.publication import AUTHORS, CITATION, HOW_TO, ZENODO, Author, publication_of, read_publication
from fedml.experiments.evidence.signing import canonical, fingerprint, signature
from fedml.experiments.runs.record import ANALYSES, TRAININGS, Record, read_record
from fedml.runs.events import Event
from fedml.runs.log import COUNTS, EVENTS, LAYOUT, MODEL, PANEL, RECEIVED, SHARED, STEPS, STUDY, SUMS, write_whole
from fedml.runs.software import words
from fedml.study.start import FILE as START

CRATE_VERSION, PROFILE = "1.1", "https://w3id.org/ro/wfrun/process/0.5"
# An absolute path on a machine. After letters, dots, slashes or # the match would be part of a URL or a pointer into a file of the bundle.
_PATHS = re.compile(
    r"(?<![\w./#<])(?:/(?:home|Users|root|srv|mnt|media|data|tmp|var|opt|work|scratch|private|etc|usr)/\w[^\s\"'<>]*|[A-Za-z]:\\{1,2}\w[^\s\"'<>]*)"
)
_ABOUT = {
    STUDY: "The study as it was run: canonical JSON; its SHA-256 identifies the study",
    START: "Weights with which the model began, as the study pins them",
    TOML: "The study file as written by its author, before changes on the command line",
    EVENTS: "The log of the run, one event a line: agreement, rounds by site, privacy, last evaluation",
    MODEL: "The trained model: learned arrays and preprocessing constants",
    PANEL: "The variants that all sites have",
    LAYOUT: "Image shape and number of variants for which the model is built",
    COUNTS: "The counts of the last evaluation from each site, from which the metrics are computed",
    RECEIVED: "The same counts byte for byte as they came, of sites that signed them",
    STEPS: "The steps of the analysis, one a line: of each site the head of its journal and its signature",
    SUMS: "The sums of each step, as each site sent them, from which every number is computed",
    SHARED: "The variants of the analysis, how each site's dosages count, and the sites' genotype counts",
    "outcomes.json": "All results of the analysis",
    "outcomes.html": "The results as a page",
    VERSIONS: "Versions of packages, interpreter and platform",
    "audit.json": "The lower bound on epsilon that an attack with canaries measured",
    "metrics.json": "Metrics of each round and of the last evaluation",
    "policies.json": "The sites' policies in force, as disclosed by the sites",
    "journals.json": "Head and length of each site's journal, as sent with each reply, in a chain",
    "privacy.json": "The releases as privacy events, and their epsilon",
    "figures.json": "Every figure, with its interval and its source in the bundle",
    REPORT: "The report",
    AUTHORS: "Title, authors, licence and keywords, as stated by who wrote the bundle",
    CITATION: "How to cite this record, in the Citation File Format",
    ZENODO: "Metadata of a deposit at Zenodo",
    HOW_TO: "How to check this record without its authors",
    CARD: "Model card",
    "checklists.md": "Reporting checklists TRIPOD+AI, CLAIM 2024 and FUTURE-AI, filled from the run",
    "checklists.json": "The same checklists as JSON",
    MANIFEST: "SHA-256 and size of every file",
    SIGNATURE: "The coordinator's signature on manifest.json",
}
_FORMATS = {
    ".json": "application/json", ".jsonl": "application/jsonl", ".toml": "application/toml", ".tsv": "text/tab-separated-values",
    ".html": "text/html", ".md": "text/markdown", ".safetensors": "application/octet-stream", ".bin": "application/octet-stream",
    ".csv": "text/csv", ".svg": "image/svg+xml", ".gz": "application/gzip", ".png": "image/png",
    ".py": "text/x-python", ".cff": "application/yaml",
}  # fmt: skip


def write_bundle(
    run: Path, out: Path, key: Ed25519PrivateKey, say: Callable[[str], None] = lambda _: None, authors: bytes | None = None
) -> str:
    """Writes the bundle of a finished run, completely or not at all; the same run, key and software give the same bytes.

    Args:
        authors: the bytes of an authors.toml (``fedml.experiments.evidence.publication``); None: that of the run's folder, if it has one.

    Returns:
        The SHA-256 of the manifest, which identifies the bundle.

    Raises:
        InputError: the run did not finish, lacks a file, contains a name of this machine, or is too large.
    """
    record = read_record(run, (*TRAININGS, *ANALYSES))
    if record.status != "finished":
        raise InputError(f"{run}: the run's status is {record.status}; only a finished run can be bundled.")
    sources = read_sources(run)
    if authors is not None:
        read_publication(authors)
        sources[AUTHORS] = authors
    analysis = record.start.job in ANALYSES
    if analysis and SUMS not in sources and STEPS in sources:
        raise InputError(
            f"{run}: the sums of its sites are larger than a bundle may be, and were not kept; bundle a study of fewer variants."
        )
    if missing := [name for name in (OF_ANALYSIS if analysis else REQUIRED) if name not in sources]:
        raise InputError(f"{run}: has no {missing[0]}; run the study again to create it.")
    files = files_of(sources | {VERSIONS: versions_file(record.start.versions)})
    _check_words(run, files, record)
    manifest = manifest_of(record.run_id, files)
    files |= {MANIFEST: manifest, SIGNATURE: signature(key, manifest, MANIFEST)}
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give a file with -o, such as {out / 'run.zip'}.")
    try:
        write_whole(out, pack(files))
    except (ValueError, OSError) as error:
        raise InputError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error}); give another file with -o.") from error
    say(f"signed by {fingerprint(key.public_key())}")
    return hashlib.sha256(manifest).hexdigest()


def files_of(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """Name -> bytes of the sources and of all files derived from them, without manifest and signature."""
    with record_of(sources) as record:
        files = {**sources, **(derived_of_analysis(record) if record.start.job in ANALYSES else derived(record))}
        return {**files, CRATE: crate(record, files)}


def manifest_of(run_id: str, files: Mapping[str, bytes]) -> bytes:
    """manifest.json: format, run, and SHA-256 and size in bytes of every file."""
    rows = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    return canonical({"format": FORMAT, "run": run_id, "files": rows})


def crate(record: Record, files: Mapping[str, bytes]) -> bytes:
    """The bytes of ro-crate-metadata.json."""
    from rocrate.model import ContextEntity
    from rocrate.rocrate import ROCrate

    package = ROCrate(version=CRATE_VERSION)
    study, began, ended = record.study.study, _time(record.start), _time(record.end)
    package.name = f"Run {record.run_id}"
    package.description = (
        f"Federated study {study.name}: {study.question or 'no question is stated'} Purpose: {study.purpose or 'not stated'}."
    )
    package.datePublished = ended
    stated = publication_of(record.run)
    unknown = "Not stated in the run's record; ask the people who ran the study."
    package.license = unknown

    def add(entity_id: str, kind: str, **values: Any) -> Any:
        return package.add(ContextEntity(package, entity_id, properties={"@type": kind, **values}))

    package.root_dataset["conformsTo"] = add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
    entities = {
        name: package.add_file(None, name, properties=_entity(name, files.get(name))) for name in sorted({*files, MANIFEST, SIGNATURE})
    }
    software = add(
        "#fedml-cohorts", "SoftwareApplication", name="fedml-cohorts",
        softwareVersion=record.start.versions.get("fedml-cohorts", "unknown"), **_code_of(record),
    )  # fmt: skip
    if (repository := _repository(record, add)) is not None:
        entities[STUDY]["isPartOf"] = repository
    needs = [
        add(
            f"https://pypi.org/project/{name}/",
            "SoftwareApplication",
            name=name,
            softwareVersion=version,
            url=f"https://pypi.org/project/{name}/",
        )
        for name, version in record.start.versions.items()
        if name != "fedml-cohorts"
    ]
    software["softwareRequirements"] = needs
    sites = [add(f"#site-{site.name}", "Organization", name=site.name) for site in record.sites]
    data = [
        add(f"#data-{s.name}", "PropertyValue", name=f"SHA-256 of the data that {s.name} read", propertyID="SHA-256", value=s.dataset)
        for s in record.sites
        if s.dataset
    ]
    command = "run" if record.start.job in TRAININGS else record.start.job
    action = add(
        f"#{record.run_id}", "CreateAction", name=f"fedml {command} {study.name}", startTime=began, endTime=ended,
        actionStatus="http://schema.org/CompletedActionStatus",
        description=f"{_what(record)} over {len(record.agreed.sites)} sites, engine {record.start.engine}",
    )  # fmt: skip
    action["instrument"], action["object"], action["participant"] = software, [entities[STUDY], *data], sites
    if stated.license:
        package.root_dataset["license"] = add(f"https://spdx.org/licenses/{stated.license}", "CreativeWork", name=stated.license)
    people = [_person(add, author) for author in stated.authors]
    if people:
        package.root_dataset["author"] = people
    action["agent"] = add("#coordinating-centre", "Organization", name="The coordinating centre")
    action["result"] = [entity for name, entity in entities.items() if name not in (STUDY, TOML)]
    package.root_dataset["mentions"] = action
    return json.dumps(package.metadata.generate(), indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _what(record: Record) -> str:
    return f"{len(record.rounds)} rounds" if record.start.job in TRAININGS else f"analysis {record.start.job}"


def _person(add: Callable[..., Any], author: Author) -> Any:
    name = f"{author.given} {author.family}"
    more = {"affiliation": author.affiliation} if author.affiliation else {}
    where = f"https://orcid.org/{author.orcid}" if author.orcid else f"#author-{re.sub('[^A-Za-z0-9]+', '-', name)}"
    return add(where, "Person", name=name, givenName=author.given, familyName=author.family, **more)


def _code_of(record: Record) -> dict[str, str]:
    """What identifies the code of this software that made the run, and whether it was changed since it was installed or committed."""
    code = record.start.code
    if code is None:
        return {"description": "The run does not say by which code of this software it was made."}
    return {"identifier": f"sha256:{code['sha256']}", "description": f"{words(code)}; identifier: SHA-256 over its files"}


def _repository(record: Record, add: Callable[..., Any]) -> Any:
    """The researcher's repository, in which the study file lay: not the software's."""
    commit, _, changed = record.start.git_commit.partition("+")
    if commit in ("none", ""):
        return None
    about = "The repository of whoever ran the study, in which the study file lay; it is not that of the software"
    edited = "with uncommitted changes" if changed else "without uncommitted changes"
    return add("#study-repository", "CreativeWork", name="Repository of the study file", version=commit, description=f"{about}; {edited}.")


def _entity(name: str, data: bytes | None) -> dict[str, Any]:
    kinds = {".py": "Code of the study's author, pinned by its SHA-256 in the study", ".png": "Predictions on public images"}
    about = kinds.get(Path(name).suffix, "A table or a plot of the results")
    about = _ABOUT.get(name, about)
    size = {} if data is None else {"contentSize": str(len(data))}
    return {"name": name, "description": about, "encodingFormat": _FORMATS[Path(name).suffix], **size}


def _time(event: Event) -> str:
    return datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds")


def _check_words(run: Path, files: Mapping[str, bytes], record: Record) -> None:
    """Raises ``InputError`` if a file contains a folder, an account or the host name of this machine: bundles are published."""
    local = {os.path.expanduser("~"), socket.gethostname()}
    with suppress(OSError, KeyError, ImportError):
        local.add(getpass.getuser())
    # Short words are too common to identify anything, and words of the study are meant to be published.
    local = {word for word in local if len(word) > 4 and word not in record.study.canonical}
    for name, data in files.items():
        with suppress(UnicodeDecodeError):
            for number, line in enumerate(data.decode().splitlines(), 1):
                found = _PATHS.search(line)
                word = found[0] if found else next((w for w in local if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", line)), None)
                if word:
                    raise InputError(f"{run}: {name}, line {number} has {word!r}, a name from this machine; remove it from that file.")
