"""When a SuperLink last heard of each node, how far the node says it is, and which replies are there: for ``fedml status``.

A node's heartbeat, every 15 s, may have the header ``fedml-progress``: 0 to 100, percent of its training in this round. Nothing else is
taken from it, and nothing but a display depends on it. The server app, another process, reads the file (``read_heard``).

    HOME/heard.json    {"nodes": {"<node id>": [Unix seconds, percent or -1]}, "replies": {"<message id>": Unix seconds}}
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from google.protobuf.message import DecodeError

from fedml.flower.address import PROGRESS
from fedml.flower.strangers import App, Receive, Scope, Send

HEARTBEATS = "/v1/fleet/send-node-heartbeat"
_SMALL = 1024  # bytes of a heartbeat
FILE = "heard.json"
_WRITE_SECONDS = 1.0
_LONGEST_NODE = 20  # digits of a node id, which has 64 bits
_MOST = 10_000  # nodes, and replies, that are remembered; the oldest go first


def percent_of(text: bytes) -> int:
    """0 to 100; -1 for anything else."""
    return int(text) if text.isdigit() and len(text) < 4 and int(text) <= 100 else -1


@final
class Heard:
    """What is heard, and its file, which a thread writes once a second if something is new. Functions may be called in any thread."""

    def __init__(self, home: Path) -> None:
        self._home, self._lock = home, threading.Lock()
        self._nodes: dict[str, tuple[float, int]] = {}
        self._replies: dict[str, float] = {}
        self._new = False

    def node(self, node: int, headers: Collection[tuple[bytes, bytes]]) -> None:
        """A node whose heartbeat Flower has accepted, and the request's headers."""
        told = percent_of(dict(headers).get(PROGRESS.encode(), b""))
        with self._lock:
            self._nodes.pop(str(node), None)
            self._nodes[str(node)] = (time.time(), told)
            self._shortened(self._nodes)

    def replied(self, targets: Collection[str]) -> None:
        """What has arrived whole: a reply to a message, by its id (64 hexadecimal digits); or a message for a node, which is not noted."""
        with self._lock:
            for target in (target for target in targets if len(target) > _LONGEST_NODE):
                self._replies[target] = time.time()
                self._shortened(self._replies)

    def _shortened(self, found: dict[str, Any]) -> None:
        self._new = True
        if len(found) > _MOST:
            del found[next(iter(found))]

    def write(self) -> None:
        """Writes the file if something is new."""
        with self._lock:
            if not self._new:
                return
            self._new = False
            text = json.dumps({"nodes": self._nodes, "replies": self._replies})
        partial = self._home / f".{FILE}.partial"
        with suppress(OSError):  # a full disk must not end the SuperLink for the sake of a display
            partial.write_text(text)
            os.replace(partial, self._home / FILE)

    def keep(self) -> None:
        """Writes from now on, in a thread that ends with the process."""

        def write() -> None:
            while True:
                time.sleep(_WRITE_SECONDS)
                self.write()

        threading.Thread(target=write, name="heard", daemon=True).start()


def hearing(app: App, heard: Heard) -> App:
    """``app``, whose heartbeats ``heard`` notes when Flower has checked and accepted them."""

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != HEARTBEATS:
            await app(scope, receive, send)
            return
        body = bytearray()

        async def read() -> Any:
            message = await receive()
            if message["type"] == "http.request" and len(body) <= _SMALL:
                body.extend(message.get("body", b""))
            return message

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                with suppress(DecodeError):
                    heard.node(SendNodeHeartbeatRequest.FromString(bytes(body)).node.node_id, scope["headers"])
            await send(message)

        await app(scope, read, sent)

    return noting


def read_heard(home: Path) -> tuple[Mapping[str, tuple[float, int]], Mapping[str, float]]:
    """Node id -> (Unix seconds, percent or -1), and message id -> Unix seconds of its reply; empty if nothing can be read."""
    try:
        found = json.loads((home / FILE).read_text())
        nodes = {str(node): (float(when), int(percent)) for node, (when, percent) in found["nodes"].items()}
        return nodes, {str(message): float(when) for message, when in found["replies"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}
