"""Limits at the public port for whoever is not a registered node: small bodies, short waits. The SuperLink reads a body of any size into
memory, and without end, before it looks who sent it.

A node signs the time of each request with its key, in headers, so it is known before its body is read. Connections without a complete
header are ``WAITING`` at most, and connections that asked something and are not a node's are ``ASKING`` at most, until they are closed: a
new one ends the oldest. asyncio gives each TLS connection a buffer of 256 KB; here it has 16 KB.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import datetime
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, ClassVar

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from uvicorn.protocols.http.auto import AutoHTTPProtocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HANDSHAKE_SECONDS = 10.0  # of TLS
HEADER_SECONDS = 10.0  # from the handshake to a complete request header
STRANGERS_BYTES, STRANGERS_SECONDS = 64 * 1024, 10.0  # of a body
# Connections that are accepted together (asyncio makes the TLS of all of them before it counts them): a small part of WAITING, so that an
# honest one has time for its handshake before newer ones end it. The others wait in the kernel's queue.
ACCEPTED, BACKLOG = 16, 1024
CLOSING_SECONDS = 10.0  # for the other side to confirm the end of TLS
WAITING = 256  # connections without a complete request header
ASKING = 256  # connections of strangers after that
CONNECTION_BYTES = 256 * 1024  # from a stranger in all: uvicorn's parser has no limit for headers and trailers
STRANGERS_AT_ONCE = 64  # whose bodies are read
CONNECTION = "fedml.connection"  # key of a request's scope
NODES_BYTES, NODES_SECONDS = 2**30, 600.0  # of the body of a registered node


class FrugalTLS(asyncio.sslproto.SSLProtocol):
    """asyncio's TLS of one connection, counted unless it is known as a node's. Final."""

    max_size = 16 * 1024  # bytes
    waiting: ClassVar[dict[int, FrugalTLS]] = {}  # in the order of arrival
    asking: ClassVar[dict[int, FrugalTLS]] = {}
    is_node = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._join(self.waiting, WAITING)

    def connection_lost(self, error: Any) -> None:
        self._leave()
        super().connection_lost(error)

    def asks(self) -> None:
        """A request header is complete."""
        if not self.is_node:
            self._join(self.asking, ASKING)

    def known(self, is_node: bool) -> None:
        """Its last request was a registered node's, or not."""
        self.is_node = is_node
        if is_node:
            self._leave()
        elif self._transport is not None:
            self._join(self.asking, ASKING)

    def _join(self, crowd: dict[int, FrugalTLS], most: int) -> None:
        if id(self) in crowd:
            return
        self._leave()
        crowd[id(self)] = self
        while len(crowd) > most:
            oldest = next(iter(crowd.values()))
            oldest._leave()
            if isinstance(oldest._transport, asyncio.WriteTransport):
                oldest._transport.abort()

    def _leave(self) -> None:
        self.waiting.pop(id(self), None)
        self.asking.pop(id(self), None)


class Hurried(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol for a connection that must send a request header soon, and little unless it is a node's. Final."""

    received = 0
    timer: asyncio.TimerHandle | None = None
    tls: FrugalTLS | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        found = getattr(transport, "_ssl_protocol", None)
        self.tls = found if isinstance(found, FrugalTLS) else None
        self.timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._end_idle)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:  # it would keep this connection's memory for its time
            self.timer.cancel()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self.tls is None or not self.tls.is_node:
            self.received += len(data)
            if self.received > CONNECTION_BYTES:
                self.transport.abort()
                return
        last = self.cycle
        super().data_received(data)
        if self.tls is not None and self.cycle is not None and self.cycle is not last:
            self.cycle.scope[CONNECTION] = self.tls
            self.tls.asks()

    def _end_idle(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()


@lru_cache(maxsize=1024)
def proven(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` of ``message`` is by ``key`` (PEM): for the same bytes always the same answer, so it is computed once. Flower
    asks it again of each request.

    Raises:
        ValueError, TypeError: the key is none.
    """
    return verify_signature(bytes_to_public_key(key), message, signature)


def checked_key(key: bytes) -> bytes:
    """``key`` (PEM) itself, as ``proven`` takes it. Raises ``ValueError`` if it is none."""
    bytes_to_public_key(key)
    return key


def registered(scope: Scope, node_of: Callable[[bytes], Any]) -> bool:
    """Whether a request's headers are signed by a key that ``node_of`` knows."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    try:
        key = b64decode(headers[str.lower(FLEET_HTTP_PUBLIC_KEY_HEADER)], validate=True)
        signature = b64decode(headers[str.lower(FLEET_HTTP_SIGNATURE_HEADER)], validate=True)
        stamp = headers[str.lower(TIMESTAMP_HEADER)]
        age = (now() - datetime.datetime.fromisoformat(stamp)).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return False
        return proven(key, stamp.encode("ascii"), signature) and node_of(key) is not None
    except (KeyError, ValueError, TypeError, UnicodeError):
        return False


def limited(app: App, node_of: Callable[[bytes], Any]) -> App:
    """``app`` with these limits: it gets a stranger's body when that is complete, and a node's as it comes; 413 and 408 else."""

    strangers = 0

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal strangers
        if scope["method"] == "GET":  # /health, without a body
            await app(scope, _no_body, _closing(send))
            return
        is_node = registered(
            scope, node_of
        )  # in this thread: it takes a millisecond, and another one would compete with this for the interpreter
        if isinstance(tls := scope.get(CONNECTION), FrugalTLS):
            tls.known(is_node)
        if is_node:
            await app(scope, _bounded(receive), send)
        elif strangers >= STRANGERS_AT_ONCE:
            await _refuse(send, 503)
        else:
            strangers += 1
            try:
                await of_stranger(scope, receive, send)
            finally:
                strangers -= 1

    async def of_stranger(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(STRANGERS_SECONDS):
                body = await _whole(receive)
        except TimeoutError:
            await _refuse(send, 408)
            return
        if body is None:
            await _refuse(send, 413)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        await app(scope, again, _closing(send))

    return guarded


async def _no_body() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _whole(receive: Receive) -> bytes | None:
    """The body; None if it is larger than a stranger's may be, or the connection ended."""
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        found += message.get("body", b"")
        if len(found) > STRANGERS_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(found)


def _bounded(receive: Receive) -> Receive:
    """``receive`` of a registered node; raises ``ConnectionError`` beyond its limits."""
    loop, size = asyncio.get_running_loop(), 0
    until = loop.time() + NODES_SECONDS

    async def found() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.request" and (size > NODES_BYTES or loop.time() > until):
            raise ConnectionError("a node's message is too large or too slow")
        return message

    return found


def _closing(send: Send) -> Send:
    """``send`` that ends the connection after the answer, so that a stranger does not keep one."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return sent


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b""})
