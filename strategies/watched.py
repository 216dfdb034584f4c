"""A grid that notes what passes: which site was asked and has replied, for ``fedml status`` (``fedml.runs.live``).

    with watched(run, grid, study) as seen:
        run_study(study, seen, run)

It changes no message; for a site that was removed (``fedml drop``) it answers ``removed`` itself. A thread writes what is new twice a
second, so that neither rounds of milliseconds nor replies of hours matter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, final

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedml.errors import Reason
from fedml.flower.grid import wants_packing
from fedml.flower.heard import read_heard
from fedml.runs.live import Live, LiveSite, dropped, end_live, write_live
from fedml.strategies.exchange import known_reason
from fedml.study.study import Study
from fedml.wire.records import CONFIG, SITE, Phase, config_record, holds, size_bytes

_WRITE_SECONDS, _BEAT_SECONDS = 0.5, 10.0
_REMOVED = 601  # code of the answer in a removed site's place; outside the range of Flower's codes
_COUNTED = (Phase.ROUND, Phase.EVALUATE)  # of which the record has the bytes


@final
class WatchedGrid(Grid):
    """``grid``, and what is known of the exchange that goes on (``live``)."""

    def __init__(self, run: Path, grid: Grid, study: Study, home: Path | None) -> None:
        self._folder, self._grid, self._home = run, grid, home
        self._asked: dict[str, Message] = {}  # message -> the request, without its content
        self.wants_packing = wants_packing(grid)
        self._names = dict(enumerate(study.federation.sites, start=1)) if not self.wants_packing else {}
        self._sent: dict[str, tuple[int, float]] = {}  # message -> (node, Unix seconds)
        self._lock = threading.Lock()
        self._new, self.live = False, Live()

    def write(self) -> None:
        """Writes what is new, and every few seconds that the server is there."""
        heard, replies = ({}, {}) if self._home is None else read_heard(self._home)
        with self._lock:
            now = time.time()
            for message, (node, sent) in self._sent.items():
                site = self._site(node)
                when, percent = heard.get(str(node), (None, -1))
                told = percent if percent >= 0 and when is not None and when > sent else None
                if site.state == "asked" and message in replies:
                    site.state, told = "replied", None
                if (told, when) != (site.percent, site.heard):
                    site.percent, site.heard, self._new = told, when, True
            if not (self._new or now > self.live.written + _BEAT_SECONDS) or not self.live.phase:
                return
            self._new, self.live.written = False, now
            write_live(self._folder, self.live)

    def _site(self, node: int) -> LiveSite:
        return self.live.sites.setdefault(self._names.get(node) or f"node {node}", LiveSite())

    def get_nodes(self) -> Iterable[Any]:
        """Of the grid."""
        nodes = list(self._grid.get_nodes())
        self._names |= {node.node_id: node.name for node in nodes if node.name}
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Of the grid; what is sent begins the next exchange."""
        outgoing = list(messages)
        about = [(message.metadata.dst_node_id, _config(message.content), size_bytes(message.content)) for message in outgoing]
        ids = list(self._grid.push_messages(outgoing))
        self._asked = {message_id: _without_content(message) for message_id, message in zip(ids, outgoing, strict=False)}
        with self._lock:
            self._new, now = True, time.time()
            if about:
                self.live.phase, self.live.round = str(about[0][1].get("phase", "")), _whole(about[0][1].get("round"))
            self.live.began, self._sent = now, {}
            counted = self.live.phase in _COUNTED
            for (node, _, size), message in zip(about, ids, strict=False):
                site = self._site(node)
                site.state, site.reason, site.percent = "asked", "", None
                site.bytes_out += size if counted else 0
                self._sent[message] = (node, now)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Of the grid; who replied is noted."""
        gone, wanted, replies = dropped(self._folder), list[str](), list[Message]()
        for message_id in message_ids:
            request = self._asked.get(message_id)
            if request is not None and self._names.get(request.metadata.dst_node_id) in gone:
                replies.append(Message(Error(_REMOVED, str(Reason.REMOVED)), reply_to=request))
            else:
                wanted.append(message_id)
        replies += self._grid.pull_messages(wanted) if wanted else []
        if not replies:
            return replies
        with self._lock:
            self._new = True
            for reply in replies:
                self._note(reply)
        return replies

    def _note(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        if reply.has_error():
            site = self._site(node)
            site.state, site.reason, site.percent = "refused", str(known_reason(reply.error)), None
            return
        if node not in self._names and holds(reply.content, SITE, ConfigRecord):
            unnamed = self.live.sites.pop(f"node {node}", LiveSite())
            self._names[node] = str(config_record(reply.content, SITE).get("name", ""))[:200]
            self.live.sites[self._names[node]] = unnamed
        site = self._site(node)
        site.state, site.percent = "replied", None
        site.bytes_in += size_bytes(reply.content) if self.live.phase in _COUNTED else 0

    def set_run(self, run: Any) -> None:
        """Of the grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Of the grid."""
        return self._grid.run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """Of the grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Of the grid."""
        return self._grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Of the grid, unnoted: the loop of this project does not use it."""
        return self._grid.send_and_receive(messages, timeout=timeout)


def _without_content(message: Message) -> Message:
    light = copy(message)
    light.content = RecordDict()
    return light


def _config(content: RecordDict) -> dict[str, Any]:
    return dict(config_record(content, CONFIG)) if holds(content, CONFIG, ConfigRecord) else {}


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


@contextmanager
def watched(run: Path, grid: Grid, study: Study) -> Iterator[WatchedGrid]:
    """``grid`` watched, for as long as the context lasts."""
    home = os.environ.get("FLWR_HOME") if wants_packing(grid) else None
    seen, stop = WatchedGrid(run, grid, study, Path(home) if home else None), threading.Event()

    def write() -> None:
        while not stop.wait(_WRITE_SECONDS):
            seen.write()

    writer = threading.Thread(target=write, name="live", daemon=True)
    writer.start()
    try:
        yield seen
    finally:
        stop.set()
        writer.join()
        end_live(run)
