"""A site is run by one process, known by a lock that ends with it, and does not start with a key that others can read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedml.clients.service import PID_FILE, claim_site, connection_of, running
from fedml.clients.site import logs
from fedml.clients.site.manifest import read_site
from fedml.errors import InputError
from fedml.flower.keys import write_node_key
from fedml.flower.superlink import free_ports
from tests.command import ROOT
from tests.conftest import clinical_site
from tests.federated import wait_for

HOLD = """
import sys, time; from pathlib import Path; from fedml.clients.service import claim_site
held = claim_site(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)
"""
CHILD = (
    "import sys, time; time.sleep(float(sys.argv[1])); from fedml.flower.parent import end_with_parent; end_with_parent(); time.sleep(60)"
)
PARENT = f"""
import os, subprocess, sys, time; from fedml.flower.parent import owned
child = subprocess.Popen([sys.executable, '-P', '-c', {CHILD!r}, sys.argv[1]], env=owned(os.environ)); print(child.pid, flush=True)
time.sleep(60)
"""


def python(*words: str) -> subprocess.Popen[bytes]:
    """Python with this project on its path."""
    return subprocess.Popen([sys.executable, "-P", "-c", *words], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_does_not_start_a_site(tmp_path: Path, mode: int) -> None:
    manifest = clinical_site(tmp_path, "a", 30, 1)
    manifest.write_text(f'{manifest.read_text()}[connection]\nsuperlink = "localhost:1"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')
    for name in ("ca.pem", "node.key"):
        (tmp_path / name).write_text("x")
    (tmp_path / "node.key").chmod(mode)
    with pytest.raises(InputError, match=r"chmod 600 .*node\.key"):
        connection_of(read_site(tmp_path))
    (tmp_path / "node.key").chmod(0o600)
    assert connection_of(read_site(tmp_path)).key == "node.key"


def test_one_process_runs_a_site_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / PID_FILE).write_text(str(os.getpid()))  # left behind: the number is of a process that lives
    assert running(tmp_path) is None
    process = python(HOLD, str(tmp_path))
    assert process.stdout is not None
    process.stdout.readline()
    assert running(tmp_path) == process.pid
    with pytest.raises(InputError, match=f"process {process.pid}"):
        claim_site(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert running(tmp_path) is None
    claim_site(tmp_path).close()


@pytest.mark.parametrize("watches_after", [0, 3])
def test_a_child_ends_when_its_parent_is_killed(watches_after: float) -> None:
    """Also a child that was still importing when its parent ended."""
    parent = python(PARENT, str(watches_after))
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.2)
    assert not alive(child)


LIMITED = """
import sys; from pathlib import Path
import fedml.clients.site.logs as logs, fedml.clients.service as service, fedml.clients.waiting as waiting
from fedml.clients.site.manifest import read_site
logs.SITE_BYTES, logs.NODE_BYTES = 800, 800
waiting._FIRST_WAIT_SECONDS = waiting._LONGEST_WAIT_SECONDS = 0.1
service.run_site(read_site(Path(sys.argv[1])))
"""
OTHER_NODE = """
import itertools, sys
for n in itertools.count():
    print(f"line {n} \\x1b[31m" + "x" * 200, file=sys.stderr if n % 2 else sys.stdout, flush=True)
"""


def test_the_logs_of_a_node_that_never_stops_talking_are_bounded_and_private(tmp_path: Path) -> None:
    path = tmp_path / "supernode.log"
    path.write_text("of an earlier version\n")
    path.chmod(0o644)
    node = subprocess.Popen([sys.executable, "-c", OTHER_NODE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert node.stdout is not None
    copier = threading.Thread(target=logs.copy_lines, args=(node.stdout, logs.rotated(path, 5000, "%(message)s")), daemon=True)
    before = os.umask(0)
    try:
        copier.start()
        wait_for(lambda: path.with_name("supernode.log.5").exists(), lambda: str(list(tmp_path.iterdir())))
        time.sleep(0.5)
    finally:
        os.umask(before)
        node.kill()
        node.wait(10)
        copier.join(10)
    found = sorted(tmp_path.iterdir())
    assert len(found) == logs.OLD + 1
    assert all(file.stat().st_size <= 5000 for file in found)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in found)
    kept = list(logs.lines(path))
    numbers = [int(line.split()[1]) for line in kept]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "the newest lines, none lost, the oldest first"
    assert not {"\x1b", "\ufffd"} & set("".join(kept)), "colours are taken out"


@pytest.mark.long
def test_a_service_whose_node_fails_for_ever_does_not_fill_the_disk(tmp_path: Path) -> None:
    clinical_site(tmp_path, "a", 30, 1)
    (tmp_path / "ca.pem").write_text("no certificate")  # with which a SuperNode ends at once
    write_node_key(tmp_path / "node.key")
    with (tmp_path / "site.toml").open("a") as file:
        file.write(f'[connection]\nsuperlink = "127.0.0.1:{free_ports(1)[0]}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')
    process = python(LIMITED, str(tmp_path))
    state = tmp_path / ".fedml"
    try:
        log = state / "supernode.log"
        wait_for(lambda: len(logs.files(log)) > 2, lambda: "".join(logs.lines(log)), 150)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    for name in ("site.log", "supernode.log"):
        found = logs.files(state / name)
        assert 0 < len(found) <= logs.OLD + 1
        assert all(file.stat().st_size <= 800 and file.stat().st_mode & 0o777 == 0o600 for file in found)


def alive(process: int) -> bool:
    """Whether it is there, and not only waiting to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
