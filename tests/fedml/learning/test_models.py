"""Preprocessing constants from federated sums, networks by name, and fusion of whatever a person has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from fedml.cohort.images.images import Images
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort, with_inputs
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages
from fedml.errors import InputError
from fedml.learning.statistics import cohort_sums, constants_from
from fedml.learning.training import train
from fedml.modalities.layout import Layout
from fedml.modalities.registry import pool
from fedml.models.fusion import build_model, constants, digest, learned, load
from fedml.networks.image import NETWORKS, build_image_network
from fedml.networks.preprocess import ClinicalPreprocess, ImagePreprocess, TargetScale, VariantPreprocess
from fedml.study.cohort_section import ClinicalColumns
from fedml.study.sections import ImageNetwork
from fedml.tasks.counts import add_counts
from fedml.tasks.registry import make_task
from tests.conftest import make_study
from tests.inputs import clinical_of, dosages_of, images_of

CLINICAL: dict[str, Any] = {"columns": ["age", "sex", "dose", "flat"], "categories": {"sex": ["f", "m", "x"]}}
ALL = ("clinical", "variants", "image")
LAYOUT = Layout((1, 8, 8), 6)


def random_cohort(site: str, persons: int, seed: int, image: tuple[int, ...] = (1, 8, 8)) -> Cohort:
    """All three inputs: missing cells, a constant column, a monomorphic variant, zero to three images a person."""
    rng = np.random.default_rng(seed)
    clinical = np.column_stack(
        [rng.normal(60, 12, persons), rng.integers(0, 3, persons), rng.lognormal(2, 1, persons), np.full(persons, 0.1)]
    ).astype(float)
    clinical[rng.random(clinical.shape) < 0.15] = np.nan
    dosage = rng.integers(-1, 3, (persons, 6)).astype(np.int8)
    dosage[:, 3] = 1
    person = np.sort(rng.integers(0, persons, 2 * persons))
    pixels = rng.integers(0, 256, (2 * persons, *image)).astype(np.uint8)
    keys = tuple(Variant("1", k + 1, f"rs{k}", "A", "C") for k in range(6))
    return Cohort(
        site=site,
        ids=tuple(f"{site}{k}" for k in range(persons)),
        labels=rng.integers(0, 2, persons).astype(float),
        parts=rng.choice([0, 0, 0, 1, 2], persons).astype(np.int8),
        inputs={
            "clinical": Table("clinical", clinical, np.ones(persons, dtype=bool)),
            "variants": Dosages(keys, dosage, np.ones(persons, dtype=bool)),
            "image": Images(pixels, person),
        },
    )


def full_study(**changes: Any) -> Any:
    return make_study(ALL, **{"cohort__clinical": CLINICAL, "model__image": {"channels": [4]}, **changes})


# --- preprocessing


@pytest.mark.parametrize("seed", range(4))
def test_sums_over_unequal_sites_give_the_moments_of_the_pooled_training_persons(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(5, 200, 3)
    cohorts = [random_cohort(name, int(n), 10 * seed + k) for k, (name, n) in enumerate(zip("abc", sizes, strict=True))]
    total = add_counts(cohort_sums(c, "regression") for c in cohorts)
    constant = constants_from(total)
    rows = [c.rows("train") for c in cohorts]
    clinical = np.concatenate([clinical_of(c).values[r] for c, r in zip(cohorts, rows, strict=True)])
    dosage = np.concatenate([dosages_of(c).dosage[r].astype(float) for c, r in zip(cohorts, rows, strict=True)])
    dosage[dosage < 0] = np.nan
    pixels = np.concatenate(
        [found.pixels[np.isin(found.person, r)].astype(float).ravel() for found, r in zip(map(images_of, cohorts), rows, strict=True)]
    )
    label = np.concatenate([c.labels[r] for c, r in zip(cohorts, rows, strict=True)])
    for name, values in (
        ("preprocess.clinical", clinical),
        ("preprocess.variants", dosage),
        ("preprocess.image", pixels[:, None]),
        ("target", label[:, None]),
    ):
        count, added, squares = total[name]
        mean = added / count
        np.testing.assert_array_equal(count, (~np.isnan(values)).sum(0))
        np.testing.assert_allclose(mean, np.nanmean(values, 0), rtol=1e-9)
        np.testing.assert_allclose(np.sqrt(np.maximum(squares / count - mean**2, 0)), np.nanstd(values, 0), rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(constant[f"{name}.mean"], np.nanmean(values, 0), rtol=1e-6)
        np.testing.assert_allclose(constant[f"{name}.std"], np.nanstd(values, 0), rtol=1e-6, atol=1e-12)  # a constant column: 0
    study = make_study(ALL, cohort__clinical=CLINICAL, model__task="regression")
    together = constants_from(cohort_sums(pool(cohorts, study), "regression"))
    for key, value in constant.items():
        np.testing.assert_allclose(together[key], value, rtol=2e-7)


def test_sums_never_look_at_other_parts() -> None:
    cohort = random_cohort("a", 60, 1)
    before = cohort_sums(cohort, "classification")
    others = np.flatnonzero(cohort.parts != 0)
    table, variants, images = clinical_of(cohort), dosages_of(cohort), images_of(cohort)
    clinical, dosage, pixels = table.values.copy(), variants.dosage.copy(), images.pixels.copy()
    clinical[others], dosage[others], pixels[np.isin(images.person, others)] = 1e9, 2, 255
    changed = with_inputs(
        cohort,
        clinical=replace(table, values=clinical),
        variants=replace(variants, dosage=dosage),
        image=Images(pixels, images.person),
    )
    for key, value in cohort_sums(changed, "classification").items():
        np.testing.assert_array_equal(value, before[key])


def test_clinical_preprocessing_is_mean_imputation_and_sklearns_scaler() -> None:
    cohort = random_cohort("a", 300, 2)
    clinical = clinical_of(cohort).values
    spec = ClinicalColumns.model_validate_json(str(CLINICAL).replace("'", '"'))
    module = ClinicalPreprocess(spec)
    found = constants_from(cohort_sums(cohort, "classification"))
    module.load_state_dict({"mean": found["preprocess.clinical.mean"], "std": found["preprocess.clinical.std"]})
    out = module(torch.from_numpy(clinical.astype(np.float32))).numpy()
    numeric, sex = clinical[:, [0, 2, 3]], clinical[:, 1]
    scaler = StandardScaler().fit(numeric[cohort.rows("train")])  # it leaves NaN out of its moments, as we do
    expected = scaler.transform(np.where(np.isnan(numeric), scaler.mean_, numeric))
    assert out.shape == (300, module.width)
    assert module.width == 3 + 3 + 3
    np.testing.assert_allclose(out[:, :2], expected[:, :2], atol=1e-5)
    np.testing.assert_array_equal(out[:, 2], 0)  # the constant column
    np.testing.assert_array_equal(out[:, 3:6], np.isnan(numeric))
    np.testing.assert_array_equal(out[:, 6:], sex[:, None] == np.arange(3))


def test_indicators_can_be_omitted() -> None:
    module = ClinicalPreprocess(ClinicalColumns(columns=("a", "b"), indicate=False))
    out = module(torch.tensor([[1.0, float("nan")]]))
    assert out.tolist() == [[1, 0]]
    assert module.width == 2


def test_missing_genotypes_and_monomorphic_variants_become_zero() -> None:
    module = VariantPreprocess(3)
    module.load_state_dict({"mean": torch.tensor([0.5, 1.0, 2.0]), "std": torch.tensor([0.5, 0.8, 0.0])})
    out = module(torch.tensor([[0, -1, 2], [2, 1, -1], [1, 2, 2]], dtype=torch.int8))
    torch.testing.assert_close(out, torch.tensor([[-1, 0, 0], [3, 0, 0], [1, 1.25, 0]]))


def test_images_are_standardised_channel_by_channel() -> None:
    module = ImagePreprocess((2, 3, 3))
    module.load_state_dict({"mean": torch.tensor([1.0, 5.0]), "std": torch.tensor([2.0, 0.0])})
    out = module(torch.full((4, 2, 3, 3), 3.0))
    assert (out[:, 0] == 1).all()
    assert (out[:, 1] == 0).all()


def test_the_unit_of_a_column_does_not_matter() -> None:
    values = np.random.default_rng(0).normal(5, 1, (200, 1))
    out = []
    for unit in (1.0, 1e-9):
        inputs = {"clinical": Table("clinical", values * unit, np.ones(200, dtype=bool))}
        cohort = replace(random_cohort("a", 200, 1), inputs=inputs, parts=np.zeros(200, np.int8))
        module = ClinicalPreprocess(ClinicalColumns(columns=("x",), indicate=False))
        found = constants_from(cohort_sums(cohort, "classification"))
        module.load_state_dict({k.rsplit(".", 1)[1]: v for k, v in found.items()})
        out.append(module(torch.from_numpy((values * unit).astype(np.float32))).numpy())
    np.testing.assert_allclose(out[1], out[0], atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_training_changes_what_is_learned_and_never_the_constants(norm: str) -> None:
    study = full_study(
        model__image={"channels": [4], "norm": norm}, training={"optimizer": "adamw", "lr": 0.05, "batch_size": 4, "weight_decay": 0.1}
    )
    cohort = random_cohort("a", 30, 3)
    model = build_model(study, LAYOUT)
    load(constants(model), constants_from(cohort_sums(cohort, "classification")))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = train(model, cohort, study.training, make_task(study), seed=1)
    assert result.seen == cohort.count("train")
    assert result.steps == -(-result.seen // 4)
    for key in constants(model):
        assert torch.equal(model.state_dict()[key], before[key])
    for key in learned(model):
        assert not torch.equal(model.state_dict()[key], before[key]), key
    assert not constants(model).keys() & learned(model).keys()


# --- networks


def forward_backward(net: str, norm: str, shape: tuple[int, ...]) -> None:
    if net.startswith("vit"):
        pytest.importorskip("einops")
    torch.manual_seed(0)
    network = build_image_network(ImageNetwork.model_validate({"net": net, "norm": norm}), shape, 3).train()
    out = network(torch.randn(2, *shape))
    assert out.shape == (2, 3)
    out.square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def combinations() -> list[Any]:
    cases = []
    for net in NETWORKS:
        for norm in ("batch", "group", "instance"):
            for shape in ((1, 28, 28), (1, 16, 16, 16)):
                if (net.startswith("vit") and norm != "group") or net in ("vit_small", "vit_base") or net.startswith("efficientnet"):
                    continue  # norm is ignored; others differ in width only; efficientnet takes larger images
                if len(shape) == 4 and net not in ("cnn", "resnet10", "vit_tiny"):
                    continue
                cases.append(pytest.param(net, norm, shape, id=f"{net}-{norm}-{len(shape) - 1}D"))
    return cases


@pytest.mark.parametrize(("net", "norm", "shape"), combinations())
def test_every_network_runs_forward_and_backward(net: str, norm: str, shape: tuple[int, ...]) -> None:
    forward_backward(net, norm, shape)


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_efficientnet_on_larger_images(norm: str) -> None:
    forward_backward("efficientnet_b0", norm, (3, 64, 64))
    with pytest.raises(InputError, match="needs 64 voxels along each axis"):
        forward_backward("efficientnet_b0", norm, (3, 64, 63))


def test_densenet_on_larger_images() -> None:
    forward_backward("densenet121", "group", (3, 64, 64))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 5, 7), (2, 3, 3), (1, 4, 9, 5)])
def test_cnn_takes_odd_and_small_images(shape: tuple[int, ...]) -> None:
    forward_backward("cnn", "group", shape)


@pytest.mark.parametrize("channels", [(4,), (8, 16), (24,), pytest.param((12,)), (1, 2)])
def test_cnn_takes_any_widths(channels: tuple[int, ...]) -> None:
    network = build_image_network(ImageNetwork(channels=channels), (1, 9, 9), 2)
    assert network(torch.randn(2, 1, 9, 9)).shape == (2, 2)


def test_an_unknown_network_is_reported() -> None:
    with pytest.raises(InputError, match=r'net "resnet19" is not known \(did you mean "resnet1.?"\?\); one of: cnn, resnet10'):
        build_image_network(ImageNetwork(net="resnet19"), (1, 8, 8), 2)


# --- the whole model


def test_single_input_logistic_regression_has_exactly_its_parameters() -> None:
    model = build_model(make_study(cohort__clinical={"columns": ["a", "b"], "indicate": False}), Layout())
    assert {k: tuple(v.shape) for k, v in learned(model).items()} == {"encoder.clinical.weight": (2, 2), "encoder.clinical.bias": (2,)}
    model = build_model(make_study(("variants",), cohort__classes=["a", "b", "c"]), Layout(variants=7))
    assert {k: tuple(v.shape) for k, v in learned(model).items()} == {"encoder.variants.weight": (3, 7), "encoder.variants.bias": (3,)}
    assert set(constants(model)) == {"preprocess.variants.mean", "preprocess.variants.std"}
    model = build_model(make_study(model__task="regression", model__clinical={"net": "mlp", "hidden": [5]}), Layout())
    shapes = {(5, 6), (5,), (1, 5), (1,)}  # three columns and their indicators
    assert {tuple(v.shape) for v in learned(model).values()} == shapes


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = digest(learned(build_model(full_study(study__seed=1), LAYOUT)))
    torch.manual_seed(2)
    assert digest(learned(build_model(full_study(study__seed=1, training__lr=0.5), LAYOUT))) == one
    assert digest(learned(build_model(full_study(study__seed=2), LAYOUT))) != one


@pytest.mark.parametrize("lacking", ALL)
@pytest.mark.parametrize("garbage", [0.0, 1.0, -100.0])
def test_whatever_stands_in_an_input_that_a_person_lacks_is_not_seen(lacking: str, garbage: float) -> None:
    model = build_model(full_study(), LAYOUT).eval()
    batch = random_cohort("a", 12, 4).batch(range(12))
    lack = torch.arange(12) % 3 == 0
    batch[f"{lacking}_present"] = (~lack).float()
    before = model(batch)
    if lacking == "image":
        rows = lack[batch["image_person"]]
        batch["image"] = torch.where(rows.view(-1, 1, 1, 1), torch.full_like(batch["image"], garbage), batch["image"])
    else:
        batch[lacking] = torch.where(lack[:, None], torch.full_like(batch[lacking], int(garbage)), batch[lacking])
    assert torch.equal(model(batch), before)
    batch[f"{lacking}_present"] = torch.ones(12)
    assert not torch.equal(model(batch), before)


@pytest.mark.parametrize("lacking", ALL)
def test_a_site_without_an_input_is_like_persons_without_it(lacking: str) -> None:
    study = full_study(training={"optimizer": "sgd", "lr": 0.1})
    cohort = random_cohort("a", 20, 5)
    model = build_model(study, LAYOUT).eval()
    batch = cohort.batch(range(20))
    batch[f"{lacking}_present"] = torch.zeros(20)
    expected = model(batch)
    without = replace(cohort, inputs={name: value for name, value in cohort.inputs.items() if name != lacking})
    assert torch.equal(model(without.batch(range(20))), expected)
    before = {k: v.clone() for k, v in learned(model).items()}
    train(model, without, study.training, make_task(study), seed=1)
    for name in ALL:
        moved = [not torch.equal(v, before[k]) for k, v in learned(model).items() if k.startswith(f"encoder.{name}.")]
        assert any(moved) == (name != lacking), name


def test_a_person_with_several_images_has_the_mean_of_their_features() -> None:
    model = build_model(make_study(("image",), model__image={"channels": [4]}), Layout((1, 8, 8))).eval()
    torch.manual_seed(0)
    images = torch.rand(5, 1, 8, 8) * 255
    person = torch.tensor([0, 0, 1, 3, 3])
    out = model({"image": images, "image_person": person, "image_present": torch.tensor([1.0, 1, 0, 1])})
    single = model.encoder["image"](images)
    torch.testing.assert_close(out, torch.stack([single[:2].mean(0), single[2], torch.zeros(2), single[3:].mean(0)]))


def test_a_batch_in_another_order_gives_the_same_outputs_in_that_order() -> None:
    model, cohort = build_model(full_study(), LAYOUT).eval(), random_cohort("a", 15, 6)
    order = np.random.default_rng(0).permutation(15)
    torch.testing.assert_close(model(cohort.batch(order)), model(cohort.batch(range(15)))[torch.from_numpy(order)])
    for row in (0, 7):
        torch.testing.assert_close(model(cohort.batch([row]))[0], model(cohort.batch(range(15)))[row])


def test_input_dropout_hides_inputs_while_training_only() -> None:
    model = build_model(full_study(model__input_dropout=0.5), LAYOUT)
    batch = random_cohort("a", 12, 4).batch(range(12))
    model.eval()
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


def test_regression_answers_in_the_targets_unit() -> None:
    study = make_study(model__task="regression", cohort__clinical={"columns": ["a"], "indicate": False})
    model = build_model(study, Layout()).eval()
    batch = {"clinical": torch.tensor([[1.0], [2.0]]), "clinical_present": torch.ones(2)}
    standard = model(batch)
    load(constants(model), {**constants(model), "target.mean": torch.tensor([70.0]), "target.std": torch.tensor([12.0])})
    torch.testing.assert_close(model(batch), standard * 12 + 70)
    assert model(batch).shape == (2, 1)
    assert isinstance(model.target, TargetScale)


def test_load_refuses_other_names_and_shapes() -> None:
    model = build_model(make_study(), Layout())
    arrays = {k: v.clone() for k, v in learned(model).items()}
    with pytest.raises(ValueError, match="arrays differ by name"):
        load(learned(model), {**arrays, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"encoder\.clinical\.bias is \(9,\), expected \(2,\)"):
        load(learned(model), {**arrays, "encoder.clinical.bias": torch.zeros(9)})
