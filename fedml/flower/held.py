"""Requests for messages that the SuperLink answers when there is one, in place of at once with nothing.

A node of flwr 1.42 asks again and again whether there is a message, and the server app asks again and again whether there is a reply. Each
such request is signed, checked and a transaction of the database, so that waiting costs a processor, and each pause between two is added to
a round. Here an empty answer is kept back until a message has arrived whole, or the time is over. Flower has checked the request before
anything is kept back. When a message has arrived, a request of the last two seconds is handed to Flower again, which checks it again; an
older one is answered with nothing, and the node, which knows that it waited, asks again at once: Flower gives a message to one request
only, and behind an old one the connection may be dead without anybody's notice.

    arrivals = Arrivals(loop)                           # told by the database's own functions what was stored (``watch``)
    app = held(app, {PATH: Asked(targets_of, seconds_of)}, arrivals)

A message that is stored has parts that its sender uploads afterwards. It has arrived when they are all there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, final

from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from google.protobuf.message import DecodeError

from fedml.flower.address import WAIT
from fedml.flower.heard import Heard
from fedml.flower.strangers import App, Receive, Scope, Send

FLEET, RUNTIME = "/v1/fleet/pull-messages", "/v1/runtime/pull-messages"
# Seconds that an answer is kept back at most: below the 30 after which Flower's client gives up, and of the server app short, because only
# a request finds out that a node is gone.
LONGEST_NODE, LONGEST_SERVER = 20.0, 1.0
FRESH = 2.0  # seconds from a request on in which a message may be given to it
_OPEN = 10_000  # messages with missing parts that are remembered
_SMALL = 1024  # bytes of an answer that can be empty; and of a node's request


@final
class Arrivals:
    """Who waits for messages, and which messages lack parts. ``stored`` and ``put`` are called in any thread, the rest in the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Heard | None = None) -> None:
        self._loop, self._lock, self._heard = loop, threading.Lock(), heard
        self._missing: dict[str, tuple[str, set[str]]] = {}  # message -> (its target, parts that are not there)
        self._wanted: dict[str, set[str]] = {}  # part -> messages that lack it
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.ended = False

    def stored(self, message: str, target: str, missing: Collection[str]) -> None:
        """A message for ``target`` is stored; parts that it still lacks."""
        with self._lock:
            if missing:
                self._missing[message] = (target, set(missing))
                for part in missing:
                    self._wanted.setdefault(part, set()).add(message)
                done = [target for target, _ in [self._forgotten(next(iter(self._missing)))]] if len(self._missing) > _OPEN else []
            else:
                done = [target]
        self._tell(done)

    def put(self, part: str) -> None:
        """A part is stored."""
        done = []
        with self._lock:
            for message in self._wanted.pop(part, ()):
                target, missing = self._missing[message]
                missing.discard(part)
                if not missing:
                    del self._missing[message]
                    done.append(target)
        self._tell(done)

    def _forgotten(self, message: str) -> tuple[str, set[str]]:
        target, missing = self._missing.pop(message)
        for part in missing:
            self._wanted[part].discard(message)
            if not self._wanted[part]:
                del self._wanted[part]
        return target, missing

    def _tell(self, targets: list[str]) -> None:
        if self._heard is not None:
            self._heard.replied(targets)
        if targets:
            self._loop.call_soon_threadsafe(self._wake, targets)

    def _wake(self, targets: Collection[str]) -> None:
        for target in targets:
            for event in self._waiting.get(target, ()):
                event.set()

    def join(self, event: asyncio.Event, targets: Collection[str]) -> None:
        """``event`` is set when a message for one of ``targets`` arrives."""
        for target in targets:
            self._waiting.setdefault(target, set()).add(event)

    def leave(self, event: asyncio.Event, targets: Collection[str]) -> None:
        """The inverse of ``join``."""
        for target in targets:
            others = self._waiting.get(target, set())
            others.discard(event)
            if not others:
                self._waiting.pop(target, None)

    def end(self) -> None:
        """Nothing is kept back any longer: the server ends."""
        self.ended = True
        self._wake(list(self._waiting))


def watch(arrivals: Arrivals) -> None:
    """Tells ``arrivals`` what Flower's database stores from now on."""
    store, put = SqlLinkState.store_message_and_object_tree, SqlLinkState.store_object
    lately, lock = dict[tuple[str, str], None](), threading.Lock()  # (session, part) that were stored

    @wraps(store)
    def stored(self: Any, message: Any, object_tree: Any, session_id: str) -> Any:
        found = store(self, message, object_tree, session_id)
        about = message.metadata
        if found[0]:
            arrivals.stored(about.message_id, about.reply_to_message_id or str(about.dst_node_id), found[1])
        return found

    @wraps(put)
    def kept(self: Any, run_id: int, session_id: str, object_id: str, content: bytes) -> Any:
        found, part = put(self, run_id, session_id, object_id, content), (session_id, object_id)
        if found:
            arrivals.put(object_id)
        with lock:
            if found:
                lately[part] = None
                if len(lately) > _OPEN:
                    del lately[next(iter(lately))]
            # Sent again, because the answer to the first time was lost: Flower refuses it, and the sender would give up the whole message.
            return part in lately

    database: Any = SqlLinkState
    database.store_message_and_object_tree, database.store_object = stored, kept


def of_node(body: bytes) -> tuple[str, ...]:
    """Whose messages a node asks for."""
    return (str(PullMessagesRequest.FromString(body).node.node_id),)


def of_server(body: bytes) -> tuple[str, ...]:
    """To which messages the server app asks for replies."""
    return tuple(PullAppMessagesRequest.FromString(body).message_ids)


def node_seconds(scope: Scope) -> float:
    """How long a node is ready to wait for an answer; 0 if it does not say so: an older one, or one of Flower's."""
    text = dict(scope["headers"]).get(WAIT.encode(), b"")
    return min(float(text), LONGEST_NODE) if text.isdigit() and len(text) < 4 else 0.0


@dataclass(frozen=True)
class Asked:
    """A kind of request that can wait: whose arrivals end the wait, by its body; how long, by its headers."""

    targets: Callable[[bytes], tuple[str, ...]]
    seconds: Callable[[Scope], float]


NODE, SERVER = Asked(of_node, node_seconds), Asked(of_server, lambda _: LONGEST_SERVER)


@dataclass
class _Try:
    """One passage of a request through Flower: what it read, and its answer if that can be kept back."""

    body: bytearray = field(default_factory=bytearray)
    kept: list[Any] = field(default_factory=list)
    sent: bool = False


def held(app: App, kinds: Mapping[str, Asked], arrivals: Arrivals) -> App:
    """``app``, which keeps empty answers to requests of ``kinds`` (path -> kind) back."""

    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        kind = kinds.get(scope["path"]) if scope["type"] == "http" else None
        seconds = kind.seconds(scope) if kind is not None else 0.0
        if kind is None or seconds <= 0:
            await app(scope, receive, send)
        else:
            await _wait(app, scope, receive, send, _Wait(kind, seconds, arrivals))

    return patient


@dataclass(frozen=True)
class _Wait:
    kind: Asked
    seconds: float
    arrivals: Arrivals


async def _wait(app: App, scope: Scope, receive: Receive, send: Send, how: _Wait) -> None:
    loop, arrived, arrivals = asyncio.get_running_loop(), asyncio.Event(), how.arrivals
    began, targets, body = loop.time(), tuple[str, ...](), b""
    try:
        while True:
            attempt = _Try()
            again = _again(body)

            async def heard(attempt: _Try = attempt, again: list[Any] = again) -> Any:
                nonlocal targets, body
                message = again.pop() if again else await receive()
                if not targets and message["type"] == "http.request" and len(attempt.body) <= _SMALL:
                    attempt.body += message.get("body", b"")
                    if not message.get("more_body") and len(attempt.body) <= _SMALL:
                        body = bytes(attempt.body)
                        with suppress(DecodeError):  # Flower says what is wrong with it
                            targets = how.kind.targets(body)
                        arrivals.join(arrived, targets)  # before Flower looks, so that nothing arrives in between
                return message

            await app(_copied(scope), heard, _keeping(attempt, send))
            if attempt.sent:
                return
            left = began + how.seconds - loop.time()
            waits = bool(targets) and left > 0 and not arrivals.ended
            if not (waits and await _arrives(arrived, receive, left) and loop.time() < began + FRESH):
                for message in attempt.kept:
                    await send(message)
                return
            arrived.clear()
    finally:
        arrivals.leave(arrived, targets)


def _again(body: bytes) -> list[Any]:
    return [{"type": "http.request", "body": body, "more_body": False}] if body else []


def _copied(scope: Scope) -> Scope:
    """A scope for one passage: Flower's app writes into it."""
    return {**scope, **({"state": dict(scope["state"])} if "state" in scope else {})}


def _keeping(attempt: _Try, send: Send) -> Send:
    """``send`` that keeps a good empty answer in ``attempt``, and sends any other."""

    async def sent(message: Any) -> None:
        if attempt.sent:
            await send(message)
            return
        attempt.kept.append(message)
        begun = message["type"] == "http.response.start" and message["status"] == 200
        more = message["type"] == "http.response.body" and not message.get("body")
        if not (begun or more):
            attempt.sent = True
            for each in attempt.kept:
                await send(each)

    return sent


async def _arrives(arrived: asyncio.Event, receive: Receive, seconds: float) -> bool:
    """Whether ``arrived`` is set within ``seconds``, while the other side is there."""
    waits = [asyncio.ensure_future(arrived.wait()), asyncio.ensure_future(receive())]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return waits[0] in done and waits[1] not in done  # a message that is given to a connection that has ended is lost
    finally:
        for wait in waits:
            wait.cancel()
