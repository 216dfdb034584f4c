"""Rounds that end without a late site: when they end, what is counted, and that no reply counts in another round than its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from fedml.clients.gate.local import app as client_app
from fedml.errors import InputError, Reason, RunError
from fedml.flower.grid import InProcessGrid
from fedml.runs.events import Round
from fedml.runs.log import load_model, read_log
from fedml.strategies.exchange import answers
from fedml.strategies.lateness import Lateness
from fedml.strategies.rounds import run_study
from fedml.study.study import Study
from tests.conftest import clinical_site, make_study
from tests.strategies.test_exchange import SITES, Clock, answer

USUAL = {"a": 10.0, "b": 2.0, "c": 3.0}


def plan(**changes: Any) -> Study:
    return make_study(sites=("a", "b", "c", "d"), **{"federation__" + key: value for key, value in changes.items()})


def known(study: Study, persons: int = 100) -> Lateness:
    """What is known after some rounds; of d nothing."""
    return Lateness(study, dict.fromkeys("abcd", persons), {site: [seconds] * 5 for site, seconds in USUAL.items()})


class Slow:
    """A grid whose sites answer at given times (seconds since the round began); None: never. Final."""

    def __init__(self, patch: pytest.MonkeyPatch, when: dict[str, float | None]) -> None:
        self.grid, self.clock, self.when = InProcessGrid(answer, [{} for _ in SITES]), Clock(), when
        self.pull = self.grid.pull_messages
        patch.setattr(self.grid, "pull_messages", self.pulled)
        patch.setattr("fedml.strategies.exchange.time", self.clock)
        patch.setattr("fedml.strategies.lateness.time", self.clock)

    def pulled(self, ids: Iterable[str]) -> list[Message]:
        """The replies that are there by now. Messages are numbered as they are sent, one a node."""
        site_of = {message_id: SITES[int(message_id.rpartition("-")[2])] for message_id in ids}
        there = [i for i, site in site_of.items() if (when := self.when[site]) is not None and when <= self.clock.now]
        return self.pull(there)


def exchanged(slow: Slow, lateness: Lateness, timeout: float = 600) -> tuple[dict[str, str | None], float]:
    messages = [Message(answer_content(), node, "query") for node in SITES]
    found = [lateness.note(a, 0.0) for a in answers(slow.grid, messages, SITES, timeout, lambda *_: None, lateness.patience())]
    return {a.site: a.reason for a in found}, slow.clock.now


def answer_content() -> Any:
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({"config": ConfigRecord({"round": 1})})


@pytest.mark.parametrize(
    ("when", "changes", "late", "least", "most"),
    [
        ({"a": 9, "b": 2, "c": 3, "d": 1}, {}, "", 9, 9.5),
        ({"a": 25, "b": 2, "c": 3, "d": 1}, {}, "", 25, 25.5),
        ({"a": None, "b": 2, "c": 3, "d": 1}, {}, "a", 30, 30.5),  # three times its usual time
        ({"a": 9, "b": None, "c": None, "d": 1}, {}, "bc", 9, 15.5),  # 3 x 2 s and 3 x 3 s are below late_seconds
        ({"a": None, "b": None, "c": None, "d": 1}, {}, "", 600, 601),  # fewer than the quorum: all time is given
        ({"a": 9, "b": 2, "c": 3, "d": None}, {}, "", 600, 601),  # of d no time is known
        ({"a": 400, "b": 2, "c": None, "d": None}, {}, "", 600, 601),
        ({"a": None, "b": 2, "c": 3, "d": 1}, {"quorum_persons": 301}, "", 600, 601),  # the others are enough sites, and too few persons
        ({"a": None, "b": 2, "c": 3, "d": 1}, {"quorum_persons": 300}, "a", 30, 30.5),
    ],
)  # fmt: skip
def test_a_round_ends_when_the_others_are_enough_and_a_site_is_late_by_its_own_history(
    when: dict[str, float | None], changes: dict[str, Any], late: str, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    lateness = known(plan(quorum=2, late=3.0, late_seconds=15, **changes))
    found, seconds = exchanged(Slow(monkeypatch, when), lateness)
    assert "".join(site for site, reason in found.items() if reason == Reason.LATE) == late
    assert {site for site, reason in found.items() if reason is None} >= {s for s, t in when.items() if t is not None and t <= seconds}
    assert least <= seconds <= most
    assert set(lateness.owed) == set(late)


def test_without_the_key_every_site_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lateness = known(plan(quorum=2))
    found, seconds = exchanged(Slow(monkeypatch, {"a": None, "b": 2, "c": 3, "d": 1}), lateness)
    assert (found["a"], seconds >= 600) == (Reason.NO_ANSWER, True)
    assert not lateness.busy(Slow(monkeypatch, {}).grid)


def test_a_late_site_is_asked_again_when_its_reply_is_there_and_that_reply_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    lateness = known(plan(quorum=2, late=3.0, late_seconds=15, timeout=600))
    slow = Slow(monkeypatch, {"a": 100, "b": 2, "c": 3, "d": 1})
    exchanged(slow, lateness)
    assert lateness.busy(slow.grid) == {"a": "late"}
    slow.clock.now = 99
    assert lateness.busy(slow.grid) == {"a": "late"}
    slow.clock.now = 101
    assert lateness.busy(slow.grid) == {}
    assert slow.grid.pull_messages([message for message, _ in [("local-1", 0)]]) == [], "the late reply is gone, so nothing can count it"
    assert lateness.took["a"] == [10.0] * 5, "the time of a late reply is not its usual time"


class Skipping(InProcessGrid):
    """A real federation in this process, of which one node's replies come two rounds late, or never. Final."""

    def __init__(self, manifests: list[str], node: int, rounds: range) -> None:
        def app(message: Message, context: Context) -> Message:
            return client_app(message, context)

        super().__init__(app, [{"manifest": m} for m in manifests])
        self.node, self.late, self.counter = node, rounds, itertools.count()
        self.held: set[str] = set()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        outgoing = list(messages)
        numbers = [int(str(m.content["config"]["round"])) if m.metadata.message_type == "train" else 0 for m in outgoing]  # type: ignore[index,call-overload]
        ids = super().push_messages(outgoing)
        for message_id, message, number in zip(ids, outgoing, numbers, strict=True):
            if message.metadata.dst_node_id == self.node and number in self.late:
                self.held.add(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages([i for i in message_ids if i not in self.held])

    def release(self) -> None:
        """What was late is there."""
        self.held.clear()


def ran(tmp_path: Path, name: str, study: Study, manifests: list[str], node: int, rounds: range) -> tuple[Any, list[Round]]:
    run = tmp_path / name
    run.mkdir()
    (run / "study.json").write_text(study.canonical)
    run_study(study, Skipping(manifests, node, rounds), run)
    return load_model(run)[0], [e for e in read_log(run)[0] if isinstance(e, Round)]


def test_a_run_with_a_late_site_is_the_run_without_it_in_those_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of a run in which the site was not there in rounds 3 and later, to the bit: nothing late was added."""
    clock = Clock()
    for module in ("exchange", "lateness", "rounds"):
        monkeypatch.setattr(f"fedml.strategies.{module}.time", clock)
    manifests = [str(clinical_site(tmp_path / name, name, 60, seed)) for seed, name in enumerate("abc")]
    common = {"federation__rounds": 5, "federation__quorum": 2, "training__lr": 0.1}
    rule = make_study(sites=("a", "b", "c"), federation__late=2.0, federation__late_seconds=1, federation__timeout=1000, **common)
    weights, rounds = ran(tmp_path, "late", rule, manifests, 2, range(3, 6))
    assert [e.refused for e in rounds] == [{}, {}, {"b": "late"}, {"b": "late"}, {"b": "late"}]
    assert all(set(e.sites) == {"a", "c"} for e in rounds[2:])
    without = make_study(sites=("a", "b", "c"), federation__timeout=1, **common)
    silent, absent = ran(tmp_path, "silent", without, manifests, 2, range(3, 6))
    assert [set(e.sites) for e in absent] == [set(e.sites) for e in rounds]
    assert all(torch.equal(weights[name], silent[name]) for name in silent)


def test_a_quorum_of_persons_ends_the_run_that_has_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in ("exchange", "lateness", "rounds"):
        monkeypatch.setattr(f"fedml.strategies.{module}.time", clock)
    manifests = [str(clinical_site(tmp_path / name, name, 60, seed)) for seed, name in enumerate("abc")]
    study = make_study(sites=("a", "b", "c"), federation__quorum=1, federation__quorum_persons=10_000, federation__rounds=1)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(RunError, match=r"round 1: the sites that answered have \d+ training persons, quorum_persons is 10000; missing: b"):
        run_study(study, Skipping(manifests, 2, range(1, 2)), run)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"federation__late": 0.5}, "late is 0.5"),
        ({"federation__late_seconds": 10}, "late_seconds is for a study with late"),
        ({"federation__late": 2.0, "federation__late_seconds": 700}, "longer than timeout"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_study(**changes)


def test_an_algorithm_with_a_state_at_the_site_refuses_late_sites() -> None:
    from fedml.strategies.algorithms.registry import make_strategy

    with pytest.raises(InputError, match=r"\[federation\] late leaves a reply out, and scaffold"):
        make_strategy(make_study(federation__late=2.0, strategy__name="scaffold", training__optimizer="sgd"))


def test_a_study_without_the_keys_keeps_its_hash() -> None:
    study = make_study()
    assert all(key not in study.canonical for key in ('"late"', "late_seconds", "quorum_persons"))
