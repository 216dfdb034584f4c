"""`fedml ui`: MLflow's pages of the recorded runs, reachable from this machine only."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from fedml import quiet
from fedml.errors import InputError
from fedml.tracking.pages import VIEW_TAG, view_link
from fedml.tracking.store import connect, store

HOST = "127.0.0.1"


def serve(port: int, say: Callable[[str], None]) -> None:
    """Prints the links of the studies' pages, then runs MLflow's server until stopped. If the store is a remote server, only prints links.

    Raises:
        InputError: the port is in use, or the store cannot be read.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = store()
    remote = uri.startswith(("http://", "https://"))
    address = uri.rstrip("/") if remote else f"http://{HOST}:{port}"
    if not remote:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise InputError(f"--port {port}: cannot listen on this port ({error.strerror}); give another port.") from error
    try:
        found = [e for e in connect().search_experiments() if VIEW_TAG in e.tags]
    except MlflowException as error:
        raise InputError(f"MLFLOW_TRACKING_URI: the store cannot be read ({error}); see docs/tracking.md.") from error
    for experiment in sorted(found, key=lambda e: str(e.name)):
        say(f"{experiment.name}: {view_link(address, experiment.experiment_id)}")
    if not found:
        say(f"{address} (no study is recorded yet)")
    if remote:
        return
    words = ["-P", "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    # uvicorn puts its --app-dir, by default the current folder, before all else on Python's path.
    words += ["--uvicorn-opts", f"--app-dir {shlex.quote(str(Path(mlflow.__file__).parent.parent))}"]
    sys.stdout.flush()
    quiet.release()  # the server writes to this process's standard error, not into a pipe that ends with it
    # The store's address may contain a password, so it is not passed as an argument. MLflow's jobs are for language models: off.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(sys.executable, [sys.executable, *words], environment)  # noqa: S606 - no shell
