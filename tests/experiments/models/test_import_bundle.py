"""A MONAI bundle of the public structure becomes a study that begins with its weights; what is no value is refused and never run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from safetensors.torch import load_file

from fedml.cohort.one_image import read_one
from fedml.errors import InputError
from fedml.experiments.models.import_bundle import Ask, import_bundle
from fedml.runs.restore import restore
from fedml.study.read import read_study
from tests.command import quick, quick_json
from tests.lesions import MIDDLE, lesion_site

UNET = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2], "num_res_units": 2,
    "norm": "batch",
}  # fmt: skip


def config(network: dict[str, Any]) -> dict[str, Any]:
    """Of the structure of MONAI's spleen_ct_segmentation, whose configuration has expressions in other parts."""
    transforms = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -100, "a_max": 250, "b_min": 0, "b_max": 1, "clip": True},
        {"_target_": "GaussianSmoothd", "keys": "image", "sigma": 0.5},
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"},
        {"_target_": "EnsureTyped", "keys": "image"},
    ]
    return {
        "imports": ["$import glob"], "bundle_root": ".", "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "spacing": [1.25, 1.0, 1.0], "dataset_dir": "$@bundle_root + '/data'", "network_def": network,
        "network": "$@network_def.to(@device)", "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]},
        "evaluator": {"_target_": "SupervisedEvaluator", "device": "@device"},
    }  # fmt: skip


METADATA = {
    "name": "Ball segmentation", "version": "0.5.3",
    "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background", "1": "ball"}}}},
}  # fmt: skip


def write(folder: Path, network: dict[str, Any] = UNET, weights: Any = None, changes: dict[str, Any] | None = None) -> Path:
    """A bundle's folder; ``changes``: of its configuration; weights are random, also of the running means of batch norm."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "inference.json").write_text(json.dumps({**config(network), **(changes or {})}))
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    if weights is None:
        name, arguments = network["_target_"], {k: v for k, v in network.items() if not k.startswith("_")}
        random = torch.Generator().manual_seed(5)
        built = getattr(nets, name)(**arguments).state_dict()
        weights = {
            k: v if not v.is_floating_point() else v + 0.1 * (torch.rand if "running_var" in k else torch.randn)(v.shape, generator=random)
            for k, v in built.items()
        }
    torch.save(weights, folder / "models" / "model.pt")
    return folder


@pytest.mark.long
def test_a_bundle_trains_two_rounds_and_is_a_bundle_again_with_equal_outputs(tmp_path: Path) -> None:
    bundle = write(tmp_path / "ball")
    with zipfile.ZipFile(tmp_path / "ball.zip", "w") as archive:
        for file in sorted(bundle.rglob("*.*")):
            archive.write(file, Path("ball_v0.5.3") / file.relative_to(bundle))
    pinned = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    words = ["--out", tmp_path / "ball.toml", "--sha256", pinned, *(w for s in "abc" for w in ("--site", s))]
    done = quick("fedml", "import-bundle", tmp_path / "ball.zip", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not taken over: CropForegroundd" in done.stdout
    assert pinned in done.stdout
    for name in "abc":
        lesion_site(tmp_path / "sites" / name, name, [MIDDLE] * 12)
    text = (tmp_path / "ball.toml").read_text().replace("rounds = 10", "rounds = 2").replace("lr = 1e-3", "lr = 1e-3\nthreads = 1")
    (tmp_path / "ball.toml").write_text(text.replace("window = [8, 8, 8]", "window = [8, 8, 8]"))
    done_run = quick_json(tmp_path / "ball.toml", "--sites", tmp_path / "sites", "--runs", tmp_path / "runs", "--no-track", cwd=tmp_path)
    run = Path(done_run["folder"])
    study, model = restore(run)
    trained = model.encoder["image"].network.state_dict()
    first = torch.load(bundle / "models" / "model.pt", weights_only=True)
    moved = max(float((trained[k] - v).abs().max()) for k, v in first.items() if v.is_floating_point() and "running" not in k)
    assert 0 < moved < 0.1  # two rounds from the bundle's weights, not from others: those of a seed differ by more
    done = quick("fedml", "export-bundle", run, "--out", tmp_path / "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images = tmp_path / "sites" / "a" / "images"
    again = {"config_file": str(tmp_path / "again" / "configs" / "inference.json"), "bundle_root": str(tmp_path / "again")}
    again["dataset_dir"] = str(images)
    line = [sys.executable, "-c", f"import monai.bundle; monai.bundle.run(**{again!r})"]
    ran = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    done = quick("fedml-site", "predict", run, "--images", images, "--out", tmp_path / "masks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parser = ConfigParser()
    parser.read_config(again["config_file"])
    parser["bundle_root"], parser["dataset_dir"] = again["bundle_root"], again["dataset_dir"]
    item, network, inferer = (parser.get_parsed_content(key) for key in ("dataset", "network", "inferer"))
    with torch.inference_mode():
        theirs = inferer(item[0]["image"][None].as_tensor(), network)
        ours = model({"image": torch.from_numpy(read_one(images / "a000.nii.gz", study.cohort.image))[None]})
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    same = []
    for path in sorted((tmp_path / "masks").iterdir()):
        own, other = nib.load(path), nib.load(tmp_path / "again" / "eval" / path.name)
        same.append((np.asarray(own.dataobj) == np.asarray(other.dataobj)).mean())
    assert len(same) == 12
    assert min(same) > 0.99


def test_the_study_says_what_the_bundle_does_and_pins_its_weights(tmp_path: Path) -> None:
    bundle = write(tmp_path / "ball")
    said = import_bundle(bundle, tmp_path / "ball.toml", Ask())
    study = read_study(tmp_path / "ball.toml")
    image = study.cohort.image
    assert image is not None
    assert (image.orientation, image.spacing_mm, image.window) == ("RAS", (1.25, 1.0, 1.0), (-100.0, 250.0))
    assert [(t.name, t.options) for t in image.transforms] == [("GaussianSmoothd", {"sigma": 0.5})]
    assert image.patches is not None
    assert image.patches.size == (8, 8, 8)
    assert study.cohort.classes == ("background", "ball")
    assert study.study.name == "ball-segmentation"
    weights, first = load_file(tmp_path / "ball.safetensors"), torch.load(bundle / "models" / "model.pt", weights_only=True)
    floats = {k for k, v in first.items() if v.is_floating_point()}
    assert {k.removeprefix("encoder.image.network.") for k in weights} == floats
    assert study.model.start is not None
    assert study.model.start.arrays.keys() == weights.keys()
    for key in floats:
        assert torch.equal(weights[f"encoder.image.network.{key}"], first[key])
    assert any("CropForegroundd" in line for line in said)
    with pytest.raises(InputError, match="exists; give --out another name"):
        import_bundle(bundle, tmp_path / "ball.toml", Ask())


NETWORKS: list[dict[str, Any]] = [
    {**UNET, "norm": ["instance", {"affine": True}], "channels": [4, 8, 16], "strides": [2, [1, 2, 2]]},
    {**UNET, "norm": "INSTANCE"},  # without weights of its norm, which begins as 1 and 0
    {
        "_target_": "monai.networks.nets.SegResNet", "spatial_dims": 2, "init_filters": 8, "in_channels": 2, "out_channels": 3,
        "blocks_down": [1, 2, 4], "blocks_up": [1, 1], "upsample_mode": "deconv", "dropout_prob": 0.2,
    },
    {
        "_target_": "DynUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
        "strides": [1, 2, [2, 2, 1]], "upsample_kernel_size": [2, [2, 2, 1]], "filters": [4, 8, 16],
    },
]  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_is_taken_over(tmp_path: Path, network: dict[str, Any]) -> None:
    dims = network["spatial_dims"]
    plain = {**network, "_target_": network["_target_"].rpartition(".")[2]}
    changes = {"network_def": network, "inferer": {"roi_size": [32] * dims}, "preprocessing": {"transforms": []}}
    write(tmp_path / "b", plain, changes=changes)
    import_bundle(tmp_path / "b", tmp_path / "b.toml", Ask())
    assert read_study(tmp_path / "b.toml").model.start is not None


class Trap:
    """Pickled, it would write a file when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("never-written-by-a-bundle"),))


REFUSED: list[tuple[dict[str, Any], Any, str]] = [
    ({"network_def": {**UNET, "_target_": "os.system"}}, None, "its network is system"),
    ({"network_def": {**UNET, "_target_": "VNet"}}, None, "its network is VNet; a study can begin with UNet"),
    ({"network_def": {**UNET, "in_channels": "$__import__('os').getpid()"}}, None, "is an expression, which is never run"),
    ({"network_def": "$torch.nn.Identity()", "network": 3}, None, "no network_def with a _target_"),
    ({"network_def": {**UNET, "channels": "@wide"}, "wide": "@network_def#channels"}, None, "in a circle"),
    ({"network_def": {**UNET, "channels": "@nothing"}}, None, "refers to nothing"),
    ({"network_def": {**UNET, "channels": "%other.json#channels"}}, None, "is a macro"),
    ({"network_def": {**UNET, "act": "RELU"}}, "right", "differs from the study's network unet"),
    ({"network_def": {**UNET, "act": "RELU"}}, None, "which its network UNet has not"),
    ({"network_def": {**UNET, "num_res_units": 1}}, "right", "differs from the study's network unet"),
    ({"network_def": {**UNET, "channels": [4, 16]}}, None, "do not fit MONAI's UNet"),
    ({"network_def": {**UNET, "channels": [4, 10**9]}}, None, "has a number that no network here has"),
    ({"network_def": {**UNET, "kernel_size": 99}}, None, "has a number that no network here has"),
    ({"postprocessing": {"transforms": [{"_target_": "Activationsd", "sigmoid": True}]}}, None, "classes that overlap"),
    ({"inferer": {"_target_": "SimpleInferer"}}, None, "says neither a window"),
    ({}, {"a": Trap()}, "holds more than weights"),
    ({}, {"a": 3}, "has no table of weights by name"),
    ({}, {"a": torch.ones(2)}, "its weights lack"),
]


@pytest.mark.parametrize(("changes", "weights", "says"), REFUSED)
def test_what_is_no_value_or_another_network_is_refused(tmp_path: Path, changes: dict[str, Any], weights: Any, says: str) -> None:
    if weights == "right":
        weights = nets.UNet(**{k: v for k, v in changes["network_def"].items() if k != "_target_"}).state_dict()
    write(tmp_path / "b", UNET, weights, changes=changes)
    with pytest.raises(InputError) as refused:
        import_bundle(tmp_path / "b", tmp_path / "b.toml", Ask())
    assert says in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert not Path("never-written-by-a-bundle").exists()


def test_files_that_are_no_bundle_are_refused_in_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "b")
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty").mkdir()
    for path, words, says in (
        (tmp_path / "none", (), "cannot be read as a folder or zip file"),
        (tmp_path / "text.zip", (), "cannot be read as a folder or zip file"),
        (tmp_path / "empty", (), "has none of configs/inference.json"),
        (tmp_path / "b", ("--sha256", "0" * 64), "get the bundle from its source again"),
    ):
        done = quick("fedml", "import-bundle", path, *words, "--out", tmp_path / "s.toml", cwd=tmp_path)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "b" / "models" / "model.pt").unlink()
    with pytest.raises(InputError, match="TorchScript"):
        import_bundle(tmp_path / "b", tmp_path / "s.toml", Ask())
    for damaged in (b"x", b"\x10" + bytes(7) + b"{no header of JSON"):
        (tmp_path / "b" / "models" / "model.safetensors").write_bytes(damaged)
        with pytest.raises(InputError, match="is no file of weights"):
            import_bundle(tmp_path / "b", tmp_path / "s.toml", Ask())
    (tmp_path / "b" / "models" / "model.safetensors").unlink()
    (tmp_path / "b" / "configs" / "inference.json").write_text("[")
    torch.save({}, tmp_path / "b" / "models" / "model.pt")
    with pytest.raises(InputError, match="is not JSON"):
        import_bundle(tmp_path / "b", tmp_path / "s.toml", Ask())
