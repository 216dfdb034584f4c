"""``fedml-site doctor``: whether the site is ready to join. Checks data, disk, state, TLS, clock, node key and versions; each finding that
is not ok names an action.

Every check runs in a separate thread with a time limit: a check that raises or hangs is a finding. No text contains a person's id or value,
because the output may be forwarded. Errors from reading data are therefore not quoted: ``fedml-site check`` prints them, for the site only.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from fedml.clients.desk import network, state
from fedml.clients.desk.finding import Finding, fail, ok, open_mode, warn
from fedml.clients.site.manifest import Site, check_roster
from fedml.clients.site.read import read_cohort
from fedml.errors import InputError, NotBuilt, SiteError
from fedml.modalities.modality import REFUSALS, InputFinding, Modality
from fedml.modalities.registry import MODALITIES
from fedml.modalities.tables import read_or_finding
from fedml.study.section import PARTS
from fedml.study.study import Study, without_transforms

_CHECK_SECONDS, _DATA_SECONDS = 30.0, 600.0
_WARN_FREE_BYTES, _FAIL_FREE_BYTES = 5e9, 1e9
_PROBE_BYTES = 2**20
_FLWR = "1.42."


def examine(site: Site, study: Study | None = None, *, now: datetime | None = None) -> list[Finding]:
    """The findings of every check; with ``study``, also of the data that the study reads.

    Args:
        now: the time (UTC) against which certificates and the server's clock are compared; None: this machine's time.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {"manifest": partial(_manifest, site), "data": partial(_data, site)}
    if study is not None:
        checks["study"] = partial(_study, site, study)
    checks |= {"disk": partial(_disk, site), "state folder": partial(state.folder, site), "journal": partial(state.journal, site)}
    checks |= {"approvals": partial(state.approvals, site), "ledger": partial(state.ledger, site), "service": partial(state.service, site)}
    if (connection := site.manifest.connection) is not None:
        checks |= {"TLS chain": partial(network.connection, site, connection, now)}
        checks |= {"node key": partial(network.key, site, connection), "registered": partial(network.registered, site, connection)}
    checks["versions"] = _versions
    limits = {"data": _DATA_SECONDS, "study": _DATA_SECONDS}
    return [finding for what, check in checks.items() for finding in _run(what, check, limits.get(what, _CHECK_SECONDS))]


def show(findings: Sequence[Finding]) -> str:
    """One line for each finding: ``fail  TLS chain: ...; to do: ...``."""
    lines = (f"{f.state:4}  {f.what}: {f.text}" + (f"; to do: {f.action}" if f.action else "") for f in findings)
    return "\n".join(" ".join(line.splitlines()) for line in lines)


def worst(findings: Sequence[Finding]) -> int:
    """The exit code: 1 if a check fails, else 0."""
    return int(any(f.state == "fail" for f in findings))


def _run(what: str, check: Callable[[], Iterable[Finding]], seconds: float) -> list[Finding]:
    found: list[Finding] = []

    def work() -> None:
        try:
            for finding in check():
                found.append(finding)  # noqa: PERF402 - one by one, so that findings before an error or a hang are shown
        except BaseException as error:  # the panic of a Rust library is not an Exception; the error's text may contain a value
            action = "check that this account can read the files of this check; if it can, report a bug"
            found.append(fail(what, f"this check raised {type(error).__name__}", action))

    # A daemon thread, so that a name server or network disk that never answers does not block the end of the command.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    late = [fail(what, f"not done after {seconds:g} s", "check that disk and network respond, then try again")]
    return found[:] + (late if thread.is_alive() else [])


def _manifest(site: Site) -> Iterator[Finding]:
    data, policy, connection = site.manifest.data, site.manifest.policy, site.manifest.connection
    if inputs := list(data.inputs):
        yield ok("manifest", f"site {site.name}; persons and {', '.join(inputs)}")
    else:
        yield warn("manifest", "[data] has persons but no input", f"add one of {', '.join(MODALITIES)} under [data]")
    purposes = "those of approved studies" if policy.purposes is None else ", ".join(policy.purposes) or "none"
    text = f"approved studies only; centre {policy.centre}{' (data are public)' if data.public else ''}; purposes: {purposes}; at least "
    text += f"{policy.min_persons} training persons, {policy.min_count} persons in "
    text += f"every count that is sent; at most {policy.max_rounds} rounds, {policy.max_request_mb} MB a request, "
    text += f"{policy.max_reply_mb} MB a reply"
    yield ok("policy", f"{text}; privacy budget: {policy.max_epsilon or 'none'}")
    if connection is None:
        action = "add it; the coordinating centre provides superlink and root_certificates, fedml-site key creates the key"
        yield warn("connection", "site.toml has no section [connection]: the site cannot join yet", action)
    else:
        yield ok("connection", f"SuperLink {connection.superlink}")
        if "@" in (connection.proxy or "") and (mode := open_mode(site.file)):
            text = f"{site.file} has the proxy's password and is accessible to other accounts (mode {mode:o})"
            yield warn("connection", text, f"chmod 600 {site.file}")


def _data(site: Site) -> Iterator[Finding]:
    data, least = site.manifest.data, site.manifest.policy.min_persons
    persons, ids = read_or_finding(site.folder / data.persons, data.id), None
    if isinstance(persons, InputFinding):
        yield fail("persons table", persons.text, persons.fix)
    else:
        ids = [str(person) for person in persons.index]
        if len(persons) < least:
            yield warn("persons table", f"{len(persons)} persons, min_persons is {least}", "add persons, or lower [policy] min_persons")
        else:
            yield ok("persons table", f"{len(persons)} persons")
    for name, section in data.inputs.items():
        yield from _input(site, MODALITIES[name], site.folder / section.path, ids)
    if data.split is not None:
        path = site.folder / data.split
        yield ok("split", f"{path} exists") if path.exists() else _absent("split", path)


def _absent(what: str, path: Path) -> Finding:
    return fail(what, f"{path}: does not exist", "correct the path in site.toml, or put the file there")


def _input(site: Site, modality: Modality[Any, Any], path: Path, ids: Sequence[str] | None) -> Iterator[Finding]:
    """One input: whether its file exists, and the findings of its modality."""
    if not path.exists():
        yield _absent(modality.name, path)
    elif isinstance(modality.inspect, NotBuilt):
        yield warn(modality.name, f"{path} exists, but cannot be inspected ({modality.inspect.reason})", REFUSALS["inspect"][1])
    else:
        for found in modality.inspect(site.place(modality.name), ids):
            yield Finding(modality.name, found.state, found.text, found.fix)


def _study(site: Site, study: Study) -> Iterator[Finding]:
    from fedml.clients.gate.checks import limits
    from fedml.tasks.registry import make_task

    try:
        check_roster(site, study)
    except SiteError:
        text = f'"{study.study.name}" does not list site {site.name}'
        yield fail("study", text, "correct [site] name in site.toml, or [federation] sites in the study")
    try:
        cohort = read_cohort(site, without_transforms(study))
    except InputError:
        action = "run fedml-site check STUDY.toml on this machine; it names the file and the row"
        yield fail("study", f'"{study.study.name}" cannot use this site\'s data', action)
        return
    allowed, classes = limits(site.manifest.policy, study), make_task(study).person_classes
    taking_part = "test" if site.name in study.federation.evaluate_only else "train"
    for part in PARTS:
        rows, what, counts = cohort.rows(part), f"study {part}", dict[str, int]()
        if len(rows):
            counts = {c: int((cohort.labels[rows] == i).sum()) for i, c in enumerate(classes)}
        text = f"{len(rows)} persons" + (" (" + ", ".join(f"{c}: {n}" for c, n in counts.items()) + ")" if counts else "")
        if part == taking_part and len(rows) < allowed.min_persons:
            text += f", fewer than min_persons ({allowed.min_persons}): the gate will refuse"
            yield warn(what, text, "add persons, or lower [policy] min_persons in site.toml and in the study")
        elif len(rows) and min([len(rows), *counts.values()]) < allowed.min_count:
            text += f", a count below min_count ({allowed.min_count}): the gate may refuse"
            yield warn(what, text, "add persons, or change the split")
        else:
            yield ok(what, text)


def _disk(site: Site) -> Iterator[Finding]:
    place = site.state if site.state.exists() else site.folder
    action = "make room: the journal, the logs and the image cache are stored on this disk"
    free = shutil.disk_usage(place).free
    if site.state.exists() and (why := _cannot_write(place)):
        yield fail("disk", f"{place}: a file of 1 MB cannot be written ({why}), so no request can be answered", f"{action}; or correct the "
                   "quota, the limits or the permissions of this account")  # fmt: skip
        return
    text = f"{free / 1e9:.1f} GB free on the disk of the state folder"
    yield ok("disk", text) if free >= _WARN_FREE_BYTES else (fail if free < _FAIL_FREE_BYTES else warn)("disk", text, action)


def _cannot_write(folder: Path) -> str:
    """Why a file cannot be written there: a full disk, a quota, a limit, permissions; "" if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _versions() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("python", python) if sys.version_info >= (3, 11) else fail("python", python, "install Python 3.11 or newer")
    for name in ("fedml-cohorts", "flwr", "torch"):
        try:
            found = version(name)
        except PackageNotFoundError:
            yield fail(name, "not installed", "install fedml-cohorts again, with its dependencies")
            continue
        wrong = name == "flwr" and not found.startswith(_FLWR)
        yield fail(name, f"{found}, not {_FLWR}x", f'pip install "flwr=={_FLWR}*"') if wrong else ok(name, found)
    yield ok("server versions", f"not compared: the server does not report them; it must run flwr {_FLWR}x too")
