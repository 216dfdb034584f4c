"""FLamby's heart disease: the studies say what the protocol says, and the bench's rerun of it is what PyTorch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from fedml.experiments.bench import flamby_heart as bench
from fedml.experiments.bench.flamby_logistic import Logistic
from fedml.study.read import read_study
from tests.conftest import public_data

RATES: dict[str, tuple[float, str, dict[str, float]]] = {
    "flamby_heart.toml": (0.001, "fedavg", {}),
    "flamby_heart_fedadam.toml": (0.01, "fedadam", {"server_lr": 0.01, "beta_2": 0.999, "tau": 1e-8}),
}
Batch = npt.NDArray[np.int64]


@pytest.mark.parametrize("file", RATES)
def test_the_study_states_the_protocol(file: str) -> None:
    study = read_study(bench.HERE / file)
    lr, name, options = RATES[file]
    assert (study.federation.rounds, study.training.local_steps, study.training.batch_size) == (15, 100, 4)
    assert (study.training.optimizer, study.training.lr, study.training.momentum, study.training.weight_decay) == ("sgd", lr, 0.0, 0.0)
    assert (study.strategy.name, study.strategy.options) == (name, options)
    assert study.cohort.clinical is not None
    assert tuple(study.cohort.clinical.columns) == bench.COLUMNS
    assert study.federation.sites == bench.SITES


def random_part(seed: int, persons: int = 23) -> bench.Part:
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(persons, 13)), np.ones((persons, 1))], 1)
    return x, (x[:, 0] + rng.normal(size=persons) > 0).astype(float)


def test_the_network_is_logistic_regression_with_one_logit() -> None:
    network, (x, y) = Logistic(13, 2, init=7).double(), random_part(0)
    functional.cross_entropy(network(torch.from_numpy(x[:, :13])), torch.from_numpy(y).long()).backward()  # type: ignore[no-untyped-call]
    weights = bench.first_weights(7)
    assert np.allclose(torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy(), weights, atol=0)
    found = np.concatenate([p.grad.numpy().ravel() for p in network.parameters() if p.grad is not None])
    assert np.allclose(found, bench.gradient(weights, x, y), atol=1e-12)


def stepped(kind: type[torch.optim.Optimizer], lr: float, part: bench.Part, batches: list[Batch]) -> bench.Vector:
    """Weights after steps of PyTorch's own optimiser on these batches."""
    x, y = map(torch.from_numpy, part)
    w = torch.from_numpy(bench.first_weights(5)).requires_grad_()
    steps = kind([w], lr=lr)  # type: ignore[call-arg]
    for chosen in batches:
        steps.zero_grad()
        functional.binary_cross_entropy_with_logits(x[chosen] @ w, y[chosen]).backward()  # type: ignore[no-untyped-call]
        steps.step()
    return w.detach().numpy()


def test_the_rerun_takes_the_steps_of_pytorchs_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [random_part(1, 23), random_part(2, 10)]
    monkeypatch.setattr(bench, "PASSES", 3)
    drawn = bench.orders(23, np.random.default_rng(5))
    batches = [next(drawn) for _ in range(3 * 6)]  # 5 batches of 4 persons and one of 3
    assert sorted(np.concatenate(batches[:6])) == list(range(23))
    assert np.allclose(bench.pooled(parts[0], 5), stepped(torch.optim.Adam, 0.001, parts[0], batches), atol=1e-10)

    start = bench.first_weights(5)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "UPDATES", 7)
    rng = np.random.default_rng(5)
    both = [bench.orders(len(y), rng) for _, y in parts]
    local = [stepped(torch.optim.SGD, 0.1, part, [next(order) for _ in range(7)]) for part, order in zip(parts, both, strict=True)]
    mean = (23 * local[0] + 10 * local[1]) / 33
    assert np.allclose(bench.federated(parts, 5, 0.1), mean, atol=1e-12)
    moved = bench.federated(parts, 5, 0.1, server_lr=0.01) - start  # the first step of Adam without correction: 0.1 / sqrt(0.001) a weight
    assert np.allclose(moved, 0.01 * 0.1 / np.sqrt(0.001) * np.sign(mean - start), rtol=1e-4)


def test_the_persons_are_those_of_flamby(tmp_path: Path) -> None:
    public_data("uci_heart")
    hospitals = bench.load(tmp_path)
    # Training and test persons of each site as FLamby's README states them.
    found = {h.name: (int((~h.held).sum()), int(h.held.sum())) for h in hospitals}
    assert found == {"cleveland": (199, 104), "budapest": (172, 89), "zurich-basel": (30, 16), "long-beach": (85, 45)}
    bench.write_sites(hospitals, tmp_path / "sites")
    assert sorted(p.name for p in (tmp_path / "sites" / "own").iterdir()) == sorted(bench.SITES)


@pytest.mark.long
def test_the_studies_reach_what_the_rerun_reaches(tmp_path: Path) -> None:
    public_data("uci_heart")
    hospitals = bench.load(tmp_path)
    bench.write_sites(hospitals, tmp_path / "sites")
    for row in bench.rows(hospitals)[:3]:
        plain, studies = bench.measure(row, range(42, 47), hospitals, tmp_path)
        assert np.mean(studies) == pytest.approx(np.mean(plain), abs=0.01), row.name
