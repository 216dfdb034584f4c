"""The doctor: a good site needs no action, each fault is found with its action, and no text holds a person's id."""

from __future__ import annotations

import datetime
import http.server
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from fedml.clients.desk import doctor, network
from fedml.clients.desk.doctor import examine, show, worst
from fedml.clients.desk.finding import Finding
from fedml.clients.gate.approvals import approve
from fedml.clients.gate.journal import Journal
from fedml.clients.site.manifest import Site, read_site
from fedml.flower.keys import write_authority, write_node_key
from fedml.flower.superlink import free_ports
from fedml.study.study import Study
from tests.conftest import clinical_site, make_study, write_csv

PLANTED = "hansen-19420131"
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site of 120 persons, one of them with an id to look for."""
    path = tmp_path / "oslo"
    clinical_site(path, "oslo", 120, seed=1, labels=[k % 2 for k in range(120)])
    for name in ("persons.csv", "clinical.csv"):
        edit(path / name, "oslo0000", PLANTED)
    return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority and a server certificate."""
    path = tmp_path_factory.mktemp("authority")
    write_authority(path)
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def connected(folder: Path, authority: Path, port: int) -> Path:
    """The site with a key, the authority's certificate and a ``[connection]``."""
    write_node_key(folder / "node.key")
    shutil.copyfile(authority / "ca.pem", folder / "ca.pem")
    with (folder / "site.toml").open("a") as file:
        file.write(f'[connection]\nsuperlink = "127.0.0.1:{port}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')
    return folder


def state_of(folder: Path) -> Path:
    path = read_site(folder).state
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def look(folder: Path, study: Study | None = None, **more: Any) -> list[Finding]:
    """``examine``, and what holds of every finding."""
    findings = examine(read_site(folder), study, **more)
    reported = show(findings)
    assert PLANTED not in reported
    assert "hansen" not in reported
    assert "Traceback" not in reported
    assert len(reported.splitlines()) == len(findings)
    assert all(bool(f.action) == (f.state != "ok") for f in findings), reported
    assert worst(findings) == any(line.startswith("fail  ") for line in reported.splitlines())
    return findings


def one(findings: list[Finding], what: str, state: str = "") -> Finding:
    """The one finding about ``what``."""
    (found,) = [f for f in findings if f.what == what and state in ("", f.state)]
    return found


def expect(findings: list[Finding], what: str, state: str, text: str, action: str) -> None:
    found = one(findings, what, state)
    assert text in found.text
    assert action in found.action


@contextmanager
def tls_server(authority: Path) -> Iterator[int]:
    """An HTTPS server on loopback; it tells the time, as http.server does."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *args: Any) -> None:
            pass  # a client that does not trust us hangs up

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    with Server(("127.0.0.1", 0), Quiet) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def plain_server(answer: bytes) -> Iterator[int]:
    """Takes each connection and says ``answer``; an empty one is silence."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                    if answer:
                        held[-1].sendall(answer)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        for connection in held:
            connection.close()


def certificate(path: Path, days: int) -> None:
    """A root certificate that expires in so many days."""
    key, name = ec.generate_private_key(ec.SECP384R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(NOW - datetime.timedelta(days=400)).not_valid_after(NOW + datetime.timedelta(days=days, hours=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    path.write_bytes(made.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))


def test_a_good_site_without_a_connection(folder: Path) -> None:
    findings = look(folder, make_study(sites=("oslo", "porto")))
    assert worst(findings) == 0
    assert [f.what for f in findings if f.state != "ok"] == ["connection"]
    assert one(findings, "connection").state == "warn"
    assert "ok    persons table: 120 persons" in show(findings).splitlines()
    assert "at least 20 training persons" in one(findings, "policy").text
    assert "(0: " in one(findings, "study train").text
    assert one(findings, "flwr").text.startswith("1.42.")


def test_a_good_site_and_a_real_server(folder: Path, authority: Path) -> None:
    with tls_server(authority) as port:
        connected(folder, authority, port)
        (state_of(folder) / "supernode.log").write_text("INFO: Starting Flower SuperNode\nINFO: SuperNode ID: 17\n")
        Journal(state_of(folder) / "journal.jsonl").append(direction="site", verdict="noted", reason="start")
        findings = look(folder)
        assert {f.state for f in findings} == {"ok"}, show(findings)
        assert "verified (TLS" in one(findings, "TLS chain").text
        assert "days left" in one(findings, "server certificate").text
        assert {"root certificates", "clock", "node key", "registered", "journal"} <= {f.what for f in findings}
        for apart, state in ((100, "warn"), (-400, "fail")):
            late = look(folder, now=datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=apart))
            expect(late, "clock", state, "s apart from the server's", "NTP")
        soon = look(folder, now=NOW + datetime.timedelta(days=350))
        expect(soon, "server certificate", "warn", "days left", "renew")
        expect(soon, "root certificates", "warn", "days left", "new root certificates")


def remove_persons(folder: Path) -> None:
    (folder / "persons.csv").unlink()


def remove_clinical(folder: Path) -> None:
    (folder / "clinical.csv").unlink()


def id_twice(folder: Path) -> None:
    edit(folder / "persons.csv", "oslo0001", PLANTED)


def no_id(folder: Path) -> None:
    edit(folder / "persons.csv", "oslo0001", "")


def no_header(folder: Path) -> None:
    edit(folder / "persons.csv", "id,y\n", "")


def ragged(folder: Path) -> None:
    edit(folder / "persons.csv", f"{PLANTED},0", f"{PLANTED},0,{PLANTED}")


def bytes_of_another_kind(folder: Path) -> None:
    (folder / "persons.csv").write_bytes(b"id,y\n" + PLANTED.encode() + b"\xff\xfe\x00,1\n")


@pytest.mark.parametrize(
    ("break_it", "what", "text", "action"),
    [
        (remove_persons, "persons table", "no such file", "correct the path"),
        (remove_clinical, "clinical", "does not exist", "correct the path"),
        (id_twice, "persons table", "more than one row", "one row for each person"),
        (no_id, "persons table", "no id", "every row"),
        (no_header, "persons table", "no column of ids", "name the column"),
        (ragged, "persons table", "cannot be read", "CSV"),
        (bytes_of_another_kind, "persons table", "cannot be read", "UTF-8"),
    ],
)
def test_broken_data(folder: Path, break_it: Callable[[Path], None], what: str, text: str, action: str) -> None:
    break_it(folder)
    findings = look(folder, make_study(sites=("oslo", "porto")))
    expect(findings, what, "fail", text, action)
    expect(findings, "study", "fail", "cannot use", "fedml-site check")
    assert worst(findings) == 1


def test_data_to_look_at(folder: Path) -> None:
    edit(folder / "persons.csv", PLANTED, "somebody")
    expect(look(folder), "clinical", "warn", "1 of 120 ids", "leading zeros")
    write_csv(folder / "persons.csv", [PLANTED, "b"], {"y": [0, 1]})
    expect(look(folder), "persons table", "warn", "2 persons", "min_persons")


def test_a_bed_needs_its_companions_and_a_split_its_file(folder: Path) -> None:
    edit(folder / "site.toml", "[data]\n", '[data]\nvariants = { path = "x.bed", build = "GRCh38" }\nsplit = "split.csv"\n')
    (folder / "x.bed").touch()
    findings = look(folder)
    assert "x.bim" in one(findings, "variants", "fail").text
    assert one(findings, "split").state == "fail"


def test_a_study_that_this_site_is_too_small_for(folder: Path) -> None:
    many = look(folder, make_study(sites=("oslo", "porto"), policy__min_persons=100))
    expect(many, "study train", "warn", "fewer than min_persons (100)", "add persons")
    few = look(folder, make_study(sites=("oslo", "porto"), policy__min_count=45))
    expect(few, "study train", "warn", "below min_count (45)", "add persons")
    expect(look(folder, make_study(sites=("a", "b"))), "study", "fail", "does not list", "[site] name")
    values = make_study(sites=("oslo", "porto"))
    edit(folder / "persons.csv", f"{PLANTED},0", f"{PLANTED},{PLANTED}")
    expect(look(folder, values), "study", "fail", "cannot use", "fedml-site check")


def test_a_study_that_predicts_a_number(folder: Path) -> None:
    study = make_study(sites=("oslo", "porto"), model__task="regression", cohort__target="y")
    assert one(look(folder, study), "study train", "ok").text.endswith(" persons")


@pytest.mark.parametrize(("free", "state"), [(4 * 10**9, "warn"), (10**8, "fail")])
def test_little_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    expect(look(folder), "disk", state, "GB free", "make room")


def test_state_folder_and_journal(folder: Path) -> None:
    state = state_of(folder)
    journal = Journal(state / "journal.jsonl")
    for reason in ("start", "stop"):
        journal.append(direction="site", verdict="noted", reason=reason)
    assert one(look(folder), "journal").state == "ok"
    edit(journal.path, '"start"', '"stop"')
    state.chmod(0o755)
    findings = look(folder)
    expect(findings, "journal", "fail", "line 1: this entry was edited", "keep the file")
    expect(findings, "state folder", "warn", "mode 755", f"chmod 700 {state}")


@pytest.mark.parametrize(
    ("content", "text"), [("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate"), (None, "does not exist")]
)
def test_a_root_certificate_that_is_none(folder: Path, authority: Path, content: str | None, text: str) -> None:
    connected(folder, authority, free_ports(1)[0])
    (folder / "ca.pem").unlink() if content is None else (folder / "ca.pem").write_text(content)
    findings = look(folder)
    expect(findings, "root certificates", "fail", text, "coordinating centre")
    assert one(findings, "clock").state == "warn"


@pytest.mark.parametrize(("days", "state", "text"), [(-3, "fail", "expired on"), (10, "warn", "10 days left"), (300, "ok", "300 days")])
def test_a_root_certificate_with_its_day(folder: Path, authority: Path, days: int, state: str, text: str) -> None:
    connected(folder, authority, free_ports(1)[0])
    certificate(folder / "ca.pem", days)
    assert text in one(look(folder, now=NOW), "root certificates", state).text


def test_no_server_listens(folder: Path, authority: Path) -> None:
    findings = look(connected(folder, authority, free_ports(1)[0]))
    expect(findings, "TLS chain", "fail", "connection refused", "outbound firewall")
    expect(findings, "clock", "warn", "could not be compared", "TLS chain")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_server_without_tls(folder: Path, authority: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(network, "NETWORK_SECONDS", 0.3)
    with plain_server(answer) as port:
        expect(look(connected(folder, authority, port)), "TLS chain", "fail", "does not speak TLS", "whether TLS is on")


def test_another_authority(folder: Path, authority: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_authority(tmp_path / "other")
    with tls_server(authority) as port:
        findings = look(connected(folder, tmp_path / "other", port))
    expect(findings, "TLS chain", "fail", "not trusted", "root_certificates")


def test_a_key_that_others_can_read(folder: Path, authority: Path) -> None:
    connected(folder, authority, free_ports(1)[0])
    (folder / "node.key").chmod(0o644)
    expect(look(folder), "node key", "fail", "mode 644", "chmod 600")


def other_curve() -> bytes:
    form = serialization.PrivateFormat.OpenSSH
    return ed25519.Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@pytest.mark.parametrize(
    ("content", "text"), [(b"no key", "not an OpenSSH"), (b"", "not an OpenSSH"), (other_curve(), "elliptic"), (None, "does not exist")]
)
def test_a_key_that_is_none(folder: Path, authority: Path, content: bytes | None, text: str) -> None:
    connected(folder, authority, free_ports(1)[0])
    (folder / "node.key").unlink() if content is None else (folder / "node.key").write_bytes(content)
    expect(look(folder), "node key", "fail", text, "fedml-site key")


def test_the_public_half(folder: Path, authority: Path, tmp_path: Path) -> None:
    connected(folder, authority, free_ports(1)[0])
    shutil.copyfile(write_node_key(tmp_path / "other.key"), folder / "node.key.pub")
    expect(look(folder), "node key", "fail", "not this key's", "ssh-keygen -y")
    (folder / "node.key.pub").unlink()
    expect(look(folder), "node key", "warn", "does not exist", "ssh-keygen -y")


START, KNOWN = "INFO :      Starting Flower SuperNode\n", "INFO :      SuperNode ID: 13606\n"
REFUSED = "ERROR :     Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
END = "The SuperNode could not establish a connection to the SuperLink.\n\nFor more information, visit: <https://flower.ai/305.html>\n"


@pytest.mark.parametrize(
    ("log", "state", "text", "action"),
    [
        (None, "warn", "was not started", "start once"),
        ("", "warn", "no answer", "TLS chain"),
        (START + KNOWN, "ok", "knew this key", ""),
        (START + KNOWN + START, "warn", "no answer", "TLS chain"),
        (START + REFUSED + "Client error '401 Unauthorized' for url\n" + END, "fail", "did not accept", "node.key.pub"),
        (
            START + KNOWN + START + REFUSED + "[code: 2004] Failed to activate SuperNode.\n" + END,
            "fail",
            "did not accept",
            "coordinating centre",
        ),
        (START + REFUSED + "[Errno 111] Connection refused\n" + END, "fail", "not reached", "TLS chain"),
        (START + "Exit Code: 302\n", "fail", "exit code 302", "read the end of"),
        (START + REFUSED + START + KNOWN, "ok", "knew this key", ""),
    ],
)
def test_registered(folder: Path, authority: Path, log: str | None, state: str, text: str, action: str) -> None:
    connected(folder, authority, free_ports(1)[0])
    if log is not None:
        (state_of(folder) / "supernode.log").write_text(log)
    expect(look(folder), "registered", state, text, action)


def test_a_key_newer_than_the_log(folder: Path, authority: Path) -> None:
    connected(folder, authority, free_ports(1)[0])
    log = state_of(folder) / "supernode.log"
    log.write_text(START + KNOWN)
    os.utime(log, (1, 1))
    expect(look(folder), "registered", "warn", "newer", "start once")


def test_another_flower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.40.2")
    expect(look(folder), "flwr", "fail", "1.40.2", "flwr==1.42.")


def test_a_check_that_breaks_or_hangs_is_a_finding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(site: Site) -> Iterator[Finding]:
        yield Finding("first", "ok", "done")
        raise RuntimeError(PLANTED)

    def hangs(site: Site) -> Iterator[Finding]:
        time.sleep(5)
        yield Finding("late", "ok", "")

    monkeypatch.setattr(doctor, "_disk", breaks)
    monkeypatch.setattr(doctor.state, "folder", hangs)
    monkeypatch.setattr(doctor, "_CHECK_SECONDS", 0.3)
    findings = look(folder)
    assert one(findings, "first").state == "ok"
    expect(findings, "disk", "fail", "raised RuntimeError", "report")
    expect(findings, "state folder", "fail", "not done after 0.3 s", "network")


def test_what_a_gate_would_refuse_because_of_its_state(folder: Path) -> None:
    """The quick version of ``test_doctor_states.py``."""
    state, study = state_of(folder), make_study(sites=("oslo", "porto"))
    approve(state, study, "Dr. A")
    assert one(look(folder), "approvals").state == "ok"
    (state / "approvals.json").write_text((state / "approvals.json").read_text().replace(study.sha256, "ab" * 32))
    expect(look(folder), "approvals", "fail", "has no entry in the journal", "who changed approvals.json")
    lines = (state / "journal.jsonl").read_text()
    (state / "journal.jsonl").write_text("")
    expect(look(folder), "journal", "fail", "had 1 entries and has 0", "restore")
    (state / "journal.jsonl").write_text(lines)
    (state / "ledger.db").write_text("no database")
    expect(look(folder), "ledger", "fail", "the privacy ledger", "restore it from a backup")
    state.chmod(0o777)
    expect(look(folder), "state folder", "fail", "no approval counts", "chmod go-w")
