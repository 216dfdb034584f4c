"""A researcher's Flower strategy, from a file: what it puts into a round's config is obeyed or refused by its name, never ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.errors import InputError, RunError
from fedml.strategies.algorithms.registry import make_strategy
from fedml.strategies.describe import describe
from fedml.study.study import Study
from tests.clients.gate.centre import Centre, real_site
from tests.conftest import Run, clinical_site, federate, make_study

SPLIT = {"train": 0.6, "val": 0.2, "test": 0.2}
HEAD = "from flwr.app import *\nfrom flwr.serverapp.strategy import FedAvg\nclass Mine(FedAvg):\n"
TRAIN = "    def configure_train(self, server_round, arrays, config, grid):\n"
SUPER = "        return super().configure_train(server_round, arrays, config, grid)\n"
Written = Callable[[str], str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Writes a module with a strategy; returns its path for a study."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(body: str) -> str:
        made.append(f"mine_{tmp_path.name}_{len(made)}".replace("-", "_"))
        (tmp_path / f"{made[-1]}.py").write_text(HEAD + body)
        return f"{made[-1]}:Mine"

    return write


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sites")
    return [clinical_site(folder / name, name, 60, k) for k, name in enumerate("abcd")]


def study(name: str, training: dict[str, Any] | None = None, **changes: Any) -> Study:
    plain = {"optimizer": "sgd", "lr": 0.2, "local_epochs": 4}
    changes = {"federation__rounds": 4, **changes}
    return make_study(sites="abcd", training={**plain, **(training or {})}, strategy={"name": name}, cohort__split=SPLIT, **changes)


def far(one: Run, two: Run) -> float:
    return max(float((value - two.learned()[key]).abs().max()) for key, value in one.learned().items())


def test_a_learning_rate_that_the_strategy_lowers_is_obeyed(written: Written, sites: list[Path], tmp_path: Path) -> None:
    """Flower's documented way: the same config in every round, halved every second one; a [training.schedule] says the same."""
    halved = written(TRAIN + '        if server_round % 2 == 1 and server_round > 1:\n            config["lr"] *= 0.5\n' + SUPER)
    plain = federate(study("flwr.serverapp.strategy:FedAvg"), sites, tmp_path / "plain")
    obeyed = federate(study(halved), sites, tmp_path / "obeyed")
    schedule = {"schedule": {"kind": "step", "every": 2, "factor": 0.5}}
    same = federate(study("flwr.serverapp.strategy:FedAvg", schedule), sites, tmp_path / "same")
    assert far(obeyed, same) == 0.0
    assert far(obeyed, plain) > 1e-3


def test_a_length_that_the_strategy_lowers_is_obeyed(written: Written, sites: list[Path], tmp_path: Path) -> None:
    fewer = written(TRAIN + '        config["local_epochs"] = 2\n' + SUPER)
    short = federate(study("flwr.serverapp.strategy:FedAvg", {"local_epochs": 2}), sites, tmp_path / "short")
    assert far(federate(study(fewer), sites, tmp_path / "obeyed"), short) == 0.0
    steps = written(TRAIN + '        config["local_steps"] = 3\n' + SUPER)
    training = {"local_steps": 9, "local_epochs": 1}
    three = federate(study("flwr.serverapp.strategy:FedAvg", {**training, "local_steps": 3}), sites, tmp_path / "three")
    assert far(federate(study(steps, training), sites, tmp_path / "steps"), three) == 0.0


def test_a_strategy_that_changes_nothing_gives_the_same_bits(written: Written, sites: list[Path], tmp_path: Path) -> None:
    one = federate(study("flwr.serverapp.strategy:FedAvg"), sites, tmp_path / "one")
    assert federate(study(written("    pass\n")), sites, tmp_path / "two").sha256 == one.sha256


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a larger rate": ('config["lr"] = 0.4', {}, 'config["lr"] to 0.4, which is not between 0 and the approved [training] lr = 0.2'),
    "a rate of zero": ('config["lr"] = 0.0', {}, "which is not between 0 and the approved"),
    "no number": ('config["lr"] = float("nan")', {}, "to nan, which is no number"),
    "a word": ('config["lr"] = "0.1"', {}, "which is no number"),
    "longer rounds": ('config["local_epochs"] = 5', {}, "the approved [training] local_epochs = 4"),
    "half an epoch": ('config["local_epochs"] = 0.5', {}, "which is no whole number"),
    "steps of epochs": ('config["local_steps"] = 1', {}, 'config["local_steps"], but the study has local_epochs'),
    "a schedule": ('config["lr"] = 0.1', {"schedule": {"kind": "cosine"}}, "[training.schedule] sets the learning rate"),
    "another key": ('config["dropout"] = 0.5', {}, 'sets config["dropout"], which sites do not obey'),
    "Flower's spelling": ('config["local-epochs"] = 2', {}, 'did you mean "local_epochs"?'),
    "another round": ('config["round"] = 7; config["momentum"] = 0.9', {}, 'sets config["momentum"]'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_site_would_not_obey_ends_the_run_with_its_name(name: str, written: Written, sites: list[Path], tmp_path: Path) -> None:
    line, training, words = REFUSED[name]
    with pytest.raises(RunError) as caught:
        federate(study(written(f"{TRAIN}        {line}\n{SUPER}"), training), sites, tmp_path / "run")
    assert words in str(caught.value)
    assert "round 1" in str(caught.value)


def test_records_of_its_own_are_refused_by_name(written: Written, sites: list[Path], tmp_path: Path) -> None:
    body = (
        TRAIN
        + "        messages = list(super().configure_train(server_round, arrays, config, grid))\n"
        + '        messages[0].content["hints"] = MetricRecord({"a": 1.0})\n        return messages\n'
    )
    with pytest.raises(RunError, match="hints"):
        federate(study(written(body)), sites, tmp_path / "run")


@pytest.mark.parametrize("method", ["configure_evaluate", "aggregate_evaluate"])
def test_a_method_that_is_never_called_is_refused_when_the_strategy_is_loaded(method: str, written: Written) -> None:
    body = f"    def {method}(self, *args, **more):\n        return super().{method}(*args, **more)\n"
    with pytest.raises(InputError, match=f"overrides {method}, which is never called"):
        make_strategy(study(written(body)))


@pytest.mark.parametrize(
    ("options", "quorum", "words"),
    [
        ({"fraction_train": 0.5}, 0, "asks 2 of 4 sites, but a round needs 4; set [federation] quorum = 2"),
        ({"fraction_train": 0.0}, 1, "asks 0 of 4 sites"),
        ({"fraction_evaluate": 0.5}, 2, "fraction_evaluate has no effect"),
        ({"min_evaluate_nodes": 2}, 2, "min_evaluate_nodes has no effect"),
        ({"min_available_nodes": 4}, 2, "min_available_nodes = 4 waits for more sites than a round needs (2)"),
    ],
)
def test_a_fraction_against_the_quorum_is_refused(options: dict[str, Any], quorum: int, words: str) -> None:
    plan = make_study(sites="abcd", federation__quorum=quorum, strategy={"name": "flwr.serverapp.strategy:FedAvg", **options})
    with pytest.raises(InputError) as caught:
        make_strategy(plan)
    assert words in str(caught.value)


def test_a_fraction_within_the_quorum_is_obeyed_and_recorded(sites: list[Path], tmp_path: Path) -> None:
    options = {"name": "flwr.serverapp.strategy:FedAvg", "fraction_train": 0.5}
    plan = make_study(sites="abcd", federation__quorum=2, federation__rounds=8, strategy=options, cohort__split=SPLIT)
    one, two = (federate(plan, sites, tmp_path / name) for name in ("one", "two"))
    asked = [tuple(event["sites"]) for event in one.rounds]
    assert {len(pair) for pair in asked} == {2}
    assert len(set(asked)) > 1
    for event in one.rounds:
        assert {**dict.fromkeys(event["sites"], ""), **event["refused"]}.keys() == set("abcd")
        assert set(event["refused"].values()) == {"not-asked"}
    assert one.sha256 == two.sha256, "which sites are asked follows from the study's seed"
    other = federate(make_study(**{"sites": "abcd", "study__seed": 5, "federation__quorum": 2, "strategy": options}), sites, tmp_path / "x")
    assert len(other.final["sites"]) == 4


def test_the_plan_says_what_a_strategy_may_lower() -> None:
    text = describe(study("flwr.serverapp.strategy:FedAvg"))
    assert "the strategy may lower in any round: lr (at most 0.2), local_epochs (at most 4)" in text
    assert "may lower" not in describe(study("fedavg"))


# --- the gate


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"lr": 0.1}, ""),
        ({"lr": 0.1, "local_epochs": 1}, ""),
        ({"lr": 0.3}, "not-of-the-plan"),
        ({"lr": -0.1}, "not-of-the-plan"),
        ({"local_epochs": 5}, "not-of-the-plan"),
        ({"local_steps": 1}, "not-of-the-plan"),
        ({"lr": "0.1"}, "undeclared-record"),
        ({"momentum": 0.1}, "undeclared-record"),
    ],
    ids=str,
)
def test_a_site_bounds_the_config_by_the_approved_study(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    training = {"optimizer": "sgd", "lr": 0.2, "local_epochs": 4}
    name = "flwr.serverapp.strategy:FedAvg"
    plan = make_study(sites=("a",), training=training, strategy={"name": name}, cohort__split=SPLIT)
    centre = Centre(plan, real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    assert centre.ask("round", 1, 1, agreed, centre.first(agreed), config) == code
    built_in = Centre(make_study(sites=("a",), training=training, cohort__split=SPLIT), real_site(tmp_path / "b"))
    again = built_in.agree(1)
    assert built_in.ask("round", 1, 1, again, built_in.first(again), config) == "undeclared-record"


def test_under_privacy_of_a_patient_a_rate_is_obeyed_and_a_length_is_not(tmp_path: Path) -> None:
    ranges = {f"x{k}": [-10.0, 300.0] for k in (1, 2, 3)}
    privacy = {"unit": "patient", "epsilon": 1.0, "persons": {"a": 140}, "ranges": ranges, "metrics": "private"}
    plan = make_study(
        sites=("a",), training={"optimizer": "sgd", "lr": 0.2, "local_epochs": 2}, privacy=privacy, cohort__split=SPLIT,
        strategy={"name": "flwr.serverapp.strategy:FedAvg"},
    )  # fmt: skip
    centre = Centre(plan, real_site(tmp_path / "a", "max_epsilon = 5"))
    agreed = centre.agree(1)
    first = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, first, {"local_epochs": 1}) == "not-of-the-plan"
    assert centre.ask("round", 1, 1, agreed, first, {"lr": 0.2e-6}) == ""
    moved = max(float(np.abs(centre.answered[-1][1][f"arrays/{k}"] - v).max()) for k, v in first.items())
    assert 0 < moved < 1e-3
