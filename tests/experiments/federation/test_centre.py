"""The coordinating centre: a real SuperLink with its two ports, the sites that may join, and certificates that a site would refuse."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from fedml.errors import InputError, RunError
from fedml.experiments.federation.centre import find_home, make_centre, read_centre, register, registered, remove
from fedml.flower.control import nodes
from fedml.flower.keys import check_certificate, key_fingerprint, read_public_key, write_authority, write_node_key
from fedml.flower.superlink import command_path, free_ports, stop_group, write_connection
from tests.command import quick as command


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A centre's folder whose SuperLink is up."""
    home = tmp_path_factory.mktemp("centre") / "home"
    port, control = free_ports(2)
    make_centre(home, "127.0.0.1", port, control=control)
    with (home / "superlink.log").open("wb") as log:
        words = [command_path("fedml"), "federation", "start", "--home", str(home), "--listen", "127.0.0.1"]
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            try:
                registered(home)
                with socket.create_connection(("127.0.0.1", port), timeout=5):
                    break
            except (RunError, OSError):
                time.sleep(0.2)
        else:
            pytest.fail((home / "superlink.log").read_text())
        yield home
        os.kill(process.pid, signal.SIGTERM)  # the process that was started is the SuperLink itself
        assert process.wait(30) == -signal.SIGTERM
    finally:
        stop_group(process.pid)


def status(home: Path, port: int, method: str, path: str, ca: Path) -> int:
    """The HTTP status at a port of the centre."""
    asked = HTTPSConnection("127.0.0.1", port, timeout=20, context=ssl.create_default_context(cafile=ca))
    try:
        asked.request(method, path, headers={"content-type": "application/protobuf"})
        return asked.getresponse().status
    finally:
        asked.close()


@pytest.mark.long
def test_what_commands_a_superlink_is_not_served_where_sites_come(centre: Path, tmp_path: Path) -> None:
    reported = read_centre(centre)
    public, own = centre / "ca.pem", centre / "control" / "ca.pem"
    hidden = [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/openapi.json",
        "/docs",
    ]
    odd = [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "//v1/control/list-nodes",
        "/v1/fleet/",
        "/v1/fleet/get-run/",
    ]
    for path in [*hidden, *odd]:
        assert {status(centre, reported.port, method, path, public) for method in ("GET", "POST")} == {404}, path
    assert status(centre, reported.control, "POST", "/v1/control/list-nodes", own) == 200, "Flower's port has no authentication"
    assert status(centre, reported.port, "GET", "/health", public) == 200
    assert status(centre, reported.port, "POST", "/v1/fleet/pull-messages", public) == 401
    write_connection(tmp_path, f"127.0.0.1:{reported.port}", public)
    with pytest.raises(RunError, match="404"):
        nodes(tmp_path)


@pytest.mark.long
def test_a_name_and_a_key_are_registered_once(centre: Path, tmp_path: Path) -> None:
    first, second = write_node_key(tmp_path / "first"), write_node_key(tmp_path / "second")
    reported = register(centre, "oslo", first)
    assert reported == key_fingerprint(read_public_key(first))
    shown = subprocess.run(["ssh-keygen", "-l", "-f", first], capture_output=True, text=True, check=True).stdout
    assert reported in shown.split()
    with pytest.raises(InputError, match="this key is registered as oslo"):
        register(centre, "porto", first)
    with pytest.raises(InputError, match='"oslo" is registered with another key'):
        register(centre, "oslo", second)
    with pytest.raises(InputError, match=r'no site "osl" is registered \(did you mean "oslo"'):
        remove(centre, "osl")
    row = command("fedml", "federation", "list", "--home", centre, cwd=tmp_path)
    assert row.returncode == 0, row.stderr
    assert row.stdout.splitlines()[1].split()[:3] == ["oslo", "never", "seen"]
    remove(centre, "oslo")
    assert registered(centre) == []
    with pytest.raises(InputError, match="this key was removed as oslo"):
        register(centre, "oslo", first)
    register(centre, "oslo", second)
    assert [node.name for node in registered(centre)] == ["oslo"]
    remove(centre, "oslo")


@pytest.mark.long
def test_a_second_superlink_reports_that_the_port_is_in_use(centre: Path, tmp_path: Path) -> None:
    done = command("fedml", "federation", "start", "--home", centre, cwd=tmp_path)
    assert done.returncode == 2
    assert "if the SuperLink is already running" in done.stderr


@pytest.mark.parametrize("text", [b"", b"no key", b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGq0r7CTsmhXrZ5GK7bqAyVOPhQHZN0yLvv9rVqJ2wDF a\n"])
def test_what_is_no_node_key_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "key.pub").write_bytes(text)
    with pytest.raises(InputError, match=r"key\.pub"):
        read_public_key(tmp_path / "key.pub")


def test_a_private_key_is_no_public_one(tmp_path: Path) -> None:
    write_node_key(tmp_path / "node.key")
    with pytest.raises(InputError, match=r"node\.key: is not an OpenSSH public key"):
        read_public_key(tmp_path / "node.key")


def test_a_certificate_is_tried_as_a_site_would(tmp_path: Path) -> None:
    for name, hosts in (("one", ("federation.example.org",)), ("two", ("federation.example.org",))):
        (tmp_path / name).mkdir()
        write_authority(tmp_path / name, hosts)
    (tmp_path / "old").mkdir()
    write_authority(tmp_path / "old", ("federation.example.org",), days=0)
    one, two, old = (tmp_path / name for name in ("one", "two", "old"))
    check_certificate("federation.example.org", one / "server.pem", one / "server.key", one / "ca.pem")
    wrong = {
        "Hostname mismatch": ("federation.example.com", one / "server.pem", one / "server.key", one / "ca.pem"),
        "are not a certificate and its key": ("federation.example.org", one / "server.pem", two / "server.key", one / "ca.pem"),
        "unable to get local issuer|self-signed|signature": (
            "federation.example.org",
            one / "server.pem",
            one / "server.key",
            two / "ca.pem",
        ),
        "expired": ("federation.example.org", old / "server.pem", old / "server.key", old / "ca.pem"),
        "has no certificate": ("federation.example.org", one / "server.pem", one / "server.key", one / "server.key"),
    }
    for why, given in wrong.items():
        with pytest.raises(InputError, match=why):
            check_certificate(*given)
    home = tmp_path / "home"
    with pytest.raises(InputError, match="would not accept the certificate"):
        make_centre(home, "elsewhere.example.org", certificate=(one / "server.pem", one / "server.key", one / "ca.pem"))
    assert not home.exists(), "nothing is left of a centre that cannot be made"


def test_a_centre_is_made_once_and_is_found(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = make_centre(home, "federation.example.org")
    assert (made.host, made.port, made.control) == ("federation.example.org", 9092, 9093)
    assert read_centre(home) == made
    assert home.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="is already a centre's folder"):
        make_centre(home, "federation.example.org")
    assert find_home(home) == home.resolve()
    assert find_home(tmp_path) is None
    done = command("fedml", "federation", "init", "--home", tmp_path / "b", "--host", "a.example.org", "--key", "k", cwd=tmp_path)
    assert done.returncode == 2
    assert "go together" in done.stderr
    for words in (("start",), ("list",), ("remove", "oslo")):
        done = command("fedml", "federation", *words, "--home", tmp_path / "none", cwd=tmp_path)
        assert (done.returncode, "is not a centre's folder" in done.stderr) == (2, True)
    (tmp_path / "study.toml").write_text('[study]\nname = "s"\n[cohort]\ninputs = ["image"]\ntarget = "y"\n[federation]\nsites = ["a"]\n')
    run = command("fedml", "run", "study.toml", "--engine", "deployment", "--superlink", tmp_path, "--no-track", cwd=tmp_path)
    assert (run.returncode, "is not a centre's folder" in run.stderr) == (2, True)
