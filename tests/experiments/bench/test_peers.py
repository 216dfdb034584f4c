"""The benchmark against peers: what it measures of a process, the marks, the checks of results, the limits, and what it can run here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedml.experiments.bench import short
from fedml.experiments.bench.peers import checks, marks, nvflare_sim, prepare, report, runners, session, watch
from fedml.experiments.bench.peers.figures import Figures, Run, figures, medians, one
from fedml.experiments.bench.peers.limits import LIMITS, Limit, over, twice, value
from fedml.experiments.bench.peers.session import needed
from fedml.experiments.bench.peers.work import JOBS, Job, auroc, layers
from tests.command import ROOT

WATCH = ROOT / "experiments" / "bench" / "peers" / "watch.py"
PLAIN = Figures(total=4.0, start=1.0, first=0.1, round=0.01, after=0.5, cpu=3.0, memory=300.0, growth=1.0, load=0.1)


def watched(out: Path, code: str, *, timeout: float = 60, daemons: bool = False) -> dict[str, object]:
    """What the measuring process writes about a Python of ``code``."""
    environment = {**os.environ, "PEERS_OUT": str(out)}
    command = [sys.executable, "-I", "-c", code]
    spec = {"command": command, "cwd": str(out), "environment": environment, "timeout": timeout, "daemons": daemons}
    (out / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, str(WATCH), str(out / "spec.json")], check=True, timeout=120)
    read: dict[str, object] = json.loads((out / "measured.json").read_text())
    return read


# A process with 200 MB, and its child, which has the same pages; both wait until the test has read them.
SHARES = """
import os, sys
held = bytearray(b"x") * (200 * 2**20)
reading, writing = os.pipe()
if os.fork() == 0:
    os.close(writing)
    print(os.getpid(), flush=True)
    os.read(reading, 1)
    os._exit(0)
sys.stdin.read()
os.close(writing)
os.wait()
"""


def test_memory_is_the_proportional_set_size_of_all_processes() -> None:
    with subprocess.Popen([sys.executable, "-I", "-c", SHARES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert watch.below(process.pid) == [child]
        both, one_of_them = watch.pss_mb([process.pid, child]), watch.pss_mb([child])
    assert 200 <= both < 230
    assert 100 <= one_of_them < 115
    assert watch.pss_mb([process.pid, child]) == 0  # both have ended
    assert watch.below(process.pid) == []


def test_what_a_command_leaves_behind_is_measured_and_ended(tmp_path: Path) -> None:
    """The orphan's processor time counts, the clock runs until it has ended, and with ``daemons`` it is ended."""
    orphan = "import time\nwhile time.process_time() < 1: pass"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-I', '-c', {orphan!r}], start_new_session=True)"
    found = watched(tmp_path, code)
    assert found["status"] == 0
    assert isinstance(found["cpu"], float)
    assert found["cpu"] >= 1
    assert isinstance(found["began"], float)
    assert isinstance(found["ended"], float)
    assert found["ended"] - found["began"] >= 1
    waits = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-I', '-c', {waits!r}]); time.sleep(1)"
    assert watched(tmp_path, code, daemons=True)["status"] == 0
    process = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{process}").exists()


def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    assert watched(tmp_path, "import time; time.sleep(600)", timeout=1)["status"] is None
    assert watched(tmp_path, "raise SystemExit(3)")["status"] == 3


def test_ended_from_outside_it_ends_what_it_started(tmp_path: Path) -> None:
    """Also a service that has a session of its own. The named pipe is read until all that could write into it have ended."""
    os.mkfifo(tmp_path / "pipe")
    service = f"import time; pipe = open({str(tmp_path / 'pipe')!r}, 'w'); pipe.write('up\\n'); pipe.flush(); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-I', '-c', {service!r}], start_new_session=True).wait()"
    spec = {
        "command": [sys.executable, "-I", "-c", code],
        "cwd": str(tmp_path),
        "environment": dict(os.environ),
        "timeout": 600,
        "daemons": True,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with subprocess.Popen([sys.executable, str(WATCH), str(tmp_path / "spec.json")]) as process, (tmp_path / "pipe").open() as pipe:
        assert pipe.readline() == "up\n"
        process.terminate()
        assert pipe.read() == ""
        assert process.wait() == 1


def write_marks(out: Path, times: Sequence[tuple[int, float]]) -> None:
    (out / "marks.jsonl").write_text("".join(json.dumps({"round": n, "time": t}) + "\n" for n, t in times))


def test_figures_are_those_of_the_marks(tmp_path: Path) -> None:
    write_marks(tmp_path, [(0, 102.0), (1, 105.0), (2, 105.5), (3, 106.5), (4, 106.75), (1, 200.0)])
    samples = [(101.0, 10.0), (105.2, 100.0), (106.6, 110.0), (107.5, 500.0)]
    measured = {"began": 100.0, "ended": 108.0, "cpu": 7.0, "load": 0.5, "memory": samples}
    found = figures(measured, marks.read(tmp_path, 4))
    assert found == Figures(total=8.0, start=2.0, first=3.0, round=0.5, after=1.25, cpu=7.0, memory=500.0, growth=1.1, load=0.5)
    assert math.isnan(figures({**measured, "memory": []}, marks.read(tmp_path, 4)).growth)


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ([(0, 1.0), (1, 2.0)], "1 of 3 marks are missing, the first is that of round 2"),
        ([], "3 of 3 marks are missing, the first is that of round 0"),
        ([(0, 1.0), (1, 3.0), (2, 2.0)], "not in order"),
    ],
)
def test_marks_that_are_missing_or_out_of_order_are_no_measurement(tmp_path: Path, times: list[tuple[int, float]], text: str) -> None:
    write_marks(tmp_path, times)
    with pytest.raises(ValueError, match=text):
        marks.read(tmp_path, 2)


def test_the_log_of_nvflare_gives_the_time_of_each_round() -> None:
    log = (
        "2026-01-02 03:04:05,500 - INFO - Beginning\n2026-01-02 03:04:06,000 - INFO - \n====\nRound 0 started.\n"
        "2026-01-02 03:04:08,250 - INFO - Round 1 started.\n2026-01-02 03:04:09,000 - Round 1 started.\n"
        "2026-01-02 03:04:10,000 - INFO - Finished FedAvg.\n"
    )
    found = nvflare_sim.stamps(log)
    first = found["Round 0 started"]
    assert {name: at - first for name, at in found.items()} == {"Round 0 started": 0, "Round 1 started": 2.25, "Finished FedAvg": 4}


def run(runner: str, job: str = "heart", **changed: float) -> Run:
    return Run(runner, job, replace(PLAIN, **changed))


def test_a_ratio_is_of_medians_and_a_run_that_failed_does_not_count() -> None:
    runs = [run("ours", total=t) for t in (4.0, 100.0, 6.0)] + [run("bare", total=t) for t in (3.0, 1.0, 50.0)]
    runs.append(Run("ours", "heart", None, error="ended"))
    assert value(Limit("heart", "ours", "total", 1.25, "bare"), runs) == 2.0
    assert value(Limit("heart", "ours", "memory", 400), runs) == 300.0
    assert value(Limit("heart", "ours", "total", 1.0, "pfl"), runs) is None
    assert value(Limit("empty10", "ours", "round", 0.002), runs) is None
    assert medians(runs, "heart", "pfl") is None
    assert value(Limit("heart", "ours", "growth", 1.05), [run("ours", growth=float("nan"))]) is None


TOTAL = Limit("heart", "ours", "total", 1.25, "bare")
MEMORY = Limit("heart", "ours", "memory", 400)


@pytest.mark.parametrize(
    ("first", "second", "asked", "failing"),
    [
        ({"total": 5.0}, {}, [], []),
        ({"total": 5.7}, {}, [], []),  # 1.425 times, over the limit, within 15 % of it
        ({"total": 5.8}, {"total": 5.7}, [TOTAL], []),
        ({"total": 5.8}, {"total": 5.8}, [TOTAL], [TOTAL]),
        ({"total": 5.8, "memory": 500.0}, {"total": 5.0, "memory": 461.0}, [TOTAL, MEMORY], [MEMORY]),
        ({"memory": 500.0}, {"total": 9.0, "memory": 300.0}, [MEMORY], []),  # what was within its limit is not judged again
    ],
)
def test_a_limit_is_broken_only_by_two_measurements(
    first: dict[str, float], second: dict[str, float], asked: list[Limit], failing: list[Limit]
) -> None:
    repeated: list[Limit] = []

    def again(limits: Sequence[Limit]) -> list[Run]:
        repeated.extend(limits)
        return [run("ours", **second), run("bare")]

    found, _ = twice((TOTAL, MEMORY), [run("ours", **first), run("bare")], again)
    assert (repeated, found) == (asked, failing)


def test_a_second_measurement_without_a_result_is_not_a_pass() -> None:
    def again(_: Sequence[Limit]) -> list[Run]:
        return [Run("ours", "heart", None, error="ended"), run("bare")]

    found, _ = twice((TOTAL,), [run("ours", total=9.0), run("bare")], again)
    assert found == [TOTAL]


def test_each_limit_is_of_a_job_and_runners_that_exist() -> None:
    for limit in LIMITS:
        assert limit.job in JOBS
        assert {limit.runner, limit.than or limit.runner} <= runners.RUNNERS.keys()
        assert limit.figure in vars(PLAIN)
        assert over(limit, []) is None
    assert needed([TOTAL, Limit("empty10", "ours", "round", 1.0, "pfl")]) == {"heart": ["bare", "ours"], "empty10": ["bare", "ours", "pfl"]}


def test_runners_take_turns_and_what_was_measured_is_given_after_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []

    def instead(runner: runners.Runner, job: Job, *_: object) -> Run:
        began.append(f"{job.name} {runner.name}")
        values = np.full(1000, 19 if runner.name == "bare" else 20, np.float32)
        return Run(runner.name, job.name, PLAIN, None, {"w": values})

    monkeypatch.setattr(session, "one", instead)
    (tmp_path / "pfl").mkdir()
    (tmp_path / "pfl" / ".installed").touch()
    names = {"empty10": ["bare", "pfl"], "empty50": ["bare"], "heart": ["bare"]}
    counts = list[int]()
    with session.session(tmp_path / "nowhere", tmp_path, 60) as empty:
        plan = replace(empty, repeats={"empty10": 2, "empty50": 1, "heart": 1}, runners=names)
        measured = session.measure(plan, lambda until: counts.append(len(until.runs)))
    assert began == ["empty10 bare", "empty10 pfl", "empty50 bare", "empty10 pfl", "empty10 bare"]
    assert counts == [1, 2, 3, 4, 5]
    assert [run.runner for run in measured.runs] == ["bare", "bare", "pfl", "pfl", "bare"]
    assert [text.partition(":")[0] for text in measured.wrong] == ["empty10, bare", "empty10, bare", "empty50, bare"]
    assert list(measured.skipped) == ["heart"]


def trained(runner: str, job: str, score: float | None, weight: float) -> Run:
    return Run(runner, job, PLAIN, score, {"w": np.array([1.0, weight], np.float32)})


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (trained("pfl", "heart", 0.9, 0.50001), None),
        (trained("pfl", "heart", 0.9, 0.501), "weights differ from the bare loop's by 1.0e-03"),
        (trained("pfl", "heart", 0.9, float("nan")), "weights differ"),
        (trained("ours", "heart", 0.903, 0.5), "its AUROC is 0.903"),
        (trained("ours", "heart", None, 0.5), "its AUROC is None"),
        (trained("ours", "pneumonia", 0.905, 0.9), None),
        (trained("ours", "pneumonia", 0.92, 0.5), "its AUROC is 0.92"),
        (Run("pfl", "heart", None, error="exit status 1"), "exit status 1"),
    ],
)
def test_results_are_compared_with_the_bare_loop(found: Run, problem: str | None) -> None:
    said = checks.problem(found, trained("bare", found.job, 0.9, 0.5))
    assert said is None if problem is None else problem in str(said)


def test_an_empty_job_is_checked_by_its_end_value() -> None:
    def end(runner: str, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> str | None:
        return checks.problem(Run(runner, "empty10", PLAIN, None, {"w": values}), None)

    assert end("pfl", np.full(1000, 20, np.float32)) is None
    assert "up to 1.0e+00 from 20" in str(end("pfl", np.full(1000, 19, np.float32)))
    assert "999 values" in str(end("pfl", np.full(999, 20, np.float32)))
    assert "moved" in str(end("ours", np.full(1000, 20, np.float32)))


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    assert auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1])) == 3.5 / 4


def test_what_cannot_run_is_named_with_its_reason(tmp_path: Path) -> None:
    assert "uci_heart does not exist" in str(prepare.why_not(JOBS["heart"], tmp_path))
    assert prepare.why_not(JOBS["empty10"], tmp_path) is None
    assert "environments DIR --only pfl" in str(runners.why_not(runners.RUNNERS["pfl"], JOBS["heart"], tmp_path))
    assert runners.why_not(runners.RUNNERS["bare"], JOBS["heart"], None) is None
    assert "so many sites" in str(runners.why_not(runners.RUNNERS["flower"], JOBS["many"], None))
    (tmp_path / "pfl").mkdir()
    assert runners.why_not(runners.RUNNERS["pfl"], JOBS["heart"], tmp_path) is not None  # half installed
    (tmp_path / "pfl" / ".installed").touch()
    assert runners.why_not(runners.RUNNERS["pfl"], JOBS["heart"], tmp_path) is None


def test_the_page_has_every_run_limit_and_reason() -> None:
    runs = [run("bare"), run("ours", total=8.0), Run("pfl", "heart", None, error="ended")]
    page = report.page(runs, LIMITS[:2], {"heart, nvflare": "not installed"}, ["heart, pfl: ended"], ["torch 2"])
    assert "| heart | ours | 1/1 | 8.0 | 1.00 | 0.10 | 10 | 0.50 | 3.0 | 300 |" in page
    assert "| heart | pfl | 0/1 | - |" in page
    assert "| heart, ours, total: at most 1.25 x bare | 2 | over |" in page
    assert "| heart, ours, total: at most 1 x pfl | - | not measured |" in page
    for text in ("- heart, nvflare: not installed", "- heart, pfl: ended", "load average before a run 0.1 to 0.1"):
        assert text in page


def test_every_benchmark_is_short_long_or_a_part_of_one() -> None:
    scripts = {path.name for path in (ROOT / "experiments" / "bench").glob("*.py")}
    parts = {"timing.py", "heart_script.py", "flamby_logistic.py", "short.py"}
    assert set(short.SHORT) | set(short.LONG) | parts == scripts
    assert not set(short.SHORT) & set(short.LONG)


def simulated(_data: Path, job: Job) -> list[prepare.Persons]:
    """Persons like those of the heart job, of whom some values are missing."""
    sites, generator = [], np.random.default_rng(0)
    for persons in (90, 60, 40, 70):
        x = generator.normal(5, 3, (persons, 13)).round(2)
        y = (x[:, 0] + generator.normal(0, 2, persons) > 5).astype(np.int64)
        x[generator.random(x.shape) < 0.1] = np.nan
        sites.append(prepare.Persons(x, y, np.arange(persons) % 3 == 0))
    return sites


@pytest.mark.long
def test_ours_and_the_bare_loop_do_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole processes, with MLflow's record: the weights agree, and a run with another seed would not."""
    monkeypatch.setitem(prepare.SOURCES, "heart", simulated)
    job = replace(JOBS["heart"], rounds=3)
    prepared = prepare.prepare(job, tmp_path, tmp_path / "prepared")
    bare, mine = (one(runners.RUNNERS[name], job, prepared, None, 300) for name in ("bare", "ours"))
    assert (bare.error, mine.error) == (None, None)
    assert checks.problem(mine, bare) is None
    assert bare.figures is not None
    assert mine.figures is not None
    assert mine.figures.memory > bare.figures.memory > 100
    first = {name: value.numpy() for name, value in nn.Sequential(*layers(job)).state_dict().items()}
    assert checks.apart(first, bare.weights) > 10 * checks.WEIGHTS["heart"]
