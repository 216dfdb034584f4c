"""``fedml-site remove``: a site leaves its federation. Deletes what this program has written, and nothing that the hospital has put here.

Deleted: the node key and its public key, approvals, caches, logs, and what the gate remembers of runs. Kept unless asked otherwise: the
record of what was answered (journal, ledger, the sets of persons that were released, the studies that the ledger refers to), without which
a site that joins again would give its persons a new budget. Files in the state folder that this program does not know are left and named.

The key goes first, because it is the site's identity. A removal that was interrupted is finished by the next call.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedml.clients.gate.code_store import STORE
from fedml.clients.gate.journal import Journal
from fedml.clients.service import PID_FILE, SECRET, WAY, claim_site
from fedml.clients.site.logs import NODE_LOG, SITE_LOG
from fedml.clients.site.manifest import Site
from fedml.clients.work.apart import FOLDER as APART
from fedml.clients.work.apart import LOG as OWN_LOG
from fedml.errors import InputError, RunError

# Patterns of what is written to the state folder, with what it is.
_RECORD = {
    "journal.*": "the journal, its head and its torn lines",
    "ledger.db*": "the privacy ledger",
    "released.db*": "the sets of persons that were answered about, as keyed hashes",
    STORE: "the approved files of own code",
    "studies": "the studies that were approved",
}
_REST = {
    "approvals.*": "the approvals",
    APART: "caches of studies with own code",
    f"{OWN_LOG}*": "the log of own code",
    "cache": "prepared images and genotypes",
    "course": "the last weights of runs",
    "pins": "what is fixed for runs",
    "quarantine.jsonl": "the list of excluded images",
    ".quarantine-*": "an unfinished list of excluded images",
    "preview.png": "the preview of images",
    SECRET: "the secret between the service's processes",
    WAY: "the proxy of the last start",
    f"{SITE_LOG}*": "the log of the service",
    f"{NODE_LOG}*": "the log of the connection",
    "start.log": "the output of a trial federation",
}


@dataclass(frozen=True)
class Plan:
    """What a removal deletes, with what it is, in this order; what it keeps; what in the state folder it does not know."""

    deleted: dict[Path, str]
    kept: dict[Path, str]
    unknown: tuple[Path, ...]


def plan_removal(site: Site, with_journal: bool) -> Plan:
    """What ``remove`` would do.

    Raises:
        InputError: data that the manifest names lie in the state folder.
    """
    for path in _data(site):
        if path.resolve().is_relative_to(site.state.resolve()):
            raise InputError(f"{site.file}: [data] names {path}, which is in the state folder {site.state}; move your data out of it.")
    deleted: dict[Path, str] = {}
    if site.manifest.connection is not None:
        key = site.folder / site.manifest.connection.key
        pair = {key: "the node key", key.with_name(f"{key.name}.pub"): "its public key"}
        deleted |= {path: what for path, what in pair.items() if path.is_file() or path.is_symlink()}
    deleted |= _found(site.state, _REST)
    record = _found(site.state, _RECORD)
    lock = {path: "the lock of the service" for path in (site.state / PID_FILE,) if path.exists()}
    known = {*deleted, *record, *lock}
    unknown = tuple(sorted(p for p in site.state.iterdir() if p not in known)) if site.state.is_dir() else ()
    return Plan(deleted | record | lock, {}, unknown) if with_journal else Plan(deleted | lock, record, unknown)


def _data(site: Site) -> Iterator[Path]:
    """The paths of the hospital's files that the manifest names."""
    for name in site.manifest.data.files:
        if (site.folder / name).exists():
            yield site.folder / name


def _found(folder: Path, patterns: dict[str, str]) -> dict[Path, str]:
    return {path: what for pattern, what in patterns.items() for path in sorted(folder.glob(pattern))} if folder.is_dir() else {}


def show(site: Site, plan: Plan) -> str:
    """The plan as text."""
    lines = [f"{site.name}: deletes"]
    lines += [_line(path, what) for path, what in plan.deleted.items()] or ["  nothing: it is removed already"]
    if plan.kept:
        lines += ["keeps (--with-journal deletes them too: a site that joins again then gives its persons a new privacy budget)"]
        lines += [_line(path, what) for path, what in plan.kept.items()]
    lines += [f"keeps {site.file} and the data that it names; nothing outside this list is touched"]
    lines += [f"leaves {path}: not written by this program; delete it by hand if it is not needed" for path in plan.unknown]
    return "\n".join(lines)


def _line(path: Path, what: str) -> str:
    if path.is_symlink():
        return f"  {path}: {what} (a link: {path.resolve()} stays, delete it by hand)"
    return f"  {path}{'/' * path.is_dir()}: {what}"


def remove(site: Site, with_journal: bool) -> None:
    """Deletes what ``plan_removal`` lists. A link is deleted, not what it leads to.

    Raises:
        InputError: the site runs.
        RunError: something cannot be deleted; what came before it is.
    """
    claim = claim_site(site.state) if site.state.is_dir() else None
    try:
        plan = plan_removal(site, with_journal)
        if any(path.name != PID_FILE for path in plan.deleted) and site.state.is_dir() and not with_journal:
            _note(site)
        for path in plan.deleted:
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            except OSError as error:
                where = error.filename or path
                raise RunError(f"{where}: cannot be deleted ({error.strerror}); correct this, then run fedml-site remove again.") from error
        if site.state.is_dir() and not any(site.state.iterdir()):
            site.state.rmdir()
    finally:
        if claim is not None:
            claim.close()


def _note(site: Site) -> None:
    """An entry in the journal that is kept. A damaged journal is kept as it is."""
    path = site.state / "journal.jsonl"
    try:
        if path.exists():
            Journal(path).append(direction="site", verdict="noted", reason="remove")
    except (InputError, OSError):
        return


def say_to_centre(site: Site) -> str:
    """What the coordinating centre must do, and how it knows the key."""
    return (
        f"tell the coordinating centre to run: fedml federation remove {site.name} --home HOME. Until then it still lists this site, as "
        "offline; replies that were sent cannot be recalled. To join again, create a new key with fedml-site key."
    )
