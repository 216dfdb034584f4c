"""Strangers at the public port: thousands of slow, half-open or fat connections neither fill the SuperLink's memory nor keep sites out."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest

from fedml.experiments.federation.centre import read_centre
from fedml.flower.strangers import ASKING, WAITING
from tests.experiments.federation.test_centre import centre, status  # noqa: F401 - a fixture

KINDS = ("no TLS", "no request", "half a header", "slow body")
PATH = "/v1/fleet/pull-messages"
HEAD = f"POST {PATH} HTTP/1.1\r\n"


def memory_mb(home: Path) -> float:
    """Resident memory of the SuperLink's processes: those whose command line names this folder."""
    total = 0
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(home).encode() in (place / "cmdline").read_bytes():
                total += next(int(line.split()[1]) for line in (place / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return total / 1024


async def stranger(kind: str, port: int, ca: Path, seconds: float) -> str:
    """One connection that is slow in its own way; how it ended."""
    context = None if kind == "no TLS" else ssl.create_default_context(cafile=ca)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        if kind == "half a header":
            writer.write(f"POST {PATH} HTTP/1.1\r\nhost: x\r\n".encode())
        elif kind == "slow body":
            head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\ncontent-length: 1000000000\r\n\r\n"
            writer.write(head.encode())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if kind == "slow body":
                if writer.is_closing():
                    return "closed"
                writer.write(b"x" * 200)
                await writer.drain()
            with suppress(TimeoutError):
                if not await asyncio.wait_for(reader.read(100), 1.0):
                    return "closed"
        return "kept"
    except OSError:
        return "closed"
    finally:
        with suppress(Exception):
            writer.transport.abort()


async def fat(port: int, ca: Path, megabytes: int) -> None:
    """A body of so many MB from nobody."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context(cafile=ca))
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\ncontent-length: {megabytes * 1_000_000}\r\n\r\n"
        writer.write(head.encode())
        for _ in range(megabytes):
            if writer.is_closing():
                return
            writer.write(b"x" * 1_000_000)
            await writer.drain()
        writer.close()


async def crowd(port: int, ca: Path, connections: int, seconds: float) -> list[str]:
    """How the strangers ended."""
    fats = [asyncio.create_task(fat(port, ca, 150)) for _ in range(max(connections // 100, 2))]
    ended = await asyncio.gather(*(stranger(KINDS[n % len(KINDS)], port, ca, seconds) for n in range(connections)))
    for task in fats:
        task.cancel()
    return list(ended)


def run_crowd(port: int, ca: Path, connections: int, seconds: float) -> list[str]:
    """``crowd``, in a process of its own, so that it does not slow down those who ask honestly."""
    return asyncio.run(crowd(port, ca, connections, seconds))


def meanwhile(port: int, ca: Path, connections: int, seconds: float) -> tuple[list[str], list[float], float]:
    """(how the strangers ended, seconds that each honest question took, largest memory) while they are there."""
    home, waits, most = ca.parent, list[float](), 0.0
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = pool.submit(run_crowd, port, ca, connections, seconds)
        while not there.done():
            began = time.monotonic()
            assert status(home, port, "GET", "/health", ca) == 200
            waits.append(time.monotonic() - began)
            most = max(most, memory_mb(home))
            time.sleep(0.3)
        return there.result(), waits, most


def connect(port: int, ca: Path) -> ssl.SSLSocket:
    """TLS with the public port."""
    return ssl.create_default_context(cafile=ca).wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="127.0.0.1")


def still_open(connections: list[ssl.SSLSocket]) -> int:
    """How many the server has not closed; TLS that was ended on a connection that stays is open."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLRDHUP)
    return len(connections) - len(poll.poll(0))


# More than the limit, and fewer than that in a second, so that each gets through.
@pytest.mark.parametrize(("request_", "most"), [("", WAITING), (f"{HEAD}content-length: 0\r\n\r\n", ASKING)])
def test_the_oldest_strangers_are_ended_before_their_time(centre: Path, request_: str, most: int) -> None:  # noqa: F811
    port, ca = read_centre(centre).port, centre / "ca.pem"
    connections, began = [], time.monotonic()
    for _ in range(most + 50):
        connections.append(connect(port, ca))
        connections[-1].sendall(request_.encode())
    if time.monotonic() - began > 8:
        pytest.skip("this machine is too slow: the first ones have had their time")
    deadline = began + 9
    while still_open(connections) > most and time.monotonic() < deadline:
        time.sleep(0.1)
    assert still_open(connections) <= most
    assert still_open(connections[-10:]) == 10, "the newest are kept"
    assert status(centre, port, "GET", "/health", ca) == 200
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("begin", [HEAD, f"{HEAD}transfer-encoding: chunked\r\n\r\n0\r\n"])
def test_headers_and_trailers_have_an_end(centre: Path, begin: str) -> None:  # noqa: F811
    connection, sent = connect(read_centre(centre).port, centre / "ca.pem"), 0
    line = b"x-more: " + b"x" * 1000 + b"\r\n"
    with connection, suppress(OSError):
        connection.sendall(begin.encode())
        while sent < 100_000_000:
            connection.sendall(line * 100)
            sent += len(line) * 100
    assert sent < 20_000_000


@pytest.mark.long
@pytest.mark.parametrize("connections", [200, 3000])
def test_sites_are_served_among_strangers(centre: Path, connections: int) -> None:  # noqa: F811
    port, ca = read_centre(centre).port, centre / "ca.pem"
    meanwhile(port, ca, 8, 15)  # what is loaded once is loaded
    before = memory_mb(centre)
    assert before > 50
    ended, waits, most = meanwhile(port, ca, connections, 30)
    print(f"{connections} strangers: memory {before:.0f} MB, at most {most:.0f} MB; an answer took at most {max(waits):.2f} s")
    assert most - before < 100
    assert max(waits) < 10
    assert ended.count("closed") > 0.95 * connections, "none is kept for long"
    assert status(centre, port, "POST", PATH, ca) == 401
