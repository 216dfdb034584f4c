"""A real centre, a real site's service and a forward proxy on loopback, as processes and threads of a test."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedml.errors import RunError
from fedml.experiments.federation.centre import make_centre, read_centre, register, registered
from fedml.flower.address import join
from fedml.flower.keys import write_node_key
from fedml.flower.superlink import command_path, free_ports, stop_group

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
SECONDS = 90


def clean_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without proxies, and with ``changes``."""
    return {k: v for k, v in os.environ.items() if k.upper() not in PROXIES} | dict(changes or {})


def wait_for(what: Callable[[], bool], why: Callable[[], str], seconds: float = SECONDS) -> None:
    """Waits until ``what`` holds; fails with ``why``."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


@contextmanager
def centre_up(home: Path, host: str, listen: str) -> Iterator[Path]:
    """A centre's folder whose SuperLink listens at ``listen`` with a certificate for ``host``."""
    port, control = free_ports(2)
    make_centre(home, host, port, control=control)
    with superlink_up(home, listen):
        yield home


@contextmanager
def superlink_up(home: Path, listen: str) -> Iterator[None]:
    """The SuperLink of a centre's folder."""
    port = read_centre(home).port
    with (home / "superlink.log").open("ab") as log:
        words = [command_path("fedml"), "federation", "start", "--home", str(home), "--listen", listen]
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=clean_environment())

    def there() -> bool:
        assert process.poll() is None, (home / "superlink.log").read_text()
        with suppress(RunError, OSError):
            registered(home)
            with socket.create_connection((read_centre(home).host if ":" in listen else listen, port), timeout=5):
                return True
        return False

    try:
        wait_for(there, lambda: (home / "superlink.log").read_text())
        yield
    finally:
        stop_group(process.pid)


def join_centre(folder: Path, home: Path, host: str, more: str = "", *, name: str = "") -> Path:
    """Gives a site a key, the authority's certificate and a ``[connection]``; registers the key as ``name`` if given."""
    public = write_node_key(folder / "node.key")
    (folder / "ca.pem").write_bytes((home / "ca.pem").read_bytes())
    superlink = join(host, read_centre(home).port)
    with (folder / "site.toml").open("a") as file:
        file.write(f'[connection]\nsuperlink = "{superlink}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n{more}')
    if name:
        register(home, name, public)
    return folder


@contextmanager
def service_up(folder: Path, wait: str = "SuperNode ID:", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """``fedml-site start`` until the context ends, from when ``wait`` is in the SuperNode's log."""
    log = folder / ".fedml" / "supernode.log"
    words = [command_path("fedml-site"), "start", "--site", str(folder)]
    with (folder / "start.out").open("ab") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True, env=clean_environment(environment))

    def there() -> bool:
        assert process.poll() is None, (folder / "start.out").read_text()
        return not wait or (log.exists() and wait in log.read_text(errors="replace"))

    try:
        wait_for(there, lambda: log.read_text(errors="replace") if log.exists() else (folder / "start.out").read_text())
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        stop_group(process.pid)


def doctor(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``fedml-site doctor`` as a process."""
    line = [command_path("fedml-site"), "doctor", "--site", str(folder), *words]
    return subprocess.run(line, env=clean_environment(environment), capture_output=True, text=True, timeout=120, check=False)


@dataclass
class ForwardProxy:
    """A forward proxy on loopback: it forwards ``CONNECT`` to this machine, whatever the name. ``asked``: the first line of each request.

    ``refusal``: the status line of every answer; "": it forwards. ``secret``: ``name:password`` that it asks for.
    """

    refusal: str = ""
    secret: str = ""
    port: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address, with its secret."""
        return f"http://{self.secret}{'@' if self.secret else ''}127.0.0.1:{self.port}"


@contextmanager
def forward_proxy(refusal: str = "", secret: str = "") -> Iterator[ForwardProxy]:
    """A forward proxy as long as the context lasts."""
    proxy = ForwardProxy(refusal, secret)
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.port = server.getsockname()[1]
        threading.Thread(target=_accept, args=(server, proxy), daemon=True).start()
        yield proxy
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, proxy: ForwardProxy) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_forward, args=(client, proxy), daemon=True).start()


def _forward(client: socket.socket, proxy: ForwardProxy) -> None:
    with client, suppress(OSError):
        data = b""
        while b"\r\n\r\n" not in data:
            more = client.recv(4096)
            if not more:
                return
            data += more
        first, *lines = data.decode("latin-1").split("\r\n")
        proxy.asked.append(first)
        sent = next((line.split()[-1] for line in lines if line.lower().startswith("proxy-authorization: basic ")), "")
        if proxy.secret and base64.b64decode(sent).decode() != proxy.secret:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
            return
        if proxy.refusal or not first.startswith("CONNECT "):
            client.sendall(f"HTTP/1.1 {proxy.refusal or '405 Not Allowed'}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        port = int(first.split()[1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            other = threading.Thread(target=_pump, args=(server, client), daemon=True)
            other.start()
            _pump(client, server)
            other.join(10)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    source.settimeout(120)
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
