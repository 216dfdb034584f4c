"""What a sweep varies: keys by their last part, lists and ranges, draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from fedml.errors import InputError
from fedml.experiments.sweep.values import Range, drawn, grid, read_space, short_names, shown, varied_key


@pytest.mark.parametrize(
    ("option", "key", "values"),
    [
        ("lr=1e-3,1e-2", "training.lr", (0.001, 0.01)),
        ("strategy.name=fedavg,fedprox", "strategy.name", ("fedavg", "fedprox")),
        ("rounds=5", "federation.rounds", (5,)),
        ("clinical.hidden=[8],[16, 8]", "model.clinical.hidden", ([8], [16, 8])),
        ("nesterov=true,false", "training.nesterov", (True, False)),
        ("lr=1e-4..1e-1", "training.lr", Range(1e-4, 0.1, whole=False, log=True)),
        ("dropout=0..0.5", None, None),
        ("clinical.dropout=0..0.5", "model.clinical.dropout", Range(0, 0.5, whole=False, log=False)),
        ("batch_size=8..64", "training.batch_size", Range(8, 64, whole=True, log=False)),
        ("batch_size=8..128", "training.batch_size", Range(8, 128, whole=True, log=True)),
        ("privacy.persons.oslo=80,90", "privacy.persons.oslo", (80, 90)),
    ],
)
def test_an_option_is_a_key_with_values(option: str, key: str | None, values: object) -> None:
    if key is None:
        with pytest.raises(InputError, match=r"write model\.variants\.dropout or model\.clinical\.dropout or model\.omics\.dropout"):
            read_space([option])
    else:
        assert read_space([option]) == {key: values}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "give --grid KEY=VALUE"),
        (["lr"], "write KEY=VALUE"),
        (["lr="], "lists no value"),
        (["learning_rate=1"], "no key of a study has this name"),
        (["rond=1"], 'did you mean "rounds"'),
        (["name=a,b"], "several keys have this name; write study.name or .*cohort.image.transforms.name or strategy.name"),
        (["lr=1e-3", "training.lr=1e-2"], "given twice"),
        (["lr=1e-1..1e-4"], "from a smaller to a larger"),
        (["study.seed=1,2"], "give --seeds"),
        (["split.val=0.1,0.2"], None),
        (["cohort.split.val=0.1,0.2"], "other validation persons"),
        (["task=regression"], "another metric"),
        (["unit=none,patient"], "no epsilon together"),
    ],
)
def test_what_no_sweep_can_vary_is_a_sentence(options: list[str], sentence: str | None) -> None:
    with pytest.raises(InputError, match=sentence or "other validation persons"):
        read_space(options)


def test_names_are_as_short_as_the_option_accepts() -> None:
    keys = ["training.lr", "strategy.name", "model.clinical.dropout", "privacy.persons.oslo", "strategy.momentum"]
    short = short_names(keys)
    assert list(short.values()) == ["lr", "strategy.name", "clinical.dropout", "privacy.persons.oslo", "strategy.momentum"]
    assert [varied_key(name) for name in short.values()] == keys
    assert shown({"training.lr": 1e-3, "strategy.name": "fedavg"}) == "lr = 0.001, strategy.name = fedavg"


def test_a_grid_is_every_combination() -> None:
    points = grid(read_space(["lr=1,2", "strategy.name=a,b", "rounds=7"]))
    assert [tuple(p.values()) for p in points] == [(1, "a", 7), (1, "b", 7), (2, "a", 7), (2, "b", 7)]
    with pytest.raises(InputError, match="add --random N or --optuna N"):
        grid(read_space(["lr=1e-4..1e-1"]))
    with pytest.raises(InputError, match=r"1,000,000 combinations"):
        grid(read_space([f"{key}={','.join(map(str, range(100)))}" for key in ("lr", "rounds", "batch_size")]))


def test_draws_are_of_their_distributions_and_repeat() -> None:
    space = read_space(["lr=1e-4..1e-1", "clinical.dropout=0..0.5", "batch_size=8..128", "strategy.name=fedavg,fedprox"])
    points = drawn(space, 2000, seed=3)
    assert points[:30] == drawn(space, 30, seed=3)
    assert points[:30] != drawn(space, 30, seed=4)
    lr, dropout, batch = (np.array([p[key] for p in points]) for key in ("training.lr", "model.clinical.dropout", "training.batch_size"))
    assert kstest((np.log10(lr) + 4) / 3, "uniform").pvalue > 0.001
    assert kstest(dropout * 2, "uniform").pvalue > 0.001
    assert batch.dtype.kind == "i"
    assert 8 <= batch.min() < 10 < 110 < batch.max() <= 128
    assert abs((batch < 32).mean() - 0.5) < 0.05, "half of the draws are below the geometric mean"
    assert 900 < sum(p["strategy.name"] == "fedavg" for p in points) < 1100
    assert len({tuple(p.values()) for p in points}) == len(points)


def test_of_few_combinations_each_is_drawn_once() -> None:
    points = drawn(read_space(["lr=1,2", "rounds=1,2,3"]), 30, seed=0)
    assert sorted(tuple(p.values()) for p in points) == [(a, b) for a in (1, 2) for b in (1, 2, 3)]


def test_optuna_finds_an_optimum_and_repeats() -> None:
    pytest.importorskip("optuna")
    from fedml.experiments.sweep.tpe import suggested

    def search(seed: int) -> list[tuple[float, str]]:
        source, out = suggested(read_space(["lr=1e-4..1e-0", "strategy.name=fedavg,fedprox"]), 60, seed, higher=True), []
        point = next(source)
        while True:
            out.append((point["training.lr"], point["strategy.name"]))
            score = -((np.log10(point["training.lr"]) + 2) ** 2) - (point["strategy.name"] == "fedavg")
            try:
                point = source.send(float("nan") if point["training.lr"] > 0.5 else score)
            except StopIteration:
                return out

    found = search(0)
    assert found == search(0)
    assert len(found) == 60
    late = found[30:]
    assert np.median([abs(np.log10(lr) + 2) for lr, _ in late]) < 0.7, "1.0 if drawn at random from 2 decades on each side"
    assert sum(name == "fedprox" for _, name in late) > 20
