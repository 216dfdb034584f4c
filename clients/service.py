"""The resident process of a site: keeps a SuperNode running and answers its requests through the gate.

The SuperNode (``flower-supernode --isolation process``: TLS, the site's node key) only transports messages. This process runs the installed
ClientApp; cohort, model and caches stay in memory between messages. The only open port is on loopback, for the SuperNode, and is protected
by a secret.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

from flwr.app import Context, Message

from fedml import quiet
from fedml.clients.gate.gate import Gate
from fedml.clients.site import logs
from fedml.clients.site.manifest import Connection, Site
from fedml.errors import InputError
from fedml.flower.address import node_environment
from fedml.flower.parent import owned

log = logging.getLogger("fedml.site")
# Back-off between restarts of the SuperNode, reset after _RESET_SECONDS of uptime. A SuperLink refuses a restarted node until the
# heartbeats of the old node have timed out (up to a minute), so the longest wait is short.
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, _RESET_SECONDS = 1.0, 8.0, 120.0
PID_FILE, SECRET, WAY = "site.pid", "runtime.secret", "proxy"  # WAY: the proxy of the service that runs, without its password
DIRECT = "no proxy"


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


def run_site(site: Site) -> None:
    """Runs the site until SIGTERM or SIGINT, then stops the SuperNode and returns.

    Raises:
        InputError: the manifest has no connection, or another process already runs this site.
    """
    from fedml.flower.executor import serve
    from fedml.flower.superlink import free_ports

    connection, state = connection_of(site), prepare_state(site)
    proxy = connection.way()
    way = proxy.shown if proxy else DIRECT
    claim = claim_site(state)
    (state / WAY).write_text(way, encoding="utf-8")
    log.addHandler(logs.rotated(state / logs.SITE_LOG, logs.SITE_BYTES, "%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    gate, stop = Gate(site, state), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        gate.interrupt()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    secret_file = state / SECRET
    secret = secrets.token_hex(32).encode()
    secret_file.unlink(missing_ok=True)
    with os.fdopen(os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = _node_command(site, connection, address, secret_file)
    keeper = threading.Thread(target=_keep_node, args=(command, node_environment(proxy), state, stop), daemon=True)
    gate.journal.append(direction="site", verdict="noted", reason="start")
    log.info("%s started; SuperLink %s, %s", site.name, connection.superlink, f"through the proxy {way}" if proxy else way)
    keeper.start()
    try:
        serve(address, secret, _telling(gate.handle), stop)
    finally:
        stop.set()
        keeper.join(20)
        gate.journal.append(direction="site", verdict="noted", reason="stop")
        gate.close()
        claim.close()
        log.info("%s stopped", site.name)


def _telling(handle: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """``handle``, which then logs how many messages of libraries were not shown."""

    def told(message: Message, context: Context) -> Message:
        try:
            return handle(message, context)
        finally:
            if unseen := quiet.tell():
                log.warning("%s", unseen)

    return told


def running(state: Path) -> int | None:
    """The process id of the site's resident process; None if it is not running. That process holds a lock, which ends with it."""
    try:
        with (state / PID_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int((state / PID_FILE).read_text() or 0) or None
    except OSError:
        pass
    return None


def claim_site(state: Path) -> IO[str]:
    """Locks the site for this process until the returned file is closed, or the process ends.

    Raises:
        InputError: another process runs the site.
    """
    file = (state / PID_FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{state}: the site is already running (process {running(state)}); stop that process first.") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _node_command(site: Site, connection: Connection, address: str, secret_file: Path) -> list[str]:
    host, _, port = address.partition(":")
    return [
        sys.executable, "-P", "-m", "fedml.flower.supernode", "--superlink", connection.superlink,
        "--root-certificates", str(site.folder / connection.root_certificates),
        "--auth-supernode-private-key", str(site.folder / connection.key),
        "--isolation", "process", "--host", host, "--port", port, "--superexec-auth-secret-file", str(secret_file),
    ]  # fmt: skip


def _keep_node(command: list[str], environment: dict[str, str], state: Path, stop: threading.Event) -> None:
    """Runs the SuperNode and restarts it when it ends; waits longer each time it ends early."""
    wait, out = _FIRST_WAIT_SECONDS, logs.rotated(state / logs.NODE_LOG, logs.NODE_BYTES, "%(message)s")
    while not stop.is_set():
        began = time.monotonic()
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        node = subprocess.Popen(command, env=owned(environment), stdout=pipe, stderr=subprocess.STDOUT, stdin=nothing)
        threading.Thread(target=logs.copy_lines, args=(node.stdout, out), daemon=True).start()
        while node.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            node.terminate()
            try:
                node.wait(10)
            except subprocess.TimeoutExpired:
                node.kill()
            return
        wait = _FIRST_WAIT_SECONDS if time.monotonic() - began > _RESET_SECONDS else min(2 * wait, _LONGEST_WAIT_SECONDS)
        log.warning("the SuperNode ended (exit code %s, see %s); restart in %.0f s", node.returncode, logs.NODE_LOG, wait)
        stop.wait(wait)
