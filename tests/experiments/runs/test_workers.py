"""Several processes of the local engine: the bits of one process, and a process that ends is told as sites that did not answer."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedml.errors import RunError
from fedml.experiments.runs import workers
from fedml.experiments.runs.run import new_run, run_nodes
from fedml.experiments.runs.workers import Workers, share_out
from fedml.flower.grid import InProcessGrid
from fedml.runs.events import NO_FINAL, Final, Round
from fedml.runs.log import last, read_log
from fedml.study.study import Study
from tests.conftest import clinical_site, make_study

PLAN: dict[str, Any] = {"sites": "abcd", "training": {"optimizer": "sgd", "lr": 0.1, "batch_size": 8}, "federation__rounds": 3}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("sites")
    return [{"manifest": str(clinical_site(folder / name, name, 40 + 20 * k, k))} for k, name in enumerate("abcd")]


def result(study: Study, nodes: list[dict[str, str]], runs: Path, count: int) -> tuple[str, list[Any]]:
    run = new_run(study, runs, None, engine="local", job="train")
    run_nodes(study, nodes, run, workers=count)
    events, _ = read_log(run)
    rows = [
        {site: (row["train_loss"], row["update_norm"], row["bytes_in"]) for site, row in event.sites.items()}
        for event in events
        if isinstance(event, Round)
    ]
    final = last(events, NO_FINAL)
    assert isinstance(final, Final)
    return final.weights_sha256, rows


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])  # scaffold's sites keep state from round to round
def test_three_processes_give_the_bits_of_one(name: str, nodes: list[dict[str, str]], tmp_path: Path) -> None:
    study = make_study(strategy={"name": name}, **PLAN)
    assert result(study, nodes, tmp_path / "three", 3) == result(study, nodes, tmp_path / "one", 1)


def test_processes_join_a_run_that_turns_out_to_be_long(
    nodes: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State that was kept in the first process goes along with a site."""
    study = make_study(strategy={"name": "scaffold"}, **PLAN)
    alone = result(study, nodes, tmp_path / "one", 1)
    sent = list[int]()
    monkeypatch.setattr(workers, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(workers, "usable_cores", lambda: 2)
    send, note = Workers.send, Workers.note

    def noted(self: Workers, seconds: float) -> None:
        note(self, seconds)
        for process in self._processes:
            process.ready.wait(60)  # else the run is over before

    def counted(self: Workers, message: Any, context: Any) -> bool:
        away = send(self, message, context)
        sent.append(message.metadata.dst_node_id) if away else None
        return away

    monkeypatch.setattr(Workers, "note", noted)
    monkeypatch.setattr(Workers, "send", counted)
    assert result(study, nodes, tmp_path / "two", 0) == alone
    assert sent


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_a_process_that_is_killed_is_replaced_and_the_bits_are_the_same(
    name: str, nodes: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it is asked anything, and in the midst of each round's work."""
    study, killed = make_study(strategy={"name": name}, **PLAN), list[int]()
    alone, exchange = result(study, nodes, tmp_path / "one", 1), workers._Process._exchange

    def struck(self: Any, item: Any) -> None:
        if self.process.pid not in killed and len(killed) < 4:
            killed.append(self.process.pid)
            self.process.kill()
        exchange(self, item)

    monkeypatch.setattr(workers._Process, "_exchange", struck)
    monkeypatch.setattr(workers, "_TRIES", 5)
    assert result(study, nodes, tmp_path / "two", 2) == alone
    assert len(killed) == 4


def test_a_message_of_which_every_process_ends_is_no_answer_of_its_site_and_no_wait(
    nodes: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = workers._Process._exchange

    def struck(self: Any, item: Any) -> None:
        if item[1]["kind"] == "train":
            self.process.kill()
        exchange(self, item)

    monkeypatch.setattr(workers._Process, "_exchange", struck)
    study = make_study(**PLAN)
    with pytest.raises(RunError, match=r"internal"):
        run_nodes(study, nodes, new_run(study, tmp_path, None, engine="local", job="train"), workers=2)


def test_no_process_is_left(nodes: list[dict[str, str]], tmp_path: Path) -> None:
    with Workers(2, 1, [1, 1], 1) as others:
        others.begin({"study": "", "run": "", "job": "train"})
        (process,) = (p.process for p in others._processes)
        os.kill(process.pid, 0)
    assert process.returncode is not None


@pytest.mark.parametrize(("persons", "processes"), product([(5,), (9, 1, 1, 1, 6), (0, 0, 0), tuple(range(40))], (1, 2, 3, 8)))
def test_sites_are_shared_out_by_their_persons(persons: tuple[int, ...], processes: int) -> None:
    place = share_out(persons, processes)
    assert len(place) == len(persons)
    assert set(place) <= set(range(processes))
    load = [sum(max(p, 1) for p, at in zip(persons, place, strict=True) if at == k) for k in range(processes)]
    assert max(load) <= sum(max(p, 1) for p in persons) / processes + max(max(persons), 1)
    assert place == share_out(persons, processes)


def test_a_process_that_cannot_start_is_no_wait_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ended before it is asked anything, and its pipe may be closed before it has read the run's configuration."""
    monkeypatch.setattr(workers, "sys", SimpleNamespace(executable="/bin/false"))
    with Workers(2, 1, [10, 9], 3) as others:
        grid = InProcessGrid(lambda message, _: Message(RecordDict(), reply_to=message), [{}, {}], {}, elsewhere=others)
        others.begin({"study": "x" * 300_000})  # more than a pipe holds
        others._processes[0].process.wait(20)
        found = list[Any]()
        asked = [Message(RecordDict(), node, "query") for node in (1, 2)]
        thread = Thread(target=lambda: found.extend(grid.send_and_receive(asked)), daemon=True)
        thread.start()
        thread.join(20)
        assert [reply.has_error() for reply in found] == [False, True]
