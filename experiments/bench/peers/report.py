"""The table of all runs, in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedml.experiments.bench.peers.figures import Run, medians
from fedml.experiments.bench.peers.limits import Limit, value
from fedml.runs.software import git_commit

HEAD = (
    "job", "runner", "runs", "total (s)", "start (s)", "first round (s)", "a round (ms)", "after (s)", "CPU (s)", "memory (MB)", "AUROC",
)  # fmt: skip
EXPLAINED = (
    "Medians of whole processes from a cold start, one compute thread each, in turn. Total: from the command to the end of its last "
    "process (Flower: of the command; its SuperLink stays). Start: until the first round begins; frameworks draw the line between start "
    "and first round differently, so compare their sum. A round: median from the second on. After: from the end of the last round. CPU: "
    "user and system of all processes. Memory: largest proportional set size of all processes together. Ours includes the MLflow record, "
    "in a fresh SQLite store."
)


def row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def lines(runs: Sequence[Run]) -> list[str]:
    """The table's lines: jobs and runners in the order in which they came."""
    found = [row(HEAD), row(["---", "---", *["---:"] * (len(HEAD) - 2)])]
    for job, runner in dict.fromkeys((run.job, run.runner) for run in runs):
        those = [run for run in runs if (run.job, run.runner) == (job, runner)]
        done, mid = [run for run in those if run.figures], medians(runs, job, runner)
        cells = [job, runner, f"{len(done)}/{len(those)}"]
        if mid is None:
            found.append(row([*cells, *["-"] * (len(HEAD) - 3)]))
            continue
        millis = mid.round * 1000
        cells += [f"{mid.total:.1f}", f"{mid.start:.2f}", f"{mid.first:.2f}", f"{millis:.{2 if millis < 10 else 0}f}", f"{mid.after:.2f}"]
        auroc = done[-1].auroc
        found.append(row([*cells, f"{mid.cpu:.1f}", f"{mid.memory:.0f}", "" if auroc is None else f"{auroc:.4f}"]))
    return found


def measured(limit: Limit, runs: Sequence[Run]) -> str:
    """The limit's value as text."""
    found = value(limit, runs)
    return "-" if found is None else f"{found:.3g}"


def limit_lines(limits: Sequence[Limit], runs: Sequence[Run]) -> list[str]:
    """Every limit with its value."""
    found = [row(["limit", "measured", ""]), row(["---", "---:", "---"])]
    for limit in limits:
        now = value(limit, runs)
        found.append(row([str(limit), measured(limit, runs), "not measured" if now is None else "kept" if now <= limit.most else "over"]))
    return found


def page(runs: Sequence[Run], limits: Sequence[Limit], skipped: Mapping[str, str], wrong: Sequence[str], versions: Sequence[str]) -> str:
    """The whole page."""
    loads = [run.figures.load for run in runs if run.figures]
    load = f"load average before a run {min(loads):.1f} to {max(loads):.1f}" if loads else "no run finished"
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}"
    commit = git_commit(Path(__file__).parent)[:12]
    parts = [f"{machine}; commit {commit}; {load}.", "", EXPLAINED, "", *lines(runs), "", *limit_lines(limits, runs)]
    if skipped:
        parts += ["", "Not run:", "", *(f"- {name}: {why}" for name, why in skipped.items())]
    parts += ["", "Results: " + ("all as they must be." if not wrong else "wrong:"), *(f"- {text}" for text in wrong)]
    return "\n".join(parts) + "\n"
