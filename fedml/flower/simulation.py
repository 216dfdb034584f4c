"""The simulation engine: the same two apps through ``flwr run`` in Flower's simulation runtime on Ray.

A SuperLink of our own on loopback, with its own folder for Flower's files, lives as long as the run. Uses the layout of Flower's
connection file (``$FLWR_HOME/config.toml``) and the names of its commands; written for flwr 1.41.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedml.errors import RunError

_START_SECONDS = 60
_APP = """\
[project]
name = "fedml-simulation"
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


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _command(name: str) -> str:
    """Flower's command beside this Python, or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise RunError(f"{name} is not installed beside {sys.executable}; install flwr[simulation].")
    return found


@contextmanager
def _superlink(home: Path, environment: Mapping[str, str], control: int, runtime: int) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink in simulation mode on loopback; it and all it started end with the block."""
    command = [_command("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"]
    command += ["--control-api-address", f"127.0.0.1:{control}", "--port", str(runtime), "--database", str(home / "state.db")]
    command += ["--disable-runtime-dependency-installation"]
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log, start_new_session=True, cwd=home)
    try:
        yield process
    finally:
        for sign, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
            try:
                os.killpg(process.pid, sign)
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                break


def run_simulation(
    apps: Mapping[str, str], config: Mapping[str, str], nodes: int, *, cpus_per_node: int, finished: Callable[[], bool], debug: bool = False
) -> None:
    """Runs the apps in Flower's simulation and returns when ``finished()`` says so.

    Args:
        apps: import paths (``module:name``) of ``server`` and ``client``.
        config: the run's configuration.
        nodes: simulated SuperNodes.
        cpus_per_node: CPUs that Ray sets aside for each.
        finished: asked a few times a second, true once the run has left its last event.

    Raises:
        RunError: Flower could not be started, or ended without the run's last event.
    """
    home = Path(tempfile.mkdtemp(prefix="fedml-simulation-"))
    try:
        app = home / "app"
        app.mkdir()
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())  # a JSON string is a TOML string
        (app / "pyproject.toml").write_text(_APP.format(config=lines))
        # Flower looks for an assignment to the name in the module's text, so an import alone would not do.
        lines = "".join(f"import {path.partition(':')[0]}\n{name} = {path.replace(':', '.')}\n" for name, path in apps.items())
        (app / "fedml_apps.py").write_text(lines)
        control, runtime = _free_ports(2)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n[superlink.own]\naddress = "127.0.0.1:{runtime}"\ninsecure = true\n'
        )
        paths = os.pathsep.join(p for p in [str(Path(sys.executable).parent), os.environ.get("PATH", "")] if p)
        environment = {**os.environ, "FLWR_HOME": str(home), "PATH": paths, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with _superlink(home, environment, control, runtime) as superlink:
            _submit(home, app, environment, nodes, cpus_per_node, superlink)
            while not finished():
                if superlink.poll() is not None:
                    raise RunError(f"Flower's SuperLink ended by itself: {_tail(home)}")
                if "Simulation` process has finished" in (log := _log(home)) or "raised an exception" in log:
                    time.sleep(2)  # its last event may still be on its way to the disk
                    if not finished():
                        raise RunError(f"Flower's simulation ended before the study did: {_tail(home)}")
                time.sleep(0.2)
    finally:
        if debug:
            print(f"Flower's files: {home}", file=sys.stderr)
        else:
            shutil.rmtree(home, ignore_errors=True)


def _submit(home: Path, app: Path, environment: Mapping[str, str], nodes: int, cpus: int, superlink: subprocess.Popen[bytes]) -> None:
    """``flwr run``, repeated while the SuperLink is still starting."""
    federation = f"num-supernodes={nodes} client-resources-num-cpus={cpus} init-args-log-to-driver=false"
    command = [_command("flwr"), "run", str(app), "own", "--federation-config", federation]
    deadline = time.monotonic() + _START_SECONDS
    while True:
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            return
        if superlink.poll() is not None or time.monotonic() > deadline:
            raise RunError(f"flwr run failed: {(done.stderr or done.stdout).strip()[-600:]} {_tail(home)}")
        time.sleep(0.5)


def _log(home: Path) -> str:
    return (home / "superlink.log").read_text(errors="replace")


def _tail(home: Path) -> str:
    lines = [line for line in _log(home).splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-600:]
