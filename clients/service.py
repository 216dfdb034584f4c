"""The service of a site: what must hold before it starts, and how it starts.

The SuperNode (``flower-supernode --isolation process``: TLS, the site's node key) only transports messages. The site's process
(``fedml.clients.waiting``) runs the installed ClientApp behind the gate; cohort, model and caches stay in memory between messages. The only
open port is on loopback, for the SuperNode, and is protected by a secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from fedml.clients.gate.gate import Gate
from fedml.clients.site.manifest import Connection, Site
from fedml.clients.waiting import DIRECT, JOURNAL, PID_FILE, SECRET, WAY, Post, attend, become, claim_site, running
from fedml.errors import InputError

__all__ = ["DIRECT", "JOURNAL", "PID_FILE", "SECRET", "WAY", "claim_site", "connection_of", "prepare_state", "run_site", "running", "start"]


def connection_of(site: Site) -> Connection:
    """The manifest's ``[connection]``, after a check that its files exist.

    Raises:
        InputError: the manifest has no ``[connection]``, or one of its files is missing.
    """
    found = site.manifest.connection
    if found is None:
        raise InputError(
            f"{site.file}: has no section [connection]; add it: the coordinating centre provides superlink (host:port) and "
            "root_certificates, fedml-site key creates the key."
        )
    for key in ("root_certificates", "key"):
        path = site.folder / str(getattr(found, key))
        if not path.is_file():
            raise InputError(f"{site.file}: [connection] {key} is {path}, which does not exist; put the file there or correct the path.")
    private = site.folder / found.key
    if mode := private.stat().st_mode & 0o077:
        raise InputError(
            f"{private}: other accounts can access the private key (mode {mode | 0o600:o}); run chmod 600 {private}, and if others may "
            "have read it, make a new one with fedml-site key and send its .pub file to the coordinating centre."
        )
    return found


def prepare_state(site: Site) -> Path:
    """Creates the state folder, accessible to this account only, and returns it."""
    site.state.mkdir(mode=0o700, exist_ok=True)
    return site.state


def post_of(site: Site) -> Post:
    """What the waiting site needs to know.

    Raises:
        InputError: the manifest has no connection, or not its files.
    """
    connection, state = connection_of(site), prepare_state(site)
    proxy = connection.way()
    return Post(
        name=site.name, manifest=str(site.file.resolve()), state=str(state.resolve()), superlink=connection.superlink,
        root_certificates=str((site.folder / connection.root_certificates).resolve()), key=str((site.folder / connection.key).resolve()),
        proxy=proxy.url if proxy else "", proxy_source=proxy.source if proxy else "",
    )  # fmt: skip


def run_site(site: Site) -> None:
    """Runs the site in this process until SIGTERM or SIGINT, then stops the SuperNode and returns.

    Raises:
        InputError: the manifest has no connection, or another process already runs this site.
    """
    post = post_of(site)
    gate = Gate(site, Path(post.state))
    attend(post, lambda: gate)


def start(site: Site) -> NoReturn:
    """Becomes the waiting site, in this process. Never returns.

    Raises:
        InputError: as ``run_site``, or the journal or the ledger cannot be read.
    """
    post = post_of(site)
    claim_site(Path(post.state)).close()  # said before the rest is looked at
    Gate(site, Path(post.state)).close()
    become(post)
