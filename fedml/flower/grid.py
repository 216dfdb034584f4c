"""The local engine's ``Grid``: the ClientApp runs in this process when its reply is pulled, without Ray, sockets or subprocesses.

Uses Flower's non-public ``TaskIdentity`` (``Message`` reads it), ``Run`` and message ids; written for flwr 1.42.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

# Error codes with which Flower answers for a node that is not connected.
NOT_THERE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)
_HELD = 4  # replies that are computed before their turn
NodeConfig = dict[str, bool | int | float | str]
App = Callable[[Message, Context], Message]  # a ClientApp, or a site's gate


_parts = threading.local()  # until: when this thread gives up missing parts of a reply


def ask_for_parts_sooner() -> None:
    """At a SuperLink: retries a missing part of a reply after 0.05 s instead of Flower's 1 s, and until the time of ``pull_by``."""
    from flwr.superlink.grid import http_grid

    vars(http_grid)["pull_objects"] = _pull_parts


def _pull_parts(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **how: Any) -> dict[str, bytes]:
    left = getattr(_parts, "until", math.inf) - time.monotonic()
    how |= {"max_time": max(left, 0.0)} if left < math.inf else {}
    return pull_objects(object_ids, pull_object_fn, **how, initial_backoff=0.05, backoff_cap=2.0)


def pull_by(grid: Grid, message_ids: Iterable[str], until: float) -> Iterable[Message]:
    """``grid.pull_messages``. A reply of which parts are missing at ``until`` (``time.monotonic()``) is an error reply: its sender may be
    gone, and Flower would wait for them for minutes."""
    _parts.until = until
    try:
        return grid.pull_messages(message_ids)
    finally:
        _parts.until = math.inf


def wants_packing(grid: Grid) -> bool:
    """Should the arrays of a record travel as one array (``fedml.wire.packing``)? Yes, unless the grid says that nothing travels."""
    return bool(getattr(grid, "wants_packing", True))


class Elsewhere(Protocol):
    """Other processes that answer some nodes' messages (``fedml.experiments.runs.workers``)."""

    def send(self, message: Message, context: Context) -> bool: ...

    def note(self, seconds: float) -> None: ...

    def is_done(self, message_id: str) -> bool: ...

    def reply(self, message_id: str) -> Message: ...


class InProcessGrid(Grid):
    """Nodes 1, 2, ... with the given configurations. Messages are queued; pulling a reply runs the app for its node.

    With ``elsewhere`` some nodes are answered by other processes. While the reply that is wanted is not there, the next messages of this
    process are answered, whose replies are held.
    """

    wants_packing = False  # messages stay in this process

    def __init__(
        self, app: App, nodes: Iterable[NodeConfig], run_config: Mapping[str, bool | int | float | str] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:  # fmt: skip
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self._app = app
        self._run = Run.create_empty(run_id=1)
        self._waiting: dict[str, Message] = {}
        self._elsewhere, self._away, self._held = elsewhere, set[str](), dict[str, Message]()
        self._number = itertools.count(1)
        self._contexts = {
            number: Context(run_id=1, node_id=number, node_config=dict(config), state=RecordDict(), run_config=dict(run_config or {}))
            for number, config in enumerate(nodes, start=1)
        }

    def set_run(self, run: Run) -> None:
        """Sets the run that this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid belongs to."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """Flower's older interface to create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """1, 2, ... in the order of the configurations."""
        return list(self._contexts)

    def get_nodes(self) -> list[NodeInfo]:
        """The nodes, without registered names."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queues the messages and returns their ids; the app does not run yet."""
        ids = []
        for message in messages:
            message_id = f"local-{next(self._number)}"
            message.metadata.__dict__["_message_id"] = message_id
            message.metadata.__dict__["_run_id"] = 1
            if self._elsewhere is not None and self._elsewhere.send(message, self._contexts[message.metadata.dst_node_id]):
                self._away.add(message_id)
            else:
                self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Runs the app for each queued message and returns the replies."""
        replies = []
        for message_id in message_ids:
            if message_id in self._away:
                replies.append(self._from_elsewhere(message_id))
            elif message_id in self._held:
                replies.append(self._held.pop(message_id))
            elif message_id in self._waiting:
                replies.append(self._answer(message_id))
        return replies

    def _answer(self, message_id: str) -> Message:
        message, began = self._waiting.pop(message_id), time.monotonic()
        reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        if self._elsewhere is not None and message.metadata.message_type == "train":  # the first messages read data, once
            self._elsewhere.note(time.monotonic() - began)
        return reply

    def _from_elsewhere(self, message_id: str) -> Message:
        assert self._elsewhere is not None  # noqa: S101 - it took the message
        while not self._elsewhere.is_done(message_id) and self._waiting and len(self._held) < _HELD:
            following = next(iter(self._waiting))
            self._held[following] = self._answer(following)
        self._away.remove(message_id)
        return self._elsewhere.reply(message_id)

    def state_of(self, node: int) -> RecordDict:
        """What the node keeps between messages."""
        return self._contexts[node].state

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """``push_messages`` followed by ``pull_messages``; ``timeout`` is ignored, because nothing is awaited."""
        return self.pull_messages(self.push_messages(messages))
