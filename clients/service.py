"""The resident process of a site: keeps a SuperNode running and answers its tasks through the gate.

The SuperNode (``flower-supernode --isolation process``: TLS, the site's node key) only carries messages. What runs is the ClientApp
installed here; cohort, model and caches stay warm between messages. It opens no port but one on loopback for the SuperNode, which a
secret guards.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from fedml.clients.gate.gate import Gate
from fedml.clients.site.manifest import Connection, Site
from fedml.errors import InputError

log = logging.getLogger("fedml.site")
# Seconds: back-off between restarts; after _STEADY it starts anew. A SuperLink turns a restarted node away until it has missed the old
# one's heartbeats (up to a minute), so the longest wait is short.
_FIRST_WAIT, _LONGEST_WAIT, _STEADY = 1.0, 8.0, 120.0
PID_FILE, LOG_FILE, NODE_LOG = "site.pid", "site.log", "supernode.log"


def connection_of(site: Site) -> Connection:
    """The manifest's ``[connection]``, with its files in place.

    Raises:
        InputError: there is none, or a file it names is missing.
    """
    found = site.manifest.connection
    if found is None:
        raise InputError(
            f"{site.file}: has no section [connection]; the coordinating centre gives superlink (host:port) and root_certificates, "
            "and fedml-site key makes the key."
        )
    for key in ("root_certificates", "key"):
        path = site.folder / str(getattr(found, key))
        if not path.is_file():
            raise InputError(f"{site.file}: [connection] {key} is {path}, which is not there; put the file there or correct the path.")
    return found


def prepare_state(site: Site) -> Path:
    """The state folder, readable by this user alone."""
    site.state.mkdir(mode=0o700, exist_ok=True)
    return site.state


def run_site(site: Site) -> None:
    """Runs until SIGTERM or SIGINT, then ends the SuperNode and returns.

    Raises:
        InputError: no connection, or another process runs this site already.
    """
    from fedml.flower.executor import serve
    from fedml.flower.superlink import free_ports

    connection, state = connection_of(site), prepare_state(site)
    _claim(state)
    log.addHandler(_file_log(state / LOG_FILE))
    log.setLevel(logging.INFO)
    log.propagate = False
    gate, stop = Gate(site, state), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    secret_file = state / "runtime.secret"
    secret = secrets.token_hex(32).encode()
    secret_file.unlink(missing_ok=True)
    with os.fdopen(os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    keeper = threading.Thread(target=_keep_node, args=(_node_command(site, connection, address, secret_file), state, stop), daemon=True)
    gate.journal.append(direction="site", verdict="noted", reason="start")
    log.info("%s started; SuperLink %s", site.name, connection.superlink)
    keeper.start()
    try:
        serve(address, secret, gate.handle, stop)
    finally:
        stop.set()
        keeper.join(20)
        gate.journal.append(direction="site", verdict="noted", reason="stop")
        (state / PID_FILE).unlink(missing_ok=True)
        log.info("%s stopped", site.name)


def running(state: Path) -> int | None:
    """Process id of the site's resident process, None if there is none."""
    try:
        number = int((state / PID_FILE).read_text())
        os.kill(number, 0)
    except (OSError, ValueError):
        return None
    return number


def _claim(state: Path) -> None:
    other = running(state)
    if other is not None and other != os.getpid():
        raise InputError(f"{state}: the site runs already (process {other}); stop it first.")
    (state / PID_FILE).write_text(str(os.getpid()))


def _file_log(path: Path) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    handler = RotatingFileHandler(path, maxBytes=10_000_000, backupCount=5, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def _node_command(site: Site, connection: Connection, address: str, secret_file: Path) -> list[str]:
    host, _, port = address.partition(":")
    return [
        sys.executable, "-P", "-m", "fedml.flower.supernode", "--superlink", connection.superlink,
        "--root-certificates", str(site.folder / connection.root_certificates),
        "--auth-supernode-private-key", str(site.folder / connection.key),
        "--isolation", "process", "--host", host, "--port", port, "--superexec-auth-secret-file", str(secret_file),
    ]  # fmt: skip


def _keep_node(command: list[str], state: Path, stop: threading.Event) -> None:
    """Starts the SuperNode, and again when it ends, waiting longer each time it ends soon."""
    wait = _FIRST_WAIT
    while not stop.is_set():
        began = time.monotonic()
        with (state / NODE_LOG).open("ab") as out:
            node = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        while node.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            node.terminate()
            try:
                node.wait(10)
            except subprocess.TimeoutExpired:
                node.kill()
            return
        wait = _FIRST_WAIT if time.monotonic() - began > _STEADY else min(2 * wait, _LONGEST_WAIT)
        log.warning("the SuperNode ended (exit code %s, see %s); again in %.0f s", node.returncode, NODE_LOG, wait)
        stop.wait(wait)
