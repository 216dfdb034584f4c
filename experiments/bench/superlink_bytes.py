"""Benchmark: a round with a large model over a real SuperLink, against a plain HTTPS copy of the same bytes down to each site and up again.

    .venv/bin/python experiments/bench/superlink_bytes.py [ROUNDS] [HIDDEN]

Three sites, a network of one hidden layer of HIDDEN units on 499 columns (19,900: 10 million weights, 40 MB), no epochs, no evaluation. The
copy: one uvicorn server with the centre's own certificate in a process of its own, and three clients (httpx, a process each) that get
the model's bytes and post them back at the same time, on warm connections; it computes, checks and stores nothing. Medians; the first
round, and the first copy, are the warm-up.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedml.clients.gate.approvals import approve
from fedml.experiments.bench.superlink_round import NAMES, ROSTER, make_sites, wait_until
from fedml.experiments.bench.timing import machine, table
from fedml.experiments.federation.local import down, home_of, up
from fedml.experiments.runs.run import On, new_run, run
from fedml.flower.superlink import free_ports
from fedml.runs.events import Round
from fedml.study.study import Study, parse_study, validate

SERVER = """
import sys, uvicorn
data = bytes(int(sys.argv[1]))
async def app(scope, receive, send):
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": data if scope["method"] == "GET" else b""})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), ssl_certfile=sys.argv[3], ssl_keyfile=sys.argv[4], log_level="error",
            lifespan="off", access_log=False, timeout_keep_alive=600)
"""
CLIENT = """
import httpx, sys
with httpx.Client(verify=sys.argv[2], timeout=600) as client:
    for _ in sys.stdin:
        data = client.get(sys.argv[1]).raise_for_status().content
        client.post(sys.argv[1], content=data).raise_for_status()
        print("done", flush=True)
"""


def make_study(rounds: int, hidden: int) -> Study:
    """A study with a network of one hidden layer and zero epochs."""
    plan = {
        "study": {"name": "large"},
        "cohort": {"inputs": ["clinical"], "target": "label", "clinical": {"columns": NAMES, "indicate": False}},
        "model": {"clinical": {"net": "mlp", "hidden": [hidden]}},
        "training": {"local_epochs": 0, "evaluate_every": 0},
        "federation": {"sites": list(ROSTER), "rounds": rounds, "timeout": 600},
    }
    return parse_study(validate(Study, plan, "the large study").canonical)


def our_rounds(work: Path, rounds: int, hidden: int) -> tuple[list[float], int]:
    """Seconds of each round, and bytes of a message to a site."""
    sites, study = make_sites(work / "sites"), make_study(rounds, hidden)
    for site in sites.values():
        approve(site.state, study, "benchmark", "benchmark on this machine")
    up(work / "sites", lambda _: None)
    try:
        folder = new_run(study, work / "runs", None, engine="deployment", job="train")
        outcome = run(study, sites, folder, On("deployment", flower_home=home_of(work / "sites")))
        assert outcome.status == "finished", outcome.reason
    finally:
        down(work / "sites", lambda _: None)
    found = [event for event in outcome.events if isinstance(event, Round)]
    return [event.seconds for event in found], next(iter(found[0].sites.values()))["bytes_out"]


def answers(port: int) -> bool:
    """Whether something listens on ``port`` of this machine."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def copies(work: Path, count: int, size: int) -> list[float]:
    """Seconds of each copy of ``size`` bytes to three clients and back."""
    home, port = home_of(work / "sites"), free_ports(1)[0]
    files = [str(home / "server.pem"), str(home / "server.key")]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(size), str(port), *files])
    url, pipe = f"https://127.0.0.1:{port}/", subprocess.PIPE
    words = [sys.executable, "-c", CLIENT, url, str(home / "ca.pem")]
    clients = list[subprocess.Popen[str]]()
    try:
        wait_until(lambda: answers(port), "the server")
        clients += [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in ROSTER]
        found = []
        for _ in range(count):
            began = time.monotonic()
            for client in clients:
                assert client.stdin is not None
                client.stdin.write("go\n")
                client.stdin.flush()
            for client in clients:
                assert client.stdout is not None
                assert client.stdout.readline() == "done\n"
            found.append(time.monotonic() - began)
        return found
    finally:
        for client in clients:
            client.kill()
            client.wait()
        server.kill()
        server.wait()


def main() -> None:
    """Measures, compares and prints."""
    rounds, hidden = (int(word) for word in (*sys.argv[1:3], *("6", "19900")[len(sys.argv[1:3]) :]))
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        times, size = our_rounds(Path(folder), rounds, hidden)
        plain = copies(Path(folder), rounds, size)
    ours, peer = (statistics.median(each[1:]) for each in (times, plain))
    rows = [
        (name, f"{median:.2f}", " ".join(f"{s:.2f}" for s in each))
        for name, median, each in (("a round", ours, times), ("a copy", peer, plain))
    ]
    title = f"{size / 1e6:.1f} MB to each of {len(ROSTER)} sites and back, median of {rounds - 1}"
    table(title, ("", "seconds", "each, the first not counted"), rows)
    print(f"\na round / a copy: {ours / peer:.2f}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
