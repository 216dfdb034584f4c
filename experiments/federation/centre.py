"""The coordinating centre: its folder, its SuperLink, and the sites whose keys may join.

    HOME/ca.pem                     the root certificate; send it to the sites
    HOME/server.pem  server.key     the server certificate and its key
    HOME/control/                   authority and certificate of Flower's control port, which is on loopback only
    HOME/state.db                   Flower's database: registered keys, runs
    HOME/config.toml                Flower's connection "own"
    HOME/federation.json            host, port, control port

The folder is accessible to one account only. Every account on this machine can reach the control port.
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
from fedml.flower.address import bare, join, split
from fedml.flower.control import Node, nodes, register_node, unregister_node
from fedml.flower.keys import certificate_fingerprint, check_certificate, key_fingerprint, read_public_key, write_authority
from fedml.flower.superlink import environment, superlink_command, write_connection
from fedml.runs.log import write_whole
from fedml.study.section import NAME, Name, not_allowed

SETTINGS, TRIAL = "federation.json", ".federation"
_REMOVED = "unregistered"
_CONTROL_DAYS = 3650  # long, because only this machine uses that certificate


@dataclass(frozen=True)
class Centre:
    """The address of the SuperLink for sites, and its control port on loopback."""

    host: str
    port: int
    control: int


def find_home(path: Path) -> Path | None:
    """The centre's folder at ``path``: ``path`` itself, or the folder that ``fedml federation up`` created in it; None if there is neither.
    The result is absolute, as Flower requires."""
    return next((home.resolve() for home in (path, path / TRIAL) if (home / SETTINGS).is_file()), None)


def read_centre(home: Path) -> Centre:
    """The settings in ``home``. Raises ``InputError`` if they do not exist or cannot be read."""
    try:
        return Centre(**json.loads((home / SETTINGS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{home}: is not a centre's folder; create one with `fedml federation init --home {home} --host NAME`.") from error


def make_centre(
    home: Path,
    host: str,
    port: int = 9092,
    *,
    control: int | None = None,
    certificate: tuple[Path, Path, Path] | None = None,
    days: int = 730,
) -> Centre:
    """Creates the folder of a centre that sites reach at ``host:port``.

    Args:
        host: a name or an IP address; an IPv6 address with or without brackets.
        control: the control port on loopback; None: ``port`` + 1.
        certificate: files of the server certificate (with its chain), its key, and the authority's certificate; None: a new authority
            issues a server certificate that is valid for ``days``.

    Raises:
        InputError: the folder already has a centre, the host is none, or a site would not accept the certificate.
    """
    home, host = home.resolve(), _host(host, port)
    if (home / SETTINGS).exists():
        raise InputError(f"{home}: is already a centre's folder; give another --home.")
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
    centre = Centre(host, port, control or port + 1)
    write_connection(home, f"127.0.0.1:{centre.control}", home / "control" / "ca.pem")
    write_whole(home / SETTINGS, json.dumps(asdict(centre)).encode())
    return centre


def _host(host: str, port: int) -> str:
    """``host`` without brackets, if a site could write it into its manifest. Raises ``InputError`` if not."""
    try:
        return split(join(bare(host), port))[0]
    except ValueError as error:
        raise InputError(f"--host {host}, --port {port}: {error}.") from error


def fingerprint(home: Path) -> str:
    """SHA-256 of the certificate ``ca.pem``, in the form of ``openssl x509 -fingerprint``."""
    return certificate_fingerprint(home / "ca.pem")


def superlink_options(home: Path, listen: str = "0.0.0.0") -> tuple[int, list[str], list[str]]:  # noqa: S104 - sites come from anywhere
    """Port, arguments and public options for ``fedml.flower.superlink``: TLS at both ports, node keys required.

    Raises:
        InputError: ``home`` is not a centre's folder, or a port is in use.
    """
    home, centre, listen = home.resolve(), read_centre(home), listen.strip("[]")
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
    public = ["--public", join(listen, centre.port), "--public-certificate", str(home / "server.pem")]
    return centre.control, [*tls, "--enable-supernode-auth"], [*public, "--public-key", str(home / "server.key")]


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{join(host, port)}: cannot listen on this port ({error.strerror}); if the SuperLink is already running, stop it first."
            ) from error


def start(home: Path, listen: str) -> None:
    """Replaces this process by the SuperLink, so that the SuperLink has this process's id and parent. Never returns.

    Raises:
        InputError: ``home`` is not a centre's folder, or a port is in use.
    """
    port, arguments, public = superlink_options(home, listen)
    command = superlink_command(home.resolve(), port, arguments, public)
    os.chdir(home)
    os.execve(command[0], command, environment(home.resolve()))  # noqa: S606 - no shell


def register(home: Path, name: str, public_key: Path) -> str:
    """Registers a site's public key under the site's name; returns the key's fingerprint.

    Raises:
        InputError: the name or the key is invalid or already registered.
        RunError: the SuperLink does not answer.
    """
    read_centre(home)
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InputError(f"the site's name {not_allowed(name, NAME)}.") from error
    pem = read_public_key(public_key)
    for node in nodes(home):
        if node.public_key == pem:
            was = "was removed" if node.state == _REMOVED else "is registered"
            raise InputError(f"{public_key}: this key {was} as {node.name}; ask the site to create a new key with fedml-site key.")
        if node.name == name and node.state != _REMOVED:
            raise InputError(f'"{name}" is registered with another key; to replace that key, run `fedml federation remove {name}` first.')
    register_node(home, name, pem)
    return key_fingerprint(pem)


def remove(home: Path, name: str) -> None:
    """Removes a site. Its key cannot be registered again; its name can, with another key.

    Raises:
        InputError: no site of this name is registered.
        RunError: the SuperLink does not answer.
    """
    unregister_node(home, _named(home, name).node_id)


def _named(home: Path, name: str) -> Node:
    known = {node.name: node for node in registered(home)}
    if name not in known:
        raise InputError(f'no site "{name}" is registered{nearest(name, known)}; registered sites: {", ".join(known) or "none"}.')
    return known[name]


def registered(home: Path) -> list[Node]:
    """The registered sites, without removed ones."""
    read_centre(home)
    return [node for node in nodes(home) if node.state != _REMOVED]


def show(found: list[Node]) -> str:
    """One line a site: name, state (online, offline or never seen), time last seen, time of registration, fingerprint of the key."""
    form = "%Y-%m-%d %H:%M:%S"
    rows = [("site", "state", "last seen (UTC)", "registered (UTC)", "key")]
    for node in found:
        state = "never seen" if node.state == "registered" else node.state
        last_seen = node.seen.strftime(form) if node.seen else "-"
        rows.append((node.name, state, last_seen, node.registered.strftime(form), key_fingerprint(node.public_key)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
