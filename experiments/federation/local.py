"""A complete federation on this machine, for trials and tests: a coordinating centre (``fedml.experiments.federation.centre``) and one
process for each site. It has all parts of a real federation, on loopback.

    DIR/.federation/    the centre's folder; superlink.log; running.json: the running processes
    DIR/<site>/         the site's folder, with its key; its state is in .fedml/
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
    """The running federation: the SuperLink's process id and port, and each site's process id."""

    superlink: int
    port: int
    sites: dict[str, int]


def home_of(sites: Path) -> Path:
    """The centre's folder in the folder of the sites, as an absolute path, which Flower requires."""
    return sites.resolve() / TRIAL


def all_sites(folder: Path) -> dict[str, Site]:
    """Name -> site, for every site in ``folder``. Raises ``InputError`` if there is none."""
    found = {site.name: site for site in (read_site(m) for m in sorted(folder.glob("*/site.toml")))}
    if not found:
        raise InputError(f"{folder}: has no subfolder with a site.toml; create sites with `fedml synth` or `fedml prepare`.")
    return found


def up(folder: Path, say: Callable[[str], None]) -> Running:
    """Starts the federation of the sites in ``folder``. Existing keys, database and approvals are kept.

    Raises:
        InputError: ``folder`` has no sites, or its federation is already running.
        RunError: the SuperLink or a site did not start; all started processes are stopped again.
    """
    sites, home = all_sites(folder), home_of(folder)
    if read_running(folder) is not None:
        raise InputError(f"{folder}: its federation is already running; stop it with `fedml federation down --sites {folder}`.")
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
        before = {name: _joined(site) for name, site in sites.items()}
        for name, site in sites.items():
            processes[name] = start_site(site)
        _wait_online(sites, before, port)
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
    """Creates the site's key and adds the root certificate and a ``[connection]``, as an administrator would do by hand."""
    if not (site.folder / "node.key").exists():
        write_node_key(site.folder / "node.key")
    shutil.copyfile(home / "ca.pem", site.folder / "ca.pem")
    if site.manifest.connection is None:
        with site.file.open("a", encoding="utf-8") as file:
            file.write(f'\n[connection]\nsuperlink = "127.0.0.1:{port}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')


def start_site(site: Site) -> int:
    """Starts ``fedml-site start`` in a separate process group; returns its process id."""
    site.state.mkdir(mode=0o700, exist_ok=True)
    with (site.state / "start.log").open("ab") as out:
        command = [sys.executable, "-P", "-m", "fedml.clients.cli", "start", "--site", str(site.file.resolve())]
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True).pid


def _joined(site: Site) -> int:
    """How often the SuperLink let this site's SuperNode in, by the log."""
    log = site.state / "supernode.log"
    return log.read_text(errors="replace").count("SuperNode ID:") if log.exists() else 0


def _wait_online(sites: dict[str, Site], before: dict[str, int], port: int) -> None:
    """Waits until every site's SuperNode has received its id from the SuperLink. Raises ``RunError`` after ``_START_SECONDS``."""
    deadline = time.monotonic() + _START_SECONDS
    waiting = dict(sites)
    while waiting and time.monotonic() < deadline:
        waiting = {name: site for name, site in waiting.items() if _joined(site) in (0, before[name])}
        time.sleep(0.2)
    if waiting:
        site = next(iter(waiting.values()))
        asked = site.manifest.connection.superlink if site.manifest.connection else ""
        logs = (site.state / "start.log", site.state / "supernode.log")
        why = [f"last line of {log}: {lines[-1]}" for log in logs if (lines := _lines(log))]
        if asked not in ("", f"127.0.0.1:{port}"):
            why.append(f"{site.file}: [connection] superlink is {asked}, this federation's is 127.0.0.1:{port}; delete the section")
        raise RunError("; ".join([f"{', '.join(waiting)} did not start", *why]))


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").strip().splitlines() if log.exists() else []


def read_running(folder: Path) -> Running | None:
    """The running federation of ``folder``; None if it is not running."""
    try:
        record = json.loads((home_of(folder) / RECORD).read_text())
        os.kill(record["superlink"], 0)
        return Running(record["superlink"], record["port"], record["sites"])
    except (OSError, ValueError, KeyError):
        return None


def down(folder: Path, say: Callable[[str], None]) -> None:
    """Stops the sites first, then the SuperLink; only processes that ``up`` started."""
    path = home_of(folder) / RECORD
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no federation is running; start it with `fedml federation up --sites {folder}`.") from error
    for process in record["sites"].values():  # signal all sites before waiting for the first to end
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGTERM)
    for name, process in record["sites"].items():
        stop_group(running(read_site_state(folder, name)) or process, _STOP_SECONDS)
        say(f"{name} is down")
    stop_group(record["superlink"])
    path.unlink(missing_ok=True)
    say("the SuperLink is down")


def read_site_state(folder: Path, name: str) -> Path:
    """The state folder of the site ``name``."""
    return all_sites(folder)[name].state


def status(folder: Path) -> str:
    """The running processes, as text."""
    state = read_running(folder)
    if state is None:
        return f"{folder}: no federation is running"
    lines = [f"SuperLink on 127.0.0.1:{state.port} (process {state.superlink})"]
    for name, site in all_sites(folder).items():
        process = running(site.state)
        lines.append(f"  {name}: " + (f"up (process {process})" if process else "down"))
    return "\n".join(lines)
