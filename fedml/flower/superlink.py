"""A SuperLink's process, connection file and submitted app, used by the simulation and the deployment engine.

Depends on the layout of Flower's connection file (``$FLWR_HOME/config.toml``) and of an app's ``pyproject.toml``, and on its commands; flwr
1.42.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedml.errors import RunError
from fedml.flower.parent import owned

CONNECTION = "own"
_SUBMIT_SECONDS = 60
_APP = """\
[project]
name = "fedml-study"
version = "0.1.0"
description = ""
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedml"

[tool.flwr.app.components]
serverapp = "fedml_apps:server"
clientapp = "fedml_apps:client"

[tool.flwr.app.config]
{config}
"""


def free_ports(count: int) -> list[int]:
    """``count`` ports on loopback that are free at the time of the call."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def command_path(name: str) -> str:
    """The path of a command, in this Python's folder or on PATH.

    Raises:
        RunError: the command is not installed.
    """
    local = Path(sys.executable).parent / name
    found = str(local) if local.exists() else shutil.which(name)
    if not found:
        raise RunError(f"{name} is not installed in {local.parent} or on PATH; install flwr[simulation].")
    return found


def environment(home: Path) -> dict[str, str]:
    """This process's environment with Flower's folder at ``home``, and with this Python's commands and packages on its paths."""
    paths = os.pathsep.join(p for p in [str(Path(sys.executable).parent), os.environ.get("PATH", "")] if p)
    return {**os.environ, "FLWR_HOME": str(home), "PATH": paths, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def write_connection(home: Path, address: str, root_certificate: Path | None) -> None:
    """Writes the connection file for Flower's command line; without a certificate the connection is not encrypted."""
    trust = "insecure = true" if root_certificate is None else f"root-certificates = {json.dumps(str(root_certificate))}"
    text = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "{address}"\n{trust}\n'
    (home / "config.toml").write_text(text)


def superlink_command(home: Path, port: int, arguments: Sequence[str], public: Sequence[str] = ()) -> list[str]:
    """The SuperLink's command line: listens on ``port`` of loopback only, with its database in ``home``.

    ``public``: options of ``fedml.flower.front``, for a SuperLink that nodes on other machines can reach; without them it is one of a
    simulation, which ends with this process.
    """
    begin = [sys.executable, "-P", "-m", *(["fedml.flower.front", *public] if public else ["fedml.flower.owned"])]
    begin += ["--host", "127.0.0.1", "--port", str(port), "--isolation", "subprocess", "--database", str(home / "state.db")]
    return [*begin, "--disable-runtime-dependency-installation", *arguments]


def start_superlink(home: Path, port: int, arguments: Sequence[str], public: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Starts ``superlink_command`` in a new process group, with its log in ``home``."""
    command = superlink_command(home, port, arguments, public)
    with (home / "superlink.log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment(home) if public else owned(environment(home)), stdout=log, stderr=log, start_new_session=True, cwd=home
        )


def stop_group(process_id: int, seconds: float = 15) -> None:
    """Ends a process group that this program started: SIGTERM, then SIGKILL after ``seconds``. A group that has ended is no error."""
    for sign, wait_seconds in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process_id, sign)
        except (ProcessLookupError, PermissionError):
            return
        until = time.monotonic() + wait_seconds
        while time.monotonic() < until:
            with suppress(ChildProcessError):
                os.waitpid(process_id, os.WNOHANG)  # reap the process if it is a child of this one
            try:
                os.killpg(process_id, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.05)


def write_app(app: Path, apps: Mapping[str, str], config: Mapping[str, str]) -> None:
    """Writes a Flower app to folder ``app`` that imports installed code: ``apps`` are import paths of ``server`` and ``client``."""
    app.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())  # a JSON string is a TOML string
    (app / "pyproject.toml").write_text(_APP.format(config=lines))
    # Flower searches the module's text for an assignment to the name, so an import alone is not enough.
    lines = "".join(f"import {path.partition(':')[0]}\n{name} = {path.replace(':', '.')}\n" for name, path in apps.items())
    (app / "fedml_apps.py").write_text(lines)


def submit(
    home: Path, app: Path, options: Sequence[str] = (), *, alive: Callable[[], bool] = lambda: True, connection: str = CONNECTION
) -> int:
    """Runs ``flwr run``, with retries while the SuperLink is starting; returns Flower's number of the run.

    Raises:
        RunError: Flower refuses the app, or the SuperLink does not answer within 60 s.
    """
    command = [command_path("flwr"), "run", str(app), connection, "--format", "json", *options]
    deadline = time.monotonic() + _SUBMIT_SECONDS
    while True:
        done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=120, check=False)
        if found := re.search(r'"run-id": "([0-9]+)"', done.stdout):  # with --format json the exit code is 0 after an error too
            return int(found[1])
        if not alive() or time.monotonic() > deadline:
            raise RunError(f"flwr run failed: {_plain(done.stderr or done.stdout)}")
        time.sleep(0.5)


def _plain(text: str) -> str:
    """Flower's message, in a box or in JSON, as one line of at most 500 characters."""
    with suppress(ValueError, TypeError, KeyError):
        text = json.loads(text)["error-message"]
    return " ".join("".join(c for c in text if c not in "╭╮╰╯│─").split())[-500:]


def log_text(home: Path) -> str:
    """The log of the SuperLink and its processes."""
    return (home / "superlink.log").read_text(errors="replace")


def log_tail(home: Path) -> str:
    """The last lines of the log, for an error message."""
    lines = [line for line in log_text(home).splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-600:]
