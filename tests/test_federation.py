"""A real federation on loopback: TLS SuperLink with a database, registered node keys, one gated process a site. Nothing is mocked.

Attackers here have what they would have: the SuperLink's submit right (any server app) and the network.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import command, run_json

from clients.journal import Entry, entries, verify
from fedml.flower.keys import write_node_key
from fedml.flower.superlink import command_path, environment, free_ports, stop_group
from fedml.runlog import read_events

pytestmark = pytest.mark.long

SITES = ("porto", "oslo", "utrecht")
STUDY = """
[study]
name = "trial"
question = "Does the federation work?"
purpose = "DUO:0000042"
seed = 4
[cohort]
inputs = ["clinical"]
target = "sick"
[cohort.clinical]
columns = ["age", "crp"]
[training]
lr = 0.05
[federation]
sites = ["oslo", "porto", "utrecht"]
rounds = 2
quorum = 2
timeout = 40
"""


def make_site(folder: Path, name: str, seed: int) -> None:
    """A hospital of 60 persons with two clinical columns."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(60, 2))
    y = (x.sum(1) + generator.normal(size=60) > 0).astype(int)
    folder.mkdir(parents=True)
    ids = [f"{name}-{i:03d}" for i in range(60)]
    (folder / "persons.csv").write_text("id,sick\n" + "".join(f"{i},{v}\n" for i, v in zip(ids, y, strict=True)))
    (folder / "clinical.csv").write_text("id,age,crp\n" + "".join(f"{i},{a:.4f},{b:.4f}\n" for i, (a, b) in zip(ids, x, strict=True)))
    manifest = f'[site]\nname = "{name}"\n[data]\npersons = "persons.csv"\nclinical = {{ path = "clinical.csv" }}\n'
    (folder / "site.toml").write_text(manifest)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a federation of three sites that is up, and a study that all three approved."""
    folder = tmp_path_factory.mktemp("federation")
    for number, name in enumerate(SITES):
        make_site(folder / "sites" / name, name, number)
    (folder / "trial.toml").write_text(STUDY)
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=folder)
    try:
        assert done.returncode == 0, done.stderr
        for name in SITES:
            told = command("fedml-site", "approve", "trial.toml", "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", cwd=folder)
            assert told.returncode == 0, told.stderr
            assert "Leaves a site" in told.stdout
        yield folder
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=folder)


def journal(work: Path, site: str) -> list[Entry]:
    """All entries of a site's journal, after a check of the chain."""
    path = work / "sites" / site / ".fedml" / "journal.jsonl"
    assert verify(path) == []
    return list(entries(path))


def deploy(work: Path, study: str = "trial.toml", *more: str) -> subprocess.CompletedProcess[str]:
    """``fedml run`` on the real sites."""
    words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json", *more)
    return command("fedml", "run", study, *words, cwd=work)


def test_deployment_equals_local_to_the_bit(work: Path) -> None:
    done = deploy(work)
    assert done.returncode == 0, done.stderr
    real = json.loads(done.stdout.strip().splitlines()[-1])
    local = run_json("trial.toml", "--sites", "sites", "--no-track", cwd=work)
    assert real["weights_sha256"] == local["weights_sha256"]
    assert real["metrics"] == local["metrics"]
    assert real["sites"] == local["sites"]
    assert all(site["rounds"] == 2 for site in real["sites"].values())
    events = [json.loads(line) for line in (work / real["folder"] / "events.jsonl").read_text().splitlines()]
    final = next(e for e in events if e["event"] == "final")
    for name in SITES:
        head, count = final["sites"][name]["journal"]
        path = work / "sites" / name / ".fedml" / "journal.jsonl"
        assert verify(path, head, count) == []
        lines = path.read_text().splitlines(keepends=True)
        cut = work / "cut.jsonl"
        cut.write_text("".join(lines[: count - 1]))
        assert verify(cut, head, count), "a journal that ends before the reported head must be found"


def test_a_study_changed_by_a_character_is_refused(work: Path) -> None:
    (work / "changed.toml").write_text(STUDY.replace("lr = 0.05", "lr = 0.06"))
    done = deploy(work, "changed.toml")
    assert done.returncode == 1
    assert all(f"{name} (not-approved)" in done.stderr for name in SITES), done.stderr
    for name in SITES:
        last = journal(work, name)[-1]
        assert (last.verdict, last.reason, last.direction) == ("refused", "not-approved", "in")


def test_an_approval_can_be_withdrawn_and_the_run_names_the_site(work: Path) -> None:
    told = command("fedml-site", "revoke", "trial", "--site", "sites/oslo", "--by", "Dr. Test", cwd=work)
    assert told.returncode == 0, told.stderr
    done = deploy(work, "trial.toml", "--set", "federation.quorum=2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["sites"]["oslo"]["rounds"] == 0
    assert result["sites"]["porto"]["rounds"] == 2
    assert journal(work, "oslo")[-1].reason == "not-approved"
    again = command("fedml-site", "approve", "trial.toml", "--site", "sites/oslo", "--yes", cwd=work)
    assert again.returncode == 0


EVIL_SERVER = '''
"""A server app that asks the sites for what it should not."""
import json, time
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
import numpy as np
server = ServerApp()
STUDY = {study!r}
OUT = {out!r}

def ask(grid, kind, content):
    nodes = list(grid.get_node_ids())
    replies = grid.send_and_receive([Message(content, n, kind) for n in nodes], timeout=40)
    return sorted(r.error.reason if r.has_error() else "ANSWERED" for r in replies)

@server.main()
def main(grid, context):
    config = lambda **more: ConfigRecord({{"study": STUDY, "phase": "describe", "round": 0, **more}})
    told = {{}}
    told["extra record"] = ask(grid, "query", RecordDict({{"config": config(), "more": ArrayRecord([np.zeros(3)])}}))
    told["undeclared key"] = ask(grid, "query", RecordDict({{"config": config(path="/etc/passwd")}}))
    told["pickle"] = ask(grid, "query", RecordDict({{"config": config(data=b"\\x80\\x04\\x95\\x10\\x00\\x00\\x00")}}))
    told["unknown study"] = ask(grid, "query", RecordDict({{"config": ConfigRecord({{"study": "{{}}", "phase": "describe", "round": 0}})}}))
    told["not ours"] = ask(grid, "train", RecordDict({{"config": ConfigRecord({{"lr": 0.1}})}}))
    lying = ArrayRecord([np.zeros(3)])
    from flwr.app import Array
    header = np.lib.format.magic(1, 0)
    import io
    out = io.BytesIO(); np.lib.format.write_array_header_1_0(out, {{"descr": "<f4", "fortran_order": False, "shape": (2_500_000_000,)}})
    ten_gigabytes = Array("float32", (2_500_000_000,), "numpy.ndarray", out.getvalue() + bytes(12))
    agreement = ArrayRecord({{"panel": ten_gigabytes}})
    told["ten gigabytes"] = ask(grid, "query", RecordDict(
        {{"config": ConfigRecord({{"study": STUDY, "phase": "statistics", "round": 0}}), "agreement": agreement}}))
    told["good"] = ask(grid, "query", RecordDict({{"config": config()}}))
    told["replayed"] = ask(grid, "query", RecordDict({{"config": config()}}))
    open(OUT, "w").write(json.dumps(told))
'''
EVIL_CLIENT = """
open({trap!r}, "w").write("imported")
from flwr.clientapp import ClientApp
client = ClientApp()
@client.query()
def query(message, context):
    open({trap!r}, "w").write(open({persons!r}).read())
"""
APP = """
[project]
name = "evil"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "evil_server:server"
clientapp = "evil_client:client"
[tool.flwr.app.config]
"""


def test_what_a_hostile_server_asks_is_refused_and_its_code_never_runs(work: Path) -> None:
    from fedml.study import read_study

    app, out, trap = work / "evil", work / "told.json", work / "trap.txt"
    app.mkdir()
    study = read_study(work / "trial.toml").canonical
    (app / "pyproject.toml").write_text(APP)
    (app / "evil_server.py").write_text(EVIL_SERVER.format(study=study, out=str(out)))
    (app / "evil_client.py").write_text(EVIL_CLIENT.format(trap=str(trap), persons=str(work / "sites" / "oslo" / "persons.csv")))
    before = {name: len(journal(work, name)) for name in SITES}
    home = (work / "sites" / ".federation").resolve()
    sent = subprocess.run(
        [command_path("flwr"), "run", str(app), "own"], env=environment(home), capture_output=True, text=True, timeout=120, check=False
    )
    assert sent.returncode == 0, sent.stderr + sent.stdout
    deadline = time.monotonic() + 240
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    told = json.loads(out.read_text())
    expected = {
        "extra record": "undeclared-record",
        "undeclared key": "undeclared-record",
        "pickle": "undeclared-record",
        "unknown study": "bad-message",
        "not ours": "bad-message",
        "ten gigabytes": "bad-message",
        "good": "ANSWERED",
        "replayed": "replayed",
    }
    assert told == {attack: [code] * 3 for attack, code in expected.items()}
    assert not trap.exists(), "the app's client code was run at a site"
    for name in SITES:
        new = journal(work, name)[before[name] :]
        assert [e.reason for e in new if e.verdict == "refused"] == [v for v in expected.values() if v != "ANSWERED"]
    done = deploy(work)
    assert done.returncode == 0, "the federation must go on afterwards"


def test_a_stranger_and_a_plain_connection_are_turned_away(work: Path, tmp_path: Path) -> None:
    port = json.loads((work / "sites" / ".federation" / "nodes.json").read_text())["port"]
    write_node_key(tmp_path / "stranger.key")
    common = [command_path("flower-supernode"), "--superlink", f"127.0.0.1:{port}", "--isolation", "process", "--max-retries", "1"]
    tls = ["--root-certificates", str(work / "sites" / ".federation" / "ca.pem")]
    stranger = subprocess.run(
        [*common, *tls, "--auth-supernode-private-key", str(tmp_path / "stranger.key"), "--port", str(free_ports(1)[0])],
        env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert stranger.returncode != 0
    assert "305" in stranger.stdout + stranger.stderr
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        plain.settimeout(5)
        with suppress(OSError):  # closed on us: as good
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")


def test_sites_find_a_restarted_superlink_by_themselves(work: Path) -> None:
    from experiments.federation import read_running, restart_superlink

    before = read_running(work / "sites")
    assert before
    os.killpg(before.superlink, signal.SIGKILL)
    restart_superlink(work / "sites")
    after = read_running(work / "sites")
    assert after
    assert after.superlink != before.superlink
    assert after.sites == before.sites
    done = deploy(work)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert all(site["rounds"] == 2 for site in told["sites"].values())


def test_a_site_killed_in_mid_study_is_named_and_takes_part_again(work: Path) -> None:
    from clients.site import read_site
    from clients.start import running
    from experiments.federation import start_site

    long = STUDY.replace("timeout = 40", "timeout = 12").replace("rounds = 2", "rounds = 16").replace('"trial"', '"long"')
    (work / "long.toml").write_text(long)
    for name in SITES:
        assert command("fedml-site", "approve", "long.toml", "--site", f"sites/{name}", "--yes", cwd=work).returncode == 0
    site, again = work / "sites" / "oslo", 0
    process = running(site / ".fedml")
    assert process
    words = ["run", "long.toml", "--engine", "deployment", "--superlink", "sites", "--no-track", "--runs", "killed"]
    run = subprocess.Popen([command_path("fedml"), *words], cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not rounds_of(work / "killed"):
            time.sleep(0.2)
        os.killpg(process, signal.SIGKILL)
        again = start_site(read_site(site))
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
        took_part = [("oslo" in e["sites"], e["refused"]) for e in rounds_of(work / "killed")]
        assert len(took_part) == 16
        assert took_part[0] == (True, {})
        assert (False, {"oslo": "no-answer"}) in took_part
        assert took_part[-1] == (True, {}), "restarted, it takes part in the next rounds"
        assert verify(site / ".fedml" / "journal.jsonl") == []
    finally:
        run.kill()
        if again:
            stop_group(again)


def rounds_of(runs: Path) -> list[dict[str, Any]]:
    """The round events of the one run in a folder."""
    return [e for folder in runs.glob("*") for e in read_events(folder)[0] if e["event"] == "round"]
