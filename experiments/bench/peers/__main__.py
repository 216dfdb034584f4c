"""Ours, the bare loop and the peers on the same work: one Markdown table.

    python -m fedml.experiments.bench.peers --environments DIR [--jobs heart,empty10] [--runners bare,ours] [--repeats 5] [--out FILE]

What cannot run here is left out, with the reason under the table. Exit status 1: a result is wrong, or a run did not finish.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from fedml.experiments.bench.peers import report, runners
from fedml.experiments.bench.peers.environments import DISTRIBUTION, complete, python_of
from fedml.experiments.bench.peers.limits import LIMITS
from fedml.experiments.bench.peers.session import Measured, measure, session
from fedml.experiments.bench.peers.work import JOBS, data_folder


def versions(environments: Path | None) -> list[str]:
    """Distributions with their versions: torch, ours and the installed peers."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "mlflow")]
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    for peer, name in DISTRIBUTION.items():
        if environments and complete(environments, peer):
            words = [str(python_of(environments, peer)), "-c", code, name]
            found.append(f"{name} {subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()}")
    return found


def _chosen(parser: argparse.ArgumentParser, option: str, text: str, known: Collection[str]) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option} {','.join(unknown)}: there are {', '.join(known)}.")
    return names


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, help="the folder of fedml.experiments.bench.peers.environments")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--runners", default=",".join(runners.RUNNERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, default=data_folder(), help="the folder with uci_heart and medmnist")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one run")
    parser.add_argument("--out", type=Path, help="also write the table to this file, after each run")
    given = parser.parse_args()
    jobs = _chosen(parser, "--jobs", given.jobs, JOBS)
    names = _chosen(parser, "--runners", given.runners, runners.RUNNERS)
    limits, found = [limit for limit in LIMITS if limit.job in jobs], versions(given.environments)

    def write(measured: Measured) -> None:
        if given.out:
            given.out.write_text(report.page(measured.runs, limits, measured.skipped, measured.wrong, found))

    with session(given.data, given.environments, given.timeout) as empty:
        plan = replace(empty, repeats=dict.fromkeys(jobs, given.repeats), runners=dict.fromkeys(jobs, names))
        measured = measure(plan, write)
    print(report.page(measured.runs, limits, measured.skipped, measured.wrong, found))
    sys.exit(1 if measured.wrong else 0)


if __name__ == "__main__":
    main()
