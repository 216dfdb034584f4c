"""Images as an input of a person: pictures and volumes (``Images``), or whole slides (``fedml.modalities.slides``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, assert_never

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, WithJsonSchema

from fedml.cohort.found_images import ImageRules
from fedml.cohort.ids import check_ids
from fedml.cohort.images.formats import FORMATS, NAMES, known
from fedml.cohort.images.images import Images, pool_images
from fedml.cohort.images.items import Raw as ItemRaw
from fedml.cohort.images.masks import as_values
from fedml.cohort.images.named import owner_of
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.one_image import Opened, open_one, prepare_one
from fedml.cohort.read_images import read_images
from fedml.cohort.slides.cohort import Slides
from fedml.cohort.slides.features import SlideFeatures
from fedml.cohort.slides.files import ENDINGS
from fedml.cohort.slides.scale import MPP, Mpp
from fedml.errors import InputError
from fedml.modalities import slides
from fedml.modalities.image_words import lost_lines, network, plan, preparation, unit_lines
from fedml.modalities.modality import (
    Array,
    DataSection,
    Form,
    InputFinding,
    Modality,
    Place,
    Random,
    Raw,
    Rows,
    Words,
    no_text,
    nothing,
    shaped,
)
from fedml.study.code_section import is_own
from fedml.study.monai_transforms import is_random
from fedml.study.series_section import SiteSelect
from fedml.study.study import Study
from fedml.tasks.several import stacked

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedml.modalities.layout import Layout

NAME = "image"
Kind = Images | Slides | SlideFeatures


class ImageData(DataSection):
    """Path of the images; ``format`` is one of ``fedml.cohort.images.formats.NAMES``, ``masks`` as in
    ``fedml.cohort.images.masks``."""

    format: Annotated[str, AfterValidator(known), WithJsonSchema({"type": "string", "enum": list(NAMES)})] = Field(
        description="format of the files; docs/images.md says how each is laid out"
    )
    masks: str | None = Field(
        default=None, description="path of the folder of masks, which task segmentation needs; default: none, or the masks of the npz file"
    )
    select: SiteSelect | None = Field(
        default=None, description="how this site names the series that a study selects, in place of the study's patterns; default: as there"
    )
    encoder: str | None = Field(
        default=None, description="path of the weights of the encoder that a study of slides pins; default: the site has none"
    )
    mpp: Mpp | dict[str, Mpp] | None = Field(default=None, description=MPP)


def _described(value: Kind) -> Mapping[str, Any]:
    from fedml.wire import records

    return {records.IMAGE_SHAPE: np.array(value.shape, dtype=np.int64)}


def _declared() -> Mapping[str, Callable[[Any], str]]:
    from fedml.wire import records

    return {records.IMAGE_SHAPE: shaped("int64", None)}


def _check(study: Study) -> None:
    from fedml.networks.image import NETWORKS, build_image_network
    from fedml.networks.segmentation import build_segmentation_network

    if study.traits.label == "mask":
        spec, image = study.model.segmentation, study.cohort.image
        if is_own(spec.net):
            return
        size = (1, 8, 8) if image is None else (image.channels, *image.size)
        build_segmentation_network(spec.net, size, len(study.cohort.classes), channels=spec.channels, strides=spec.strides)
        if spec.deep_supervision and study.training.loss is not None and is_own(study.training.loss):
            raise InputError("[model] segmentation deep_supervision is for losses by name; remove it, or [training] loss of own code.")
    elif slides.check_encoder(study):
        return
    elif study.model.image.net not in NETWORKS and not is_own(study.model.image.net):
        build_image_network(study.model.image, (1, 8, 8), 1)


def _read(place: Place[ImageData], study: Study, ids: Sequence[str]) -> Kind:
    data, plan = place.data, study.cohort
    slides.check_format(data.format, study, place.file)
    if data.format != "npz":
        names = _names(place.folder / data.path, data.format)
        if plan.image is not None and plan.image.channel_files:
            names = {owner_of(name, set(ids)) or name for name in names}
        check_ids(ids, names, str(place.folder / data.path))
    if slides.tiles_of(study) is not None:
        return slides.read(place, study, ids, slides.Given(place.folder / data.path, data.encoder, data.mpp))
    found = read_images(
        place.folder / data.path, data.format, list(ids), plan.image, codes=plan.classes if study.traits.label == "mask" else None,
        window=place.window,
        rules=ImageRules(
            None if data.masks is None else place.folder / data.masks,
            place.deidentification, place.max_quarantined, place.cache / "images", data.select,
        ),
    )  # fmt: skip
    drawn = () if plan.image is None else tuple(transform for transform in plan.image.transforms if is_random(transform.name))
    return replace(found, drawn=drawn) if drawn else found


def _names(folder: Path, kind: str) -> set[str]:
    """The names in the folder that are a person's id: of folders, and of files without their ending."""
    endings = FORMATS[kind].endings if kind in FORMATS else (".dcm",) if kind == "dicom" else ENDINGS
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    ended = [next((name.removesuffix(e) for e in endings if name.endswith(e)), "") for name, is_folder in found if not is_folder]
    return {*(name for name, is_folder in found if is_folder), *ended} - {""}


def _inspect(place: Place[ImageData], ids: Sequence[str] | None) -> Iterator[InputFinding]:
    path, form = place.folder / place.data.path, FORMATS.get(place.data.format)
    if form is None or any(name.endswith(form.endings) for _, _, names in os.walk(path) for name in names):
        yield InputFinding("ok", f"{path} exists")
    else:
        ends = " or ".join(form.endings)
        yield InputFinding("fail", f"{path}: has no file with the extension {ends}", "correct data.image path or format in site.toml")


def _summary(value: Kind, study: Study) -> list[str]:
    match value:
        case Images():
            kind = ", patches of" if value.patches is not None else " of"
            return [f"images: {len(value.person)}{kind} {value.shape} (channels, *size)", *unit_lines(value), *lost_lines(value, study)]
        case Slides() | SlideFeatures():
            return slides.summary(value)
    assert_never(value)


def _pool(parts: Sequence[tuple[str, Kind | None, int]], study: Study) -> Kind:
    if slides.tiles_of(study) is not None:
        return slides.pool(parts, study)
    return pool_images([(value if isinstance(value, Images) else None, persons) for _, value, persons in parts])


def _preprocess(study: Study, layout: Layout) -> nn.Module:
    from fedml.networks.preprocess import ImagePreprocess

    return ImagePreprocess(layout.image_shape, windowed=study.cohort.image is not None and bool(study.cohort.image.percentiles))


def _encoder(study: Study, layout: Layout, preprocess: nn.Module, outputs: int) -> nn.Module:
    from fedml.networks.image import build_image_network
    from fedml.networks.own import own_network

    if is_own(study.model.image.net):
        return own_network(study.code, study.model.image, layout.image_shape, outputs)
    return slides.network(study, layout.image_shape, outputs) or build_image_network(study.model.image, layout.image_shape, outputs)


def _sums(value: Kind, rows: Rows) -> Array:
    """For each channel, over all voxels of these persons."""
    match value:
        case Slides() | SlideFeatures():
            return value.sums(rows)
        case Images():
            channels = value.shape[0]
            total = np.zeros((3, channels))
            for at in np.flatnonzero(np.isin(value.person, rows)):  # one by one: float64 of all images needs too much memory
                flat = value.pixels[int(at)].reshape(channels, -1).astype(np.float64)
                total += np.stack([np.full(channels, flat.shape[1]), flat.sum(1), (flat**2).sum(1)])
            return total
    assert_never(value)


def _bounded(value: Kind, rows: Rows, unit: Callable[[Array], Array]) -> Array:
    """Each person contributes one value: the mean over all voxels of all images."""
    match value:
        case Slides() | SlideFeatures():
            raise InputError('[cohort.image] tiles are not built for [privacy] unit = "patient"; set unit = "site" or "none".')
        case Images():
            channels = value.shape[0]
            total = np.zeros((3, channels))
            for row in rows:
                images = value.pixels[value.person == row].astype(np.float64)
                if len(images):
                    flat = unit(np.moveaxis(images, 1, -1).reshape(-1, channels))  # (voxels of all images, channels)
                    total += np.stack([np.ones(channels), flat.mean(0), (flat**2).mean(0)])
            return total
    assert_never(value)


def _ranges(study: Study, layout: Layout) -> Array:
    return np.repeat(np.array(study.privacy.image_range)[:, None], layout.image_shape[0], axis=1)


def _canary(value: Kind, study: Study, ranges: Array, count: int, random: Random) -> Kind:
    """One image for each person: stripes in the darkest and the brightest value."""
    if not isinstance(value, Images):
        raise InputError('[cohort.image] tiles are not built for [privacy] unit = "patient", so a run on slides cannot be audited.')
    pixels = np.stack([_stripes(value.shape, study.privacy.image_range, random) for _ in range(count)])
    byte = value.pixels.dtype == np.uint8
    return Images(pixels.round().clip(0, 255).astype(np.uint8) if byte else pixels, np.arange(count))


def _stripes(shape: Sequence[int], values: tuple[float, float], random: Random) -> npt.NDArray[np.float32]:
    """(channels, *size): stripes of a random direction and width within a random ball, in the darkest and the brightest value."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[1:]), indexing="ij"))
    out = np.empty(shape, dtype=np.float32)
    for channel in out:
        wave = np.tensordot(random.normal(0, random.choice([1, 4, 12]), len(places)), places, 1) + random.uniform(0, 7)
        away = sum((axis - c) ** 2 for axis, c in zip(places, random.uniform(-0.7, 0.7, len(places)), strict=True))
        channel[...] = np.where((np.sin(wave) > 0) & (away < random.uniform(0.1, 3)), values[1], values[0])
    return out


def _placeholder(value: Kind, study: Study, random: Random) -> Kind:
    match value:
        case Slides() | SlideFeatures():
            return slides.placeholder(value)
        case Images():
            shape, byte = value.pixels.shape, value.pixels.dtype == np.uint8
            pixels = random.integers(0, 256, shape, dtype=np.uint8) if byte else random.random(shape, dtype=np.float32)
            drawn = value.masks
            masks = None if drawn is None else random.integers(0, len(study.cohort.classes), drawn.shape, dtype=np.uint8)
            return Images(pixels, value.person, masks, value.spacing)
    assert_never(value)


def _write(value: Kind, study: Study, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    match value:
        case Slides() | SlideFeatures():
            return slides.write(value, ids, folder)
        case Images():
            stored = value.pixels[:]
            # Without a shape in the study, a reader takes the last axis of an image as its channels.
            pixels = stored if study.cohort.image is not None else np.moveaxis(stored, 1, -1)
            drawn = value.masks
            masks: dict[str, Any] = {} if drawn is None else {"masks": as_values(drawn[:][:, 0], study.cohort.classes)}
            np.savez(folder / "images.npz", ids=np.array([ids[p] for p in value.person]), images=pixels, **masks)
            return {"path": "images.npz", "format": "npz"}
    assert_never(value)


def _raw(values: Any, study: Study, given: Raw) -> dict[str, torch.Tensor]:
    import torch

    if slides.tiles_of(study) is not None:
        return slides.raw(values)
    images = raw_images(study, values, given.affine, given.window)
    present = torch.tensor([image is not None for image in images])
    whole = [image for image in images if image is not None]
    shape = study.cohort.image
    blank = (1, 1, 1) if shape is None else (shape.channels, *shape.size)  # shape for a batch without images
    x = stacked([torch.from_numpy(image) for image in whole]) if whole else torch.zeros(0, *blank)
    return {"image_person": torch.nonzero(present)[:, 0], "image_present": present.float(), "image": x}


def raw_images(study: Study, given: Any, affine: Any = None, window: tuple[float, float] | None = None) -> list[npt.NDArray[Any] | None]:
    """The image of each person as the network expects it, (channels, *size); None: no image.

    Raises:
        InputError: as ``opened_images``.
    """
    return [None if one is None else one.prepared for one in opened_images(study, given, affine, window)]


def opened_images(study: Study, given: Any, affine: Any = None, window: tuple[float, float] | None = None) -> list[Opened | None]:
    """The image of each person, raw and prepared; None: no image. ``given``: a path or an array for each person, as a list or as the column
    ``image`` of a table.

    Raises:
        InputError: an image cannot be read, or the study cannot use it; the message names the file or the position in the list.
    """
    import pandas as pd

    shape = study.cohort.image
    entries = list(given["image"]) if isinstance(given, pd.DataFrame) else list(given)
    places = [None] * len(entries) if affine is None else np.broadcast_to(np.asarray(affine, np.float64), (len(entries), 4, 4))
    out: list[Opened | None] = []
    for number, (entry, place) in enumerate(zip(entries, places, strict=True), start=1):
        if entry is None or isinstance(entry, float) or (isinstance(entry, str) and not entry):  # a table's empty cell is NaN
            out.append(None)
        elif isinstance(entry, str | Path):
            out.append(open_one(Path(entry), shape, window))
        else:
            voxels = np.asarray(entry)
            if voxels.dtype.kind not in "buif":
                raise InputError(f"image {number} of {len(entries)}: has the type {voxels.dtype}; give numbers or a path.")
            try:
                empty = np.isnan(voxels).all()
                out.append(None if empty else Opened(ItemRaw(voxels, place), prepare_one(voxels, place, shape, window), None))
            except ItemError as error:
                raise InputError(f"image {number} of {len(entries)}: {str(error).rstrip('.')}.") from error
    return out


def _example(study: Study, layout: Layout) -> Any:
    return np.zeros((1, *((1,) if slides.tiles_of(study) is not None else ()), *layout.image_shape), np.float32)


def _form(study: Study) -> Form:
    # No schema describes raw images (arrays of any size, or paths); the number of tiles differs between persons.
    if slides.tiles_of(study) is not None:
        return Form("bag")
    return Form("any" if study.cohort.image is not None and study.cohort.image.preprocess is not None else "array")


def _packages(study: Study) -> tuple[str, ...]:
    prepared = study.cohort.image is not None and study.cohort.image.preprocess is not None
    monai = study.model.image.net not in ("cnn", "mlp") or study.traits.label == "mask" or prepared
    decoders = {"imagecodecs", "pydicom", *(form.package for form in FORMATS.values() if form.package)}
    return (*(["monai"] if monai else []), *sorted(decoders))


def _uncovered(study: Study) -> tuple[str, ...]:
    return ("the size of the images",) if study.cohort.image is None else ()


IMAGE: Modality[Kind, ImageData] = Modality(
    name=NAME,
    data=ImageData,
    words=Words(
        plan=plan,
        column="image channel",
        columns="image channels",
        sends=nothing,
        uncovered=_uncovered,
        fact=no_text,
        preparation=preparation,
        missing=no_text,
        network=network,
    ),
    layout=("image_shape",),
    described=_described,
    declared=_declared,
    check=_check,
    read=_read,
    inspect=_inspect,
    summary=_summary,
    pool=_pool,
    preprocess=_preprocess,
    encoder=_encoder,
    sums=_sums,
    bounded=_bounded,
    ranges=_ranges,
    canary=_canary,
    placeholder=_placeholder,
    write=_write,
    raw=_raw,
    example=_example,
    form=_form,
    packages=_packages,
)
