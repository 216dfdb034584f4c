"""A run's segmentation model as a MONAI bundle: network, weights, transforms, inferer and the way back to the file's grid, without this
software.

    export_bundle(run, Path("bundle"))       # configs/inference.json, configs/metadata.json, models/model.safetensors
    monai.bundle.run(config_file="bundle/configs/inference.json", bundle_root="bundle", dataset_dir="images")   # or its command line

The network's scores are those of this software up to rounding. MONAI's inverse drops padding before it interpolates, so at the edge of a
resampled image a voxel may differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedml.cohort.images.precision import kept_type
from fedml.cohort.images.transforms import windowed
from fedml.errors import InputError
from fedml.networks.segmentation import RESIDUAL_UNITS, Segmenter
from fedml.networks.segmentation_monai import SWIN_HEADS
from fedml.runs.log import MODEL, load_model, saved_window, write_whole
from fedml.runs.restore import restore
from fedml.study.imaging import Preprocess
from fedml.study.study import Study

Config = dict[str, Any]
_OF_CLASSES: str = "segmentation"  # the format of an image of classes in MONAI's metadata
_ZERO = 1e30  # divisor where a channel has no spread


def _steps(strides: Sequence[Any], dims: int) -> list[list[int]]:
    return [[s] * dims if isinstance(s, int) else list(s) for s in strides]


def _unet(dims: int, channels: Sequence[int], steps: list[list[int]], norm: Any) -> Config:
    return {
        "_target_": "UNet", "spatial_dims": dims, "channels": list(channels), "strides": steps, "norm": norm,
        "num_res_units": RESIDUAL_UNITS,
    }  # fmt: skip


def _segresnet(dims: int, channels: Sequence[int], steps: list[list[int]], norm: Any) -> Config:
    levels = len(channels)
    return {
        "_target_": "SegResNet", "spatial_dims": dims, "init_filters": channels[0], "norm": norm, "upsample_mode": "deconv",
        "blocks_down": [1, *[2] * (levels - 2), 4], "blocks_up": [1] * (levels - 1),
    }  # fmt: skip


def _dynunet(dims: int, channels: Sequence[int], steps: list[list[int]], norm: Any) -> Config:
    return {
        "_target_": "DynUNet", "spatial_dims": dims, "kernel_size": [[3] * dims] * len(channels), "strides": [[1] * dims, *steps],
        "upsample_kernel_size": steps, "filters": list(channels), "norm_name": norm,
    }  # fmt: skip


def _swin_unetr(dims: int, channels: Sequence[int], steps: list[list[int]], norm: Any) -> Config:
    return {"_target_": "SwinUNETR", "spatial_dims": dims, "feature_size": channels[0], "num_heads": list(SWIN_HEADS), "norm_name": norm}


NETWORKS: dict[str, Callable[[int, Sequence[int], list[list[int]], Any], Config]] = {
    "unet": _unet, "segresnet": _segresnet, "dynunet": _dynunet, "swin_unetr": _swin_unetr,
}  # fmt: skip


def export_bundle(run: Path, out: Path) -> str:
    """Writes the bundle to the folder ``out``; returns a sentence about it.

    Raises:
        InputError: the run has no model of masks, or a part of its study that MONAI's configuration cannot say.
    """
    from safetensors.torch import save

    if not (run / MODEL).exists():
        raise InputError(f"{run}: has no {MODEL}; give the folder of a run that finished.")
    study, model = restore(run)
    if problem := _problem(study):
        raise InputError(f"{run}: {problem}.")
    segmenter, constants = model.encoder["image"], model.preprocess["image"]
    assert isinstance(segmenter, Segmenter)  # noqa: S101  of a network by name
    window = list(model.window)
    if why := _odd(study, window, segmenter.factors):
        raise InputError(f"{run}: {why}.")
    found = saved_window(load_model(run)[0])
    image = study.cohort.image
    assert image is not None  # noqa: S101  _problem
    spec = image.preprocess
    assert spec is not None  # noqa: S101
    spec = windowed(spec, *found) if spec.percentiles and found else spec
    mean, std = (torch.as_tensor(getattr(constants, name)).tolist() for name in ("mean", "std"))
    config = _config(study, spec, window, {"subtrahend": mean, "divisor": [s if s > 0 else _ZERO for s in std]})
    try:
        for name in ("configs", "models"):
            (out / name).mkdir(parents=True, exist_ok=True)
        weights = {key: value.detach().contiguous() for key, value in segmenter.network.state_dict().items()}
        write_whole(out / "models" / MODEL, save(weights))
        write_whole(out / "configs" / "inference.json", json.dumps(config, indent=2).encode())
        write_whole(out / "configs" / "metadata.json", json.dumps(_metadata(study), indent=2).encode())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give --out another folder.") from error
    arguments = f"--config_file {out}/configs/inference.json --bundle_root {out} --dataset_dir IMAGES"
    return f"{out}: a MONAI bundle; python -m monai.bundle run {arguments}"


def _problem(study: Study) -> str:
    """Why the study's model cannot be a bundle; "" if it can."""
    if study.traits.label != "mask":
        return "predicts no masks; a bundle is written of models of masks"
    spec, image = study.model.segmentation, study.cohort.image
    if spec.net not in NETWORKS:
        return f'[model] segmentation net "{spec.net}" has no bundle; it is built for {", ".join(NETWORKS)}'
    if spec.norm == "group":
        return '[model] segmentation norm = "group" has no name in MONAI\'s configuration; train with norm = "instance"'
    if image is None or image.preprocess is None:
        return "[cohort.image] has no preprocessing that a bundle could state; give size with crop = true, spacing_mm or a window"
    if any(transform.is_own for transform in image.transforms):
        return "[cohort.image] transforms has own code, which a bundle does not carry"
    return ""


def _odd(study: Study, window: Sequence[int], factors: Sequence[int]) -> str:
    image = study.cohort.image
    patches = None if image is None else image.patches
    size = list(window) or ([] if image is None else list(image.size))
    if window and (patches is None or any(w > p for w, p in zip(window, patches.size, strict=True))):
        size = [min(w, n) for w, n in zip(window, image.size if image is not None else window, strict=True)]
    if any(n % f for n, f in zip(size, factors, strict=True)) or size == list(factors):
        return f"the network pads {size} voxels to a multiple of {list(factors)}, which a bundle does not; train on such a size"
    return ""


def _config(study: Study, spec: Preprocess, window: list[int], standard: Mapping[str, list[float]]) -> Config:
    plan, image = study.model.segmentation, study.cohort.image
    channels = 1 if image is None else image.channels
    dims = len(spec.size or spec.at_least)
    strides = plan.strides or (2,) * (len(plan.channels) - 1)
    norm = ["instance", {"affine": True}] if plan.norm == "instance" else "batch"
    classes = len(study.cohort.classes)
    network = NETWORKS[plan.net](dims, plan.channels, _steps(strides, dims), norm)
    inferer: Config = {"_target_": "SimpleInferer"}
    if window:
        inferer = {"_target_": "SlidingWindowInferer", "roi_size": window, "sw_batch_size": 4, "overlap": 0.5, "mode": "gaussian"}
    return {
        "imports": ["$import glob", "$import torch", "$from safetensors.torch import load_file"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii*'))]",
        "network_def": {**network, "in_channels": channels, "out_channels": classes},
        "weights": f"$load_file(@bundle_root + '/models/{MODEL}')",
        # Of DynUNet MONAI lists each weight under two names, of which one is stored.
        "network": f"$@network_def.load_state_dict(@weights, strict={plan.net != 'dynunet'}) and @network_def.eval()",
        "preprocessing": {"_target_": "Compose", "transforms": _transforms(spec, channels, standard)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": _back(study)},
        "evaluate": "$lambda item, infer=@inferer, net=@network, post=@postprocessing: "
        "post({**item, 'pred': infer(item['image'][None], net)[0]})",
        "run": ["$torch.set_grad_enabled(False)", "$list(map(@evaluate, @dataset))"],
    }


def _transforms(spec: Preprocess, channels: int, standard: Mapping[str, list[float]]) -> list[Config]:
    def step(name: str, **options: Any) -> Config:
        return {"_target_": name, "keys": "image", **options}

    out = [step("LoadImaged", reader="NibabelReader"), step("EnsureChannelFirstd", channel_dim="no_channel" if channels == 1 else -1)]
    if spec.orientation:
        out.append(step("Orientationd", axcodes=spec.orientation, labels=[["L", "R"], ["P", "A"], ["I", "S"]]))
    if spec.spacing_mm:
        out.append(step("Spacingd", pixdim=list(spec.spacing_mm), mode="bilinear", padding_mode="border"))
    if spec.window:
        out.append(step("ScaleIntensityRanged", a_min=spec.window[0], a_max=spec.window[1], b_min=0.0, b_max=1.0, clip=True))
    out += [step(t.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in t.options.items()}) for t in spec.transforms]
    if spec.size:
        out.append(step("ResizeWithPadOrCropd", spatial_size=list(spec.size), mode="constant"))
    if spec.at_least:
        out.append(step("SpatialPadd", spatial_size=list(spec.at_least), mode="constant"))
    if kept_type(spec) is np.float16:  # and back, as in the cache with which the network was trained
        out += [step("CastToTyped", dtype="$torch.float16"), step("CastToTyped", dtype="$torch.float32")]
    return [*out, step("NormalizeIntensityd", channel_wise=True, **standard)]


def _back(study: Study) -> list[Config]:
    classes = study.cohort.classes
    steps: list[Config] = [
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    whole = [c for c in classes if not isinstance(c, str)]
    if len(whole) == len(classes) and whole != list(range(len(classes))):
        labels = {"orig_labels": list(range(len(classes))), "target_labels": whole}
        steps.append({"_target_": "MapLabelValued", "keys": "pred", **labels})
    saved = {"output_dir": "@output_dir", "output_postfix": "", "separate_folder": False, "print_log": False}
    return [*steps, {"_target_": "SaveImaged", "keys": "pred", "output_dtype": "$torch.uint8", **saved}]


def _metadata(study: Study) -> Config:
    image, classes = study.cohort.image, study.cohort.classes
    channels, size = (1, []) if image is None else (image.channels, list(image.size))
    return {
        "version": "0.1.0", "monai_version": version("monai"), "pytorch_version": version("torch"), "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "safetensors": version("safetensors")},
        "name": study.study.name, "task": study.study.question, "description": f"Study {study.study.name}, SHA-256 {study.sha256}.",
        "intended_use": "research", "network_data_format": {
            "inputs": {"image": {
                "type": "image", "format": "magnitude", "num_channels": channels, "spatial_shape": size, "dtype": "float32",
                "value_range": [], "is_patch_data": image is not None and image.patches is not None,
                "channel_def": {str(k): "image" for k in range(channels)},
            }},
            "outputs": {"pred": {
                "type": "image", "format": _OF_CLASSES, "num_channels": len(classes), "spatial_shape": size, "dtype": "float32",
                "value_range": [], "is_patch_data": False, "channel_def": {str(k): str(c) for k, c in enumerate(classes)},
            }},
        },
    }  # fmt: skip
