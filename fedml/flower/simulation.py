"""The simulation engine: runs the two apps with ``flwr run`` in Flower's simulation runtime on Ray.

A separate SuperLink on loopback, with a temporary folder for Flower's files, runs for the duration of the run.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fedml.errors import RunError
from fedml.flower.superlink import free_ports, log_tail, log_text, start_superlink, stop_group, submit, write_app, write_connection


def run_simulation(
    apps: Mapping[str, str], config: Mapping[str, str], nodes: int, *, cpus_per_node: int, finished: Callable[[], bool],
    left: Callable[[], bool], debug: bool = False,
) -> None:  # fmt: skip
    """Runs the apps in Flower's simulation and returns when ``finished()`` is true.

    Args:
        apps: import paths (``module:name``) of ``server`` and ``client``.
        config: the run's configuration.
        nodes: simulated SuperNodes.
        cpus_per_node: CPUs that Ray reserves for each node.
        finished: called a few times a second; true once the run's log has its "end" event.
        left: true once the process of the server app has ended, well or not.
        debug: keep Flower's files and print their folder.

    Raises:
        RunError: Flower could not be started, or ended before the run's log had its "end" event.
    """
    home = Path(tempfile.mkdtemp(prefix="fedml-simulation-"))
    try:
        write_app(home / "app", apps, config)
        port = free_ports(1)[0]
        write_connection(home, f"127.0.0.1:{port}", None)
        superlink = start_superlink(home, port, ["--insecure", "--simulation"])
        try:
            federation = f"num-supernodes={nodes} client-resources-num-cpus={cpus_per_node} init-args-log-to-driver=false"
            submit(home, home / "app", ["--federation-config", federation], alive=lambda: superlink.poll() is None)
            while not finished():
                if superlink.poll() is not None:
                    raise RunError(f"Flower's SuperLink ended unexpectedly: {log_tail(home)}")
                if left() or _is_over(home):
                    time.sleep(2)  # the "end" event may not be on the disk yet; and a process that just begins can look as if it had left
                    if not finished() and (left() or _is_over(home)):
                        raise RunError(f"Flower's simulation ended before the run: {log_tail(home)}")
                time.sleep(0.2)
        finally:
            stop_group(superlink.pid)
    finally:
        if debug:
            print(f"Flower's files: {home}", file=sys.stderr)
        else:
            shutil.rmtree(home, ignore_errors=True)


def _is_over(home: Path) -> bool:
    return "raised an exception" in log_text(home)
