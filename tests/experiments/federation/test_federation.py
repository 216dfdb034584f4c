"""A real federation on loopback: TLS SuperLink with a database, registered node keys, one gated process a site. Nothing is mocked.

Attackers here have what they would have: the SuperLink's submit right (any server app) and the network.
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.gate.journal import Entry, entries, verify
from fedml.experiments.federation.centre import superlink_options
from fedml.experiments.federation.local import Running
from fedml.flower.keys import write_node_key
from fedml.flower.superlink import command_path, environment, free_ports, start_superlink, stop_group
from fedml.runs.log import read_events
from tests.command import command, run_json

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
    manifest = f'[site]\nname = "{name}"\n[data]\npersons = "persons.csv"\npublic = true\nclinical = {{ path = "clinical.csv" }}\n'
    manifest += "[policy]\nmax_evaluations = 20\n"  # one study runs with all sites, and without one: other weights
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
            reported = command("fedml-site", "approve", "trial.toml", "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", cwd=folder)
            assert reported.returncode == 0, reported.stderr
            assert "Leaves a site" in reported.stdout
        yield folder
    finally:
        for process in back:
            stop_group(process, 30)
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
    # The sites' node keys signed what they sent: a reader who has their public keys sees it in the bundle, and another key is found.
    assert command("fedml", "bundle", real["folder"], "-o", "run.zip", cwd=work, XDG_CONFIG_HOME=str(work / "config")).returncode == 0
    keys = [word for name in SITES for word in ("--site-key", f"{name}=sites/{name}/node.key.pub")]
    checked = command("fedml", "verify", "run.zip", "--json", *keys, cwd=work)
    assert checked.returncode == 0, checked.stderr
    texts = {check["name"]: check["text"] for check in json.loads(checked.stdout)["checks"]}
    assert texts["witnesses"].startswith(f"the last evaluation is signed by {len(SITES)} of {len(SITES)} sites' keys")
    wrong = command("fedml", "verify", "run.zip", "--site-key", f"{SITES[0]}=sites/{SITES[1]}/node.key.pub", cwd=work)
    assert (wrong.returncode, "--site-key has" in wrong.stderr) == (1, True), wrong.stderr


def test_a_study_changed_by_a_character_is_refused(work: Path) -> None:
    (work / "changed.toml").write_text(STUDY.replace("lr = 0.05", "lr = 0.06"))
    done = deploy(work, "changed.toml")
    assert done.returncode == 1
    assert all(f"{name} (not-approved)" in done.stderr for name in SITES), done.stderr
    for name in SITES:
        last = journal(work, name)[-1]
        assert (last.verdict, last.reason, last.direction) == ("refused", "not-approved", "in")


def test_a_study_that_one_site_never_approved_ends_with_its_name_or_goes_on_without_it(work: Path) -> None:
    (work / "new.toml").write_text(STUDY.replace('"trial"', '"new"'))
    for name in ("oslo", "porto"):
        assert command("fedml-site", "approve", "new.toml", "--site", f"sites/{name}", "--yes", cwd=work).returncode == 0
    go_on = deploy(work, "new.toml")
    assert go_on.returncode == 0, go_on.stderr
    reported = json.loads(go_on.stdout.strip().splitlines()[-1])
    assert {s: row["rounds"] for s, row in reported["sites"].items()} == {"oslo": 2, "porto": 2, "utrecht": 0}
    events = [json.loads(line) for line in (work / reported["folder"] / "events.jsonl").read_text().splitlines()]
    assert [e["refused"] for e in events if e["event"] == "round"] == [{"utrecht": "not-approved"}] * 2
    (work / "strict.toml").write_text(STUDY.replace('"trial"', '"new"').replace("quorum = 2", "quorum = 3"))
    for name in ("oslo", "porto"):
        assert command("fedml-site", "approve", "strict.toml", "--site", f"sites/{name}", "--yes", cwd=work).returncode == 0
    ended = deploy(work, "strict.toml")
    assert ended.returncode == 1
    assert "2 of 3 sites answered, the quorum is 3; missing: utrecht (not-approved)" in ended.stderr
    assert json.loads(ended.stdout.strip().splitlines()[-1])["status"] == "failed"
    assert journal(work, "utrecht")[-1].reason == "not-approved"


def test_a_study_of_one_site_runs_by_itself(work: Path) -> None:
    (work / "one.toml").write_text(STUDY.replace('["oslo", "porto", "utrecht"]', '["porto"]').replace("quorum = 2", "quorum = 1"))
    assert command("fedml-site", "approve", "one.toml", "--site", "sites/porto", "--yes", cwd=work).returncode == 0
    before = {name: len(journal(work, name)) for name in SITES}
    done = deploy(work, "one.toml")
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    assert (reported["status"], reported["sites"]["porto"]["rounds"]) == ("finished", 2)
    assert [len(journal(work, name)) - before[name] > 0 for name in SITES] == [True, False, False], "only the roster is written to"


def test_an_approval_can_be_withdrawn_and_the_run_names_the_site(work: Path) -> None:
    reported = command("fedml-site", "revoke", "trial", "--site", "sites/oslo", "--by", "Dr. Test", cwd=work)
    assert reported.returncode == 0, reported.stderr
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
import json, os, time
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
    reported = {{}}
    reported["extra record"] = ask(grid, "query", RecordDict({{"config": config(), "more": ArrayRecord([np.zeros(3)])}}))
    reported["undeclared key"] = ask(grid, "query", RecordDict({{"config": config(path="/etc/passwd")}}))
    reported["pickle"] = ask(grid, "query", RecordDict({{"config": config(data=b"\\x80\\x04\\x95\\x10\\x00\\x00\\x00")}}))
    wrong_study = ConfigRecord({{"study": "{{}}", "phase": "describe", "round": 0}})
    reported["unknown study"] = ask(grid, "query", RecordDict({{"config": wrong_study}}))
    reported["not ours"] = ask(grid, "train", RecordDict({{"config": ConfigRecord({{"lr": 0.1}})}}))
    lying = ArrayRecord([np.zeros(3)])
    from flwr.app import Array
    header = np.lib.format.magic(1, 0)
    import io
    out = io.BytesIO(); np.lib.format.write_array_header_1_0(out, {{"descr": "<f4", "fortran_order": False, "shape": (2_500_000_000,)}})
    ten_gigabytes = Array("float32", (2_500_000_000,), "numpy.ndarray", out.getvalue() + bytes(12))
    agreement = ArrayRecord({{"panel": ten_gigabytes}})
    reported["ten gigabytes"] = ask(grid, "query", RecordDict(
        {{"config": ConfigRecord({{"study": STUDY, "phase": "statistics", "round": 0}}), "agreement": agreement}}))
    reported["good"] = ask(grid, "query", RecordDict({{"config": config()}}))
    reported["replayed"] = ask(grid, "query", RecordDict({{"config": config()}}))
    open(OUT + ".part", "w").write(json.dumps(reported))
    os.rename(OUT + ".part", OUT)
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
    from fedml.study.read import read_study

    app, out, trap = work / "evil", work / "reported.json", work / "trap.txt"
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
    reported = json.loads(out.read_text())
    expected = {
        "extra record": "undeclared-record",
        "undeclared key": "undeclared-record",
        "pickle": "undeclared-record",
        "unknown study": "not-approved",
        "not ours": "bad-message",
        "ten gigabytes": "bad-message",
        "good": "ANSWERED",
        "replayed": "replayed",
    }
    assert reported == {attack: [code] * 3 for attack, code in expected.items()}
    assert not trap.exists(), "the app's client code was run at a site"
    for name in SITES:
        new = journal(work, name)[before[name] :]
        assert [e.reason for e in new if e.verdict == "refused"] == [v for v in expected.values() if v != "ANSWERED"]
    done = deploy(work)
    assert done.returncode == 0, "the federation must go on afterwards"


LEAKY_SITE = """
import sys
from pathlib import Path
import fedml.clients.work.known as known
from fedml.clients.service import run_site
from fedml.clients.site.manifest import read_site
real = known.execute
def leaky(asked, content, memory):
    reply = real(asked, content, memory)
    if "metrics" in reply:
        reply["metrics"]["oslo-001-is-sick"] = 1.0
    return reply
known.execute = leaky
run_site(read_site(Path(sys.argv[1])))
"""


def replaced(work: Path, name: str, start: Callable[[], subprocess.Popen[bytes]], check: Callable[[], None]) -> None:
    """Runs ``check`` while the process that ``start`` gives stands in for site ``name``; afterwards the site's own is back."""
    from fedml.clients.service import running
    from fedml.clients.site.manifest import read_site
    from fedml.experiments.federation.local import start_site

    site = read_site(work / "sites" / name)
    process = running(site.state)
    assert process
    stop_group(process, 30)
    other = start()
    try:
        check()
    finally:
        stop_group(other.pid, 30)
        back.append(start_site(site))
        assert deploy_until_all(work), "the federation must go on afterwards"


back: list[int] = []  # sites that a test restarted


def deploy_until_all(work: Path) -> bool:
    """A restarted site is turned away for up to a minute: runs the trial until all three took part, three times at most."""
    for _ in range(3):
        reported = json.loads(deploy(work).stdout.strip().splitlines()[-1])
        if all(site["rounds"] == 2 for site in reported["sites"].values()):
            return True
    return False


def test_a_reply_with_a_person_in_a_metrics_name_does_not_leave(work: Path) -> None:
    script = work / "leaky.py"
    script.write_text(LEAKY_SITE)
    known = len(journal(work, "oslo"))

    def check() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            done = deploy(work)
            assert done.returncode == 0, "two of three are the quorum: " + done.stderr
            reported = json.loads(done.stdout.strip().splitlines()[-1])
            events = [json.loads(line) for line in (work / reported["folder"] / "events.jsonl").read_text().splitlines()]
            if [e["refused"] for e in events if e["event"] == "round"] == [{"oslo": "undeclared-record"}] * 2:
                assert "oslo-001" not in "".join(map(json.dumps, events))
                return
        pytest.fail("the site was never seen to refuse its own reply")

    start = [sys.executable, str(script), "sites/oslo"]
    replaced(work, "oslo", lambda: subprocess.Popen(start, cwd=work, start_new_session=True), check)
    refused = [e for e in journal(work, "oslo")[known:] if e.verdict == "refused"]
    # A site that returned no update cannot tell that the last weights follow from the rounds, and does not evaluate them.
    expected = {("out", "round", "undeclared-record"), ("in", "evaluate", "not-of-the-plan")}
    assert {(e.direction, e.phase, e.reason) for e in refused} == expected
    assert "oslo-001" not in (work / "sites" / "oslo" / ".fedml" / "journal.jsonl").read_text()


def test_a_node_cannot_take_another_sites_name(work: Path) -> None:
    """Oslo's key, but a manifest (and an approval) that say that this is porto."""
    false = work / "false"
    shutil.copytree(work / "sites" / "oslo", false, ignore=shutil.ignore_patterns(".fedml"))
    (false / "site.toml").write_text((false / "site.toml").read_text().replace('name = "oslo"', 'name = "porto"'))
    assert command("fedml-site", "approve", "trial.toml", "--site", "false", "--yes", cwd=work).returncode == 0

    def check() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            done = deploy(work)
            assert done.returncode == 0, done.stderr
            reported = json.loads(done.stdout.strip().splitlines()[-1])
            events = [json.loads(line) for line in (work / reported["folder"] / "events.jsonl").read_text().splitlines()]
            if [e["refused"] for e in events if e["event"] == "round"] == [{"oslo": "wrong-name"}] * 2:
                assert reported["sites"]["porto"]["rounds"] == 2, "the true porto is not touched"
                return
        pytest.fail("the false name was never refused")

    line = [command_path("fedml-site"), "start", "--site", "false"]
    replaced(work, "oslo", lambda: subprocess.Popen(line, cwd=work, start_new_session=True), check)


def test_a_stranger_and_a_plain_connection_are_turned_away(work: Path, tmp_path: Path) -> None:
    from fedml.experiments.federation.local import read_running

    running = read_running(work / "sites")
    assert running
    port = running.port
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


def start_superlink_again(folder: Path, before: Running) -> None:
    """The SuperLink of ``folder`` on the same port and database, as an administrator restarts it; recorded, so that ``down`` ends it."""
    home = folder / ".federation"
    superlink = start_superlink(home, *superlink_options(home, "127.0.0.1"))
    (home / "running.json").write_text(json.dumps({**asdict(before), "superlink": superlink.pid}))


def test_sites_find_a_restarted_superlink_by_themselves(work: Path) -> None:
    from fedml.experiments.federation.local import read_running

    before = read_running(work / "sites")
    assert before
    stop_group(before.superlink, 0)
    start_superlink_again(work / "sites", before)
    after = read_running(work / "sites")
    assert after
    assert after.superlink != before.superlink
    assert after.sites == before.sites
    done = deploy(work)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    assert all(site["rounds"] == 2 for site in reported["sites"].values())


def test_a_site_killed_in_mid_study_is_named_and_takes_part_again(work: Path) -> None:
    from fedml.clients.service import running
    from fedml.clients.site.manifest import read_site
    from fedml.experiments.federation.local import start_site

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
