"""A recording wire: what a site and its SuperLink say to each other, in plain bytes, and a search that misses nothing in them.

    with recording(folder, upstream) as port:      # folder/ca.pem is what the site must trust
        ...                                        # the site's superlink is 127.0.0.1:port
    hits = find(searchable(folder), needles(["Anna Kowalska"]))

The proxy ends the site's TLS with a certificate of its own authority, writes every byte of both directions to a file a connection and a
direction, and passes it on over TLS. flwr 1.42 speaks HTTP/1.1 with protobuf bodies there; bodies that are chunked or compressed are
searched as they were before that too, and anything that is not HTTP/1.1 is an error, so that nothing goes by unread.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import ssl
import threading
import urllib.parse
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from fedml.flower.keys import write_authority

SENT, RECEIVED = "sent", "received"  # as the site sees it
_PREFIX = 8  # bytes of a needle that are looked for first; a shorter needle would be found by chance


@contextmanager
def recording(folder: Path, upstream: Callable[[], tuple[int, Path]]) -> Iterator[int]:
    """A proxy on loopback for as long as the context lasts; yields its port.

    Args:
        folder: is made; gets the authority (``ca.pem``) and ``NNNN.sent``, ``NNNN.received`` for each connection.
        upstream: the SuperLink's port and its authority's certificate, asked for with each connection.
    """
    folder.mkdir(parents=True)
    write_authority(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem", folder / "server.key")
    number = itertools.count(1)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):  # the end of the recording; asyncio would tell of it
            await through(reader, writer)

    async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = folder / f"{next(number):04d}"
        port, authority = upstream()
        trust = ssl.create_default_context(cafile=str(authority))
        try:
            answers, asks = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="127.0.0.1")
        except OSError as error:  # the SuperLink is not there: the site sees that the connection ends
            name.with_suffix(".failed").write_text(repr(error))
            writer.close()
            return
        await asyncio.gather(_pump(reader, asks, name.with_suffix(f".{SENT}")), _pump(answers, writer, name.with_suffix(f".{RECEIVED}")))

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="wire", daemon=True)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(connection, "127.0.0.1", 0, ssl=tls), loop).result(20)
        yield server.sockets[0].getsockname()[1]
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while data := await reader.read(2**16):
            file.write(data)  # before it goes on
            writer.write(data)
            await writer.drain()
    writer.close()


def captured(folder: Path, direction: str) -> dict[str, bytes]:
    """Every connection's bytes in one direction, by file name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"*.{direction}"))}


def searchable(folder: Path) -> list[bytes]:
    """Every byte of both directions as it crossed the wire, and every body that was chunked or compressed as it was before.

    Raises:
        ValueError: something there is not HTTP/1.1, or is compressed in a way that is not known here.
    """
    streams = [data for direction in (SENT, RECEIVED) for data in captured(folder, direction).values()]
    return streams + [plain for data in streams for plain in decoded(data)]


def decoded(stream: bytes) -> Iterator[bytes]:
    """The bodies of a stream of HTTP/1.1 messages that cross the wire otherwise than they are. A message cut short ends the stream."""
    at = 0
    while at < len(stream):
        end = stream.find(b"\r\n\r\n", at)
        if end < 0:
            return
        first, *lines = stream[at:end].split(b"\r\n")
        if b"HTTP/1.1" not in first:
            raise ValueError(f"not HTTP/1.1: {first[:80]!r}")
        fields = {k.strip().lower(): v.strip().lower() for k, _, v in (line.partition(b":") for line in lines)}
        at = end + 4
        chunked = fields.get(b"transfer-encoding") == b"chunked"
        if chunked:
            body, at = _dechunked(stream, at)
        else:
            length = int(fields.get(b"content-length", b"0"))
            body, at = stream[at : at + length], at + length
        packing = fields.get(b"content-encoding", b"identity")
        if packing == b"gzip" or packing == b"deflate":
            yield zlib.decompressobj(47 if packing == b"gzip" else 15).decompress(body)
        elif packing != b"identity":
            raise ValueError(f"a body is packed as {packing!r}")
        elif chunked:
            yield body


def _dechunked(stream: bytes, at: int) -> tuple[bytes, int]:
    parts = []
    while (end := stream.find(b"\r\n", at)) >= 0:
        size = int(stream[at:end].split(b";")[0], 16)
        parts.append(stream[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
        if not size:
            break
    return b"".join(parts), min(at, len(stream)) if parts else len(stream)


def forms(text: str) -> set[bytes]:
    """The ways in which ``text`` may stand in bytes: UTF-8, Latin-1, escaped (JSON, Python, URL), Base64 wherever it begins, hex."""
    plain = text.encode()
    out = {plain, json.dumps(text)[1:-1].encode(), text.encode("unicode_escape"), repr(plain)[2:-1].encode()}
    out |= {urllib.parse.quote(text).encode(), urllib.parse.quote_plus(text).encode(), plain.hex().encode(), plain.hex().upper().encode()}
    with suppress(UnicodeEncodeError):
        out.add(text.encode("latin-1"))
    for before in range(3):  # only the characters that no neighbour has a part in
        whole = base64.b64encode(bytes(before) + plain).rstrip(b"=")
        first, last = -(-before * 8 // 6), (before + len(plain)) * 8 // 6
        out |= {whole[first:last], whole[first:last].replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in out if len(form) >= _PREFIX}


def needles(texts: Collection[str], *, plainly: Iterable[str] = ()) -> dict[bytes, str]:
    """What to look for: each form of ``texts``, and ``plainly`` in UTF-8 alone. Raises ``ValueError`` for a text that is too short."""
    out = {form: text for text in texts for form in forms(text)} | {text.encode(): text for text in plainly}
    short = [text for needle, text in out.items() if len(needle) < _PREFIX] + [t for t in texts if len(t.encode()) < _PREFIX]
    if short:
        raise ValueError(f"{short[0]!r} is shorter than {_PREFIX} bytes: it would be found by chance")
    return out


def find(haystacks: Iterable[bytes], wanted: Mapping[bytes, str]) -> set[str]:
    """The texts of which a needle stands anywhere in ``haystacks``."""
    by_prefix: dict[bytes, list[bytes]] = {}
    for needle in wanted:
        by_prefix.setdefault(needle[:_PREFIX], []).append(needle)
    keys = np.unique(np.frombuffer(b"".join(by_prefix), dtype="<u8"))
    found: set[str] = set()
    for data in haystacks:
        for shift in range(_PREFIX):
            count = (len(data) - shift) // _PREFIX
            if count <= 0:
                continue
            windows = np.frombuffer(data, dtype="<u8", offset=shift, count=count)
            for at in (np.flatnonzero(np.isin(windows, keys)) * _PREFIX + shift).tolist():
                found |= {wanted[needle] for needle in by_prefix[data[at : at + _PREFIX]] if data.startswith(needle, at)}
    return found
