"""Requests that wait at the centre: answered when a message has arrived whole, never later than they would wait, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

from fedml.flower import held as module
from fedml.flower.address import WAIT
from fedml.flower.held import FLEET, LONGEST_NODE, NODE, Arrivals, held, node_seconds, watch

BODY = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()


class Centre:
    """Flower's part: answers with the message that it has for the node, if it has one."""

    def __init__(self) -> None:
        self.message, self.asked, self.status = b"", 0, 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == BODY
        scope["state"]["seen"] = True  # Flower's application writes into the scope
        self.asked += 1
        found, self.message = self.message, b""
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": found})


class Asking:
    """One request of a node to ``app``."""

    def __init__(self, app: Any, seconds: bytes | None = b"9") -> None:
        self.sent: list[Any] = []
        self._body, self.gone = [{"type": "http.request", "body": BODY}], asyncio.Event()
        headers = [] if seconds is None else [(WAIT.encode(), seconds)]
        scope = {"type": "http", "path": FLEET, "headers": headers, "state": {}}
        self.done = asyncio.ensure_future(app(scope, self.receive, self.send))

    async def receive(self) -> Any:
        if self._body:
            return self._body.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def answer(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def check(what: Callable[[Centre, Arrivals, Any], Awaitable[None]]) -> None:
    async def run() -> None:
        arrivals, centre = Arrivals(asyncio.get_running_loop()), Centre()
        await what(centre, arrivals, held(centre, {FLEET: NODE}, arrivals))

    asyncio.run(run())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_node_is_answered_when_its_message_is_whole() -> None:
    async def run(centre: Centre, arrivals: Arrivals, app: Any) -> None:
        asking = Asking(app)
        await settle()
        assert not asking.sent
        arrivals.stored("m", "7", ["part 1", "part 2"])
        centre.message = b"found"
        arrivals.put("part 1")
        await settle()
        assert not asking.sent, "a part is missing"
        arrivals.put("part 2")
        await asking.done
        assert asking.answer == b"found"
        assert centre.asked == 2

    check(run)


def test_other_nodes_messages_wake_nobody() -> None:
    async def run(centre: Centre, arrivals: Arrivals, app: Any) -> None:
        asking = Asking(app)
        await settle()
        arrivals.stored("m", "8", [])
        await settle()
        assert centre.asked == 1
        arrivals.end()
        await asking.done
        assert asking.answer == b""
        assert asking.sent[0]["status"] == 200

    check(run)


def test_a_message_that_arrives_while_flower_looks_is_not_missed() -> None:
    async def run(centre: Centre, arrivals: Arrivals, app: Any) -> None:
        asking = Asking(app)
        while not centre.asked:
            await asyncio.sleep(0)
        centre.message = b"found"  # Flower has looked, and has not answered yet
        arrivals.stored("m", "7", [])
        await asking.done
        assert asking.answer == b"found"

    check(run)


@pytest.mark.parametrize("seconds", [None, b"0", b"-3", b"soon", b"99999"])
def test_who_does_not_say_that_it_waits_is_answered_at_once(seconds: bytes | None) -> None:
    async def run(centre: Centre, arrivals: Arrivals, app: Any) -> None:
        asking = Asking(app, seconds)
        await asking.done
        assert (centre.asked, asking.sent[0]["status"]) == (1, 200)

    check(run)


def test_a_refusal_is_not_kept_back() -> None:
    async def run(centre: Centre, arrivals: Arrivals, app: Any) -> None:
        centre.status = 401
        asking = Asking(app)
        await asking.done
        assert asking.sent[0]["status"] == 401

    check(run)


def test_an_old_request_gets_no_message_but_the_sign_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection may be dead, and a message that Flower gave to it would be lost."""
    monkeypatch.setattr("fedml.flower.held.FRESH", 0.0)

    async def run(centre: Centre, arrivals: Arrivals, app: Any) -> None:
        asking = Asking(app)
        await settle()
        assert not asking.sent
        centre.message = b"found"
        arrivals.stored("m", "7", [])
        await asking.done
        assert (asking.answer, centre.message) == (b"", b"found")
        again = Asking(app)
        await again.done
        assert again.answer == b"found"

    check(run)


def test_a_node_that_left_is_no_longer_waited_for() -> None:
    async def run(centre: Centre, arrivals: Arrivals, app: Any) -> None:
        asking = Asking(app)
        await settle()
        asking.gone.set()
        await asking.done
        centre.message = b"for the next request"
        arrivals.stored("m", "7", [])
        await settle()
        assert centre.message == b"for the next request"

    check(run)


def test_nobody_waits_longer_than_the_centre_allows() -> None:
    assert node_seconds({"headers": [(WAIT.encode(), b"999")]}) == LONGEST_NODE
    assert node_seconds({"headers": [(WAIT.encode(), b"3")]}) == 3


def test_a_part_that_is_sent_again_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first time was lost; Flower's database, which awaits the part no longer, says no."""
    awaited = {("session", "part")}

    class Database:
        def store_message_and_object_tree(self) -> None: ...

        def store_object(self, run_id: int, session_id: str, object_id: str, content: bytes) -> bool:
            found = (session_id, object_id) in awaited
            awaited.discard((session_id, object_id))
            return found

    monkeypatch.setattr(module, "SqlLinkState", Database)
    watch(Arrivals(asyncio.new_event_loop()))
    database = Database()
    assert [database.store_object(1, "session", "part", b"") for _ in range(3)] == [True, True, True]
    assert not database.store_object(1, "session", "other", b"")
    assert not database.store_object(1, "another", "part", b""), "of another sender it says nothing"
