"""Bad networks between a site and its centre, on loopback with real sockets: proxies whose faults follow a seeded schedule.

``bad_network`` forwards bytes and knows nothing of them. ``replaying`` ends TLS itself, with the centre's own key, as nobody on the way can
who lacks that key: it sends whole requests a second time.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 16_384
_BITS_PER_SECOND = 1_000_000
_GIVEN_UP = (OSError, EOFError, asyncio.IncompleteReadError, ssl.SSLError)


@dataclass
class Network:
    """A way to the port ``target`` of this machine. ``fault``: a key of FAULTS, which may be changed at any time.

    ``struck``: how often each fault has struck. ``most``: how often one strikes at most, then it is calm.
    """

    target: int
    seed: int
    fault: str = "calm"
    most: int = 1_000_000
    port: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    line: asyncio.Lock = field(default_factory=asyncio.Lock)  # of a slow line, which all connections share

    def strikes(self, chance: random.Random, probability: float) -> bool:
        """Whether the fault strikes now."""
        if self.fault == "calm" or self.struck[self.fault] >= self.most or chance.random() >= probability:
            return False
        self.struck[self.fault] += 1
        return True


Fault = Callable[[Network, random.Random, bytes], Awaitable[tuple[bytes, bool]]]  # what goes on of a chunk, and whether the connection does


async def calm(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """Nothing."""
    return data, True


async def drops(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """The connection ends between two chunks; half of the new ones are refused (``_joined``)."""
    return (b"", False) if network.strikes(chance, 0.1) else (data, True)


async def cuts(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """The connection is reset in the midst of a chunk."""
    return (data[: chance.randrange(len(data))], False) if network.strikes(chance, 0.1) else (data, True)


async def delays(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """Up to 0.3 s for each chunk."""
    if network.strikes(chance, 0.5):
        await asyncio.sleep(0.3 * chance.random())
    return data, True


async def duplicates(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """A chunk comes twice."""
    return (data + data if network.strikes(chance, 0.1) else data), True


async def corrupts(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """One bit of a chunk is another."""
    if not network.strikes(chance, 0.1):
        return data, True
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed), True


async def silences(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """Nothing comes through any longer, and no side is told: as behind a firewall that has forgotten a connection."""
    if network.strikes(chance, 0.05):
        await asyncio.sleep(3600)
    return data, True


async def throttles(network: Network, chance: random.Random, data: bytes) -> tuple[bytes, bool]:
    """1 Mbit/s for all connections and both directions together."""
    network.strikes(chance, 1.0)
    async with network.line:
        await asyncio.sleep(8 * len(data) / _BITS_PER_SECOND)
    return data, True


FAULTS: dict[str, Fault] = {f.__name__: f for f in (calm, drops, cuts, delays, duplicates, corrupts, silences, throttles)}


async def _pump(network: Network, chance: random.Random, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(*_GIVEN_UP):
        while data := await source.read(_CHUNK):
            sent, goes_on = await FAULTS[network.fault](network, chance, data)
            if sent:
                sink.write(sent)
                await sink.drain()
            if not goes_on:
                _reset(sink)
                return
        sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection without a farewell (RST)."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _joined(network: Network, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    chance = random.Random(f"{network.seed} {number}")
    if network.fault == "drops" and network.strikes(chance, 0.5):
        _reset(writer)
        return
    try:
        up, down = await asyncio.open_connection("127.0.0.1", network.target)
    except OSError:
        _reset(writer)
        return
    pumps = [asyncio.ensure_future(_pump(network, random.Random(f"{network.seed} {number} {way}"), a, b))
             for way, a, b in (("up", reader, down), ("down", up, writer))]  # fmt: skip
    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    for pump in pumps:
        pump.cancel()
    for side in (writer, down):
        _reset(side)


@contextmanager
def _served(network: Network, joined: Callable[..., Awaitable[None]], context: ssl.SSLContext | None) -> Iterator[Network]:
    loop, ready, numbers = asyncio.new_event_loop(), threading.Event(), iter(range(10**9))

    async def serve() -> None:
        server = await asyncio.start_server(lambda r, w: joined(network, next(numbers), r, w), "127.0.0.1", 0, ssl=context)
        network.port = server.sockets[0].getsockname()[1]
        ready.set()

    def go() -> None:
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(lambda *_: None)  # a connection that ends badly is what it is for
        loop.create_task(serve())
        loop.run_forever()
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield network
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@contextmanager
def bad_network(target: int, seed: int) -> Iterator[Network]:
    """A network to a port of this machine, as long as the context lasts. It begins calm."""
    with _served(Network(target, seed), _joined, None) as network:
        yield network


async def _whole(reader: asyncio.StreamReader) -> bytes:
    """One HTTP/1.1 request or answer, with its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)}
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while True:
            size = await reader.readline()
            piece = await reader.readexactly(int(size, 16) + 2)
            body += size + piece
            if int(size, 16) == 0:
                return head + body
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


async def _ask(target: int, context: ssl.SSLContext, request: bytes) -> bytes:
    """The centre's answer to a request on a connection of its own."""
    up, down = await asyncio.open_connection("127.0.0.1", target, ssl=context)
    try:
        down.write(request)
        await down.drain()
        return await _whole(up)
    finally:
        down.transport.abort()


@contextmanager
def replaying(target: int, seed: int, home: Path) -> Iterator[Network]:
    """A network that sends whole requests again when its fault is ``replays``: at once, before the true one, or some that are older."""
    inner, outer, chance = (
        ssl.create_default_context(cafile=str(home / "ca.pem")),
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        random.Random(seed),
    )
    outer.load_cert_chain(home / "server.pem", home / "server.key")
    past: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def again(request: bytes) -> None:
        with suppress(*_GIVEN_UP):
            await _ask(target, inner, request)

    async def joined(network: Network, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(*_GIVEN_UP):
            while True:
                request = await _whole(reader)
                past.append(request)
                del past[:-500]
                if network.fault == "replays":
                    sent = [chance.choice(past) for _ in range(2) if network.strikes(chance, 0.3)]
                    sent += [request] if network.strikes(chance, 0.3) else []
                    for each in sent:
                        tasks.add(task := asyncio.ensure_future(again(each)))
                        task.add_done_callback(tasks.discard)
                    await asyncio.sleep(0.02 * chance.random())
                writer.write(await _ask(target, inner, request))
                await writer.drain()
                if network.fault == "replays" and network.strikes(chance, 0.2):
                    await again(request)
        writer.transport.abort()

    with _served(Network(target, seed), joined, outer) as network:
        yield network
