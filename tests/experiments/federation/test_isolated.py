"""No command, and no process that a command starts, imports from the current folder: files there that have a library's name are not run."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import typer

from fedml.clients.cli import app as site_app
from fedml.experiments.cli import app as fedml_app
from fedml.flower.superlink import command_path, stop_group
from tests.command import ROOT, command
from tests.conftest import clinical_site, make_plan, to_toml
from tests.tracked import free_port

SITES = ("lund", "oslo")
# What we and our children import early: packages, and modules of the standard library that a module started with -m or -c would find here.
NAMES = (
    "mlflow", "flwr", "torch", "numpy", "fedml", "clients", "experiments", "strategies", "grpc", "uvicorn", "gunicorn", "fastapi", "ray",
    "pandas", "typer", "rich", "sqlite3", "logging", "socket", "signal", "threading", "pickle", "random", "json", "asyncio",
    "multiprocessing", "sitecustomize", "usercustomize",
)  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with sites, a study and the traps."""
    for seed, name in enumerate(SITES):
        clinical_site(tmp_path / "sites" / name, name, 60, seed + 1)
    (tmp_path / "toy.toml").write_text(to_toml(make_plan(sites=SITES)))
    for name in NAMES:
        trap = f"import sys\nwith open({str(tmp_path / 'sprung')!r}, 'a') as out:\n    out.write(f'{name} {{sys.orig_argv}}')\n"
        (tmp_path / f"{name}.py").write_text(f"{trap}raise ImportError('a trap')\n")
    return tmp_path


def run(work: Path, words: str, codes: tuple[int, ...] = (0,)) -> str:
    """Runs a command there; its output, after a check that no trap was sprung."""
    name, *rest = words.split()
    done = command(name, *rest, cwd=work, PYTHONPATH="")
    assert not (work / "sprung").exists(), f"{words}: {(work / 'sprung').read_text()}"
    assert done.returncode in codes, f"{words}: {done.stderr}"
    return done.stdout


@contextmanager
def service(work: Path, words: str, ready: Callable[[], object]) -> Iterator[None]:
    """A command that runs until it is stopped, from when it is ready."""
    name, *rest = words.split()
    with (work / "service.log").open("wb") as log:
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}, "PYTHONPATH": ""}
        process = subprocess.Popen([command_path(name), *rest], cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not ready():
            assert not (work / "sprung").exists(), f"{words}: {(work / 'sprung').read_text()}"
            assert process.poll() is None, (work / "service.log").read_text()
            assert time.monotonic() < until, f"{words}: {(work / 'service.log').read_text()}"
            time.sleep(0.2)
        yield
        os.kill(process.pid, signal.SIGTERM)
        process.wait(60)
    finally:
        stop_group(process.pid)
    assert not (work / "sprung").exists(), f"{words}: {(work / 'sprung').read_text()}"


def answers(port: int) -> bool:
    """Whether something listens at the port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def pages(port: int) -> bool:
    """Whether MLflow's pages are served: its workers have imported MLflow."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def test_a_run_and_what_it_starts(work: Path) -> None:
    told = json.loads(run(work, "fedml run toy.toml --sites sites --json").strip().splitlines()[-1])
    assert told["mlflow_run_id"], "the process that records it was started"
    run(work, "fedml-site check toy.toml --site sites/lund")


def test_a_trap_is_seen(work: Path) -> None:
    """The traps work: a module started the usual way runs them."""
    subprocess.run([command_path("python"), "-m", "json.tool", "--help"], cwd=work, capture_output=True, check=False)
    assert (work / "sprung").exists()


@pytest.mark.long
def test_mlflows_pages(work: Path) -> None:
    port = free_port()
    with service(work, f"fedml ui --port {port}", lambda: pages(port)):
        pass


def names(group: object, path: str) -> Iterator[str]:
    """Every command of a parser."""
    inner = getattr(group, "commands", None)
    if inner is None:
        yield path
    else:
        for name, each in inner.items():
            yield from names(each, f"{path} {name}")


@pytest.mark.long
def test_every_command(work: Path) -> None:
    port, ui = free_port(), free_port()
    ran = []

    def go(words: str, *codes: int) -> str:
        ran.append(words)
        return run(work, words, codes or (0,))

    go("fedml synth out --sites 2 --persons 30")
    go("fedml prepare heart --out heart --data nowhere", 1, 2)
    go("fedml check toy.toml")
    folder = json.loads(go("fedml run toy.toml --sites sites --json").strip().splitlines()[-1])["folder"]
    go("fedml run toy.toml --sites sites --engine simulation --no-track")
    go("fedml preflight toy.toml --sites sites")
    go("fedml gwas toy.toml --sites sites", 2)
    go("fedml genes toy.toml --sites sites", 2)
    go("fedml frequencies run toy.toml --sites sites", 2)
    go("fedml frequencies serve nowhere", 2)
    go("fedml schema")
    go("fedml new made --table nowhere.csv", 2)
    go("fedml import nowhere.csv", 2)
    go("fedml sweep toy.toml --sites sites", 2)
    go(f"fedml predict {folder} --sites sites", 0, 2)
    go(f"fedml evaluate {folder} toy.toml --sites sites", 0, 2)
    go(f"fedml prs {folder}", 2)
    go(f"fedml export-adjustment {folder}", 2)
    go(f"fedml track {folder}")
    go(f"fedml promote {folder}", 0, 1)
    with service(work, f"fedml ui --port {ui}", lambda: pages(ui)):
        ran.append("fedml ui")
    go("fedml compare toy.toml --sites sites --baselines pooled,local --seeds 0")
    go(f"fedml audit {folder} --sites sites", 0, 1, 2)
    go(f"fedml report {folder}")
    go(f"fedml export-score {folder}", 2)
    go("fedml-site key --site sites/lund --out signing.key", 0, 2)
    go(f"fedml bundle {folder} -o run.zip", 0, 2)
    go("fedml verify run.zip", 0, 1, 2)
    go("fedml reproduce run.zip --sites sites", 0, 1, 2)
    go(f"fedml federation init --home centre --host 127.0.0.1 --port {port}")
    with service(work, "fedml federation start --home centre --listen 127.0.0.1", lambda: answers(port)):
        ran.append("fedml federation start")
        go("fedml federation register lund signing.key.pub --home centre", 0, 2)
        go("fedml federation list --home centre")
        go("fedml federation remove lund --home centre", 0, 2)
    go("fedml federation up --sites sites")
    try:
        go("fedml federation status --sites sites")
        for name in SITES:
            go(f"fedml-site approve toy.toml --site sites/{name} --yes")
        go("fedml run toy.toml --engine deployment --superlink sites --no-track")
    finally:
        go("fedml federation down --sites sites")
    node = work / "sites" / "lund" / ".fedml" / "supernode.log"
    before = node.stat().st_size
    with service(work, "fedml-site start --site sites/lund", lambda: node.stat().st_size > before):
        ran.append("fedml-site start")
        go("fedml-site doctor --site sites/lund", 0, 1, 2)
        go("fedml-site status --site sites/lund", 0, 1)
    go("fedml-site start --site sites/lund --dry-run --study toy.toml", 0, 1, 2)
    go("fedml-site init malmo --out malmo.toml")
    go("fedml-site check toy.toml --site sites/lund")
    go("fedml-site data --site sites/lund", 0, 1)
    go("fedml-site preview toy.toml --site sites/lund", 0, 2)
    go("fedml-site revoke toy --site sites/lund", 0, 2)
    go("fedml-site score nowhere.txt --site sites/lund", 2)
    go("fedml-site adjust nowhere.json --site sites/lund --table nowhere.csv score", 2)
    go("fedml-site journal show --site sites/lund")
    go("fedml-site journal verify --site sites/lund")
    go("fedml-site ledger show --site sites/lund")
    go("fedml-site remove --site sites/lund --yes")
    known = {*names(typer.main.get_command(fedml_app), "fedml"), *names(typer.main.get_command(site_app), "fedml-site")}
    missed = {name for name in known if not any(words == name or words.startswith(f"{name} ") for words in ran)}
    assert not missed, f"add these commands to this test: {missed}"


def test_no_process_is_started_with_the_current_folder_first() -> None:
    """Wherever a command line of Python has ``-m``, ``-P`` or ``-I`` stands before it."""
    found = 0
    for wing in ("fedml", "clients", "strategies", "experiments"):
        for path in sorted((ROOT / wing).rglob("*.py")):
            if "bench" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                words = [getattr(e, "value", None) for e in node.elts] if isinstance(node, ast.List | ast.Tuple) else []
                if "-m" in words:
                    found += 1
                    assert "-P" in words[: words.index("-m")], f"{path.relative_to(ROOT)}, line {node.lineno}"
    assert found >= 8, "the command lines were found"
