"""Messages and answers: how long sites are waited for."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedml.errors import Reason
from fedml.flower.grid import InProcessGrid
from fedml.strategies.exchange import answers

SITES = {1: "a", 2: "b", 3: "c", 4: "d"}


def answer(message: Message, context: Context) -> Message:
    return Message(RecordDict({"config": ConfigRecord({"site": SITES[context.node_id]})}), reply_to=message)


class Clock:
    """Time that passes only while the exchange sleeps, so that no busy machine changes what is measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Lets ``seconds`` pass."""
        self.now += seconds


def exchanged(patch: pytest.MonkeyPatch, heard: str, timeout: float) -> tuple[dict[str, str | None], float]:
    """(site -> reason, seconds) of one exchange with four connected sites, of which only those in ``heard`` ever answer."""
    grid = InProcessGrid(answer, [{} for _ in SITES])
    messages = [Message(RecordDict({"config": ConfigRecord({"round": 1})}), node, "query") for node in SITES]
    site_of = {f"local-{node}": site for node, site in SITES.items()}  # messages are numbered as they are sent, one a node
    pull = grid.pull_messages
    patch.setattr(grid, "pull_messages", lambda ids: pull([i for i in ids if site_of[i] in heard]))
    clock = Clock()
    patch.setattr("fedml.strategies.exchange.time", clock)
    found = {a.site: a.reason for a in answers(grid, messages, SITES, timeout, lambda *_: None)}
    return found, clock.monotonic()


def test_silent_sites_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sites that are silent take one timeout, not four: the deadline is that of the round."""
    found, seconds = exchanged(monkeypatch, "", 0.8)
    assert found == dict.fromkeys("abcd", Reason.NO_ANSWER)
    assert 0.8 <= seconds < 1.2, "one deadline for each would be 3.2 s"


def test_a_reply_that_is_there_is_read_after_the_deadline_was_used_up_by_another_site(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seconds = exchanged(monkeypatch, "bd", 0.5)
    assert found == {"a": Reason.NO_ANSWER, "b": None, "c": Reason.NO_ANSWER, "d": None}
    assert seconds >= 0.5
