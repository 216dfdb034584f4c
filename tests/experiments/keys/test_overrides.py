"""``--set`` and the keys of a study by their last part."""

from __future__ import annotations

import pytest

import fedml
from fedml.errors import InputError
from fedml.experiments.keys.overrides import parse_overrides
from tests.command import STUDIES


def test_the_last_part_of_a_key_is_enough_where_it_is_the_only_one() -> None:
    assert parse_overrides(["lr=0.1", "rounds=3", "strategy.name=fedprox", "privacy.persons.oslo=80"]) == {
        "training.lr": 0.1, "federation.rounds": 3, "strategy.name": "fedprox", "privacy.persons.oslo": 80,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("lr", "--set lr: write section.key=value"),
        ("name=x", "several keys have this name; write study.name=x or .*strategy.name=x"),
        ("roundz=4", r'no key of a study has this name \(did you mean "rounds"\?\)'),
        ("zzzz=4", "no key of a study has this name; docs/keys.md lists all"),
    ],
)
def test_another_name_is_refused_with_the_keys_that_are_meant(pair: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_overrides([pair])


def test_python_takes_the_same_names() -> None:
    study = fedml.Study.read(STUDIES / "demo.toml", rounds=2).set("lr", 0.125)
    assert (study.plan.training.lr, study.plan.federation.rounds) == (0.125, 2)
    with pytest.raises(InputError, match=r'set\("name", ...\): several keys'):
        study.set("name", "x")
    assert study.set("strategy", {"name": "fedprox", "mu": 0.5}).plan.strategy.name == "fedprox", "a whole section"
