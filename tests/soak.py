"""A long run of the local engine whose sites fail by a seeded schedule: ``python -m tests.soak STUDY SITES RUNS SEED``.

Prints a JSON object: the run's folder, and the resident bytes of this process at the begin of each round.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from fedml.clients.work import client
from fedml.experiments.runs.run import new_run, run_nodes
from fedml.study.read import read_study
from fedml.wire.records import Phase
from tests.faults import AT_A_SITE, struck


def schedule(sites: tuple[str, ...], rounds: int, seed: int) -> dict[tuple[str, int], str]:
    """(site, round) -> fault: in half of the rounds one site fails, in some two, so that five of six have more than the quorum."""
    chance, made = random.Random(seed), dict[tuple[str, int], str]()
    for number in range(1, rounds + 1):
        for site in chance.sample(sites, chance.choice((0, 0, 1, 1, 2))):
            made[site, number] = chance.choice(list(AT_A_SITE))
    return made


def main(study_file: Path, sites: Path, runs: Path, seed: int) -> None:
    """The run."""
    study, execute, resident = read_study(study_file), client.execute, dict[int, int]()
    planned = schedule(study.federation.sites, study.federation.rounds, seed)

    def faulty(request: Any, content: RecordDict, memory: Any) -> RecordDict:
        if request.phase is not Phase.ROUND:
            return execute(request, content, memory)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.setdefault(request.round, pages * resource.getpagesize())
        return struck(planned.get((request.name, request.round), ""), execute, request, content, memory)

    client.execute = faulty
    run = new_run(study, runs, None, engine="local", job="train")
    run_nodes(study, [{"manifest": str(sites / name / "site.toml")} for name in study.federation.sites], run)
    print(json.dumps({"run": str(run), "resident": [resident[number] for number in sorted(resident)]}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
