"""`make bench`: the peers and a few benchmarks, in at most 20 minutes on two quiet cores.

    python -m fedml.experiments.bench.short [--environments DIR] [--data DIR] [--list]

The peers' limits (``peers/limits.py``) are measured; those that are worse by more than 15 % are measured once more. Exit status 1: a limit
is worse both times, a result is wrong, or a benchmark's comparison failed. ``--list``: the benchmarks that take longer, to be run by hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedml.experiments.bench.peers import report
from fedml.experiments.bench.peers.__main__ import versions
from fedml.experiments.bench.peers.figures import Run
from fedml.experiments.bench.peers.limits import LIMITS, Limit, twice
from fedml.experiments.bench.peers.session import Measured, measure, needed, session
from fedml.experiments.bench.peers.work import data_folder

HERE = Path(__file__).resolve().parent
REPEATS = {"heart": 3, "pneumonia": 1, "empty10": 3, "empty50": 3, "many": 1}  # runs of half a minute and more differ by little
SHORT = {
    "cnn_round.py": ("3",),
    "fold.py": ("3",),
    "report_plots.py": ("--repeats", "3"),
    "dpsgd_cnn.py": ("3",),
    "vcf_read.py": ("--records", "1000", "--repeats", "3"),
}
LONG = {
    "cached_batches.py": "minutes",
    "coverage.py": "minutes",
    "coverage_outcomes.py": "half an hour",
    "cox_scale.py": "minutes",
    "dpsgd_wide.py": "minutes",
    "empty_round.py": "minutes; the local engine against Flower's simulation",
    "flamby_brca.py": "half an hour; data",
    "flamby_heart.py": "half an hour",
    "gwas.py": "minutes; data and PLINK 2",
    "gwas_scale.py": "half an hour; PLINK 2",
    "heart_rounds.py": "5 minutes",
    "idle_sites.py": "minutes",
    "image_cache.py": "minutes",
    "image_cold.py": "minutes",
    "image_parity.py": "an hour; data",
    "linear_epoch.py": "minutes",
    "null_association.py": "an hour",
    "null_genes.py": "an hour",
    "omics.py": "half an hour",
    "patch_epoch.py": "minutes",
    "power_association.py": "half an hour; PLINK 2",
    "private_utility.py": "a quarter of an hour; data",
    "relatives.py": "hours",
    "series_index.py": "minutes",
    "slide_features.py": "a quarter of an hour",
    "superlink_bytes.py": "minutes",
    "superlink_round.py": "minutes",
    "sweep.py": "5 minutes",
    "tracking.py": "a quarter of an hour",
    "variant_models.py": "minutes; PLINK 2",
    "vcf_stream.py": "half an hour",
}


def verdict(measured: Measured, second: Sequence[Run], broken: Sequence[Limit], failed: Sequence[str]) -> list[str]:
    """Why the benchmark fails; nothing if it does not."""
    results = [f"result: {text}" for text in measured.wrong]
    values = [(limit, report.measured(limit, measured.runs), report.measured(limit, second)) for limit in broken]
    over = [f"limit: {limit}; measured {first}, then {then}" for limit, first, then in values]
    return [*results, *over, *(f"script: {name} failed" for name in failed)]


def run_scripts() -> list[str]:
    """Runs ``SHORT``; the names of those that fail."""
    failed = []
    for name, arguments in SHORT.items():
        print(f"\n== {name} {' '.join(arguments)}", flush=True)
        if subprocess.run([sys.executable, str(HERE / name), *arguments], check=False).returncode:
            failed.append(name)
    return failed


def main() -> None:
    """Reads the arguments, measures, prints and decides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, help="the folder of fedml.experiments.bench.peers.environments")
    parser.add_argument("--data", type=Path, default=data_folder(), help="the folder with uci_heart and medmnist")
    parser.add_argument("--list", action="store_true", help="only list the benchmarks that take longer")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"python experiments/bench/{name}    {time_and_needs}" for name, time_and_needs in LONG.items()))
        return
    began = time.monotonic()
    with session(given.data, given.environments, timeout=300) as empty:
        measured = measure(replace(empty, repeats=REPEATS, runners=needed(LIMITS)))

        def again(limits: Sequence[Limit]) -> list[Run]:
            which = needed(limits)
            print(f"once more: {'; '.join(map(str, limits))}", file=sys.stderr, flush=True)
            repeated = measure(replace(empty, repeats={job: REPEATS[job] for job in which}, runners=which))
            measured.wrong.extend(repeated.wrong)
            return repeated.runs

        broken, second = twice(LIMITS, measured.runs, again)
    print(report.page(measured.runs, LIMITS, measured.skipped, measured.wrong, versions(given.environments)), flush=True)
    failed = run_scripts()
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes; longer benchmarks: python -m fedml.experiments.bench.short --list")
    reasons = verdict(measured, second, broken, failed)
    print("\n".join(reasons) or "all limits kept")
    sys.exit(1 if reasons else 0)


if __name__ == "__main__":
    main()
