"""``fedml-site doctor`` as a process, at sites that are really broken, each in one way: it names the cause and what to do, nothing else is
reported as failed, and the exit code says so. In the healthy state it finds nothing.

The centre is a real one; where a state needs a server that is not what it should be, a small TLS server stands in.
"""

from __future__ import annotations

import datetime
import http.server
import json
import os
import resource
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedml.clients.gate.approvals import approve
from fedml.clients.gate.journal import About, Journal
from fedml.clients.gate.ledger import Ledger
from fedml.clients.service import claim_site, prepare_state
from fedml.clients.site.manifest import read_site
from fedml.experiments.federation.centre import read_centre, register
from fedml.flower.keys import write_authority, write_node_key
from fedml.flower.superlink import command_path, free_ports
from tests.command import quick
from tests.conftest import clinical_site, make_study
from tests.federated import PROXIES, centre_up, clean_environment, forward_proxy, join_centre, service_up

pytestmark = pytest.mark.long
NOW = datetime.datetime.now(datetime.UTC)
STARTED = "INFO :      Starting Flower SuperNode\nINFO :      SuperNode ID: 13606\n"


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real centre on loopback."""
    with centre_up(tmp_path_factory.mktemp("centre") / "home", "127.0.0.1", "127.0.0.1") as home:
        yield home


@dataclass
class World:
    """A healthy site at a real centre, to be broken: its folder, and what the doctor's process gets."""

    folder: Path
    centre: Path
    stack: ExitStack
    environment: dict[str, str] = field(default_factory=dict)
    limit: int = 0  # bytes of a file; 0: none

    @property
    def state(self) -> Path:
        return self.folder / ".fedml"

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def point_to(self, port: int, host: str = "127.0.0.1") -> None:
        self.edit("site.toml", f"127.0.0.1:{read_centre(self.centre).port}", f"{host}:{port}")

    def look(self) -> subprocess.CompletedProcess[str]:
        """The doctor."""

        def limited() -> None:
            if self.limit:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))

        if not self.limit and "PYTHONPATH" not in self.environment:
            return quick("fedml-site", "doctor", "--site", self.folder, cwd=self.folder.parent, **self.environment)
        words = [command_path("fedml-site"), "doctor", "--site", str(self.folder)]
        return subprocess.run(
            words, env=clean_environment(self.environment), preexec_fn=limited, capture_output=True, text=True, timeout=150, check=False
        )  # fmt: skip


@pytest.fixture
def world(centre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A site that has started once, with an approved study, a journal and a ledger."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    folder = tmp_path / "oslo"
    clinical_site(folder, "oslo", 120, seed=1, labels=[k % 2 for k in range(120)])
    join_centre(folder, centre, "127.0.0.1")
    study = make_study(sites=("oslo", "porto"))
    state = prepare_state(read_site(folder))
    approve(state, study, "Dr. A. Hansen")
    ledger = Ledger(state / "ledger.db")
    ledger.note_unprotected(["oslo0000"], run="1", study=study.sha256, study_name="toy", phase="round", round=1)
    about = About("1", study.sha256, "toy", "round", 1)
    for direction in ("in", "out"):
        Journal(state / "journal.jsonl").append(direction=direction, verdict="accepted", about=about)  # type: ignore[arg-type]
    (state / "supernode.log").write_text(STARTED)
    with ExitStack() as stack:
        yield World(folder, centre, stack)


def reported(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """State -> its lines, after what holds of each output."""
    lines = done.stdout.splitlines()
    assert "Traceback" not in done.stdout + done.stderr
    assert "raised" not in done.stdout
    found: dict[str, list[str]] = {"ok": [], "warn": [], "fail": []}
    for line in lines:
        found[line.split()[0]].append(line.split(maxsplit=1)[1])
    assert all("; to do: " in line for line in found["warn"] + found["fail"])
    return found


def test_the_healthy_state(world: World) -> None:
    done = world.look()
    found = reported(done)
    assert found["warn"] == found["fail"] == []
    assert done.returncode == 0
    whats = {line.partition(":")[0] for line in found["ok"]}
    assert {"persons table", "clinical", "disk", "state folder", "journal", "approvals", "ledger", "service", "TLS chain", "clock",
            "server certificate", "node key", "registered", "flwr"} <= whats  # fmt: skip


@contextmanager
def tls_server(folder: Path, *, status: int = 200, ahead: int = 0) -> Iterator[int]:
    """A TLS server with the certificate in ``folder`` that answers ``status``; its clock is ``ahead`` seconds ahead of this machine's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead), usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *words: object) -> None:
            pass  # a client that does not trust the server hangs up

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def own_certificate(world: World, begin: float, end: float, **server: int) -> None:
    """The site's centre becomes a server with a certificate of its own that is valid from ``begin`` to ``end``, in days from now; the site
    trusts it."""
    folder = world.folder.parent / "other"
    folder.mkdir()
    private, name = ec.generate_private_key(ec.SECP384R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "centre")])
    draft = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key()).serial_number(1)
    draft = draft.not_valid_before(NOW + datetime.timedelta(days=begin)).not_valid_after(NOW + datetime.timedelta(days=end))
    address = x509.IPAddress(__import__("ipaddress").ip_address("127.0.0.1"))
    draft = draft.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = draft.sign(private, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)
    (folder / "server.pem").write_bytes(pem)
    plain = serialization.NoEncryption()
    (folder / "server.key").write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    (world.folder / "ca.pem").write_bytes(pem)
    world.point_to(world.stack.enter_context(tls_server(folder, **server)))


def key_of_another(world: World) -> None:
    """The private key of another site, without its public key: only the private file was copied."""
    write_node_key(world.folder.parent / "porto.key")
    shutil.copyfile(world.folder.parent / "porto.key", world.folder / "node.key")
    (world.folder / "node.key").chmod(0o600)
    (world.state / "supernode.log").touch()


def key_that_the_centre_does_not_know(world: World) -> None:
    """A real start with a key that was not registered."""
    (world.state / "supernode.log").unlink()
    with service_up(world.folder, wait="Exit Code: 305"):
        pass


def two_services_with_one_key(world: World) -> None:
    """The key runs elsewhere already, and this site was started with it too."""
    twin = world.folder.parent / "twin"
    shutil.copytree(world.folder, twin)
    register(world.centre, f"oslo-{os.getpid()}", world.folder / "node.key.pub")
    (twin / ".fedml" / "supernode.log").unlink()
    (world.state / "supernode.log").unlink()
    world.stack.enter_context(service_up(twin))
    with service_up(world.folder, wait="Exit Code: 305"):
        pass


def other_authority(world: World) -> None:
    other = world.folder.parent / "other"
    other.mkdir()
    write_authority(other)
    shutil.copyfile(other / "ca.pem", world.folder / "ca.pem")


def not_a_superlink(world: World) -> None:
    other = world.folder.parent / "other"
    other.mkdir()
    write_authority(other)
    shutil.copyfile(other / "ca.pem", world.folder / "ca.pem")
    world.point_to(world.stack.enter_context(tls_server(other, status=404)))


def not_tls(world: World) -> None:
    server = world.stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    world.stack.callback(server.shutdown)
    world.point_to(server.server_port)


def proxy_refuses(world: World) -> None:
    proxy = world.stack.enter_context(forward_proxy("403 Forbidden"))
    world.point_to(9092, "centre.federation.example")
    world.environment["HTTPS_PROXY"] = f"http://nurse:geheim@127.0.0.1:{proxy.port}"


def small_disk(world: World) -> None:
    """The state folder is on a disk of 1 MB that is full."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    copy = world.folder.parent / "copy"
    shutil.copytree(world.state, copy)
    words = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(world.state)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine lets no tmpfs be mounted")
    world.stack.callback(subprocess.run, ["umount", str(world.state)], check=True)
    shutil.copytree(copy, world.state, dirs_exist_ok=True)
    with suppress(OSError), (world.state / "cache.npy").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


def journal_edited(world: World) -> None:
    world.edit(".fedml/journal.jsonl", '"phase":"round"', '"phase":"evaluate"')


def journal_cut(world: World) -> None:
    lines = (world.state / "journal.jsonl").read_text().splitlines(keepends=True)
    (world.state / "journal.jsonl").write_text("".join(lines[:-1]))


def ledger_unreadable(world: World) -> None:
    data = bytearray((world.state / "ledger.db").read_bytes())
    data[100:2000] = os.urandom(1900)
    (world.state / "ledger.db").write_bytes(data)


def approval_by_hand(world: World) -> None:
    path = world.state / "approvals.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, {**rows[0], "sha256": "ab" * 32, "name": "planted"}]))


def changed_cohort(world: World) -> None:
    """The last thing that the gate did was to refuse a message of a run during which a file changed."""
    about = About("1", make_study(sites=("oslo", "porto")).sha256, "toy", "round", 2)
    Journal(world.state / "journal.jsonl").append(direction="in", verdict="refused", about=about, reason="data-changed")


def another_flower(world: World) -> None:
    """Another version of flwr is found first."""
    place = world.folder.parent / "packages" / "flwr-1.40.2.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 1.40.2\n")
    world.environment["PYTHONPATH"] = str(place.parent)


def two_services(world: World) -> None:
    """A second start, while the first process holds the site."""
    claim = claim_site(world.state)
    world.stack.callback(claim.close)
    done = subprocess.run([command_path("fedml-site"), "start", "--site", str(world.folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"already running (process {os.getpid()})" in done.stderr


def stale_lock(world: World) -> None:
    """A process that was killed left its number, which is now that of another process."""
    (world.state / "site.pid").write_text(str(os.getpid()))


def policy_key(world: World) -> None:
    world.edit("site.toml", "[connection]", "[policy]\nmin_person = 5\n[connection]")


def approvals_damaged(world: World) -> None:
    (world.state / "approvals.json").write_text("[{")


Break = Callable[[World], None]
FAIL: dict[str, tuple[Break, str, str, str]] = {  # state of the site -> how, what fails, with which words, and what to do
    "folder others can write": (lambda w: w.state.chmod(0o777), "state folder", "no approval counts", "chmod go-w"),
    "journal others can write": (lambda w: (w.state / "journal.jsonl").chmod(0o666), "state folder", "journal.jsonl", "chmod go-w"),
    "key others can read": (lambda w: (w.folder / "node.key").chmod(0o644), "node key", "mode 644", "chmod 600"),
    "no key": (lambda w: (w.folder / "node.key").unlink(), "node key", "does not exist", "fedml-site key"),
    "key of another site": (key_of_another, "node key", "node.key.pub is not this key's public key", "coordinating centre has registered"),
    "key not registered": (key_that_the_centre_does_not_know, "registered", "did not accept this key", "for registration"),
    "key runs elsewhere": (two_services_with_one_key, "registered", "did not accept this key", "another process may be running"),
    "no certificate": (lambda w: (w.folder / "ca.pem").unlink(), "root certificates", "does not exist", "coordinating centre"),
    "certificate expired": (lambda w: own_certificate(w, -30, -1), "root certificates", "expired on", "new root certificates"),
    "wrong authority": (other_authority, "TLS chain", "not trusted", "whether root_certificates is right"),
    "clock a day behind": (lambda w: own_certificate(w, 0.5, 90, ahead=86400), "clock", "s apart from the server's clock", "NTP"),
    "clock a day ahead": (lambda w: own_certificate(w, -90, 90, ahead=-86400), "clock", "s apart from the server's clock", "NTP"),
    "centre down": (lambda w: w.point_to(free_ports(1)[0]), "TLS chain", "connection refused", "outbound firewall"),
    "no TLS": (not_tls, "TLS chain", "does not speak TLS", "check the port"),
    "no SuperLink": (not_a_superlink, "TLS chain", "not as a SuperLink (HTTP status 404)", "check the port"),
    "no such name": (lambda w: w.point_to(9092, "centre.invalid"), "TLS chain", "the name centre.invalid was not found", "DNS"),
    "proxy refuses": (proxy_refuses, "TLS chain", "does not let this connection through (403 Forbidden)", "proxy's administrator"),
    "disk full": (small_disk, "disk", "cannot be written (No space left", "make room"),
    "limit of file size": (lambda w: setattr(w, "limit", 2**16), "disk", "cannot be written (File too large)", "limits"),
    "journal edited": (journal_edited, "journal", "this entry was edited", "security officer"),
    "journal cut": (journal_cut, "journal", "had 3 entries and has 2", "restore"),
    "ledger unreadable": (ledger_unreadable, "ledger", "the privacy ledger", "restore it from a backup"),
    "approvals by hand": (approval_by_hand, "approvals", "planted (abababababab) has no entry", "who changed approvals.json"),
    "approvals damaged": (approvals_damaged, "approvals", "cannot be read", "approve the studies again"),
    "cohort missing": (lambda w: (w.folder / "persons.csv").unlink(), "persons table", "no such file", "correct the path"),
    "other flwr": (another_flower, "flwr", "1.40.2", "flwr==1.42."),
}
# What else fails with the cause, because it follows from it.
FOLLOWS = {
    "certificate expired": {"TLS chain"},
    "clock a day behind": {"TLS chain"},
}


@pytest.mark.parametrize("name", FAIL)
def test_a_broken_state(name: str, world: World) -> None:
    how, what, text, action = FAIL[name]
    how(world)
    done = world.look()
    found = reported(done)
    lines = [line for line in found["fail"] if line.startswith(f"{what}: ")]
    assert len(lines) == 1, done.stdout
    cause, _, remedy = lines[0].partition("; to do: ")
    assert text in cause, done.stdout
    assert action in remedy, done.stdout
    assert done.returncode == 1
    assert {line.partition(":")[0] for line in found["fail"]} == {what} | FOLLOWS.get(name, set()), done.stdout
    assert "geheim" not in done.stdout


def test_a_clock_is_blamed_for_a_certificate_of_tomorrow(world: World) -> None:
    own_certificate(world, 0.5, 90, ahead=86400)
    (chain,) = (line for line in reported(world.look())["fail"] if line.startswith("TLS chain"))
    assert "certificate is not yet valid" in chain
    assert "set this machine's clock first" in chain


@pytest.mark.parametrize(
    ("how", "what", "state", "text", "action"),
    [
        (lambda w: w.state.chmod(0o755), "state folder", "warn", "mode 755", "chmod 700"),
        (changed_cohort, "last request", "warn", "was refused: data-changed (round 2 of toy", "the next run reads them"),
        (stale_lock, "service", "ok", "does not run now", ""),
        (two_services, "service", "ok", f"runs (process {os.getpid()})", ""),
        (lambda w: own_certificate(w, -90, 20), "root certificates", "warn", "19 days left", "new root certificates"),
    ],
    ids=["folder others can read", "cohort changed", "stale lock", "two services", "certificate ends soon"],
)
def test_a_state_that_lets_a_site_run(how: Break, what: str, state: str, text: str, action: str, world: World) -> None:
    how(world)
    done = world.look()
    found = reported(done)
    assert found["fail"] == [], done.stdout
    (line,) = (line for line in found[state] if line.startswith(f"{what}: "))
    assert text in line
    assert action in line
    assert done.returncode == 0


def test_a_policy_with_an_unknown_key_is_named(world: World) -> None:
    policy_key(world)
    done = world.look()
    assert done.returncode == 2
    assert '[policy] min_person is not a known key (did you mean "min_persons"?)' in done.stderr
    assert done.stdout == ""


def test_the_doctor_changes_nothing(world: World) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in world.folder.rglob("*") if path.is_file()}
    world.look()
    assert {path: (path.read_bytes(), path.stat().st_mode) for path in world.folder.rglob("*") if path.is_file()} == before
