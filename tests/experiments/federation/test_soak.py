"""200 rounds with random faults from a seeded schedule: no hang, no wrong sum, and no more memory after round 20.

``FEDML_SOAK``: rounds (default 200).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedml.runs.events import NO_FINAL, Final, Round
from fedml.runs.log import last, read_log
from tests.command import ROOT
from tests.experiments.federation import test_bad_network
from tests.experiments.federation.test_bad_network import BAD, CASES, federation, missing, reference
from tests.experiments.federation.test_federation import STUDY, make_site
from tests.experiments.federation.test_kills import processes
from tests.faults import AT_A_SITE
from tests.soak import schedule

pytestmark = pytest.mark.long

ROUNDS, SEED = int(os.environ.get("FEDML_SOAK", "200")), 11
SITES = ("a", "b", "c", "d", "e", "f")
PLAN = STUDY.replace('["oslo", "porto", "utrecht"]', json.dumps(SITES)).replace("quorum = 2", "quorum = 4")
PLAN = PLAN.replace("rounds = 2", f"rounds = {ROUNDS}").replace("lr = 0.05", 'optimizer = "sgd"\nlr = 0.01')
GROWTH = 0.05


def grown(resident: list[int]) -> float:
    """By which share the memory is above that of round 20, at most."""
    return max(resident[20:]) / resident[20] - 1


def test_the_local_engine(tmp_path: Path) -> None:
    (tmp_path / "trial.toml").write_text(PLAN)
    for number, name in enumerate(SITES):
        make_site(tmp_path / "sites" / name, name, number)
    words = [sys.executable, "-m", "tests.soak", "trial.toml", "sites", "runs", str(SEED)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    events = read_log(tmp_path / told["run"], strict=True)[0]
    rounds, final = [e for e in events if isinstance(e, Round)], last(events, NO_FINAL)
    assert isinstance(final, Final)
    planned = schedule(SITES, ROUNDS, SEED)
    assert {(site, e.round): why for e in rounds for site, why in e.refused.items()} == {
        place: AT_A_SITE[fault].code for place, fault in planned.items()
    }
    assert final.weights_sha256 == reference(tmp_path, missing(rounds), tmp_path / "reference")
    print(f"local: {ROUNDS} rounds, {len(planned)} faults; memory {grown(told['resident']):+.1%} after round 20")
    assert grown(told["resident"]) < GROWTH


def resident_of(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1])


@pytest.mark.federation
def test_a_real_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of one site has another fault every few seconds."""
    monkeypatch.setattr(test_bad_network, "PLAN", STUDY.replace("rounds = 2", f"rounds = {ROUNDS}").replace(
        "timeout = 40", "timeout = 20").replace("lr = 0.05", 'optimizer = "sgd"\nlr = 0.01') + "[model]\nhidden = [64, 100]\n")  # fmt: skip
    monkeypatch.setattr(test_bad_network, "ROUNDS", ROUNDS)
    monkeypatch.setattr(test_bad_network, "TIMEOUT", 20)
    over, chance, resident = threading.Event(), random.Random(SEED), list[int]()
    with federation(tmp_path, "bytes") as (home, network):
        (superlink,) = processes("fedml.flower.front", str(home))
        runs = tmp_path / "runs-calm"

        def disturb() -> None:
            while not over.wait(3 * chance.random()):
                network.fault = chance.choice(("calm", "calm", *(name for name in CASES if name != "replays")))

        def measure() -> None:
            seen = 0
            while not over.wait(0.1):
                if (count := sum(len(read_log(run)[0]) for run in runs.glob("*"))) > seen:
                    resident.extend([resident_of(superlink)] * (count - seen))
                    seen = count

        threads = [threading.Thread(target=work) for work in (disturb, measure)]
        for thread in threads:
            thread.start()
        try:
            told, rounds = test_bad_network.ran(tmp_path, home, network, "calm", runs.name)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert told["status"] == "finished", told
        assert len(rounds) == ROUNDS
        lost = missing(rounds)
        assert {site for sites in lost.values() for site in sites} <= {BAD}
        assert told["weights_sha256"] == reference(tmp_path, lost, tmp_path / "out")
        print(f"federation: {ROUNDS} rounds, {sum(network.struck.values())} faults, {len(lost)} rounds without {BAD}; "
              f"memory of the SuperLink {grown(resident):+.1%} after round 20")  # fmt: skip
        assert grown(resident) < GROWTH
