"""Strategies: against Flower's own, against numpy, and whole studies against the pooled one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st

from fedml.clients.work.client import app
from fedml.errors import InputError, RunError
from fedml.experiments.runs.run import run_nodes
from fedml.flower.grid import InProcessGrid
from fedml.strategies.algorithms.algorithm import Algorithm
from fedml.strategies.algorithms.averaging import Averaging
from fedml.strategies.algorithms.fedavg import fedavg
from fedml.strategies.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedml.strategies.algorithms.fedprox import fedprox
from fedml.strategies.algorithms.registry import STRATEGIES, make_strategy
from fedml.wire.records import pack, unpack
from tests.conftest import Run, clinical_site, federate, image_site, make_study, pooled

Arrays = dict[str, np.ndarray[Any, Any]]
GRID = InProcessGrid(app, [{}, {}, {}])  # gives Flower's Message the identity that it asks for


def model(rng: np.random.Generator, scale: float = 1.0) -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {"layer.weight": (3, 4), "layer.bias": (3,), "one": ()}
    return {k: (np.asarray(rng.normal(0, scale, shape)) + 0.0).astype(np.float32) for k, shape in shapes.items()}


def reply(node: int, arrays: Arrays | None, persons: float = 1) -> Message:
    """A site's answer; an error where there are no arrays."""
    asked = Message(RecordDict(), node, "train")
    if arrays is None:
        return Message(Error(600, "bad-data"), reply_to=asked)
    return Message(RecordDict({"arrays": pack(arrays), "metrics": MetricRecord({"num-examples": persons})}), reply_to=asked)


def one_round(strategy: Any, number: int, current: Arrays, replies: list[Message]) -> Arrays:
    list(strategy.configure_train(number, pack(current), ConfigRecord(), GRID))
    following, _ = strategy.aggregate_train(number, replies)
    assert following is not None
    return unpack(following)


def equal(one: Arrays, two: Arrays, rtol: float = 2e-6, atol: float = 3e-6) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_allclose(value, two[key], rtol=rtol, atol=atol, err_msg=key)


def weighted_mean(sites: list[Arrays], weights: list[int]) -> Arrays:
    return {k: np.average([s[k].astype(np.float64) for s in sites], axis=0, weights=weights) for k in sites[0]}


# --- averaging


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), st.integers(0, 999))
def test_fedavg_is_the_weighted_mean_and_flowers_fedavg(weights: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sites = [model(rng) for _ in weights]
    replies = [reply(k + 1, s, w) for k, (s, w) in enumerate(zip(sites, weights, strict=True))]
    found = one_round(Averaging(fedavg(), 2), 1, sites[0], replies)
    equal(found, weighted_mean(sites, weights))
    equal(found, one_round(flower.FedAvg(min_train_nodes=1, min_available_nodes=1), 1, sites[0], replies))
    assert all(v.dtype == np.float32 for v in found.values())
    same = one_round(Averaging(fedavg("equal"), 2), 1, sites[0], replies)
    equal(same, weighted_mean(sites, [1] * len(sites)))


def test_error_replies_and_sites_without_training_persons_are_skipped() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (model(rng) for _ in range(3))
    found = one_round(Averaging(fedavg(), 2), 1, a, [reply(1, None), reply(2, a, 3), reply(3, None), reply(1, b, 0), reply(2, c, 1)])
    equal(found, weighted_mean([a, c], [3, 1]))
    assert Averaging(fedavg(), 2).aggregate_train(1, [reply(1, None), reply(2, a, 0)]) == (None, None)
    assert Averaging(fedavg(), 2).aggregate_train(1, []) == (None, None)


def test_replies_are_read_one_at_a_time() -> None:
    rng, alive = np.random.default_rng(0), []

    def replies() -> Iterator[Message]:
        for k in range(5):
            alive.append(k)
            yield reply(k + 1, model(rng), 1)

    stream = replies()
    assert next(stream).has_content()
    assert alive == [0]
    Averaging(fedavg(), 2).aggregate_train(1, stream)
    assert alive == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "change", [lambda a: {**a, "extra": a["one"]}, lambda a: {"one": a["one"]}, lambda a: {**a, "one": np.ones(2, np.float32)}]
)
def test_replies_that_differ_in_names_or_shapes_are_refused(change: Callable[[Arrays], Arrays]) -> None:
    a = model(np.random.default_rng(0))
    with pytest.raises(ValueError, match="differ in name or shape"):
        Averaging(fedavg(), 2).aggregate_train(1, [reply(1, a), reply(2, change(a))])


# --- server optimisers

ROUNDS = 4


def trajectory(strategy: Any, seed: int, before: Callable[[Any, int], None] = lambda s, n: None) -> list[Arrays]:
    """Models of some rounds in which every site moves at random from the model that arrives."""
    rng = np.random.default_rng(seed)
    current, models = model(rng), []
    for number in range(1, ROUNDS + 1):
        sites = [{k: (v + d[k]).astype(np.float32) for k, v in current.items()} for d in (model(rng, 0.3), model(rng, 0.3))]
        before(strategy, number)
        current = one_round(strategy, number, current, [reply(1, sites[0], 30), reply(2, sites[1], 10)])
        models.append(current)
    return models


def reference(rule: str, seed: int, lr: float, b1: float, b2: float, tau: float) -> list[Arrays]:
    """Reddi et al. 2021, algorithm 2, in numpy's float64."""
    rng = np.random.default_rng(seed)
    current = {k: v.astype(np.float64) for k, v in model(rng).items()}
    m = {k: np.zeros_like(v) for k, v in current.items()}
    v = {k: np.full_like(x, tau**2) for k, x in current.items()}
    models = []
    for _ in range(ROUNDS):
        sites = [{k: x + d[k] for k, x in current.items()} for d in (model(rng, 0.3), model(rng, 0.3))]
        for key in current:
            delta = 0.75 * sites[0][key] + 0.25 * sites[1][key] - current[key]
            m[key] = b1 * m[key] + (1 - b1) * delta
            if rule == "adagrad":
                v[key] = v[key] + delta**2
            elif rule == "yogi":
                v[key] = v[key] - (1 - b2) * delta**2 * np.sign(v[key] - delta**2)
            else:
                v[key] = b2 * v[key] + (1 - b2) * delta**2
        current = {k: x + lr * m[k] / (np.sqrt(v[k]) + tau) for k, x in current.items()}
        models.append(current)
    return models


@pytest.mark.parametrize(("rule", "make"), [("adam", fedadam), ("yogi", fedyogi), ("adagrad", fedadagrad)])
@pytest.mark.parametrize("seed", range(3))
def test_adaptive_optimisers_follow_algorithm_2(rule: str, make: Callable[..., Algorithm], seed: int) -> None:
    lr, b1, b2, tau = 0.1, 0.8, 0.95, 0.02
    options = {"server_lr": lr, "beta_1": b1, "tau": tau} | ({"beta_2": b2} if rule != "adagrad" else {})
    for one, two in zip(trajectory(Averaging(make(**options), 2), seed), reference(rule, seed, lr, b1, b2, tau), strict=True):
        equal(one, two, rtol=1e-4, atol=2e-6)


def start_at_tau_squared(strategy: Any, number: int) -> None:
    """Flower starts v at 0, the paper (and ours) at tau^2."""
    if number == 1:
        shapes = model(np.random.default_rng(0))
        strategy.v_t = {k: np.full_like(x, strategy.tau**2) for k, x in shapes.items()}


def without_correction(lr: float) -> Callable[[Any, int], None]:
    """Flower's FedAdam also corrects the bias of Adam's moments (Kingma and Ba), which algorithm 2 does not: taken back here."""

    def before(strategy: Any, number: int) -> None:
        start_at_tau_squared(strategy, number)
        strategy.eta = lr / (np.sqrt(1 - strategy.beta_2 ** (number + 1.0)) / (1 - strategy.beta_1 ** (number + 1.0)))

    return before


def test_adaptive_optimisers_equal_flowers_once_v_starts_at_tau_squared() -> None:
    lr, b1, b2, tau = 0.1, 0.8, 0.95, 0.02
    nodes = {"min_train_nodes": 1, "min_available_nodes": 1}
    adam = trajectory(flower.FedAdam(eta=lr, beta_1=b1, beta_2=b2, tau=tau, **nodes), 7, without_correction(lr))
    yogi = trajectory(flower.FedYogi(eta=lr, beta_1=b1, beta_2=b2, tau=tau, **nodes), 7, start_at_tau_squared)
    grad = trajectory(flower.FedAdagrad(eta=lr, tau=tau, **nodes), 7, start_at_tau_squared)
    ours = [
        trajectory(Averaging(fedadam(lr, b1, b2, tau), 2), 7),
        trajectory(Averaging(fedyogi(lr, b1, b2, tau), 2), 7),
        trajectory(Averaging(fedadagrad(lr, 0.0, tau), 2), 7),
    ]
    for theirs, own in zip((adam, yogi, grad), ours, strict=True):
        for one, two in zip(own, theirs, strict=True):
            equal(one, two, rtol=1e-4, atol=2e-6)


def test_fedavgm_equals_flowers_and_is_fedavg_without_momentum() -> None:
    nodes = {"min_train_nodes": 1, "min_available_nodes": 1}
    theirs = trajectory(flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.6, **nodes), 5)
    for one, two in zip(trajectory(Averaging(fedavgm(0.7, 0.6), 2), 5), theirs, strict=True):
        equal(one, two, rtol=1e-5, atol=1e-6)
    for one, two in zip(trajectory(Averaging(fedavgm(1.0, 0.0), 2), 5), trajectory(Averaging(fedavg(), 2), 5), strict=True):
        equal(one, two, atol=1e-6)


@pytest.mark.parametrize("make", [fedadam, fedyogi, fedadagrad, fedavgm])
def test_batch_norms_running_statistics_are_averaged(make: Callable[..., Algorithm]) -> None:
    names = ("n.running_mean", "n.running_var", "n.weight")
    a, b, c = ({k: np.full(2, x, np.float32) for k in names} for x in (1.0, 2.0, 6.0))
    found = one_round(Averaging(make(server_lr=0.01), 2), 1, a, [reply(1, b, 3), reply(2, c, 1)])
    for name in names[:2]:
        np.testing.assert_array_equal(found[name], [3, 3])
    assert (np.abs(found["n.weight"] - 1) < 0.2).all()


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_a_tau_of_zero_is_refused_or_harmless(name: str) -> None:
    a = model(np.random.default_rng(0))
    try:
        strategy = make_strategy(make_study(strategy={"name": name, "tau": 0}))
    except InputError:
        return
    assert all(np.isfinite(v).all() for v in one_round(strategy, 1, a, [reply(1, a)]).values())


# --- registry


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"name": "fedavgg"}, ['"fedavgg" is not known', 'did you mean "fedavg"?', "module:Class"]),
        ({"name": "fedprox", "muu": 1}, ["[strategy] muu is not a key of fedprox", 'did you mean "mu"?', "mu, weighting"]),
        ({"name": "fedprox", "mu": "big"}, ["[strategy] mu must be a number, not 'big'"]),
        ({"name": "fedprox", "mu": True}, ["[strategy] mu must be a number"]),
        ({"name": "fedprox", "mu": -1}, ["[strategy] mu is -1"]),
        ({"name": "fedavg", "weighting": "persn"}, ["weighting must be one of persons, equal, not 'persn'"]),
        ({"name": "flwr.serverapp.strategy:FedNope"}, ["cannot be imported", "FedNope"]),
        ({"name": "no.such.module:FedAvg"}, ["cannot be imported", "no.such.module"]),
        ({"name": "collections:OrderedDict"}, ["is not a flwr.serverapp.strategy.Strategy"]),
        ({"name": "flwr.serverapp.strategy:FedAvg", "fraction_trian": 1.0}, ["fraction_trian", 'did you mean "fraction_train"?']),
        ({"name": "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping"}, ["refuses its options"]),
        pytest.param({"name": ".relative:FedAvg"}, ["cannot be imported"]),
    ],
)
def test_a_wrong_strategy_is_reported(strategy: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        make_strategy(make_study(strategy=strategy))
    for word in words:
        assert word in str(caught.value)


def test_every_name_makes_a_flower_strategy() -> None:
    for name in STRATEGIES:
        assert isinstance(make_strategy(make_study(strategy={"name": name}, training__optimizer="sgd")), flower.Strategy)


# --- whole studies


@pytest.fixture(scope="module")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [clinical_site(folder / n, n, p, k) for k, (n, p) in enumerate((("a", 60), ("b", 25)))]


@pytest.fixture(scope="module")
def three_sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("three")
    return [clinical_site(folder / n, n, p, k) for k, (n, p) in enumerate((("a", 120), ("b", 31), ("c", 57)))]


def distance(one: Run, two: Run) -> float:
    return max(float((v - two.learned()[k]).abs().max()) for k, v in one.learned().items())


def relative(one: Run, two: Run) -> float:
    """Largest difference over largest weight, over all learned arrays."""
    a, b = one.learned(), two.learned()
    assert a.keys() == b.keys()
    return distance(one, two) / max(float(v.abs().max()) for v in b.values())


def test_fedprox_without_mu_is_fedavg_bit_by_bit_and_a_large_mu_holds_the_model(tmp_path: Path, two_sites: list[Path]) -> None:
    def run(folder: str, **strategy: Any) -> Run:
        plan = make_study(training={"lr": 0.05, "optimizer": "sgd", "local_epochs": 4, "batch_size": 8}, strategy=strategy)
        return federate(plan, two_sites, tmp_path / folder)

    plain, none, some = run("a", name="fedavg"), run("b", name="fedprox", mu=0), run("c", name="fedprox", mu=1)
    large = run("d", name="fedprox", mu=19.0)  # lr * mu just below 1: each step returns almost to the round's model
    assert none.sha256 == plain.sha256
    start = federate(make_study(federation={"sites": ["a", "b"], "rounds": 0}), two_sites, tmp_path / "start")
    assert distance(start, plain) > distance(start, some) > 3 * distance(start, large) > 0


def test_flowers_fedavg_by_its_path_equals_ours(tmp_path: Path, two_sites: list[Path]) -> None:
    changes: dict[str, Any] = {"training__lr": 0.02, "federation__rounds": 3}
    ours = federate(make_study(**changes), two_sites, tmp_path / "ours")
    path = {"name": "flwr.serverapp.strategy:FedAvg"}
    theirs = federate(make_study(**changes, strategy=path), two_sites, tmp_path / "theirs")
    assert relative(ours, theirs) < 1e-6
    for key, value in ours.final["metrics"]["test"]["all"].items():
        assert theirs.final["metrics"]["test"]["all"][key] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FedMedian", {}),
        ("FedTrimmedAvg", {}),
        ("FedAvgM", {"server_momentum": 0.5}),
        ("FedAdam", {}),
        ("FedYogi", {}),
        ("FedAdagrad", {}),
        ("FedProx", {"proximal_mu": 0.1}),
        ("Krum", {}),
        ("MultiKrum", {}),
        ("Bulyan", {}),
        pytest.param("QFedAvg", {"client_learning_rate": 0.1}),
    ],
)
def test_flowers_strategies_run_a_study(tmp_path: Path, three_sites: list[Path], name: str, options: dict[str, Any]) -> None:
    study = make_study(sites="abc", strategy={"name": f"flwr.serverapp.strategy:{name}", **options})
    run = federate(study, three_sites, tmp_path / "run")
    assert len(run.rounds) == 2
    assert all(torch.isfinite(v).all() for v in run.learned().values())
    assert run.final["metrics"]["test"]["all"]["persons"] > 0


@pytest.mark.parametrize("name", [*STRATEGIES])
def test_every_strategy_of_ours_learns(tmp_path: Path, two_sites: list[Path], name: str) -> None:
    strategy: dict[str, Any] = {"name": name}
    if name in ("fedadam", "fedyogi", "fedadagrad"):
        strategy["server_lr"] = 0.2
    training = {"lr": 0.05, "batch_size": 8}
    study = make_study(training=training, federation__rounds=6, strategy=strategy)
    try:
        make_strategy(study)
    except InputError:  # such as scaffold, which is defined for sgd
        study = make_study(training=training | {"optimizer": "sgd"}, federation__rounds=6, strategy=strategy)
    run = federate(study, two_sites, tmp_path / "run")
    losses = [sum(s["train_loss"] * s["seen"] for s in r["sites"].values()) for r in run.rounds]
    assert losses[-1] < 0.95 * losses[0]


FULL_BATCH = {"optimizer": "sgd", "lr": 0.3, "batch_size": 0}


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_one_step_of_fedavg_over_unequal_sites_is_the_pooled_step(tmp_path: Path, three_sites: list[Path], task: str) -> None:
    study = make_study(sites="abc", training=FULL_BATCH, federation__rounds=1, model__task=task)
    many, one = federate(study, three_sites, tmp_path / "many"), pooled(study, three_sites, tmp_path / "one")
    for key, value in many.constants().items():
        np.testing.assert_allclose(value, one.constants()[key], rtol=2e-7)
    assert relative(many, one) < 1e-6
    start = federate(make_study(sites="abc", federation__rounds=0, model__task=task), three_sites, tmp_path / "start")
    assert relative(start, one) > 1e-2
    assert many.final["metrics"]["test"]["all"]["persons"] == one.final["metrics"]["test"]["all"]["persons"]


@pytest.mark.parametrize("size", [(8, 8), (6, 6, 6)])
def test_one_step_of_a_cnn_with_group_norm_is_the_pooled_step(tmp_path: Path, size: tuple[int, ...]) -> None:
    sites = [image_site(tmp_path / n, n, p, k, size) for k, (n, p) in enumerate((("a", 40), ("b", 17), ("c", 25)))]
    study = make_study(("image",), "abc", training=FULL_BATCH, federation__rounds=1, model__image={"channels": [8, 16]})
    many, one = federate(study, sites, tmp_path / "many"), pooled(study, sites, tmp_path / "one")
    for key, value in many.constants().items():
        np.testing.assert_allclose(value, one.constants()[key], rtol=2e-7)
    assert relative(many, one) < 1e-6
    start = federate(make_study(("image",), "abc", federation__rounds=0, model__image={"channels": [8, 16]}), sites, tmp_path / "start")
    assert relative(start, one) > 1e-2


def test_many_full_batch_rounds_stay_with_pooled_training(tmp_path: Path, three_sites: list[Path]) -> None:
    study = make_study(sites="abc", training=FULL_BATCH, federation__rounds=20)
    many, one = federate(study, three_sites, tmp_path / "many"), pooled(study, three_sites, tmp_path / "one")
    assert relative(many, one) < 1e-5
    assert many.final["metrics"]["test"]["all"]["auroc"] == pytest.approx(one.final["metrics"]["test"]["all"]["auroc"], abs=1e-3)


# --- determinism


def test_the_same_study_gives_the_same_bits_and_another_seed_others(tmp_path: Path, two_sites: list[Path]) -> None:
    def run(folder: str, seed: int) -> Run:
        plan = make_study(study__seed=seed, training__batch_size=8, model__clinical={"net": "mlp", "hidden": [6], "dropout": 0.3})
        return federate(plan, two_sites, tmp_path / folder)

    one, other = run("one", 1), run("other", 2)
    torch.manual_seed(99)
    again = run("again", 1)
    assert one.sha256 == again.sha256
    assert [r["metrics"] for r in one.rounds] == [r["metrics"] for r in again.rounds]
    assert other.sha256 != one.sha256


def test_the_order_in_which_nodes_connect_does_not_change_a_bit(tmp_path: Path, three_sites: list[Path]) -> None:
    study = make_study(sites="abc", training__batch_size=8)
    one = federate(study, three_sites, tmp_path / "one")
    assert federate(study, three_sites[::-1], tmp_path / "two").sha256 == one.sha256


def test_a_run_leaves_the_global_random_states_alone(tmp_path: Path, two_sites: list[Path]) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what is watched
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    federate(make_study(training__batch_size=8, model__clinical={"net": "mlp", "hidden": [4], "dropout": 0.5}), two_sites, tmp_path / "r")
    assert torch.equal(torch.get_rng_state(), before[0])
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(after, before[1], strict=True))
    assert random.getstate() == before[2]


# --- quorum


def test_a_site_that_fails_is_excluded_if_the_quorum_allows_it(tmp_path: Path, two_sites: list[Path]) -> None:
    broken = clinical_site(tmp_path / "c", "c", 30, 9)
    (broken.parent / "persons.csv").unlink()
    federation = {"sites": ["a", "b", "c"], "rounds": 2, "quorum": 2}
    run = federate(make_study(federation=federation), [*two_sites, broken], tmp_path / "run")
    alone = federate(make_study(federation={**federation, "sites": ["a", "b"]}), two_sites, tmp_path / "alone")
    assert run.sha256 == alone.sha256
    (tmp_path / "all").mkdir()
    with pytest.raises(RunError, match=r"2 of 3 sites answered, the quorum is 3; missing: node 3 \(bad-data\)"):
        run_nodes(make_study(sites="abc"), [{"manifest": str(m)} for m in [*two_sites, broken]], tmp_path / "all")


def test_arrays_of_a_round_are_float32_on_the_wire() -> None:
    arrays = model(np.random.default_rng(0))
    strategy = Averaging(fedprox(mu=0.5), 3)
    (first, *others) = strategy.configure_train(3, pack(arrays), ConfigRecord({"phase": "round"}), GRID)
    assert len(others) == 2
    record = first.content.array_records["arrays"]
    assert isinstance(record, ArrayRecord)
    assert {a.dtype for a in record.values()} == {"float32"}
    config = first.content.config_records["config"]
    assert dict(config) == {"phase": "round", "server-round": 3, "proximal-mu": 0.5}
