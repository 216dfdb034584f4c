"""A site that waits: the process of ``fedml-site start``, which keeps the SuperNode and hands each message to the gate.

Nothing here imports what an answer needs (torch, pandas, the readers of data): a site waits most of its time, and these are two thirds of
its memory. The gate is made at the first message (``Porter``). ``fedml-site start`` checks the manifest and the state with everything
imported, and then replaces itself by this module, in the same process:

    python -P -m fedml.clients.waiting /srv/fedml/site.toml        # with the rest of ``Post`` in the environment
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, NoReturn, Protocol, final

from fedml import quiet
from fedml.clients.gate.journal import About, Journal
from fedml.clients.site import logs
from fedml.clients.site.progress import PROGRESS
from fedml.errors import InputError, Reason
from fedml.flower.address import Proxy, node_environment
from fedml.flower.parent import owned

if TYPE_CHECKING:
    from flwr.app import Context, Message

log = logging.getLogger("fedml.site")
# Back-off between restarts of the SuperNode, reset after _RESET_SECONDS of uptime. A SuperLink refuses a restarted node until the
# heartbeats of the old node have timed out (up to a minute), so the longest wait is short.
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, _RESET_SECONDS = 1.0, 8.0, 120.0
PID_FILE, SECRET, WAY = "site.pid", "runtime.secret", "proxy"  # WAY: the proxy of the service that runs, without its password
DIRECT, JOURNAL = "no proxy", "journal.jsonl"
PROGRESS_VARIABLE = "FEDML_PROGRESS"  # as ``fedml.flower.supernode`` has it, which imports much
_POST = "FEDML_POST"  # environment variable


@dataclass(frozen=True)
class Post:
    """What a waiting site knows of itself. Paths are absolute. ``proxy``: its URL, which may hold a password; "": none."""

    name: str
    manifest: str
    state: str
    superlink: str
    root_certificates: str
    key: str
    proxy: str
    proxy_source: str


class Answers(Protocol):
    """A gate (``fedml.clients.gate.gate``)."""

    def handle(self, message: Message, context: Context) -> Message: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


@final
class Porter:
    """Makes the gate at the first message, and hands it all. Where that fails the message is refused, and the next one tries again."""

    def __init__(self, make: Callable[[], Answers], journal: Journal) -> None:
        self._make, self._journal = make, journal
        self._gate: Answers | None = None

    def handle(self, message: Message, context: Context) -> Message:
        """The gate's answer."""
        try:
            if self._gate is None:
                self._gate = self._make()
            return self._gate.handle(message, context)
        except Exception as error:
            return refused(message, error, self._journal)
        finally:
            if unseen := quiet.tell():
                log.warning("%s", unseen)

    def interrupt(self) -> None:
        """Ends what the gate waits for, so that the site can stop."""
        if self._gate is not None:
            self._gate.interrupt()

    def close(self) -> None:
        """Ends the gate."""
        if self._gate is not None:
            self._gate.close()


def refused(message: Message, error: Exception, journal: Journal) -> Message:
    """The refusal of a message for which there is no gate."""
    from fedml.clients.work.client import reason_of, refusal

    reason = reason_of(error)
    log.error("in refused (%s): %s", reason, quiet.told(error), exc_info=reason is Reason.INTERNAL)
    try:
        journal.append(direction="in", verdict="refused", reason=str(reason), about=About(str(message.metadata.run_id)))
    except (OSError, ValueError, InputError) as failed:
        log.error("the journal cannot be written; every request is refused until it can be written: %s", failed)
    return refusal(message, reason)


def gate_of(post: Post) -> Answers:
    """The gate, with the manifest as it is now."""
    from fedml.clients.gate.gate import Gate
    from fedml.clients.site.manifest import read_site

    return Gate(read_site(Path(post.manifest)), Path(post.state))


def attend(post: Post, make: Callable[[], Answers]) -> None:
    """Runs the site until SIGTERM or SIGINT, then stops the SuperNode and returns.

    Args:
        make: makes the gate.

    Raises:
        InputError: another process already runs this site, or its journal was cut off.
    """
    from fedml.flower.executor import serve
    from fedml.flower.superlink import free_ports

    state, proxy = Path(post.state), Proxy(post.proxy, post.proxy_source) if post.proxy else None
    way = proxy.shown if proxy else DIRECT
    claim = claim_site(state)
    (state / WAY).write_text(way, encoding="utf-8")
    log.addHandler(logs.rotated(state / logs.SITE_LOG, logs.SITE_BYTES, "%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    journal, stop = Journal(state / JOURNAL), threading.Event()
    porter = Porter(make, journal)

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        porter.interrupt()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    secret_file = state / SECRET
    secret = secrets.token_hex(32).encode()
    secret_file.unlink(missing_ok=True)
    with os.fdopen(os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = _node_command(post, address, secret_file)
    around = node_environment(proxy) | {PROGRESS_VARIABLE: str(state / PROGRESS)}
    (state / PROGRESS).unlink(missing_ok=True)
    keeper = threading.Thread(target=_keep_node, args=(command, around, state, stop), daemon=True)
    journal.append(direction="site", verdict="noted", reason="start")
    log.info("%s started; SuperLink %s, %s", post.name, post.superlink, f"through the proxy {way}" if proxy else way)
    keeper.start()
    try:
        serve(address, secret, porter.handle, stop)
    finally:
        stop.set()
        keeper.join(20)
        journal.append(direction="site", verdict="noted", reason="stop")
        porter.close()
        claim.close()
        log.info("%s stopped", post.name)


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


def _node_command(post: Post, address: str, secret_file: Path) -> list[str]:
    host, _, port = address.partition(":")
    return [
        sys.executable, "-P", "-m", "fedml.flower.supernode", "--superlink", post.superlink,
        "--root-certificates", post.root_certificates, "--auth-supernode-private-key", post.key,
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


def become(post: Post) -> NoReturn:
    """Replaces this process by one that has imported only what waiting needs."""
    quiet.release()
    sys.stdout.flush()
    sys.stderr.flush()
    about = json.dumps(asdict(replace(post, manifest="")))
    command = [sys.executable, "-P", "-m", "fedml.clients.waiting", post.manifest]
    os.execve(sys.executable, command, {**os.environ, _POST: about})  # noqa: S606 - no shell


def main() -> NoReturn:
    """Runs the site of the arguments; exit code 2 if it cannot run."""
    post = replace(Post(**json.loads(os.environ.pop(_POST))), manifest=sys.argv[1])
    quiet.hush_process()
    code = 0
    try:
        attend(post, lambda: gate_of(post))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    quiet.release()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
