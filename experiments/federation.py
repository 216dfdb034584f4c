"""A complete federation on this machine, for trying and testing: own authority, TLS SuperLink with a database, node keys registered, one
process a site. Everything is what a real federation has, on loopback.

    DIR/.federation/    ca.pem, server certificate, state.db, superlink.log, config.toml (Flower's connection "own"), federation.json
    DIR/<site>/         the site's own folder; its key, and its state in .fedml/
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clients.site import Site, read_site
from clients.start import running
from fedml.errors import InputError, RunError
from fedml.flower.keys import write_authority, write_node_key
from fedml.flower.superlink import (
    CONNECTION,
    command_path,
    environment,
    free_ports,
    log_tail,
    start_superlink,
    stop_group,
    write_connection,
)
from fedml.runlog import write_whole

FOLDER, RECORD = ".federation", "federation.json"
_START_SECONDS, _STOP_SECONDS = 90, 30


@dataclass(frozen=True)
class Running:
    """What is up: the SuperLink's process and port, each site's process."""

    superlink: int
    port: int
    sites: dict[str, int]


def home_of(sites: Path) -> Path:
    """The federation's folder beside its sites, as an absolute path: Flower wants one."""
    return sites.resolve() / FOLDER


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
    home.mkdir(mode=0o700, exist_ok=True)
    if not (home / "ca.pem").exists():
        write_authority(home)
    known = json.loads((home / "nodes.json").read_text()) if (home / "nodes.json").exists() else {}
    port = known.get("port") or free_ports(1)[0]
    write_connection(home, f"127.0.0.1:{port}", home / "ca.pem")
    superlink = _superlink(home, port)
    processes: dict[str, int] = {}
    try:
        say(f"SuperLink on 127.0.0.1:{port} (TLS, node keys required)")
        registered = set(known.get("registered", []))
        for name, site in sites.items():
            _join(site, home, port)
            if name not in registered:
                _register(home, site.folder / "node.key.pub", name)
                registered.add(name)
                say(f"registered the key of {name}")
        write_whole(home / "nodes.json", json.dumps({"port": port, "registered": sorted(registered)}).encode())
        for name, site in sites.items():
            processes[name] = start_site(site)
        _wait_online(sites)
    except BaseException:
        stop_group(superlink.pid)
        for process in processes.values():
            stop_group(process)
        raise
    state = Running(superlink.pid, port, processes)
    write_whole(home / RECORD, json.dumps({"superlink": state.superlink, "port": port, "sites": processes}).encode())
    for name in sites:
        say(f"{name} is up")
    return state


def _superlink(home: Path, port: int) -> subprocess.Popen[bytes]:
    tls = ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
    process = start_superlink(home, port, [*tls, "--enable-supernode-auth"])
    deadline, why = time.monotonic() + _START_SECONDS, ""
    listed = [command_path("flwr"), "supernode", "list", CONNECTION]
    while time.monotonic() < deadline and process.poll() is None:
        done = subprocess.run(listed, env=environment(home), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return process
        why = " ".join((done.stderr or done.stdout).split())[-300:]
        time.sleep(0.5)
    stop_group(process.pid)
    raise RunError(f"the SuperLink did not start: {why} {log_tail(home)}")


def restart_superlink(folder: Path) -> None:
    """Ends the SuperLink and starts it again on the same port and database: what a site has to survive."""
    home = home_of(folder)
    try:
        state = Running(**json.loads((home / RECORD).read_text()))  # the SuperLink itself may be gone already
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: no federation is up there.") from error
    stop_group(state.superlink)
    superlink = _superlink(home, state.port)
    write_whole(home / RECORD, json.dumps({"superlink": superlink.pid, "port": state.port, "sites": state.sites}).encode())


def _join(site: Site, home: Path, port: int) -> None:
    """Gives the site its key, the authority's certificate and a ``[connection]``, as an administrator would by hand."""
    if not (site.folder / "node.key").exists():
        write_node_key(site.folder / "node.key")
    shutil.copyfile(home / "ca.pem", site.folder / "ca.pem")
    if site.manifest.connection is None:
        with site.file.open("a", encoding="utf-8") as file:
            file.write(f'\n[connection]\nsuperlink = "127.0.0.1:{port}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')


def _register(home: Path, public_key: Path, name: str) -> None:
    command = [command_path("flwr"), "supernode", "register", str(public_key), CONNECTION, "--name", name]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RunError(f"the key of {name} could not be registered: {(done.stderr or done.stdout).strip()[-300:]}")


def start_site(site: Site) -> int:
    """``fedml-site start`` as a process group of its own; returns its process id."""
    site.state.mkdir(mode=0o700, exist_ok=True)
    with (site.state / "start.log").open("ab") as out:
        command = [sys.executable, "-m", "clients.cli", "start", "--site", str(site.file.resolve())]
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
