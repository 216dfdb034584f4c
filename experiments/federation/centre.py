"""The coordinating centre: its folder, its SuperLink, and the sites whose keys may join.

    HOME/ca.pem                     what sites trust (send it to them)
    HOME/server.pem  server.key     the certificate that sites meet
    HOME/control/                   authority and certificate of Flower's own port, which is on loopback only
    HOME/state.db                   Flower's database: registered keys, runs
    HOME/config.toml                Flower's connection "own"
    HOME/federation.json            host, port, control port

The folder belongs to one account and is open to it alone. Whoever may log in to this machine can reach the control port.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedml.errors import InputError, nearest
from fedml.flower.control import Node, nodes, register_node, unregister_node
from fedml.flower.keys import certificate_fingerprint, check_certificate, key_fingerprint, read_public_key, write_authority
from fedml.flower.superlink import environment, superlink_command, write_connection
from fedml.runs.log import write_whole
from fedml.study.sections import Name

SETTINGS, TRIAL = "federation.json", ".federation"
_REMOVED = "unregistered"
_CONTROL_DAYS = 3650  # nobody but this machine meets that certificate


@dataclass(frozen=True)
class Centre:
    """Where sites find the SuperLink, and the port of loopback at which it is commanded."""

    host: str
    port: int
    control: int


def find_home(path: Path) -> Path | None:
    """The centre's folder at ``path``: itself, or that of ``fedml federation up`` in it; absolute, for Flower wants that."""
    return next((home.resolve() for home in (path, path / TRIAL) if (home / SETTINGS).is_file()), None)


def read_centre(home: Path) -> Centre:
    """The settings in ``home``. Raises ``InputError`` if there are none."""
    try:
        return Centre(**json.loads((home / SETTINGS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{home}: is no centre's folder; make one with `fedml federation init --home {home} --host NAME`.") from error


def make_centre(
    home: Path,
    host: str,
    port: int = 9092,
    *,
    control: int | None = None,
    certificate: tuple[Path, Path, Path] | None = None,
    days: int = 730,
) -> Centre:
    """Makes the folder of a centre that sites reach at ``host:port``.

    Args:
        control: the port of loopback for commands; left out, the one after ``port``.
        certificate: the centre's own: certificate (with its chain), key, and the authority's certificate. Left out, an own authority
            makes one, valid for ``days``.

    Raises:
        InputError: there is one already, or the certificate would not be accepted by a site.
    """
    home = home.resolve()
    if (home / SETTINGS).exists():
        raise InputError(f"{home}: is a centre's folder already; give another --home.")
    if certificate is not None:
        check_certificate(host, *certificate)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "control").mkdir(mode=0o700, exist_ok=True)
    if certificate is not None:
        for source, name in zip(certificate, ("server.pem", "server.key", "ca.pem"), strict=True):
            shutil.copyfile(source, home / name)
            (home / name).chmod(0o600)
    else:
        write_authority(home, (host,), days=days)
    write_authority(home / "control", ("127.0.0.1",), days=_CONTROL_DAYS)
    made = Centre(host, port, control or port + 1)
    write_connection(home, f"127.0.0.1:{made.control}", home / "control" / "ca.pem")
    write_whole(home / SETTINGS, json.dumps(asdict(made)).encode())
    return made


def fingerprint(home: Path) -> str:
    """SHA-256 of ``ca.pem``, as ``openssl x509`` shows it."""
    return certificate_fingerprint(home / "ca.pem")


def superlink_options(home: Path, listen: str = "0.0.0.0") -> tuple[int, list[str], list[str]]:  # noqa: S104 - sites come from anywhere
    """Port, arguments and public options for ``fedml.flower.superlink``: TLS at both ports, node keys required.

    Raises:
        InputError: no centre there, or a port is taken.
    """
    home, centre = home.resolve(), read_centre(home)
    for host, port in ((listen, centre.port), ("127.0.0.1", centre.control)):
        _check_free(host, port)
    inner = home / "control"
    tls = [
        "--ssl-ca-certfile",
        str(inner / "ca.pem"),
        "--ssl-certfile",
        str(inner / "server.pem"),
        "--ssl-keyfile",
        str(inner / "server.key"),
    ]
    public = ["--public", f"{listen}:{centre.port}", "--public-certificate", str(home / "server.pem")]
    return centre.control, [*tls, "--enable-supernode-auth"], [*public, "--public-key", str(home / "server.key")]


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port}: cannot be listened on ({error.strerror}); is the SuperLink started already?") from error


def start(home: Path, listen: str) -> None:
    """Becomes the SuperLink: this process is replaced, so that whoever started it can stop it. Returns never.

    Raises:
        InputError: no centre there, or a port is taken.
    """
    port, arguments, public = superlink_options(home, listen)
    command = superlink_command(home.resolve(), port, arguments, public)
    os.chdir(home)
    os.execve(command[0], command, environment(home.resolve()))  # noqa: S606 - no shell


def register(home: Path, name: str, public_key: Path) -> str:
    """Lets a site's key join under the site's name; returns its fingerprint.

    Raises:
        InputError: not a name or a key, or one of them is there already.
        RunError: the SuperLink does not answer.
    """
    read_centre(home)
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InputError(f'site name "{name}": use lower-case letters, digits, - and _, such as "oslo-2".') from error
    pem = read_public_key(public_key)
    for node in nodes(home):
        if node.public_key == pem:
            was = "was removed" if node.state == _REMOVED else "is registered"
            raise InputError(f"{public_key}: this key {was} as {node.name}; have the site make a new one with fedml-site key.")
        if node.name == name and node.state != _REMOVED:
            raise InputError(f'"{name}" is registered with another key; if it is to be replaced: `fedml federation remove {name}` first.')
    register_node(home, name, pem)
    return key_fingerprint(pem)


def remove(home: Path, name: str) -> None:
    """Ends a site's right to join. Its key can not be registered again, its name can, with another key.

    Raises:
        InputError: no such site.
        RunError: the SuperLink does not answer.
    """
    unregister_node(home, _named(home, name).node_id)


def _named(home: Path, name: str) -> Node:
    there = {node.name: node for node in registered(home)}
    if name not in there:
        raise InputError(f'no site "{name}" is registered{nearest(name, there)}; there are: {", ".join(there) or "none"}.')
    return there[name]


def registered(home: Path) -> list[Node]:
    """The sites that may join, by name."""
    read_centre(home)
    return [node for node in nodes(home) if node.state != _REMOVED]


def show(found: list[Node]) -> str:
    """A line a site: name, online, offline or never seen, last seen, registered when, the key's fingerprint."""
    form = "%Y-%m-%d %H:%M:%S"
    rows = [("site", "state", "last seen (UTC)", "registered (UTC)", "key")]
    for node in found:
        state = "never seen" if node.state == "registered" else node.state
        seen = node.seen.strftime(form) if node.seen else "-"
        rows.append((node.name, state, seen, node.registered.strftime(form), key_fingerprint(node.public_key)))
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, wide, strict=True)).rstrip() for row in rows)
