"""The doctor's checks of the way to the SuperLink: root certificates, proxy, TLS, clock, node key, and what the SuperNode was answered.

The SuperLink is asked as the service asks it: with the same library, certificates and proxy (``fedml.flower.reach``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fedml.clients.desk.finding import Finding, fail, ok, open_mode, warn
from fedml.clients.site import logs
from fedml.clients.site.manifest import Connection, Site
from fedml.errors import InputError
from fedml.flower.reach import Answer, Unreached, reach, time_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from fedml.flower.address import Proxy

NETWORK_SECONDS = 5.0
_EXPIRES_SOON = timedelta(days=30)
_CLOCK_WARN_SECONDS, _CLOCK_FAIL_SECONDS = 60, 300
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_OUT_OF_DATE = ("certificate has expired", "certificate is not yet valid")  # OpenSSL's words


def connection(site: Site, given: Connection, now: datetime | None) -> Iterator[Finding]:
    """Root certificates, TLS chain, server certificate and clock.

    Args:
        now: the time (UTC) against which certificates and the server's clock are compared; None: this machine's time.
    """
    path = site.folder / given.root_certificates
    try:
        roots = _read_roots(path)
    except (OSError, ValueError):
        text = "has no certificate (PEM)" if path.is_file() else "does not exist"
        yield fail("root certificates", f"{path}: {text}", "ask the coordinating centre for this file")
        yield _no_clock()
        return
    # The certificate that expires last: an expired root next to its successor is harmless, and the chain is verified below.
    last = max(root.not_valid_after_utc for root in roots)
    yield _until("root certificates", last, now or datetime.now(UTC), "ask the coordinating centre for its new root certificates")
    try:
        proxy = given.way()
    except InputError as error:
        yield fail("proxy", str(error).rstrip("."), "correct the proxy: the service cannot start with this one")
        yield _no_clock()
        return
    if proxy is not None:
        yield ok("proxy", f"{proxy.shown} is on the way to the SuperLink")
    try:
        answer = reach(given.address, path.read_bytes(), proxy, NETWORK_SECONDS)
    except Unreached as error:
        yield from _not_reached(given, proxy, error, now)
    else:
        yield from _reached(given, answer, now)


def _read_roots(path: Path) -> list[Certificate]:
    from cryptography import x509

    data = path.read_bytes()
    data.decode("ascii")  # as the SuperNode reads it
    return x509.load_pem_x509_certificates(data)


def _until(what: str, end: datetime, now: datetime, action: str) -> Finding:
    if end < now:
        return fail(what, f"expired on {end:%Y-%m-%d}", action)
    text = f"valid until {end:%Y-%m-%d} ({(end - now).days} days left)"
    return warn(what, text, action) if end - now < _EXPIRES_SOON else ok(what, text)


def _reached(given: Connection, answer: Answer, now: datetime | None) -> Iterator[Finding]:
    from cryptography import x509

    yield ok("TLS chain", f"{given.superlink}: verified ({answer.version})")
    end = x509.load_der_x509_certificate(answer.certificate).not_valid_after_utc
    yield _until("server certificate", end, now or datetime.now(UTC), "ask the coordinating centre to renew the server certificate")
    yield _no_clock() if answer.time is None else _clock(answer.time, now)


def _no_clock() -> Finding:
    text = "could not be compared: the server was not reached, or its answer has no time"
    return warn("clock", text, "see the finding TLS chain or proxy, and check that NTP sets this machine's clock")


def _clock(server: datetime, now: datetime | None) -> Finding:
    apart = abs(((now or datetime.now(UTC)) - server.replace(tzinfo=server.tzinfo or UTC)).total_seconds())
    text, action = f"{apart:.0f} s apart from the server's clock", "set this machine's clock by NTP"
    return ok("clock", text) if apart <= _CLOCK_WARN_SECONDS else (fail if apart > _CLOCK_FAIL_SECONDS else warn)("clock", text, action)


def _not_reached(given: Connection, proxy: Proxy | None, error: Unreached, now: datetime | None) -> Iterator[Finding]:
    host, port = given.address
    what, where, why = "TLS chain", given.superlink, str(error)
    way = f"the proxy {proxy.shown}" if proxy else where
    clock = _no_clock()
    if error.place == "name":
        name = "the proxy's name" if proxy else f"the name {host}"
        yield fail(what, f"{way}: {name} was not found ({why})", "check the name in site.toml, and this machine's name server (DNS)")
    elif error.place == "connection" and proxy is None:
        action = f"check [connection] superlink, and that the outbound firewall allows TCP to {host} port {port}"
        yield fail(what, f"{where}: {why}", action)
    elif error.place == "connection":
        yield fail(what, f"{way}: {why}", "check the proxy's address, and that the outbound firewall allows TCP to it")
    elif error.place == "proxy":
        text = "asks for a name and a password" if why.startswith("407") else "does not let this connection through"
        write = 'write http://name:password@host:port, if necessary with %XX, as [connection] proxy (chmod 600 site.toml), or proxy = ""'
        allow = f"ask the proxy's administrator to allow CONNECT to {host} port {port}, and whether {host} answers the proxy"
        yield fail(what, f"{way} {text} ({why})", write if why.startswith("407") else allow)
    elif error.place == "tls":
        action = "check the port of [connection] superlink, and ask the coordinating centre whether TLS is on for that port"
        yield fail(what, f"{where}: the server at this address does not speak TLS", action)
    elif error.place == "certificate":
        text, action = f"{where}: the server's certificate is not trusted ({why})", _about_certificate(given, why)
        if why in _OUT_OF_DATE and (server := time_of(given.address, proxy, NETWORK_SECONDS)) is not None:
            clock = _clock(server, now)
            if clock.state == "fail":
                action = "set this machine's clock first: it differs from the server's (see the finding clock)"
        yield fail(what, text, action)
    else:
        action = "check the port of [connection] superlink: something else than a SuperLink listens there; or ask the coordinating centre"
        yield fail(what, f"{where}: the server answers, but not as a SuperLink ({why})", action)
    yield clock


def _about_certificate(given: Connection, why: str) -> str:
    if why in _OUT_OF_DATE:
        return "ask the coordinating centre to renew its certificate, and for its new root certificates"
    if "mismatch" in why:
        return "write the name or address for which the certificate was made into [connection] superlink; the coordinating centre knows it"
    return "ask the coordinating centre whether root_certificates is right; exempt this address from TLS inspection"


def key(site: Site, given: Connection) -> Iterator[Finding]:
    """The node key: whether it is there, private, of a kind that Flower reads, and belongs to the public key beside it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from fedml.flower.keys import key_fingerprint

    path, what = site.folder / given.key, "node key"
    make = "create a key with fedml-site key and send its .pub file to the coordinating centre"
    if not path.is_file():
        yield fail(what, f"{path}: does not exist", make)
        return
    if mode := open_mode(path):
        text = f"{path} is accessible to other accounts (mode {mode:o})"
        yield fail(what, text, f"chmod 600 {path}; if others may have read it, {make}")
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):  # TypeError: the key has a password
        yield fail(what, f"{path}: not an OpenSSH private key without a password", make)
        return
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in _CURVES:
        yield fail(what, f"{path}: not a key of a NIST elliptic curve ({', '.join(_CURVES)})", make)
        return
    public = path.with_name(path.name + ".pub")
    form = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    again = f"ssh-keygen -y -f {path} > {public}, and check that the coordinating centre has registered this public key"
    if not public.is_file():
        yield warn(what, f"{public}: the public key does not exist", again)
    elif public.read_bytes().split()[:2] != form.split():
        yield fail(what, f"{public} is not this key's public key", again)
    else:
        pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        yield ok(what, f"{private.curve.name}, and {public.name} is its public key: {key_fingerprint(pem)}")


def registered(site: Site, given: Connection) -> Iterator[Finding]:
    """Reads the SuperLink's answer to the last start from the SuperNode's log. Does not contact the server."""
    log, private, what, once = site.state / logs.NODE_LOG, site.folder / given.key, "registered", "run fedml-site start once to find out"
    if not logs.files(log):
        yield warn(what, "not known: the site was not started yet", once)
        return
    known, code, why = False, "", ""
    for line in logs.lines(log):
        if "Starting Flower SuperNode" in line or "SuperNode ID:" in line:
            known, code, why = "SuperNode ID:" in line, "", ""
        elif ended := re.search(r"Exit Code: (\d{3})\b", line):
            code = ended[1]
        why = (why + line)[-4000:] if code else ""
    if private.is_file() and private.stat().st_mtime > logs.files(log)[-1].stat().st_mtime:
        yield warn(what, "not known: the key is newer than the last start", once)
    elif known and not code:
        yield ok(what, "the SuperLink knew this key at the last start")
    elif not code:
        text = f"not known: {logs.NODE_LOG} has no answer of the SuperLink to the last start"
        yield warn(what, text, "wait a moment, or see the finding TLS chain")
    elif code != "305":
        yield fail(what, f"the SuperNode ended with exit code {code}", f"read the end of {log} for the cause")
    elif "Proxy Authentication Required" not in why and ("[code:" in why or "'401 " in why or "authentication" in why):
        # 305 is the code of every failure to connect.
        action = "compare the key's fingerprint (finding node key) with the coordinating centre's list: if it is not there under "
        action += f"{site.name}, send {private}.pub to the centre for registration; if it is, another process may be running with this key"
        yield fail(what, "the SuperLink did not accept this key at the last start (305)", action)
    else:
        yield fail(what, "the SuperLink was not reached at the last start (305)", f"see the finding TLS chain; then {once}")
