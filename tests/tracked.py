"""Tracked runs for tests: a small finished run's folder, a real MLflow server as a process, a proxy in front of it that can fail."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from fedml.clients.site.manifest import find_sites
from fedml.experiments.runs.run import new_run, run
from fedml.study.study import Study
from tests.conftest import clinical_site, make_study

SITES = ("bergen", "lund")


def finished(folder: Path, runs: str = "runs", **changes: Any) -> tuple[Path, Study]:
    """A run of two sites with persons of both classes to test on, in ``folder/runs``; the sites are made once."""
    for seed, name in enumerate(SITES):
        if not (folder / "sites" / name).exists():
            clinical_site(folder / "sites" / name, name, 60, seed + 1)
    study = make_study(sites=SITES, **{"study__question": "Is y so?", "training__lr": 0.1, **changes})
    made = new_run(study, folder / runs, None, engine="local", job="train")
    sites = find_sites(folder / "sites", SITES)[0]
    outcome = run(study, sites, made)
    assert outcome.status == "finished", outcome.reason
    return made, study


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(words: list[str], port: int, cwd: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a process, from when it answers; it is ended with the block."""
    own = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | own | environment
    with (cwd / f"server-{port}.log").open("ab") as log:
        started = subprocess.Popen(words, cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(1200):
            assert started.poll() is None, (cwd / f"server-{port}.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield started
    finally:
        end(started)


def end(started: subprocess.Popen[bytes], signal_number: int = signal.SIGTERM) -> None:
    """Ends a process and the workers that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal_number)
    started.wait()


def mlflow_server(folder: Path, port: int) -> Any:
    """MLflow's own server on ``folder/mlflow.db``, artifacts through it."""
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    words += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    return process(words, port, folder)


@contextmanager
def proxy(port: int, before: Callable[[int], None]) -> Iterator[str]:
    """The address of a proxy to ``port`` that calls ``before(number)`` ahead of each request; an error there closes the connection."""
    count = iter(range(1, 1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.chunks() if self.headers.get("Transfer-Encoding") else self.rfile.read(int(self.headers.get("Content-Length") or 0))
            before(next(count))
            onward = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {"connection", "transfer-encoding", "content-length"}}
            headers["Host"] = f"127.0.0.1:{port}"
            onward.request(self.command, self.path, body, headers)
            reply = onward.getresponse()
            reported = reply.read()
            self.send_response(reply.status)
            for key, value in reply.getheaders():
                if key.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(reported)))
            self.end_headers()
            self.wfile.write(reported)

        def chunks(self) -> bytes:
            """A body in chunks (RFC 9112, section 7.1), as an empty file is sent."""
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A connection that ends is what some tests want."""

    server = Quiet(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def name_of(found: Any) -> str:
    """A run of MLflow by the run's id and its site."""
    tags = found.data.tags
    return "/".join(filter(None, (tags["fedml.run_id"], tags.get("fedml.site"))))


def content(uri: str, experiment: str = "toy") -> dict[str, Any]:
    """All that MLflow tells of an experiment's runs but ids of its own, by ``name_of``: name, status, tags, params, histories, files."""
    from mlflow import MlflowClient

    client, out = MlflowClient(uri), dict[str, Any]()
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    names = {r.info.run_id: name_of(r) for r in found}
    for r in found:
        name = name_of(r)
        assert name not in out, f"{name} is there twice"
        tags = {k: names.get(v, v) for k, v in r.data.tags.items() if k not in {"mlflow.log-model.history", "mlflow.user"}}
        steps = {
            key: sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(r.info.run_id, key)) for key in r.data.metrics
        }
        out[name] = {
            "name": r.info.run_name,
            "status": r.info.status,
            "times": (r.info.start_time, r.info.end_time),
            "tags": tags,
            "params": dict(r.data.params),
            "metrics": steps,
            "datasets": sorted((d.dataset.name, d.dataset.digest) for d in r.inputs.dataset_inputs),
            "files": sorted(a.path for a in client.list_artifacts(r.info.run_id, "record")),
            "models": len(r.outputs.model_outputs) if r.outputs else 0,
            "shown": sorted(a.path for a in client.list_artifacts(r.info.run_id)),
        }
    return out
