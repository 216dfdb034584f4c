"""A complete federation on this machine, for trying and testing: a coordinating centre
(``fedml.experiments.federation.centre``) and one process a site.
Everything is what a real federation has, on loopback.

    DIR/.federation/    the centre's folder; superlink.log; running.json: what is up
    DIR/<site>/         the site's own folder; its key, and its state in .fedml/
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedml.clients.service import running
from fedml.clients.site.manifest import Site, read_site
from fedml.errors import InputError, RunError
from fedml.experiments.federation.centre import TRIAL, find_home, make_centre, read_centre, register, registered, superlink_options
from fedml.flower.keys import write_node_key
from fedml.flower.superlink import free_ports, log_tail, start_superlink, stop_group
from fedml.runs.log import write_whole

RECORD = "running.json"
_HOST = "127.0.0.1"
_START_SECONDS, _STOP_SECONDS = 90, 30


@dataclass(frozen=True)
class Running:
    """What is up: the SuperLink's process and port, each site's process."""

    superlink: int
    port: int
    sites: dict[str, int]


def home_of(sites: Path) -> Path:
    """The federation's folder beside its sites, as an absolute path: Flower wants one."""
    return sites.resolve() / TRIAL


def all_sites(folder: Path) -> dict[str, Site]:
    """Every site in ``folder``. Raises ``InputError`` if there is none."""
    found = {site.name: site for site in (read_site(m) for m in sorted(folder.glob("*/site.toml")))}
    if not found:
        raise InputError(f"{folder}: holds no folder with a site.toml; make some with `fedml synth` or `fedml prepare`.")
    return found


def up(folder: Path, say: Callable[[str], None]) -> Running:
    """Starts the federation of the sites in ``folder``; what was there before (keys, database, approvals) is kept.

    Raises:
        InputError: no sites, or it is up already.
        RunError: the SuperLink or a site did not come up; what was started is stopped again.
    """
    sites, home = all_sites(folder), home_of(folder)
    if read_running(folder) is not None:
        raise InputError(f"{folder}: its federation is up already; stop it with `fedml federation down --sites {folder}`.")
    if find_home(home) is None:
        port, control = free_ports(2)
        make_centre(home, _HOST, port, control=control)
    port = read_centre(home).port
    superlink = _superlink(home)
    processes: dict[str, int] = {}
    try:
        say(f"SuperLink on {_HOST}:{port} (TLS, node keys required)")
        known = {node.name for node in registered(home)}
        for name, site in sites.items():
            _join(site, home, port)
            if name not in known:
                register(home, name, site.folder / "node.key.pub")
                say(f"registered the key of {name}")
        for name, site in sites.items():
            processes[name] = start_site(site)
        _wait_online(sites)
    except BaseException:
        stop_group(superlink.pid)
        for process in processes.values():
            stop_group(process)
        raise
    state = Running(superlink.pid, port, processes)
    write_whole(home / RECORD, json.dumps(asdict(state)).encode())
    for name in sites:
        say(f"{name} is up")
    return state


def _superlink(home: Path) -> subprocess.Popen[bytes]:
    port, arguments, public = superlink_options(home, _HOST)
    process = start_superlink(home, port, arguments, public)
    deadline, why = time.monotonic() + _START_SECONDS, ""
    while time.monotonic() < deadline and process.poll() is None:
        try:
            registered(home)
            with socket.create_connection((_HOST, read_centre(home).port), timeout=5):
                return process
        except (RunError, OSError) as error:
            why = str(error)
        time.sleep(0.2)
    stop_group(process.pid)
    raise RunError(f"the SuperLink did not start: {why} {log_tail(home)}")


def _join(site: Site, home: Path, port: int) -> None:
    """Gives the site its key, the authority's certificate and a ``[connection]``, as an administrator would by hand."""
    if not (site.folder / "node.key").exists():
        write_node_key(site.folder / "node.key")
    shutil.copyfile(home / "ca.pem", site.folder / "ca.pem")
    if site.manifest.connection is None:
        with site.file.open("a", encoding="utf-8") as file:
            file.write(f'\n[connection]\nsuperlink = "127.0.0.1:{port}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')


def start_site(site: Site) -> int:
    """``fedml-site start`` as a process group of its own; returns its process id."""
    site.state.mkdir(mode=0o700, exist_ok=True)
    with (site.state / "start.log").open("ab") as out:
        command = [sys.executable, "-P", "-m", "fedml.clients.cli", "start", "--site", str(site.file.resolve())]
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True).pid


def _wait_online(sites: dict[str, Site]) -> None:
    """Until every site's SuperNode has its id from the SuperLink."""
    deadline = time.monotonic() + _START_SECONDS
    waiting = dict(sites)
    while waiting and time.monotonic() < deadline:
        for name, site in list(waiting.items()):
            log = site.state / "supernode.log"
            if log.exists() and "SuperNode ID:" in log.read_text(errors="replace"):
                del waiting[name]
        time.sleep(0.2)
    if waiting:
        name, site = next(iter(waiting.items()))
        tail = (site.state / "start.log").read_text(errors="replace").strip().splitlines()[-1:]
        raise RunError(f"{', '.join(waiting)} did not come up; {name} says: {' '.join(tail) or 'nothing yet'}")


def read_running(folder: Path) -> Running | None:
    """What is up in ``folder``, None if nothing is."""
    try:
        told = json.loads((home_of(folder) / RECORD).read_text())
        os.kill(told["superlink"], 0)
        return Running(told["superlink"], told["port"], told["sites"])
    except (OSError, ValueError, KeyError):
        return None


def down(folder: Path, say: Callable[[str], None]) -> None:
    """Stops sites first, then the SuperLink. Only processes that ``up`` started."""
    path = home_of(folder) / RECORD
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no federation is up there.") from error
    for process in told["sites"].values():  # all are asked before any is waited for
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGTERM)
    for name, process in told["sites"].items():
        stop_group(running(read_site_state(folder, name)) or process, _STOP_SECONDS)
        say(f"{name} is down")
    stop_group(told["superlink"])
    path.unlink(missing_ok=True)
    say("the SuperLink is down")


def read_site_state(folder: Path, name: str) -> Path:
    """The state folder of a site by its name."""
    return all_sites(folder)[name].state


def status(folder: Path) -> str:
    """What is up, as text."""
    state = read_running(folder)
    if state is None:
        return f"{folder}: no federation is up"
    lines = [f"SuperLink on 127.0.0.1:{state.port} (process {state.superlink})"]
    for name, site in all_sites(folder).items():
        process = running(site.state)
        lines.append(f"  {name}: " + (f"up (process {process})" if process else "down"))
    return "\n".join(lines)
