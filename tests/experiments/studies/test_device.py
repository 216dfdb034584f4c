"""Precision and device by one key each: the same training, in fewer bits or elsewhere, and on the CPU in float32 bit for bit as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.errors import InputError
from fedml.learning.statistics import cohort_sums, constants_from
from fedml.learning.training import evaluate, make_optimizer, train
from fedml.modalities.layout import make_layout
from fedml.models.device import on_device, pick_device
from fedml.models.fusion import build_model, constants, learned, load
from fedml.privacy.dpsgd import PrivateSteps, clipped_sum, person_losses, private_train
from fedml.privacy.persongrad import clipped_gradient_sum
from fedml.seeds import torch_seed
from fedml.study.study import Study, validate
from fedml.tasks.registry import make_task
from tests.conftest import clinical_site, federate, image_site, make_plan, make_study
from tests.experiments.studies.test_cached_cohort import segmentation, volume_site

CPU = torch.device("cpu")
accelerator = pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator")


def prepared(study: Study, manifest: Path) -> tuple[Any, Any, Any]:
    """Model with its constants, cohort, task."""
    cohort = read_cohort(read_site(manifest), study)
    model = build_model(study, make_layout(study, cohort.image_shape, b""))
    load(constants(model), constants_from(cohort_sums(cohort, study.model.task)))
    return model, cohort, make_task(study)


def test_float32_on_the_cpu_is_the_plain_loop_bit_for_bit(tmp_path: Path) -> None:
    study = make_study(("image",), training__lr=0.01, training__batch_size=0, training__local_epochs=3)
    manifest = image_site(tmp_path, "a", 30, 1)
    (model, cohort, task), (other, _, _) = prepared(study, manifest), prepared(study, manifest)
    train(model, cohort, study.training, task, seed=1)
    optimizer = make_optimizer(study.training, list(other.parameters()))
    other.train()
    with torch_seed(1):
        for _ in range(3):
            batch = cohort.batch(cohort.rows("train"))
            optimizer.zero_grad()
            task.loss(other(batch), batch["label"]).backward()
            optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["image", "clinical", pytest.param("segmentation", marks=pytest.mark.long)])
def test_fewer_bits_train_to_about_the_same_and_are_the_same_twice(tmp_path: Path, kind: str, precision: str) -> None:
    makers: dict[str, Any] = {"image": image_site, "clinical": clinical_site, "segmentation": volume_site}
    make, inputs = makers[kind], "clinical" if kind == "clinical" else "image"
    manifests = [make(tmp_path / n, n, 20, s) for s, n in enumerate("ab")]
    keys: dict[str, Any] = {"training__lr": 0.005, "training__batch_size": 8, "federation__rounds": 2}

    def study(precision: str) -> Study:
        plan = {**keys, "training__precision": precision}
        return segmentation(**plan) if kind == "segmentation" else make_study((inputs,), **plan)

    full, low = (federate(study(p), manifests, tmp_path / p) for p in ("float32", precision))
    assert federate(study(precision), manifests, tmp_path / "again").sha256 == low.sha256 != full.sha256
    for name, values in low.learned().items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, full.learned()[name], rtol=0.1, atol=0.05, msg=name)
    watched = {"image": "auroc", "clinical": "auroc", "segmentation": "dice"}[kind]
    one, other = (run.final["metrics"]["test"]["all"][watched] for run in (full, low))
    assert abs(one - other) < 0.1


def test_privacy_of_a_patient_is_in_full_precision() -> None:
    private = {"unit": "patient", "noise_multiplier": 1.0, "persons": {"a": 20, "b": 20}}
    private["ranges"] = {f"x{k}": [0, 1] for k in (1, 2, 3)}
    make_study(privacy=private)
    with pytest.raises(InputError, match="precision is float32 under unit"):
        make_study(privacy=private, training__precision="bfloat16")
    with pytest.raises(InputError, match="precision must be 'float32', 'bfloat16' or 'float16'"):
        validate(Study, make_plan(training__precision="float8"), "study.toml")


def test_a_site_keeps_its_device_to_itself(tmp_path: Path) -> None:
    manifest = clinical_site(tmp_path, "a", 30, 1)
    assert read_site(manifest).manifest.compute.device == "auto"
    text = manifest.read_text()
    manifest.write_text(text + '[compute]\ndevice = "cpu"\n')
    assert pick_device(read_site(manifest).manifest.compute.device) == CPU
    manifest.write_text(text + '[compute]\ndevice = "tpu"\n')
    with pytest.raises(InputError, match=r"site.toml: \[compute\] device must be") as caught:
        read_site(manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    manifests = [clinical_site(tmp_path / n, n, 30, s) for s, n in enumerate("ab")]
    manifests[1].write_text(manifests[1].read_text() + '[compute]\ndevice = "cuda"\n')
    study = make_study(federation__quorum=1)
    run = federate(study, manifests, tmp_path / "run")
    assert run.rounds[0]["refused"] == {"b": "bad-data"}


def test_a_model_on_the_cpu_is_itself_there() -> None:
    layer = nn.Linear(2, 2)
    with on_device(layer, CPU, back=True) as network:
        assert network is layer


@accelerator
@pytest.mark.parametrize("kind", ["image", "clinical", "both", "segmentation"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_an_accelerator_gives_what_the_cpu_gives(tmp_path: Path, kind: str, precision: str) -> None:
    keys: dict[str, Any] = {"training__lr": 0.005, "training__batch_size": 8, "training__local_epochs": 2}
    keys["training__precision"] = precision
    if kind == "segmentation":
        manifest, study = volume_site(tmp_path, "a", 12), segmentation(**keys)
    elif kind == "both":
        manifest = image_site(tmp_path, "a", 40, 1)
        clinical = clinical_site(tmp_path / "c", "a", 40, 1).parent / "clinical.csv"
        manifest.write_text(manifest.read_text() + f'clinical = {{ path = "{clinical}" }}\n')
        study = make_study(("image", "clinical"), **keys)
    else:
        manifest = (image_site if kind == "image" else clinical_site)(tmp_path, "a", 40, 1)
        study = make_study((kind,), **keys)
    found, device = list[dict[str, torch.Tensor]](), pick_device()
    for where in (CPU, device):
        model, cohort, task = prepared(study, manifest)
        result = train(model, cohort, study.training, task, seed=3, device=where)
        counts = evaluate(model, cohort, "test", task, device=where, precision=study.training.precision)
        assert all(p.device == CPU for p in model.parameters())
        found.append({**{k: v.clone() for k, v in learned(model).items()}, "loss": torch.tensor(result.loss_sum)})
        assert counts
    rtol, atol = (1e-3, 1e-4) if precision == "float32" else (0.1, 0.05)
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, rtol=rtol, atol=atol, msg=name)
    first = learned(build_model(study, make_layout(study, cohort.image_shape, b"")))
    assert any(not torch.equal(found[1][name], values) for name, values in first.items())


class _Devices(TorchFunctionMode):
    """Notes tensors that are made without a device: on an accelerator they would be in another memory than the rest."""

    made: ClassVar[list[str]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.zeros, torch.ones, torch.arange, torch.empty, torch.full, torch.rand) and "device" not in (kwargs or {}):
            self.made.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["image", "clinical"])
def test_clipped_gradients_are_computed_where_the_model_is(tmp_path: Path, kind: str) -> None:
    study = make_study((kind,), **({"model__image": {"net": "cnn", "norm": "group"}} if kind == "image" else {}))
    manifest = (image_site if kind == "image" else clinical_site)(tmp_path, "a", 40, 1)
    model, cohort, task = prepared(study, manifest)
    batch = cohort.batch(cohort.rows("train"))
    rows = {f"encoder.{kind}": batch[f"{kind}_person"]} if kind == "image" else None
    _Devices.made.clear()
    with _Devices():
        found = clipped_gradient_sum(model, lambda: person_losses(task, model(batch), batch["label"]), clipping_norm=1.0, rows_of=rows)
    assert not _Devices.made
    assert found.total


@accelerator
@pytest.mark.parametrize("kind", ["image", "clinical"])
def test_an_accelerator_clips_as_the_cpu_does(tmp_path: Path, kind: str) -> None:
    study = make_study((kind,), **({"model__image": {"net": "cnn", "norm": "group"}} if kind == "image" else {}))
    manifest = (image_site if kind == "image" else clinical_site)(tmp_path, "a", 40, 1)
    model, cohort, task = prepared(study, manifest)
    rows, device = cohort.rows("train"), pick_device()
    here = clipped_sum(model, cohort, rows, task, 1.0)
    with on_device(model, device) as network:
        there = clipped_sum(network, cohort, rows, task, 1.0)
    for name, value in here.items():
        torch.testing.assert_close(there[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=name)
    steps = PrivateSteps(clipping_norm=1.0, noise_multiplier=1.0, rate=0.5, expected_batch=20.0, steps=3, device=device)
    assert private_train(model, cohort, study.training, task, steps) == 3
    assert all(p.device == CPU for p in model.parameters())
