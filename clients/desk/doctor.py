"""``fedml-site doctor``: whether the site is ready to join. Checks data, disk, state, TLS, clock, node key and versions; each finding that
is not ok names an action.

Every check runs in a separate thread with a time limit: a check that raises or hangs is a finding. No text contains a person's id or value,
because the output may be forwarded. Errors from reading data are therefore not quoted: ``fedml-site check`` prints them, for the site only.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fedml.clients.site.manifest import Connection, Site, check_roster
from fedml.clients.site.read import read_cohort
from fedml.errors import InputError, NotBuilt, SiteError
from fedml.modalities.modality import REFUSALS, InputFinding, Modality
from fedml.modalities.registry import MODALITIES
from fedml.modalities.tables import read_or_finding
from fedml.study.section import PARTS
from fedml.study.study import Study

_NETWORK_SECONDS, _CHECK_SECONDS, _DATA_SECONDS = 5.0, 30.0, 600.0
_WARN_FREE_BYTES, _FAIL_FREE_BYTES = 5e9, 1e9
_EXPIRES_SOON = timedelta(days=30)
_CLOCK_WARN_SECONDS, _CLOCK_FAIL_SECONDS = 60, 300
_FLWR = "1.42."
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``action``: what to do; ``""`` if ``state`` is ok."""

    what: str
    state: Literal["ok", "warn", "fail"]
    text: str
    action: str = ""


def _ok(what: str, text: str) -> Finding:
    return Finding(what, "ok", text)


def _warn(what: str, text: str, action: str) -> Finding:
    return Finding(what, "warn", text, action)


def _fail(what: str, text: str, action: str) -> Finding:
    return Finding(what, "fail", text, action)


def examine(site: Site, study: Study | None = None, *, now: datetime | None = None) -> list[Finding]:
    """The findings of every check; with ``study``, also of the data that the study reads.

    Args:
        now: the time (UTC) against which certificates and the server's clock are compared; None: this machine's time.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {"manifest": partial(_manifest, site), "data": partial(_data, site)}
    if study is not None:
        checks["study"] = partial(_study, site, study)
    checks |= {"disk": partial(_disk, site), "state folder": partial(_state, site)}
    if (connection := site.manifest.connection) is not None:
        checks |= {"TLS chain": partial(_tls, site, connection, now), "clock": partial(_clock, site, connection, now)}
        checks |= {"node key": partial(_key, site, connection), "registered": partial(_registered, site, connection)}
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
            found.append(_fail(what, f"this check raised {type(error).__name__}", action))

    # A daemon thread, so that a name server or network disk that never answers does not block the end of the command.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    late = [_fail(what, f"not done after {seconds:g} s", "check that disk and network respond, then try again")]
    return found[:] + (late if thread.is_alive() else [])


def _manifest(site: Site) -> Iterator[Finding]:
    data, policy, connection = site.manifest.data, site.manifest.policy, site.manifest.connection
    if inputs := list(data.inputs):
        yield _ok("manifest", f"site {site.name}; persons and {', '.join(inputs)}")
    else:
        yield _warn("manifest", "[data] has persons but no input", f"add one of {', '.join(MODALITIES)} under [data]")
    purposes = "those of approved studies" if policy.purposes is None else ", ".join(policy.purposes) or "none"
    text = f"approved studies only; centre {policy.centre}{' (data are public)' if data.public else ''}; purposes: {purposes}; at least "
    text += f"{policy.min_persons} training persons, {policy.min_count} persons in "
    text += f"every count that is sent; at most {policy.max_rounds} rounds, {policy.max_request_mb} MB a request, "
    text += f"{policy.max_reply_mb} MB a reply"
    yield _ok("policy", f"{text}; privacy budget: {policy.max_epsilon or 'none'}")
    if connection is None:
        action = "add it; the coordinating centre provides superlink and root_certificates, fedml-site key creates the key"
        yield _warn("connection", "site.toml has no section [connection]: the site cannot join yet", action)
    else:
        yield _ok("connection", f"SuperLink {connection.superlink}")


def _data(site: Site) -> Iterator[Finding]:
    data, least = site.manifest.data, site.manifest.policy.min_persons
    persons, ids = read_or_finding(site.folder / data.persons), None
    if isinstance(persons, InputFinding):
        yield _fail("persons table", persons.text, persons.fix)
    else:
        ids = [str(person) for person in persons.index]
        if len(persons) < least:
            yield _warn("persons table", f"{len(persons)} persons, min_persons is {least}", "add persons, or lower [policy] min_persons")
        else:
            yield _ok("persons table", f"{len(persons)} persons")
    for name, section in data.inputs.items():
        yield from _input(site, MODALITIES[name], site.folder / section.path, ids)
    if data.split is not None:
        path = site.folder / data.split
        yield _ok("split", f"{path} exists") if path.exists() else _absent("split", path)


def _absent(what: str, path: Path) -> Finding:
    return _fail(what, f"{path}: does not exist", "correct the path in site.toml, or put the file there")


def _input(site: Site, modality: Modality[Any, Any], path: Path, ids: Sequence[str] | None) -> Iterator[Finding]:
    """One input: whether its file exists, and the findings of its modality."""
    if not path.exists():
        yield _absent(modality.name, path)
    elif isinstance(modality.inspect, NotBuilt):
        yield _warn(modality.name, f"{path} exists, but cannot be inspected ({modality.inspect.reason})", REFUSALS["inspect"][1])
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
        yield _fail("study", text, "correct [site] name in site.toml, or [federation] sites in the study")
    try:
        cohort = read_cohort(site, study)
    except InputError:
        action = "run fedml-site check STUDY.toml on this machine; it names the file and the row"
        yield _fail("study", f'"{study.study.name}" cannot use this site\'s data', action)
        return
    allowed, classes = limits(site.manifest.policy, study), make_task(study).person_classes
    for part in PARTS:
        rows, what, counts = cohort.rows(part), f"study {part}", dict[str, int]()
        if len(rows):
            counts = {c: int((cohort.labels[rows] == i).sum()) for i, c in enumerate(classes)}
        text = f"{len(rows)} persons" + (" (" + ", ".join(f"{c}: {n}" for c, n in counts.items()) + ")" if counts else "")
        if part == "train" and len(rows) < allowed.min_persons:
            text += f", fewer than min_persons ({allowed.min_persons}): the gate will refuse"
            yield _warn(what, text, "add persons, or lower [policy] min_persons in site.toml and in the study")
        elif len(rows) and min([len(rows), *counts.values()]) < allowed.min_count:
            text += f", a count below min_count ({allowed.min_count}): the gate may refuse"
            yield _warn(what, text, "add persons, or change the split")
        else:
            yield _ok(what, text)


def _disk(site: Site) -> Iterator[Finding]:
    free = shutil.disk_usage(site.state if site.state.exists() else site.folder).free
    text = f"{free / 1e9:.1f} GB free on the disk of the state folder"
    action = "make room: the journal, the logs and the image cache are stored on this disk"
    yield _ok("disk", text) if free >= _WARN_FREE_BYTES else (_fail if free < _FAIL_FREE_BYTES else _warn)("disk", text, action)


def _open_mode(path: Path) -> int:
    """The path's mode if group or others have any permission, else 0."""
    mode = path.stat().st_mode & 0o777
    return mode if mode & 0o077 else 0


def _state(site: Site) -> Iterator[Finding]:
    from fedml.clients.gate.journal import verify

    if not site.state.exists():
        yield _ok("state folder", "does not exist yet; fedml-site approve and fedml-site start create it")
        return
    if mode := _open_mode(site.state):
        yield _warn("state folder", f"{site.state} is accessible to other accounts (mode {mode:o})", f"chmod 700 {site.state}")
    else:
        yield _ok("state folder", "accessible to this account only")
    if problems := verify(site.state / "journal.jsonl"):
        text = f"{len(problems)} errors, the first in line {problems[0].line}: {problems[0].what}"
        yield _fail("journal", text, "keep the file unchanged and inform the security officer; fedml-site journal verify lists all errors")
    elif (site.state / "journal.jsonl").exists():
        yield _ok("journal", "complete and unchanged")


def _until(what: str, end: datetime, now: datetime, action: str) -> Finding:
    if end < now:
        return _fail(what, f"expired on {end:%Y-%m-%d}", action)
    text = f"valid until {end:%Y-%m-%d} ({(end - now).days} days left)"
    return _warn(what, text, action) if end - now < _EXPIRES_SOON else _ok(what, text)


def _tls(site: Site, connection: Connection, now: datetime | None) -> Iterator[Finding]:
    from cryptography import x509

    path, now, (host, _, port) = site.folder / connection.root_certificates, now or datetime.now(UTC), connection.superlink.rpartition(":")
    what, where = "TLS chain", connection.superlink
    try:
        roots = x509.load_pem_x509_certificates(path.read_bytes())
        context = ssl.create_default_context(cafile=str(path))
    except (OSError, ValueError):
        text = "has no certificate (PEM)" if path.is_file() else "does not exist"
        yield _fail("root certificates", f"{path}: {text}", "ask the coordinating centre for this file")
        return
    # The certificate that expires last: an expired root next to its successor is harmless, and the chain is verified below.
    last = max(root.not_valid_after_utc for root in roots)
    yield _until("root certificates", last, now, "ask the coordinating centre for its new root certificates")
    try:
        with socket.create_connection((host, int(port)), timeout=_NETWORK_SECONDS) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=host) as secure:
                    version, sent = secure.version(), secure.getpeercert(binary_form=True)
            except ssl.SSLCertVerificationError as error:
                action = "ask the coordinating centre whether root_certificates is right; exempt this address from TLS inspection"
                yield _fail(what, f"{where}: the server's certificate is not trusted ({error.verify_message})", action)
            except OSError:  # not a TLS record, no answer, or a closed connection
                action = "check the port of [connection] superlink, and ask the coordinating centre whether TLS is on for that port"
                yield _fail(what, f"{where}: the server at this address does not speak TLS", action)
            else:
                yield _ok(what, f"{where}: verified ({version})")
                end = x509.load_der_x509_certificate(sent or b"").not_valid_after_utc
                yield _until("server certificate", end, now, "ask the coordinating centre to renew the server certificate")
    except (OSError, OverflowError) as error:  # OverflowError: a port above 65535
        text = "connection refused" if isinstance(error, ConnectionRefusedError) else f"not reached ({type(error).__name__})"
        action = f"check [connection] superlink, and that the outbound firewall allows TCP to {host} port {port}"
        yield _fail(what, f"{where}: {text}", action)


def _clock(site: Site, connection: Connection, now: datetime | None) -> Iterator[Finding]:
    import http.client
    from email.utils import parsedate_to_datetime

    host, _, port = connection.superlink.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(site.folder / connection.root_certificates))
        server = http.client.HTTPSConnection(host, int(port), timeout=_NETWORK_SECONDS, context=context)
        server.request("GET", "/health")
        server_time = parsedate_to_datetime(server.getresponse().getheader("Date") or "")
        server.close()
    except (OSError, OverflowError, ValueError, http.client.HTTPException):
        text = "could not be compared: the server was not reached, or its answer has no Date header"
        yield _warn("clock", text, "see the finding TLS chain, and check that NTP sets this machine's clock")
        return
    apart = abs(((now or datetime.now(UTC)) - server_time.replace(tzinfo=server_time.tzinfo or UTC)).total_seconds())
    text, action = f"{apart:.0f} s apart from the server's clock", "set this machine's clock by NTP"
    yield _ok("clock", text) if apart <= _CLOCK_WARN_SECONDS else (_fail if apart > _CLOCK_FAIL_SECONDS else _warn)("clock", text, action)


def _key(site: Site, connection: Connection) -> Iterator[Finding]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path, what = site.folder / connection.key, "node key"
    make = "create a key with fedml-site key and send its .pub file to the coordinating centre"
    if not path.is_file():
        yield _fail(what, f"{path}: does not exist", make)
        return
    if mode := _open_mode(path):
        text = f"{path} is accessible to other accounts (mode {mode:o})"
        yield _fail(what, text, f"chmod 600 {path}; if others may have read it, {make}")
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):  # TypeError: the key has a password
        yield _fail(what, f"{path}: not an OpenSSH private key without a password", make)
        return
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        yield _fail(what, f"{path}: not a key of a NIST elliptic curve ({', '.join(_CURVES)})", make)
        return
    public = path.with_name(path.name + ".pub")
    form = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    again = f"ssh-keygen -y -f {path} > {public}, and check that the coordinating centre has registered this public key"
    if not public.is_file():
        yield _warn(what, f"{public}: the public key does not exist", again)
    elif public.read_bytes().split()[:2] != form.split():
        yield _fail(what, f"{public} is not this key's public key", again)
    else:
        yield _ok(what, f"{key.curve.name}, and {public.name} is its public key")


def _registered(site: Site, connection: Connection) -> Iterator[Finding]:
    """Reads the last start from the SuperNode's log. Does not contact the server."""
    from fedml.clients.service import NODE_LOG

    log, key, what, once = site.state / NODE_LOG, site.folder / connection.key, "registered", "run fedml-site start once to find out"
    if not log.is_file():
        yield _warn(what, "not known: the site was not started yet", once)
        return
    known, code, why = False, "", ""
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if "Starting Flower SuperNode" in line or "SuperNode ID:" in line:
                known, code, why = "SuperNode ID:" in line, "", ""
            elif ended := re.search(r"Exit Code: (\d{3})\b", line):
                code = ended[1]
            why = (why + line)[-4000:] if code else ""
    if key.is_file() and key.stat().st_mtime > log.stat().st_mtime:
        yield _warn(what, "not known: the key is newer than the last start", once)
    elif known and not code:
        yield _ok(what, "the SuperLink knew this key at the last start")
    elif not code:
        text = f"not known: {NODE_LOG} has no answer of the SuperLink to the last start"
        yield _warn(what, text, "wait a moment, or see the finding TLS chain")
    elif code != "305":
        yield _fail(what, f"the SuperNode ended with exit code {code}", f"read the end of {log} for the cause")
    elif "[code:" in why or "'401 " in why or "authentication" in why:  # 305 is the code of every failure to connect
        action = f"send {key}.pub to the coordinating centre for registration"
        yield _fail(what, "the SuperLink did not accept this key at the last start (305)", action)
    else:
        yield _fail(what, "the SuperLink was not reached at the last start (305)", f"see the finding TLS chain; then {once}")


def _versions() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    python = ".".join(map(str, sys.version_info[:3]))
    yield _ok("python", python) if sys.version_info >= (3, 11) else _fail("python", python, "install Python 3.11 or newer")
    for name in ("fedml-cohorts", "flwr", "torch"):
        try:
            found = version(name)
        except PackageNotFoundError:
            yield _fail(name, "not installed", "install fedml-cohorts again, with its dependencies")
            continue
        wrong = name == "flwr" and not found.startswith(_FLWR)
        yield _fail(name, f"{found}, not {_FLWR}x", f'pip install "flwr=={_FLWR}*"') if wrong else _ok(name, found)
    yield _ok("server versions", f"not compared: the server does not report them; it must run flwr {_FLWR}x too")
