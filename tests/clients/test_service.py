"""A site is run by one process, known by a lock that ends with it, and does not start with a key that others can read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedml.clients.service import PID_FILE, _claim, connection_of, running
from fedml.clients.site.manifest import read_site
from fedml.errors import InputError
from tests.command import ROOT
from tests.conftest import clinical_site

HOLD = """
import sys, time; from pathlib import Path; from fedml.clients.service import _claim
held = _claim(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)
"""
CHILD = "import time; from fedml.flower.parent import end_with_parent; end_with_parent(); print(1, flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-P', '-c', {CHILD!r}]); print(child.pid, flush=True); time.sleep(60)
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
        _claim(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert running(tmp_path) is None
    _claim(tmp_path).close()


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = python(PARENT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.readline()  # it watches
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.2)
    assert not alive(child)


def alive(process: int) -> bool:
    """Whether it is there, and not only waiting to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
