"""DP-SGD whose unit is the person: exact clipped sums, sensitivity, noise, sampling, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedml.cohort.images.images import Images
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort, with_inputs
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages
from fedml.errors import InputError
from fedml.modalities.layout import Layout
from fedml.models.fusion import CohortModel, build_model
from fedml.networks.image import NETWORKS, build_image_network
from fedml.privacy.dpsgd import PrivateSteps, clipped_sum, noisy_mean, person_losses, poisson_rows, private_train
from fedml.privacy.noise import GRID_BITS, add_gaussian
from fedml.privacy.persongrad import clipped_gradient_sum, refuse_shared_statistics
from fedml.study.sections import ImageNetwork
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task
from tests.conftest import make_study
from tests.fedml.learning.test_models import ALL, CLINICAL, LAYOUT
from tests.inputs import clinical_of, images_of

Sum = dict[str, torch.Tensor]
WITHIN = 1 + 1e-5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_at_a_time(model: nn.Module, losses_of: Callable[[], torch.Tensor], clipping_norm: float) -> tuple[Sum, torch.Tensor]:
    """The reference: plain autograd of one person's loss after the other, norms and sum in float64."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    norms = []
    for person in range(len(losses_of())):
        found = torch.autograd.grad(losses_of()[person], list(parameters.values()), materialize_grads=True, allow_unused=True)
        norms.append(sum(float(g.double().square().sum()) for g in found) ** 0.5)
        for name, g in zip(parameters, found, strict=True):
            total[name] += g.double() * min(1.0, clipping_norm / norms[-1])
    return total, torch.tensor(norms, dtype=torch.float64)


def length(total: Sum) -> float:
    """L2 norm over all parameters together."""
    return sum(float(v.double().square().sum()) for v in total.values()) ** 0.5


def apart(a: Sum, b: Sum) -> float:
    assert a.keys() == b.keys()
    return length({k: a[k].double() - b[k].double() for k in a})


def assert_exact(model: nn.Module, losses_of: Callable[[], torch.Tensor], rows_of: dict[str, torch.Tensor] | None = None) -> None:
    """The sum and every norm against ``one_at_a_time``, clipping about half of the persons."""
    _, norms = one_at_a_time(model, losses_of, 1.0)
    clip = float(norms.median())
    total, norms = one_at_a_time(model, losses_of, clip)
    found = clipped_gradient_sum(model, losses_of, clipping_norm=clip, rows_of=rows_of)
    torch.testing.assert_close(found.norms, norms, rtol=1e-5, atol=0)
    assert apart(found.total, total) <= 1e-5 * length(total)
    assert all(p.grad is None for p in model.parameters())


# --- exact


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 16, 16, 16)], ids=["2d", "3d"])
@pytest.mark.parametrize("net", [n if n == "cnn" else pytest.param(n, marks=pytest.mark.long) for n in NETWORKS])
def test_every_network_gives_each_persons_own_gradient(net: str, shape: tuple[int, ...], norm: Any) -> None:
    if net.startswith("vit"):
        pytest.importorskip("einops")
    torch.manual_seed(1)
    try:
        network = build_image_network(ImageNetwork(net=net, norm=norm), shape, 3)
    except InputError:
        pytest.skip(f"{net} takes no images of this size")
    model = nn.ModuleDict({"image": network})
    person = torch.tensor([2, 0, 0, 1, 2, 2, 4])  # in no order; person 3 has no image
    images, label = torch.randn(7, *shape), torch.tensor([0, 1, 2, 0, 1])

    def losses() -> torch.Tensor:
        pooled = torch.zeros(5, 3).index_add(0, person, model["image"](images))
        return functional.cross_entropy(pooled, label, reduction="none")

    with pytest.raises(ValueError, match="rows"):
        clipped_gradient_sum(model, losses, clipping_norm=1.0)  # without the person of each image
    # Person 3's loss is a constant: leave its zero norm out of the relative comparison.
    keep = torch.tensor([0, 1, 2, 4])
    assert_exact(model, lambda: losses()[keep], {"image": torch.tensor([2, 0, 0, 1, 2, 2, 3])})


def test_the_offered_norm_leaves_no_batch_norm_in_any_network() -> None:
    for net in NETWORKS:
        if net.startswith("vit"):
            pytest.importorskip("einops")
        refuse_shared_statistics(build_image_network(ImageNetwork(net=net, norm="group"), (1, 64, 64), 2))


def test_a_person_with_fifty_images_and_one_with_one() -> None:
    torch.manual_seed(2)
    model = nn.ModuleDict({"image": build_image_network(ImageNetwork(channels=(4, 8)), (1, 8, 8), 2)})
    person = torch.cat([torch.zeros(50, dtype=torch.int64), torch.tensor([1, 2, 2])])
    images = torch.randn(53, 1, 8, 8)

    def losses() -> torch.Tensor:
        return functional.cross_entropy(torch.zeros(3, 2).index_add(0, person, model["image"](images)), person[-3:] % 2, reduction="none")

    assert_exact(model, losses, {"image": person})


class Odd(nn.Module):
    """What no rule covers: a bare parameter, a weight used by two layers, a layer called twice, PReLU, a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.twice = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.tied.weight = self.first.weight
        self.bare, self.unused = nn.Parameter(torch.randn(12)), nn.Linear(3, 3)
        self.bent, self.grouped = nn.PReLU(), nn.Conv1d(4, 4, 3, groups=2)
        self.loose = nn.Linear(12, 12)
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tied(torch.tanh(self.first(x))) * self.bare
        x = self.bent(self.loose(x)) + functional.linear(x, self.loose.weight)
        x = self.twice(torch.tanh(self.twice(x)))
        return self.last(self.grouped(x.view(-1, 4, 3))[:, :, 0])


class Places(nn.Module):
    """Linear layers over a middle axis, layer norm, 1-D convolution with stride and dilation, activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.small = nn.Linear(300, 40), nn.LayerNorm(40), nn.Linear(40, 3)
        self.conv, self.group = nn.Conv1d(5, 6, 2, stride=2, padding=1, dilation=2), nn.GroupNorm(2, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu_(self.small(functional.relu_(self.norm(self.wide(x)))))
        return self.last(functional.relu_(self.group(self.conv(x))).mean(2))


@pytest.mark.parametrize(("kind", "shape"), [(Odd, (12,)), (Places, (5, 300))])
def test_modules_without_a_rule_and_several_places_a_row(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    model, x, label = kind(), torch.randn(6, *shape), torch.tensor([0, 1, 0, 1, 1, 0])
    assert_exact(model, lambda: functional.cross_entropy(model(x), label, reduction="none"))


def site(persons: int, seed: int, *, most: int = 4, scale: float = 1.0, hole: bool = True) -> Cohort:
    """All three inputs, each lacking for some persons; up to ``most`` images a person; all persons train."""
    rng = np.random.default_rng(seed)
    clinical = np.column_stack(
        [rng.normal(0, scale, persons), rng.integers(0, 3, persons), rng.normal(0, 1, (persons, 2)).T[0], np.ones(persons)]
    )
    clinical[rng.random(clinical.shape) < 0.15] = np.nan
    person = np.repeat(np.arange(persons), rng.integers(0 if hole else 1, most + 1, persons))
    keys = tuple(Variant("1", k + 1, f"rs{k}", "A", "C") for k in range(6))
    has = rng.random((2, persons)) < (0.7 if hole else 1.1)
    return Cohort(
        site="a",
        ids=tuple(f"p{k}" for k in range(persons)),
        labels=rng.integers(0, 2, persons).astype(float),
        parts=np.zeros(persons, dtype=np.int8),
        inputs={
            "clinical": Table("clinical", clinical, has[0]),
            "variants": Dosages(keys, rng.integers(-1, 3, (persons, 6)).astype(np.int8), has[1]),
            "image": Images((rng.normal(0, scale, (len(person), 1, 8, 8))).astype(np.float32), person),
        },
    )


def fused(**changes: Any) -> tuple[CohortModel, Task]:
    plan = {"cohort__clinical": CLINICAL, "model__image": {"channels": [4, 8]}, "model__input_dropout": 0.0, **changes}
    study = make_study(ALL, **plan)
    return build_model(study, LAYOUT), make_task(study)


MLP = {"net": "mlp", "hidden": [7]}


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("table", [{"net": "linear"}, MLP], ids=["linear", "mlp"])
def test_mixed_inputs_with_missing_modalities(task: str, table: dict[str, Any]) -> None:
    model, kind = fused(model__task=task, model__variants=table, model__clinical=table, model__hidden=[5])
    batch = site(12, 4).batch(range(12))
    assert 0 < int(batch["variants_present"].sum()) < 12
    assert len(torch.unique(torch.bincount(batch["image_person"], minlength=12))) > 3
    assert_exact(model, lambda: person_losses(kind, model(batch), batch["label"]), {"encoder.image": batch["image_person"]})


@pytest.mark.parametrize("table", [{"net": "linear"}, MLP], ids=["linear", "mlp"])
def test_variants_alone(table: dict[str, Any]) -> None:
    study = make_study(("variants",), model__variants=table)
    model = build_model(study, Layout(variants=3000))
    rng = np.random.default_rng(0)
    batch = {"variants": torch.from_numpy(rng.integers(-1, 3, (9, 3000)).astype(np.int8)), "variants_present": torch.ones(9)}
    label = torch.from_numpy(rng.integers(0, 2, 9))
    assert_exact(model, lambda: person_losses(make_task(study), model(batch), label))


def test_no_tensor_of_persons_times_outputs_times_inputs_for_a_wide_layer() -> None:
    model, x = nn.Sequential(nn.Linear(5000, 32), nn.ReLU(), nn.Linear(32, 2)), torch.randn(40, 5000)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        clipped_gradient_sum(model, lambda: model(x).square().sum(1), clipping_norm=1.0)
    largest = max(e.self_cpu_memory_usage for e in seen.events())
    assert 4 * 32 * 5000 <= largest <= 4 * 40 * 32 * 5000 / 10  # the weight's gradient itself is there, nothing of 40 persons' size


def test_persons_losses_are_the_mean_loss_of_each_alone() -> None:
    for name in ("classification", "regression"):
        _, task = fused(model__task=name)
        output, label = torch.randn(5, 2 if name == "classification" else 1), torch.tensor([0.0, 1, 1, 0, 1])
        expected = torch.stack([task.loss(output[k : k + 1], label[k : k + 1]) for k in range(5)])
        torch.testing.assert_close(person_losses(task, output, label), expected)


def test_physical_batches_add_up_to_the_whole() -> None:
    model, task = fused()
    cohort, rows = site(20, 5), np.arange(20)
    whole = clipped_sum(model, cohort, rows, task, 0.3, memory=1e12)
    for sizes, memory in ((np.full(20, 1.0), 3), (np.full(20, 1.0), 0), (None, 2e5)):
        assert apart(clipped_sum(model, cohort, rows, task, 0.3, sizes=sizes, memory=memory), whole) <= 1e-6 * length(whole)


# --- sensitivity


@given(
    images=st.sampled_from([0, 1, 50]),
    scale=st.sampled_from([1.0, 1e6, 1e18, float("inf"), float("nan")]),
    clip=st.sampled_from([1e-3, 1.0]),
    opposite=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_person_more_changes_the_sum_by_at_most_the_clipping_norm(
    images: int, scale: float, clip: float, opposite: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    changes = {"model__task": "regression", "model__image": {"channels": [4, 8], "norm": "instance"}, "study__seed": int(seed % 1000)}
    model, task = fused(**changes)
    old = site(5, seed)
    table, before = clinical_of(old), images_of(old)
    pixels = np.array([scale * rng.normal() for _ in range(images * 64)], np.float64).reshape(images, 1, 8, 8)
    if opposite:  # images whose gradients almost cancel
        pixels[images // 2 : 2 * (images // 2)] = -pixels[: images // 2]
    with np.errstate(over="ignore"):
        new_pixels = np.concatenate([before.pixels, pixels.astype(np.float32)])
    new_images = Images(new_pixels, np.concatenate([before.person, np.full(images, 4)]))
    # The joining person is row 4: the old site is without it.
    clinical = table.values.copy()
    clinical[4, 0] = scale
    labels = old.labels.copy()
    labels[4] = scale if np.isfinite(scale) else 1e6
    new = with_inputs(replace(old, labels=labels), clinical=replace(table, values=clinical), image=new_images)
    without = clipped_sum(model, new, np.arange(4), task, clip)
    with_one = clipped_sum(model, new, np.arange(5), task, clip)
    assert all(bool(torch.isfinite(v).all()) for v in with_one.values())
    assert apart(with_one, without) <= clip * WITHIN


@pytest.mark.parametrize("bad", [1e6, 1e30, float("inf"), float("nan")])
def test_a_linear_layers_gradient_of_any_size_is_bounded_and_the_others_stay(bad: float) -> None:
    model, x = nn.Linear(400, 3), torch.randn(6, 400)
    x[2] *= bad
    found = clipped_gradient_sum(model, lambda: model(x).square().sum(1), clipping_norm=0.5)
    others = torch.tensor([0, 1, 3, 4, 5])
    expected, _ = one_at_a_time(model, lambda: model(x[others]).square().sum(1), 0.5)
    assert apart(found.total, expected) <= 0.5 * WITHIN
    if not np.isfinite(bad):
        assert not bool(torch.isfinite(found.norms[2]))
        assert apart(found.total, expected) <= 1e-5 * length(expected)  # only this person is excluded
    else:
        assert apart(found.total, expected) >= 0.5 / WITHIN


@pytest.mark.parametrize("columns", [2, 24, 60])  # the first two by products of columns, the last kept
def test_rows_that_cancel_do_not_escape_clipping(columns: int) -> None:
    """Gradients of 1e6 a row that sum to almost nothing: what rounding leaves of them is clipped too."""
    torch.manual_seed(5)
    model = nn.ModuleDict({"layer": nn.Linear(300, 200, bias=False)})
    half = torch.randn(columns // 2, 300) * 1e6
    x, weight = torch.cat([half, -half * (1 + 1e-7)]), torch.randn(columns, 200)
    weight[columns // 2 :] = weight[: columns // 2]
    person = torch.zeros(columns, dtype=torch.int64)

    def losses() -> torch.Tensor:
        return (model["layer"](x) * weight).sum()[None]

    found = clipped_gradient_sum(model, losses, clipping_norm=1.0, rows_of={"layer": person})
    assert length(found.total) <= WITHIN


def test_clipping_is_of_the_person_and_not_of_each_image() -> None:
    """Fifty equal images, summed: each image's own gradient is within the clipping norm, the person's is fifty times that."""
    torch.manual_seed(6)
    model = nn.ModuleDict({"image": build_image_network(ImageNetwork(channels=(4,)), (1, 8, 8), 2)})
    images, person = torch.randn(1, 1, 8, 8).expand(50, 1, 8, 8), torch.zeros(50, dtype=torch.int64)

    def losses() -> torch.Tensor:
        return torch.zeros(1, 2).index_add(0, person, model["image"](images))[:, 0]

    _, norms = one_at_a_time(model, losses, 1.0)
    clip = float(norms[0]) / 10
    found = clipped_gradient_sum(model, losses, clipping_norm=clip, rows_of={"image": person})
    assert clip / WITHIN <= length(found.total) <= clip * WITHIN


# --- the step


def steps(rate: float = 0.5, steps: int = 1, **changes: float) -> PrivateSteps:
    return replace(PrivateSteps(1.0, 1.0, rate, 10.0, steps), **changes)  # type: ignore[arg-type]


SGD = {"training__optimizer": "sgd", "training__lr": 1.0}


def wide(persons: int, variants: int = 6000, **changes: Any) -> tuple[CohortModel, Cohort, Any]:
    """Two classes from variants that all persons have."""
    study = make_study(("variants",), **{**SGD, **changes})
    rng = np.random.default_rng(1)
    keys = tuple(Variant("1", k + 1, "", "A", "C") for k in range(variants))
    dosage = Dosages(keys, rng.integers(-1, 3, (persons, variants)).astype(np.int8), np.ones(persons, dtype=bool))
    ids, labels = tuple(f"p{k}" for k in range(persons)), rng.integers(0, 2, persons).astype(float)
    cohort = Cohort("a", ids, labels, np.zeros(persons, dtype=np.int8), {"variants": dosage})
    return build_model(study, Layout(variants=variants)), cohort, study


def released(model: CohortModel, cohort: Cohort, study: Any, privacy: PrivateSteps, **options: Any) -> np.ndarray[Any, Any]:
    """What one round subtracts from the weights, in one row."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    taken = private_train(model, cohort, study.training, make_task(study), privacy, **options)
    assert taken == privacy.steps
    gone = np.concatenate([(before[k] - v.detach()).flatten().numpy() for k, v in model.named_parameters()])
    model.load_state_dict(before)
    return gone


@pytest.mark.parametrize(("clip", "multiplier", "expected"), [(1.0, 1.0, 10.0), (0.2, 3.0, 64.0)])
def test_noise_at_the_release_has_the_promised_standard_deviation(clip: float, multiplier: float, expected: float) -> None:
    model, cohort, study = wide(30, 30_000)
    for p in model.parameters():  # the weights start at 0, so that float32 keeps the noise as it was
        p.data.zero_()
    privacy = PrivateSteps(clip, multiplier, 1.0, expected, 1)  # rate 1: the clipped sum is known
    total = clipped_sum(model, cohort, np.arange(30), make_task(study), clip)
    noise = released(model, cohort, study, privacy) - torch.cat([v.flatten() for v in total.values()]).numpy() / expected
    assert len(noise) >= 60_000  # so that 2 % are seven standard errors
    assert abs(noise.std() / (multiplier * clip / expected) - 1) <= 0.02
    assert abs(noise.mean()) <= 5 * noise.std() / len(noise) ** 0.5


def test_an_empty_batch_is_a_step_of_noise() -> None:
    for persons in (0, 30):
        model, cohort, study = wide(persons, 30_000)
        for p in model.parameters():
            p.data.zero_()
        gone = released(model, cohort, study, steps(rate=1e-18))
        assert abs(gone.std() / 0.1 - 1) <= 0.02
        assert (gone != 0).mean() > 0.999


def test_the_divisor_is_the_expected_batch_for_any_sample() -> None:
    model, cohort, study = wide(40)
    task = make_task(study)
    quiet = {"clipping_norm": 1.0, "noise_multiplier": 1e-6, "expected_batch": 7.0}
    for drawn in (1, 5, 40):
        some = replace(cohort, parts=np.where(np.arange(40) < drawn, 0, 2).astype(np.int8))
        gone = released(model, some, study, steps(rate=1.0, **quiet))
        total = torch.cat([v.flatten() for v in clipped_sum(model, cohort, np.arange(drawn), task, 1.0).values()]).numpy()
        np.testing.assert_allclose(np.linalg.norm(gone * 7.0 - total) / np.linalg.norm(total), 0, atol=1e-3)


def test_inputs_that_a_site_lacks_get_noise_too() -> None:
    study = make_study(ALL, **{"cohort__clinical": CLINICAL, "model__image": {"channels": [4]}, **SGD})
    model = build_model(study, LAYOUT)
    full = site(10, 7)
    lacking = replace(full, inputs={"clinical": full.inputs["clinical"]})
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    private_train(model, lacking, study.training, make_task(study), steps(rate=0.9))
    for name, p in model.named_parameters():
        assert float((p != before[name]).float().mean()) > 0.99, name


def test_buffers_do_not_move() -> None:
    study = make_study(ALL, **{"cohort__clinical": CLINICAL, "model__image": {"channels": [4]}, "model__task": "regression", **SGD})
    model = build_model(study, LAYOUT)
    before = {k: v.clone() for k, v in model.named_buffers()}
    assert len(before) >= 8
    private_train(model, site(20, 8), study.training, make_task(study), steps(steps=3))
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())


@pytest.mark.parametrize("net", ["cnn", "resnet10", "densenet121"])
def test_batch_norm_is_refused_with_the_fix(net: str) -> None:
    study = make_study(("image",), **{"model__image": {"net": net, "norm": "batch"}})
    model = build_model(study, Layout((1, 16, 16)))
    before, alone = {k: v.clone() for k, v in model.state_dict().items()}, site(8, 9)
    with pytest.raises(InputError, match=r'set \[model\.image\] norm = "group"'):
        private_train(model, replace(alone, inputs={"image": alone.inputs["image"]}), study.training, make_task(study), steps())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_instance_norm_with_running_statistics_is_refused_and_group_norm_is_not() -> None:
    with pytest.raises(InputError, match="mixes persons"):
        refuse_shared_statistics(nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)))
    refuse_shared_statistics(build_image_network(ImageNetwork(norm="group"), (1, 8, 8), 2))


def test_two_runs_differ_whatever_the_study_s_seed_and_torchs() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - a source that must have no say
        model, cohort, study = wide(20, 2000)
        runs.append(released(model, cohort, study, steps(rate=1.0)))
    assert (runs[0] != runs[1]).mean() > 0.99
    assert abs(np.corrcoef(*runs)[0, 1]) < 0.5


def test_dropout_is_secret_and_differs_between_runs() -> None:
    model, cohort, study = wide(20, 50, model__variants={**MLP, "dropout": 0.5})
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(released(model, cohort, study, steps(rate=1.0, noise_multiplier=1e-9)))
    assert np.linalg.norm(runs[0] - runs[1]) > 0.1 * np.linalg.norm(runs[0])


def test_the_steps_noises_are_independent() -> None:
    model, cohort, study = wide(0, 10_000)
    one, two = (released(model, cohort, study, steps(steps=n)) for n in (1, 4))
    assert abs(two.std() / (2 * one.std()) - 1) < 0.05  # four steps: twice one step's; the same noise four times would be four


def test_torchs_generator_and_the_callers_seed_are_left_alone() -> None:
    model, cohort, study = wide(20, 50, model__variants={**MLP, "dropout": 0.5})
    torch.manual_seed(3)
    state = torch.get_rng_state()
    private_train(model, cohort, study.training, make_task(study), steps(steps=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_left_the_numbers_are_an_error() -> None:
    model, cohort, study = wide(20, 50)
    training = study.training.model_copy(update={"lr": 1e38})  # more than a study may have
    with pytest.raises(FloatingPointError):
        private_train(model, cohort, training, make_task(study), steps(steps=2, expected_batch=1e-6))


@pytest.mark.parametrize(
    "bad",
    [{"clipping_norm": 0.0}, {"noise_multiplier": 0.0}, {"rate": 0.0}, {"rate": 1.5}, {"expected_batch": float("nan")}, {"steps": -1}],
)
def test_settings_without_meaning_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive"):
        steps(**bad)


def test_batch_sizes_are_binomial_and_persons_independent() -> None:
    rows, rate, draws = np.arange(1000, 1200), 0.1, 3000
    drawn = [poisson_rows(rows, rate) for _ in range(draws)]
    sizes = np.array([len(d) for d in drawn])
    assert abs(sizes.mean() - 20) < 5 * (18 / draws) ** 0.5
    assert abs(sizes.var() / 18 - 1) < 0.2  # 200 x 0.1 x 0.9; a fixed size has 0
    count = np.bincount(np.concatenate(drawn) - 1000, minlength=200)
    assert scipy.stats.chisquare(count, np.full(200, count.mean())).pvalue > 1e-6
    assert all((np.diff(d) > 0).all() for d in drawn if len(d))


def test_the_training_loop_samples_in_each_step_and_may_sample_no_person() -> None:
    sizes: list[int] = []
    model, cohort, study = wide(6, 20)
    task = make_task(study)
    counting = replace(task, loss=lambda o, y: task.loss(o, y))
    plain = Cohort.batch

    class Watched(Cohort):
        def batch(self, rows: Any) -> Any:
            sizes.append(len(rows))
            return plain(self, rows)

    watched = Watched(**{f: getattr(cohort, f) for f in Cohort.__dataclass_fields__})
    assert private_train(model, watched, study.training, counting, steps(rate=0.25, steps=400)) == 400
    every = np.array(sizes + [0] * (400 - len(sizes)))  # no person sampled: no batch is requested
    assert len(sizes) < 400  # (3/4)^6: nearly one step in five
    assert abs(every.mean() - 1.5) < 5 * (1.125 / 400) ** 0.5
    assert 0.7 < every.var() / 1.125 < 1.4


def test_rates_of_almost_nothing_and_of_one() -> None:
    rows = np.arange(50)
    assert not len(poisson_rows(rows, 1e-18))
    np.testing.assert_array_equal(poisson_rows(rows, 1.0), rows)
    assert not len(poisson_rows(rows[:0], 0.5))


# --- the noise itself


def test_the_noise_is_normal() -> None:
    x = add_gaussian(torch.zeros(400, 500), 2.5)
    assert x.dtype == torch.float32
    assert x.shape == (400, 500)
    flat = x.flatten().numpy() / 2.5
    assert scipy.stats.kstest(flat, "norm").pvalue > 1e-6
    assert abs(scipy.stats.kurtosis(flat)) < 0.08
    # The two numbers of a pair, and neighbours, are independent.
    assert abs(np.corrcoef(flat[:100_000], flat[100_000:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.abs(flat[:100_000]), np.abs(flat[100_000:]))[0, 1]) < 0.02
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.02


def test_blocks_of_noise_do_not_repeat() -> None:
    flat = add_gaussian(torch.zeros(700_001), 1.0).numpy()
    assert abs(np.corrcoef(flat[: 2**18], flat[2**18 : 2**19])[0, 1]) < 0.02
    assert abs(flat.std() - 1) < 0.01


def test_every_release_lies_on_a_grid_that_no_value_shifts() -> None:
    std = 3.0
    step = 2.0 ** np.floor(np.log2(std) - GRID_BITS)
    for value in (0.0, 0.1, 1 / 3):
        out = add_gaussian(torch.full((20_000,), value), std).double().numpy()
        np.testing.assert_array_equal(out / step, np.round(out / step))


def test_the_tail_is_not_cut_and_the_mean_is_the_value() -> None:
    smallest = add_gaussian(torch.zeros(2), 1.0, entropy=lambda n: bytes(n))
    assert 9 < float(smallest[0]) < 10  # the smallest uniform number: 2^-65
    values = torch.linspace(-5, 5, 100_000)
    assert abs(float((add_gaussian(values, 0.5) - values).mean())) < 5 * 0.5 / 100_000**0.5


def test_noise_refuses_what_it_cannot_hide() -> None:
    for std in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="standard deviation"):
            add_gaussian(torch.zeros(3), std)
    with pytest.raises(ValueError, match="not finite"):
        noisy_mean({"w": torch.tensor([1.0, float("nan")])}, steps())
