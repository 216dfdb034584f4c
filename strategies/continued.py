"""The grid of a run that goes on: each message says which run it continues, because at a SuperLink it has another number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from fedml.wire.records import CONFIG, RESUMES, config_record


class Continued(Grid):
    """``grid``, whose messages name ``origin``, Flower's number of the run with which the training began. Final."""

    def __init__(self, grid: Grid, origin: str) -> None:
        self._grid, self._origin = grid, origin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def set_run(self, *args: Any, **kwargs: Any) -> None:
        """That of the grid."""
        self._grid.set_run(*args, **kwargs)

    @property
    def run(self) -> Any:
        """That of the grid."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """That of the grid."""
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """That of the grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Any:
        """That of the grid."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends the messages with the number of the run that they continue."""
        outgoing = list(messages)
        for message in outgoing:
            config = config_record(message.content, CONFIG)
            if RESUMES not in config:  # messages may share it
                message.content[CONFIG] = ConfigRecord({**config, RESUMES: self._origin})
        return self._grid.push_messages(outgoing)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """That of the grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """That of the grid, with the number of the run that the messages continue."""
        return self._grid.send_and_receive(messages, timeout=timeout)
