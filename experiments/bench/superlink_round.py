"""Benchmark: an empty round over a real SuperLink: three sites, 1,000 parameters, no epochs, no evaluation. fedml against a Flower app in
the style of a tutorial, one after the other at the same SuperLink (TLS, a registered key for each node, all on loopback).

fedml: `fedml federation up` and `fedml run --engine deployment`; the seconds of a round are from the run's events. The stock app: Flower's
``FedAvg.start`` with its ``evaluate_fn`` as the clock, and a ClientApp that reads the site's table and returns the arrays unchanged, on
``flower-supernode`` with its defaults. The stock app imports neither torch nor fedml, and caches the table in a module variable as Flower's
examples do. fedml's sites are stopped before the stock nodes start, so that the two do not compete for the machine. The first round is the
warm-up and is not counted.

Both start with the same arrays and must end with them, up to the rounding of a mean. The number of times that a site's table is opened is
measured by the kernel (inotify), for fedml from before the sites start.

    .venv/bin/python experiments/bench/superlink_round.py [ROUNDS]
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fedml.clients.gate.approvals import approve
from fedml.clients.site.manifest import Site, find_sites
from fedml.experiments.bench.timing import machine, table
from fedml.experiments.federation.centre import register, registered
from fedml.experiments.federation.local import down, home_of, read_running, up
from fedml.experiments.runs.run import On, new_run, run
from fedml.flower.keys import write_node_key
from fedml.flower.superlink import command_path, environment, free_ports, stop_group, submit
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model, learned
from fedml.runs.events import Round
from fedml.study.study import Study, parse_study, validate

ROSTER, COLUMNS, PERSONS = ("oslo", "porto", "utrecht"), 499, 200  # 499 columns and a constant, for two classes: 1,000 parameters
NAMES = [f"c{i}" for i in range(COLUMNS)]
TOLERANCE = 1e-6  # relative to an array's largest value: the weighted mean of three equal 32-bit floats may differ by rounding
NODE_SECONDS = 120  # timeout for nodes to connect or disconnect
OPENED, CLOSED_UNWRITTEN = 0x20, 0x10  # inotify(7): IN_OPEN, IN_CLOSE_NOWRITE

PROJECT = """\
[project]
name = "stock"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "stock_server:app"
clientapp = "stock_client:app"
[tool.flwr.app.config]
rounds = {rounds}
nodes = {nodes}
arrays = {arrays}
out = {out}
"""
SERVER = '''\
"""Federated averaging by Flower's strategy."""
import json
import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    config, times = context.run_config, []

    def look(server_round, arrays):
        times.append(time.monotonic())  # before the first round and after each
        return MetricRecord({"round": server_round})

    first = ArrayRecord({name: Array(value) for name, value in np.load(config["arrays"]).items()})
    everyone = config["nodes"]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=everyone, min_available_nodes=everyone)
    result = strategy.start(grid, first, num_rounds=config["rounds"], evaluate_fn=look)
    np.savez(config["out"] + ".npz", **{name: array.numpy() for name, array in result.arrays.items()})
    with open(config["out"] + ".part", "w") as file:
        json.dump([b - a for a, b in zip(times, times[1:])], file)
    os.replace(file.name, config["out"])
'''
CLIENT = '''\
"""Reads the table, trains for zero epochs, returns the arrays unchanged."""
import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
cache = {}


def load(path):
    if path not in cache:
        cache[path] = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 500))
    return cache[path]


@app.train()
def train(message, context):
    metrics = MetricRecord({"num-examples": len(load(context.node_config["table"]))})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)
'''


class Opens:
    """Counts how often files are opened by any process, from now on, by inotify. Final."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK)
        # Closing is watched too: the kernel merges consecutive equal events, and a closing event separates two openings.
        watch, events = self._libc.inotify_add_watch, OPENED | CLOSED_UNWRITTEN
        self._names = {watch(self._inotify, os.fsencode(path), events): name for name, path in files.items()}
        if self._inotify < 0 or min(self._names) < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot watch the files")

    def take(self) -> Counter[str]:
        """Openings of each file since the last call."""
        found: Counter[str] = Counter()
        with suppress(BlockingIOError):
            while data := os.read(self._inotify, 65536):
                for at in range(0, len(data), 16):  # the event of a watched file has no name, so it has 16 bytes
                    which, kind, _, length = struct.unpack_from("iIII", data, at)
                    assert not length
                    assert which in self._names, "the event queue overflowed"
                    found[self._names[which]] += bool(kind & OPENED)
        return found


def make_study(rounds: int) -> Study:
    """A study with a linear model and zero epochs."""
    plan = {
        "study": {"name": "empty"},
        "cohort": {"inputs": ["clinical"], "target": "label", "clinical": {"columns": NAMES, "indicate": False}},
        "training": {"local_epochs": 0, "evaluate_every": 0},
        "federation": {"sites": list(ROSTER), "rounds": rounds, "timeout": 120},
    }
    return parse_study(validate(Study, plan, "the empty study").canonical)


def write_site(out: Path, name: str) -> Path:
    """Writes a site with a simulated table; returns its folder."""
    folder, generator = out / name, np.random.default_rng(len(name))
    folder.mkdir(parents=True)
    persons, rows = ["id,label"], [",".join(("id", *NAMES))]
    for person in range(PERSONS):
        persons.append(f"{name}-{person},{person % 2}")
        rows.append(f"{name}-{person}," + ",".join(f"{v:.3f}" for v in generator.standard_normal(COLUMNS)))
    (folder / "persons.csv").write_text("\n".join(persons) + "\n")
    (folder / "clinical.csv").write_text("\n".join(rows) + "\n")
    data = '[data]\npersons = "persons.csv"\nclinical = { path = "clinical.csv" }\n'
    (folder / "site.toml").write_text(f'[site]\nname = "{name}"\n{data}[policy]\ncentre = "curious"\n')
    return folder


def make_sites(out: Path) -> dict[str, Site]:
    """Writes the sites, with simulated tables."""
    for name in ROSTER:
        write_site(out, name)
    return dict(find_sites(out, ROSTER)[0])


def our_rounds(study: Study, sites: Mapping[str, Site], work: Path) -> list[float]:
    """Seconds of each round of fedml. Asserts that the run ends with the arrays of ``arrays.npz``."""
    folder = new_run(study, work / "runs", None, engine="deployment", job="train")
    outcome = run(study, sites, folder, On("deployment", flower_home=home_of(work / "sites")))
    assert outcome.status == "finished", outcome.reason
    check_unchanged(work, safetensors.numpy.load_file(folder / "model.safetensors"))
    return [e.seconds for e in outcome.events if isinstance(e, Round)]


def write_arrays(study: Study, work: Path) -> None:
    """Writes the study's untrained model, with which both start, as ``arrays.npz``."""
    arrays = {name: tensor.numpy() for name, tensor in learned(build_model(study, Layout((), 0))).items()}
    assert sum(a.size for a in arrays.values()) == 1000
    np.savez(work / "arrays.npz", allow_pickle=False, **arrays)


def check_unchanged(work: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Asserts that ``arrays`` are those of ``arrays.npz`` up to rounding. The constants of fedml's preprocessing are ignored."""
    first = np.load(work / "arrays.npz")
    last = {name: array for name, array in arrays.items() if not name.startswith("preprocess.")}
    assert set(first.files) == set(last), (first.files, list(last))
    for name, array in last.items():
        assert array.dtype == first[name].dtype == np.float32
        apart = np.abs(first[name] - array).max() / max(np.abs(first[name]).max(), 1e-30)
        assert apart <= TOLERANCE, f"{name} changed by {apart:.1e} of its largest value"


def stock_rounds(rounds: int, work: Path) -> list[float]:
    """Seconds of each round of the stock app. Its nodes must be running."""
    app, out = work / "stock-app", work / "stock.json"
    app.mkdir()
    config = {"arrays": str(work / "arrays.npz"), "out": str(out)}
    (app / "pyproject.toml").write_text(PROJECT.format(rounds=rounds, nodes=len(ROSTER), **{k: json.dumps(v) for k, v in config.items()}))
    (app / "stock_server.py").write_text(SERVER)
    (app / "stock_client.py").write_text(CLIENT)
    submit(home_of(work / "sites"), app)
    wait_until(out.exists, "the stock app", 60 + 60 * rounds)
    check_unchanged(work, dict(np.load(work / "stock.json.npz")))
    return [float(s) for s in json.loads(out.read_text())]


@contextmanager
def stock_nodes(sites: Mapping[str, Site], work: Path) -> Iterator[None]:
    """Runs a ``flower-supernode`` with Flower's defaults for each site, each with a separate folder for Flower's files."""
    home, processes = home_of(work / "sites"), []
    port = read_running(work / "sites").port  # type: ignore[union-attr]
    try:
        for name, site in sites.items():
            folder = work / "stock" / name
            folder.mkdir(parents=True)
            register(home, f"stock-{name}", write_node_key(folder / "node.key"))
            command = [
                command_path("flower-supernode"), "--superlink", f"127.0.0.1:{port}", "--root-certificates", str(home / "ca.pem"),
                "--auth-supernode-private-key", str(folder / "node.key"), "--port", str(free_ports(1)[0]),
                "--node-config", f'table="{site.folder / "clinical.csv"}"',
            ]  # fmt: skip
            with (folder / "log").open("wb") as log:
                env = environment(folder)
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True, cwd=folder))
        wait_until(lambda: online(home) == {f"stock-{name}" for name in sites}, "the stock nodes")
        yield
    finally:
        for process in processes:
            stop_group(process.pid)


def online(home: Path) -> set[str]:
    """Names of the nodes that are online."""
    return {node.name for node in registered(home) if node.state == "online"}


def wait_until(ready: Callable[[], bool], what: str, seconds: float = NODE_SECONDS) -> None:
    """Waits until ``ready`` returns True. Raises ``TimeoutError`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not ready after {seconds} s")
        time.sleep(0.2)


def measure(work: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, Counter[str]]]:
    """Seconds of each round and openings of each site's table, for fedml and for the stock app."""
    sites, study = make_sites(work / "sites"), make_study(rounds)
    home, opens = home_of(work / "sites"), Opens({name: site.folder / "clinical.csv" for name, site in sites.items()})
    write_arrays(study, work)
    for site in sites.values():
        approve(site.state, study, "benchmark")
    opens.take()
    up(work / "sites", lambda _: None)
    try:
        assert online(home) == set(ROSTER)
        ours, ours_opened = our_rounds(study, sites, work), opens.take()
        for process in read_running(work / "sites").sites.values():  # type: ignore[union-attr]
            stop_group(process)
        wait_until(lambda: not online(home), "the end of our sites")
        with stock_nodes(sites, work):
            opens.take()
            stock, stock_opened = stock_rounds(rounds, work), opens.take()
    finally:
        down(work / "sites", lambda _: None)
    return {"ours": ours, "stock": stock}, {"ours": ours_opened, "stock": stock_opened}


def main() -> None:
    """Measures, compares and prints."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    assert rounds >= 6, "the first round is not counted, and the median needs at least five"
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        times, opened = measure(work, rounds)
    assert all(len(each) == rounds for each in times.values()), times
    median = {kind: statistics.median(each[1:]) for kind, each in times.items()}
    rows = []
    for kind, messages in (("ours", rounds + 3), ("stock", rounds)):  # fedml also sends describe, statistics and the last evaluation
        each = " ".join(f"{s:.2f}" for s in times[kind])
        rows.append((kind, f"{median[kind]:.2f}", each, str(messages), ", ".join(str(opened[kind][site]) for site in ROSTER)))
    head = ("", "a round (s)", "each, the first not counted", "messages a site", "openings of its table")
    table(f"empty round, real SuperLink, {len(ROSTER)} sites, 1,000 parameters, median of {rounds - 1}", head, rows)
    print(f"\nstock / ours: {median['stock'] / median['ours']:.1f}; arrays: unchanged by both, to {TOLERANCE:.0e} of the largest")


if __name__ == "__main__":
    main()
