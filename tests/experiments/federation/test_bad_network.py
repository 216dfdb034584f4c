"""A real site and a real centre with a bad network between them: no wrong sum, no wait beyond the deadline, and the site comes back.

Each run must have the bits of a run in one process in which the site was missing in just the rounds for which the record says so.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message

from fedml.clients.gate.journal import verify
from fedml.clients.gate.local import app as client_app
from fedml.errors import Reason
from fedml.experiments.federation.centre import read_centre
from fedml.experiments.runs.run import new_run
from fedml.flower.grid import InProcessGrid
from fedml.flower.superlink import command_path
from fedml.runs.events import NO_FINAL, Final, Round
from fedml.runs.log import last, read_log
from fedml.strategies.rounds import run_study
from fedml.study.read import read_study
from tests.bad_network import Network, bad_network, replaying
from tests.command import command
from tests.experiments.federation.test_federation import STUDY, make_site
from tests.federated import centre_up, join_centre, service_up

pytestmark = [pytest.mark.long, pytest.mark.federation]

SITES = ("oslo", "porto", "utrecht")
BAD = "oslo"  # the site behind the bad network
ROUNDS, TIMEOUT = 8, 15
MORE_SECONDS = 150  # start of the server app, agreement and last evaluation
PLAN = STUDY.replace("lr = 0.05", 'optimizer = "sgd"\nlr = 0.01\nlocal_epochs = 60\nbatch_size = 10').replace(
    "rounds = 2", f"rounds = {ROUNDS}"
)
PLAN = PLAN.replace("timeout = 40", f"timeout = {TIMEOUT}") + "[model]\nhidden = [64, 400]\n"  # a message of 100 kB
# fault -> (how often it strikes at most, whether from the beginning: else after the first round). All lose messages but delays, throttles.
CASES: dict[str, tuple[int, bool]] = {
    "delays": (10**6, True),
    "throttles": (10**6, True),
    "drops": (60, False),
    "cuts": (60, False),
    "duplicates": (60, False),
    "corrupts": (60, False),
    "silences": (3, False),
    "replays": (10**6, False),
}


@contextmanager
def federation(folder: Path, kind: str) -> Iterator[tuple[Path, Network]]:
    """A centre and three sites, of which BAD calls through a network; the centre's folder."""
    with ExitStack() as stack:
        home = stack.enter_context(centre_up(folder / "home", "127.0.0.1", "127.0.0.1"))
        port = read_centre(home).port
        network = stack.enter_context(replaying(port, 5, home) if kind == "replays" else bad_network(port, 5))
        (folder / "trial.toml").write_text(PLAN)
        for number, name in enumerate(SITES):
            site = folder / "sites" / name
            make_site(site, name, number)
            join_centre(site, home, "127.0.0.1", name=name)
            text = (site / "site.toml").read_text().replace("max_evaluations = 20\n", "max_evaluations = 1000\nmax_runs = 1000\n")
            (site / "site.toml").write_text(text.replace(f":{port}", f":{network.port}") if name == BAD else text)
            told = command("fedml-site", "approve", "trial.toml", "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", cwd=folder)
            assert told.returncode == 0, told.stderr
            stack.enter_context(service_up(site))
        yield home, network


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Network]]:
    """A federation whose network forwards bytes."""
    folder = tmp_path_factory.mktemp("bad")
    with federation(folder, "bytes") as (home, network):
        yield folder, home, network


def rounds_of(runs: Path) -> list[Round]:
    return [e for run in runs.glob("*") for e in read_log(run)[0] if isinstance(e, Round)]


def ran(folder: Path, home: Path, network: Network, fault: str, runs: str) -> tuple[dict[str, Any], list[Round]]:
    """A run with the fault; it ends within its deadline, which is the test of ``communicate``."""
    network.most, early = CASES.get(fault, (0, True))
    network.fault, seconds = fault if early else "calm", ROUNDS * TIMEOUT + MORE_SECONDS
    words = ["run", "trial.toml", "--engine", "deployment", "--superlink", str(home), "--no-track", "--json", "--runs", runs]
    began = time.monotonic()
    run = subprocess.Popen([command_path("fedml"), *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not early and run.poll() is None and not rounds_of(folder / runs) and time.monotonic() - began < seconds:
            time.sleep(0.05)
        network.fault = fault
        out, errors = run.communicate(timeout=seconds)
    finally:
        run.kill()
        network.fault = "calm"
    told: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    told["errors"] = errors
    print(f"{fault}: struck {network.struck[fault]} times, {time.monotonic() - began:.0f} s, missing {missing(rounds_of(folder / runs))}")
    return told, rounds_of(folder / runs)


def missing(rounds: list[Round]) -> dict[int, dict[str, str]]:
    """Round -> site -> why it is not in it."""
    return {event.round: event.refused for event in rounds if event.refused}


def reference(folder: Path, absent: dict[int, dict[str, str]], out: Path) -> str:
    """The weights of a run in this process in which sites are missing in those rounds."""
    study = read_study(folder / "trial.toml")
    sites = dict(enumerate(study.federation.sites, 1))

    def app(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        number = int(str(config["round"])) if message.metadata.message_type == "train" else -1
        if sites[context.node_id] in absent.get(number, {}):
            return Message(Error(600, str(Reason.INTERNAL)), reply_to=message)
        return client_app(message, context)

    run = new_run(study, out, None, engine="local", job="train")
    run_study(study, InProcessGrid(app, [{"manifest": str(folder / "sites" / name / "site.toml")} for name in sites.values()]), run)
    final = last(read_log(run)[0], NO_FINAL)
    assert isinstance(final, Final)
    return final.weights_sha256


def check(folder: Path, home: Path, network: Network, fault: str, tmp_path: Path) -> None:
    told, rounds = ran(folder, home, network, fault, f"runs-{fault}")
    assert network.struck[fault] > 0
    assert told["status"] == "finished", told
    assert [event.round for event in rounds] == list(range(1, ROUNDS + 1))
    lost = missing(rounds)
    assert {site for sites in lost.values() for site in sites} <= {BAD}, "the others are not touched"
    assert told["weights_sha256"] == reference(folder, lost, tmp_path)
    if fault in ("delays", "throttles"):
        assert not lost, "a slow network loses nothing"
    for name in SITES:
        assert verify(folder / "sites" / name / ".fedml" / "journal.jsonl") == []
    for number in range(4):  # the site comes back by itself; it may be turned away for a minute
        again, rounds = ran(folder, home, network, "calm", f"after-{fault}-{number}")
        if again["status"] == "finished" and not missing(rounds):
            return
    pytest.fail(f"{BAD} is not back: {missing(rounds)}")


@pytest.mark.parametrize("fault", [fault for fault in CASES if fault != "replays"])
def test_a_bad_network(fault: str, plain: tuple[Path, Path, Network], tmp_path: Path) -> None:
    check(*plain, fault, tmp_path)


def test_whole_requests_that_are_sent_again(tmp_path: Path) -> None:
    with federation(tmp_path / "federation", "replays") as (home, network):
        check(tmp_path / "federation", home, network, "replays", tmp_path / "out")
