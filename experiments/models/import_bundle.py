"""A study that begins with the network and the weights of a MONAI bundle.

    for line in import_bundle(Path("spleen.zip"), Path("spleen.toml"), Ask(sites=("a", "b", "c"))): print(line)

Writes ``spleen.toml`` and beside it ``spleen.safetensors``, which the study pins. Of the bundle's configuration only values are read, no
expression is run (``bundle_files``). A network is taken over if it is one of ``NETWORKS`` and the study's network, with the same weights,
gives the same scores on a random image, which is tried here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedml.errors import InputError
from fedml.experiments.models.bundle_files import Bundle, read_bundle
from fedml.networks.segmentation import Segmenter, build_segmentation_network
from fedml.networks.segmentation_monai import SWIN_HEADS
from fedml.runs.log import write_whole
from fedml.study.monai_transforms import DETERMINISTIC, transform_problem
from fedml.study.read import read_study

PREFIX = "encoder.image.network."  # of the weights in a model of masks
_CLOSE = 1e-4  # of scores
_LARGEST_NUMBER, _LARGEST_KERNEL = 4096, 15  # in a network's arguments
_PLACES = ("preprocessing", "validate#preprocessing", "train#deterministic_transforms", "train#preprocessing")
_NOTHING = {"LoadImaged", "LoadImage", "EnsureChannelFirstd", "EnsureTyped", "ToTensord", "EnsureType", "EnsureChannelFirst", "AddChanneld"}
_NOT_ASKED = ("keys", "allow_missing_keys", "_disabled_", "_target_", "_requires_", "_desc_")


class Plan(NamedTuple):
    """``[model] segmentation`` of a network: its name and keys; and for which images, (channels, axes) and classes."""

    net: str
    norm: str
    channels: tuple[int, ...]
    strides: tuple[Any, ...]
    images: int
    axes: int
    classes: int


class Ask(NamedTuple):
    """What a bundle does not say: the study's name, its sites; the SHA-256 that the weights must have ("": any)."""

    name: str = ""
    sites: tuple[str, ...] = ("a", "b", "c")
    sha256: str = ""


def import_bundle(path: Path, out: Path, ask: Ask) -> list[str]:
    """Writes the study to ``out`` and its weights beside it; returns what a person should know, a line each.

    Raises:
        InputError: the bundle cannot be read, its network is none of the study's, or ``out`` exists.
    """
    from safetensors.torch import save

    weights_at = out.with_suffix(".safetensors")
    if taken := next((one for one in (out, weights_at) if one.exists()), None):
        raise InputError(f"{taken}: exists; give --out another name.")
    bundle = read_bundle(path, ask.sha256)
    plan = _plan(bundle)
    arrays = _same(bundle, plan)
    image, transforms, said = _preprocessing(bundle)
    text, more = _study(bundle, plan, image, transforms, (ask.name or _word(bundle.name), weights_at.name, ask.sites))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(weights_at, save({f"{PREFIX}{k}": v.float().contiguous().clone() for k, v in arrays.items()}))
        write_whole(out, text.encode())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give --out another place.") from error
    try:
        study = read_study(out)
    except InputError:
        out.unlink()
        weights_at.unlink()
        raise
    start = study.model.start
    pinned = 0 if start is None else len(start.arrays)
    return [
        f"{out}: study of the network {plan.net}, which begins with {pinned} arrays of {weights_at.name}",
        f"weights of the bundle: SHA-256 {bundle.sha256}",
        *more,
        *said,
    ]


def _word(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")[:60] or "bundle"


# --- network


def _plan(bundle: Bundle) -> Plan:
    values = dict(bundle.network)
    target = str(values.pop("_target_", "")).rpartition(".")[2]
    if target not in NETWORKS:
        raise InputError(f"{bundle.path}: its network is {target or 'not named'}; a study can begin with {', '.join(NETWORKS)}.")
    arguments = {k: v for k, v in values.items() if not k.startswith("_")}
    for key, value in arguments.items():
        if _largest(value) > (_LARGEST_KERNEL if "kernel" in key else _LARGEST_NUMBER):
            raise InputError(f"{bundle.path}: network_def {key} has a number that no network here has.")
    try:
        return NETWORKS[target](arguments)
    except (KeyError, TypeError, ValueError) as error:
        word = f"{error.args[0]!r}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{bundle.path}: network_def of {target}: {word} is missing or not of a kind that a study has.") from error


def _largest(value: Any) -> float:
    """The largest size of a number in ``value``."""
    if isinstance(value, dict | list):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=0)
    return abs(value) if isinstance(value, int | float) else 0


def _norm(given: Any, default: str) -> str:
    name = str((given[0] if isinstance(given, list) else given) or default).lower()
    if name not in ("batch", "instance", "group"):
        raise ValueError(f"norm {name!r}")
    return name


def _whole_numbers(values: Any) -> tuple[int, ...]:
    out = tuple(values)
    if not out or not all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= 4096 for v in out):
        raise ValueError(f"{list(out)[:8]}")
    return out


def _steps(values: Any) -> tuple[Any, ...]:
    return tuple(v if isinstance(v, int) else _whole_numbers(v) for v in values)


def _unet(a: Mapping[str, Any]) -> Plan:
    channels, norm = _whole_numbers(a["channels"]), _norm(a.get("norm"), "instance")
    return Plan("unet", norm, channels, _steps(a["strides"]), a["in_channels"], a["spatial_dims"], a["out_channels"])


def _segresnet(a: Mapping[str, Any]) -> Plan:
    levels = len(a.get("blocks_down", (1, 2, 2, 4)))
    channels = tuple(a.get("init_filters", 8) * 2**k for k in range(levels))
    norm = _norm(a.get("norm"), "group")
    return Plan("segresnet", norm, channels, (), a.get("in_channels", 1), a.get("spatial_dims", 3), a.get("out_channels", 2))


def _dynunet(a: Mapping[str, Any]) -> Plan:
    dims, strides = a["spatial_dims"], _steps(a["strides"])
    widest = 320 if dims == 3 else 512
    channels = _whole_numbers(a.get("filters") or [min(2 ** (5 + i), widest) for i in range(len(strides))])
    return Plan("dynunet", _norm(a.get("norm_name"), "instance"), channels, strides[1:], a["in_channels"], dims, a["out_channels"])


def _swin_unetr(a: Mapping[str, Any]) -> Plan:
    channels = tuple(a.get("feature_size", 24) * 2**k for k in range(5))
    if tuple(a.get("num_heads", SWIN_HEADS)) != SWIN_HEADS:
        raise ValueError(f"num_heads {a['num_heads']}")
    return Plan(
        "swin_unetr", _norm(a.get("norm_name"), "instance"), channels, (), a["in_channels"], a.get("spatial_dims", 3), a["out_channels"]
    )


# class of MONAI -> its description as a study's network; no other class is built
NETWORKS = {"UNet": _unet, "SegResNet": _segresnet, "DynUNet": _dynunet, "SwinUNETR": _swin_unetr}


def _same(bundle: Bundle, plan: Plan) -> dict[str, torch.Tensor]:
    """The bundle's arrays for the study's network, which gives the scores of the bundle's network with them.

    Raises:
        InputError: it does not, or an array is missing.
    """
    from monai.networks import nets

    counts = (plan.images, plan.axes, plan.classes)
    if not all(isinstance(n, int) and 0 < n <= 1024 for n in counts) or plan.axes not in (2, 3):
        raise InputError(f"{bundle.path}: network_def has {plan.images} channels, {plan.axes} axes, {plan.classes} classes.")
    name = str(bundle.network["_target_"]).rpartition(".")[2]
    arguments = {k: v for k, v in bundle.network.items() if not k.startswith("_")}
    ours = build_segmentation_network(
        plan.net, (plan.images, *(1,) * plan.axes), plan.classes, channels=plan.channels, strides=plan.strides, norm=plan.norm
    )
    try:
        theirs: torch.nn.Module = getattr(nets, name)(**arguments)
        missing = theirs.load_state_dict(dict(bundle.weights), strict=False)
    except Exception as error:  # MONAI and torch raise exceptions of any class on arguments and shapes that do not fit
        raise InputError(f"{bundle.path}: its weights or arguments do not fit MONAI's {name} ({type(error).__name__}).") from error
    if lacking := [key for key in missing.missing_keys if not key.endswith("num_batches_tracked")]:
        raise InputError(f"{bundle.path}: its weights lack {lacking[0]} of {name}.")
    if missing.unexpected_keys:
        raise InputError(f"{bundle.path}: its weights have {missing.unexpected_keys[0][:80]}, which its network {name} has not.")
    own = ours.network.state_dict()
    taken = {k: v for k, v in bundle.weights.items() if k in own and v.shape == own[k].shape and v.is_floating_point()}
    ours.network.load_state_dict({**own, **taken})
    with torch.inference_mode():
        x = torch.randn(1, plan.images, *_tried(ours), generator=torch.Generator().manual_seed(1))
        first, second = theirs.eval()(x), ours.eval()(x)
    if not torch.is_tensor(first) or first.shape != second.shape or not torch.allclose(first, second, rtol=_CLOSE, atol=_CLOSE):
        raise InputError(
            f"{bundle.path}: {name} with these arguments differs from the study's network {plan.net} (blocks, activation, upsampling or "
            f"norm), so its weights would mean something else; a study has {_known(plan.net)}."
        )
    return taken


def _tried(network: Segmenter) -> list[int]:
    return [max(2 * f, 16) for f in network.factors]


def _known(net: str) -> str:
    return {
        "unet": "num_res_units 2, kernels of 3, PReLU",
        "segresnet": "blocks_down 1, 2, .., 4, blocks_up 1, upsample_mode deconv",
        "dynunet": "kernels of 3, upsample_kernel_size the strides, no residual blocks, no deep supervision",
        "swin_unetr": "depths 2, windows of 7, MONAI's defaults",
    }[net]


# --- preprocessing


def _preprocessing(bundle: Bundle) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Keys of ``[cohort.image]``, ``[[cohort.image.transforms]]``, and a line for each transform that is in neither."""
    image: dict[str, Any] = {}
    out: list[dict[str, Any]] = []
    said: list[str] = []
    for given in _listed(bundle):
        name = str(given.get("_target_", "")).rpartition(".")[2] if isinstance(given, dict) else str(given)[:80]
        if not isinstance(given, dict) or name in _NOTHING or given.get("_disabled_") is True:
            continue
        try:
            values = bundle.value({k: v for k, v in given.items() if k not in _NOT_ASKED})
        except InputError:
            said.append(f"not taken over: {name} has an expression ($) or a reference to one; write it into the study")
            continue
        if (found := _as_key(name, values)) is not None and not out and not found.keys() & image.keys():
            image |= found
        elif name in DETERMINISTIC and not transform_problem(name, values):
            out.append({"name": name, **values})
        else:
            said.append(f"not taken over: {name} {json.dumps(values)[:120]}; a study has no such step here, or in another order")
    return image, out, said


def _listed(bundle: Bundle) -> list[Any]:
    for place in _PLACES:
        found: Any = bundle.config
        for part in place.split("#"):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, dict):
            found = found.get("transforms")
        if isinstance(found, str) and found.startswith("@"):
            found = bundle.value(found)
        if isinstance(found, list):
            return found
    return []


def _as_key(name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The key of ``[cohort.image]`` that does what a transform does; None: there is none."""
    if name == "Orientationd" and isinstance(values.get("axcodes"), str):
        return {"orientation": values["axcodes"]}
    if (
        name == "Spacingd"
        and isinstance(values.get("pixdim"), list)
        and all(isinstance(v, int | float) and v > 0 for v in values["pixdim"])
    ):
        return {"spacing_mm": [float(v) for v in values["pixdim"]]}
    if name == "ScaleIntensityRanged" and (values.get("b_min"), values.get("b_max"), values.get("clip")) == (0, 1, True):
        return {"window": [values["a_min"], values["a_max"]]} if "a_min" in values and "a_max" in values else None
    return None


# --- the study


def _study(
    bundle: Bundle, plan: Plan, image: dict[str, Any], transforms: Sequence[Mapping[str, Any]], given: tuple[str, str, Sequence[str]]
) -> tuple[str, list[str]]:
    name, weights, sites = given
    said: list[str] = []
    window = _window(bundle, plan)
    size = _size(bundle, plan)
    if window:
        image |= {"patches": {"size": list(window)}}
    elif size:
        image |= {"size": list(size), "crop": True}
    else:
        raise InputError(
            f"{bundle.path}: says neither a window (SlidingWindowInferer roi_size) nor a spatial_shape of numbers in its metadata."
        )
    classes = _classes(bundle, plan)
    if any("sigmoid" in one and one["sigmoid"] is True for one in _posts(bundle)):
        raise InputError(f"{bundle.path}: its outputs are classes that overlap (sigmoid); a study's classes exclude each other (softmax).")
    said.append(f"classes: {', '.join(map(str, classes))}; value k of a mask must be the k-th")
    network = {"net": plan.net, "norm": plan.norm, "channels": list(plan.channels)}
    network |= {"strides": [list(s) if isinstance(s, tuple) else s for s in plan.strides]} if plan.strides else {}
    lines = [
        f"# From the MONAI bundle {_plain(bundle.name)} {_plain(bundle.version)}: weights with SHA-256", f"# {bundle.sha256}.",
        "[study]", f"name = {_toml(name)}", 'question = "Where is it?" # write what the study asks',
        'purpose = "DUO:0000042" # general research use', "seed = 0", "",
        "[cohort]", 'inputs = ["image"]', 'target = "mask"', f"classes = {_toml(classes)}", "",
        "[cohort.image]", f"channels = {plan.images}", *(f"{k} = {_toml(v)}" for k, v in image.items()), "",
        *(line for t in transforms for line in ("[[cohort.image.transforms]]", *(f"{k} = {_toml(v)}" for k, v in t.items()), "")),
        "[model]", 'task = "segmentation"', f"start = {_toml(weights)}", f"segmentation = {_toml(network)}", "",
        "[training]", 'optimizer = "adam"', "lr = 1e-3", "batch_size = 2", "",
        "[federation]", f"sites = {_toml(list(sites))}", "rounds = 10", "",
    ]  # fmt: skip
    return "\n".join(lines), said


def _window(bundle: Bundle, plan: Plan) -> tuple[int, ...]:
    given = bundle.config.get("inferer")
    if not isinstance(given, dict) or "roi_size" not in given:
        return ()
    found = bundle.value(given["roi_size"])
    values = [found] * plan.axes if isinstance(found, int) else found
    return _whole_numbers(values) if isinstance(values, list) and len(values) == plan.axes else ()


def _described(bundle: Bundle, part: str) -> Mapping[str, Any]:
    found: Any = bundle.metadata.get("network_data_format")
    found = found.get(part) if isinstance(found, dict) else None
    one = next(iter(found.values()), None) if isinstance(found, dict) else None
    return one if isinstance(one, dict) else {}


def _size(bundle: Bundle, plan: Plan) -> tuple[int, ...]:
    found = _described(bundle, "inputs").get("spatial_shape")
    good = isinstance(found, list) and len(found) == plan.axes and all(isinstance(v, int) and v > 0 for v in found)
    return tuple(found) if good and isinstance(found, list) else ()


def _classes(bundle: Bundle, plan: Plan) -> list[Any]:
    named = _described(bundle, "outputs").get("channel_def")
    names = [str(named.get(str(k), "")).strip() for k in range(plan.classes)] if isinstance(named, dict) else []
    good = len(set(names)) == plan.classes and all(name and len(name) <= 60 and name.isprintable() and '"' not in name for name in names)
    return names if good and not all(name.isdigit() for name in names) else list(range(plan.classes))


def _posts(bundle: Bundle) -> list[dict[str, Any]]:
    found: Any = bundle.config.get("postprocessing")
    found = found.get("transforms") if isinstance(found, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:100]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
