"""Benchmark: what a federation costs that waits. SITES registered sites (``fedml-site start``) at one real SuperLink, no run.

    .venv/bin/python experiments/bench/idle_sites.py [SITES] [SECONDS]

CPU of the centre (the SuperLink with all that it started) and of each site (its process with its SuperNode), in percent of a core, from
/proc; medians of five windows of SECONDS each, which begin a minute after the last site has joined. Memory is the PSS of the same
processes. All are on this machine: PSS shares the libraries between the sites, so the column ``alone`` gives one site's memory next to no
other.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fedml.clients.site.manifest import read_site
from fedml.errors import RunError
from fedml.experiments.bench.superlink_round import NODE_SECONDS, online, wait_until, write_site
from fedml.experiments.bench.timing import machine, table
from fedml.experiments.federation.centre import make_centre, read_centre, register, registered, superlink_options
from fedml.experiments.federation.local import start_site
from fedml.flower.keys import write_node_key
from fedml.flower.parent import descendants
from fedml.flower.superlink import free_ports, start_superlink, stop_group

WINDOWS, SETTLING, AT_ONCE = 5, 60.0, 2  # sites that start together


def processes(process: int) -> list[int]:
    """``process`` and all that it started."""
    return [process, *(child for child, _ in descendants(process))]


def cpu_seconds(process: int) -> float:
    """CPU seconds of ``process`` and all that it started and that still runs."""
    total = 0
    for each in processes(process):
        with suppress(OSError):
            words = Path(f"/proc/{each}/stat").read_text().rpartition(") ")[2].split()
            total += int(words[11]) + int(words[12])
    return total / os.sysconf("SC_CLK_TCK")


def pss_mb(process: int) -> float:
    """Proportional memory of ``process`` and all that it started, in MB."""
    total = 0
    for each in processes(process):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def shares(running: Iterable[int], seconds: float) -> list[float]:
    """Percent of a core that each process tree uses in the next ``seconds``."""
    trees = list(running)
    before, began = [cpu_seconds(p) for p in trees], time.monotonic()
    time.sleep(seconds)
    wall = time.monotonic() - began
    return [100 * (cpu_seconds(p) - b) / wall for p, b in zip(trees, before, strict=True)]


def measure(work: Path, sites: int, seconds: float) -> list[tuple[str, ...]]:
    """The table's rows."""
    home, names = work / "centre", [f"site{n:03}" for n in range(sites)]
    port, control = free_ports(2)
    make_centre(home, "127.0.0.1", port, control=control)
    place, arguments, public = superlink_options(home, "127.0.0.1")
    superlink = start_superlink(home.resolve(), place, arguments, public)
    started = dict[str, int]()

    def up() -> bool:
        with suppress(RunError):
            registered(home)
            return True
        return False

    try:
        wait_until(up, "the SuperLink")
        alone = 0.0
        for name in names:
            folder = write_site(work / "sites", name)
            register(home, name, write_node_key(folder / "node.key"))
            (folder / "ca.pem").write_bytes((home / "ca.pem").read_bytes())
            with (folder / "site.toml").open("a", encoding="utf-8") as file:
                file.write(
                    f'\n[connection]\nsuperlink = "127.0.0.1:{read_centre(home).port}"\nroot_certificates = "ca.pem"\nkey = "node.key"\n'
                )
            started[name] = start_site(read_site(folder / "site.toml"))
            wait_until(lambda: len(started) - len(online(home)) < (1 if len(started) in (1, sites) else AT_ONCE), name, 5 * NODE_SECONDS)
            alone = alone or pss_mb(started[name])
        time.sleep(SETTLING)
        found = [shares([superlink.pid, *started.values()], seconds) for _ in range(WINDOWS)]
        memory = [pss_mb(p) for p in started.values()]
        assert len(online(home)) == sites, "a site was lost while nothing ran"
    finally:
        for process in started.values():
            stop_group(process)
        stop_group(superlink.pid)
    centre = [window[0] for window in found]
    each = [statistics.mean(window[1:]) for window in found]
    return [
        ("centre", f"{statistics.median(centre):.2f}", f"{min(centre):.2f} to {max(centre):.2f}", "", ""),
        (
            "a site",
            f"{statistics.median(each):.2f}",
            f"{min(each):.2f} to {max(each):.2f}",
            f"{statistics.median(memory):.0f}",
            f"{alone:.0f}",
        ),
    ]


def main() -> None:
    """Measures and prints."""
    sites, seconds = (int(word) for word in (*sys.argv[1:3], *("50", "30")[len(sys.argv[1:3]) :]))
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), sites, float(seconds))
    head = ("", "CPU (% of a core)", "windows", "PSS (MB)", "alone (MB)")
    table(f"{sites} waiting sites at a real SuperLink, median of {WINDOWS} windows of {seconds} s", head, rows)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
