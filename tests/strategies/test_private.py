"""Privacy of one site, at the server: what one site can change, how much noise is really added, and what is counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedml.errors import InputError
from fedml.flower.grid import InProcessGrid
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model
from fedml.privacy.accounting import epsilon_gaussian
from fedml.privacy.releases import claims
from fedml.strategies.algorithms.algorithm import Arrays, Folded
from fedml.strategies.algorithms.averaging import Averaging
from fedml.strategies.algorithms.fedprox import proximal_hook
from fedml.strategies.algorithms.private import CLIPPING, ClippedSum, quantile_noise
from fedml.strategies.algorithms.registry import STRATEGIES, make_strategy
from fedml.study.study import Study
from fedml.wire.records import ARRAYS, METRICS, NUM_EXAMPLES, pack
from tests.conftest import clinical_site, federate, make_study
from tests.fedml.privacy.test_dpsgd import released, steps, wide

RANGES = {"x1": [-5, 10], "x2": [-8, 6], "x3": [0, 200]}


def site_study(sites: int = 3, **changes: Any) -> Study:
    """A study with privacy of one site, z = 2 and C = 0.5 unless changed."""
    names = [f"s{i}" for i in range(sites)]
    plan: dict[str, Any] = {"unit": "site", "noise_multiplier": 2.0, "clipping_norm": 0.5, "ranges": RANGES}
    return make_study(sites=names, privacy=plan | changes.pop("privacy", {}), **changes)


def one_step(strategy: Averaging, current: Arrays, models: list[Arrays], persons: list[int]) -> Arrays:
    """The mean that the server step is given: what is released, before any optimiser."""
    seen: list[Arrays] = []
    step = strategy.step

    def spy(state: Any, folded: Folded) -> Any:
        seen.append(folded.mean)
        return step(state, folded)

    strategy.step = spy
    grid = InProcessGrid(lambda message, context: message, [{} for _ in models])
    sent = list(strategy.configure_train(1, pack(current), ConfigRecord({}), grid))
    replies = [
        Message(RecordDict({ARRAYS: pack(model), METRICS: MetricRecord({NUM_EXAMPLES: n})}), reply_to=message)
        for message, model, n in zip(sent, models, persons, strict=True)
    ]
    strategy.aggregate_train(1, iter(replies))
    return seen[0]


def vectors(rng: np.random.Generator, count: int, width: int, scale: float) -> list[Arrays]:
    return [{"w": torch.from_numpy(rng.normal(0, scale, width).astype(np.float32)), "b": torch.zeros(1)} for _ in range(count)]


@pytest.mark.parametrize("sites", [2, 7, 50])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_noise_on_the_released_mean_is_z_c_over_n(name: str, sites: int) -> None:
    study = site_study(sites, strategy={"name": name})
    try:
        strategy = make_strategy(study)
    except InputError as refusal:
        assert name not in ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedavgm")
        pytest.skip(str(refusal))
    assert isinstance(strategy, Averaging)
    current = {"w": torch.zeros(40_000), "b": torch.zeros(1)}
    same = {"w": torch.full((40_000,), 1e-6), "b": torch.zeros(1)}  # below the clipping norm
    released = one_step(strategy, current, [same] * sites, [10 ** (i % 4) for i in range(sites)])
    noise = (released["w"] - same["w"]).double().numpy()
    expected = 2.0 * 0.5 / sites
    assert noise.std() == pytest.approx(expected, rel=0.02)
    assert abs(noise.mean()) < 5 * expected / math.sqrt(len(noise))
    assert stats.kstest(noise / expected, "norm").pvalue > 1e-6


def test_the_noise_in_a_whole_run_is_that_of_its_rounds(tmp_path: Path) -> None:
    """Sites that do not train change nothing: what differs from the first weights is noise, R times z C / n."""
    manifests = [clinical_site(tmp_path / name, name, 40 + 30 * i, i) for i, name in enumerate(("s0", "s1", "s2"))]
    plan = {"training__local_epochs": 0, "model__clinical": {"net": "mlp", "hidden": [300, 300]}, "federation__rounds": 4}
    run = federate(site_study(3, **plan), manifests, tmp_path / "run")
    start = federate(site_study(3, **plan | {"federation__rounds": 0}), manifests, tmp_path / "start")
    noise = torch.cat([(run.learned()[k] - start.learned()[k]).flatten() for k in start.learned()])
    assert len(noise) > 90_000  # so that 2 % are eight standard errors
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 3 * math.sqrt(4), rel=0.02)
    again = federate(site_study(3, **plan), manifests, tmp_path / "again")
    assert run.sha256 != again.sha256, "noise that a seed reproduces protects no person"
    reported = next(e for e in run.events if e["event"] == "privacy")
    assert reported["epsilon"] == pytest.approx(epsilon_gaussian(2.0 / math.sqrt(4), 1e-5))
    assert "one site" in reported["sentence"]


huge = st.sampled_from([0.0, 1e-3, 0.4, 1.0, 1e6, 1e30, math.nan, math.inf, -math.inf])


@given(others=st.lists(huge, max_size=5), one=huge, norm=st.sampled_from([0.1, 1.0, 7.0]), seed=st.integers(0, 1000))
def test_one_site_changes_the_sum_by_at_most_the_clipping_norm(others: list[float], one: float, norm: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    current = vectors(rng, 1, 8, 1.0)[0]

    def total(scales: list[float]) -> dict[str, torch.Tensor]:
        made = ClippedSum(current, 6, norm, 1.0)
        for at, scale in enumerate(scales):
            direction = vectors(np.random.default_rng([seed, at]), 1, 8, 1.0)[0]
            made.add({k: current[k] + direction[k] * scale for k in current}, 1e9)
        return made.total

    with_one, without = total([*others, one]), total(others)
    change = math.sqrt(sum(float(((with_one[k] - without[k]) ** 2).sum()) for k in current))
    assert change <= norm * (1 + 1e-6)
    assert all(bool(torch.isfinite(v).all()) for v in with_one.values())


def test_the_mean_is_over_the_roster_and_the_sizes_do_not_count() -> None:
    """With hardly any noise: three of four sites answered, each as much, whatever its persons."""
    strategy = make_strategy(site_study(4, privacy={"noise_multiplier": 1e-3, "clipping_norm": 1.0}))
    assert isinstance(strategy, Averaging)
    current = {"w": torch.zeros(4), "b": torch.zeros(1)}
    models = [{"w": torch.eye(4)[i] * 0.5, "b": torch.zeros(1)} for i in range(3)]
    released = one_step(strategy, current, models, [1, 1000, 5])
    assert released["w"].tolist() == pytest.approx([0.125, 0.125, 0.125, 0.0], abs=5e-3)


def test_an_update_is_clipped_not_a_model() -> None:
    strategy = make_strategy(site_study(1, privacy={"noise_multiplier": 1e-3, "clipping_norm": 1.0}))
    assert isinstance(strategy, Averaging)
    current = {"w": torch.full((4,), 100.0), "b": torch.zeros(1)}
    released = one_step(strategy, current, [{"w": torch.full((4,), 103.0), "b": torch.zeros(1)}], [50])
    assert released["w"].tolist() == pytest.approx([100.5] * 4, abs=5e-3)


@pytest.mark.parametrize("z", [0.5, 1.0, 4.4])
@pytest.mark.parametrize("sites", [3, 10, 100])
def test_the_adaptive_split_costs_what_z_says(sites: int, z: float) -> None:
    sigma_b, z_delta = quantile_noise(sites, z)
    assert z_delta**-2 + (2 * sigma_b) ** -2 == pytest.approx(z**-2)
    assert z < z_delta <= 1.1548 * z


def test_the_adaptive_norm_goes_to_the_quantile() -> None:
    study = site_study(100, privacy={"clipping": "adaptive", "clipping_norm": 0.1, "noise_multiplier": 1.0, "quantile": 0.5})
    strategy = make_strategy(study)
    assert isinstance(strategy, Averaging)
    rng = np.random.default_rng(1)
    current = {"w": torch.zeros(9), "b": torch.zeros(1)}
    for _ in range(40):
        lengths = rng.uniform(1, 3, 100)
        models = [{"w": torch.eye(9)[i % 9] * float(n), "b": torch.zeros(1)} for i, n in enumerate(lengths)]
        one_step(strategy, current, models, [1] * 100)
    assert 1.6 < float(strategy.state[CLIPPING]["norm"]) < 2.4


def test_the_count_behind_the_quantile_changes_by_a_half_at_most() -> None:
    current = {"w": torch.zeros(3)}
    for value in (0.1, 50.0, math.nan):
        made = ClippedSum(current, 5, 1.0, 1.0, 0.5)
        made.add({"w": torch.full((3,), 0.2)}, 1.0)
        before = made.unclipped - made.counted / 2
        made.add({"w": torch.full((3,), value)}, 1.0)
        assert abs(made.unclipped - made.counted / 2 - before) <= 0.5


def test_what_cannot_be_private_is_refused() -> None:
    with pytest.raises(InputError, match="weighting"):
        site_study(strategy={"name": "fedavg", "weighting": "persons"})
    with pytest.raises(InputError, match="needs one of fedavg"):
        make_strategy(site_study(strategy={"name": "flwr.serverapp.strategy:FedAvg"}))
    with pytest.raises(InputError, match='norm = "group"'):
        make_study(("image",), privacy={"unit": "site", "epsilon": 3.0}, model__image={"norm": "batch"})


def test_three_sites_ten_rounds_epsilon_three_needs_what_no_model_survives(tmp_path: Path) -> None:
    from fedml.privacy.forecast import forecast

    study = site_study(3, privacy={"noise_multiplier": None, "epsilon": 3.0}, federation__rounds=10)
    reported = forecast(study)
    assert "z = 4.398" in reported
    assert "A model cannot learn with this noise" in reported
    assert 'unit = "patient"' in reported
    assert claims(study)[""].epsilon <= 3.0


def test_a_buffer_is_clipped_like_any_array() -> None:
    current = {"w": torch.zeros(3), "norm.running_mean": torch.zeros(3)}
    made = ClippedSum(current, 3, 1.0, 1.0)
    made.add({"w": torch.full((3,), 0.1), "norm.running_mean": torch.full((3,), 500.0)}, 1.0)
    assert math.sqrt(sum(float((v**2).sum()) for v in made.total.values())) <= 1.0 + 1e-9


def test_the_proximal_term_is_added_after_the_noise() -> None:
    model, cohort, study = wide(20, 3000)
    quiet = steps(rate=1e-18, clipping_norm=1e-6, noise_multiplier=1e-3)
    anchor = dict(build_model(study, Layout(variants=3000)).named_parameters())
    for p in anchor.values():
        p.data.zero_()
    start = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    gone = released(model, cohort, study, quiet, hooks=[proximal_hook(0.5, anchor)])
    np.testing.assert_allclose(gone, 0.5 * start, atol=1e-7)
