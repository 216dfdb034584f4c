"""Finds the images of persons in a folder or an ``.npz`` array, without reading their voxels.

for image in found_images(Path("images"), "nifti", ids, study.cohort.image):
    image.row, image.load()                           # the person, and the image when it is wanted
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedml.cohort.deidentification import require_clean
from fedml.cohort.dicom.deidentified import Deidentification
from fedml.cohort.ids import check_ids
from fedml.cohort.images import labels
from fedml.cohort.images import masks as mask_files
from fedml.cohort.images.bounds import require_plausible
from fedml.cohort.images.channels import channels_first
from fedml.cohort.images.combine import on_one_grid, one_of_many
from fedml.cohort.images.formats import FORMATS, Voxels, by_ending
from fedml.cohort.images.items import Raw
from fedml.cohort.images.named import files_of, one_each
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.upright import require_same_turn
from fedml.cohort.state_index import remembering
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.cohort_section import ImageShape
from fedml.study.section import Code
from fedml.study.series_section import SiteSelect

INDEX = "headers.db"  # in the folder of prepared images


@dataclass(frozen=True)
class ImageRules:
    """How a site treats its images.

    Args:
        masks: the folder of masks.
        deidentification: the policy for a file that is not de-identified (``fedml.cohort.deidentification``).
        max_quarantined: of the persons with images, the largest fraction that may have an excluded image.
        cache: folder of prepared images (``fedml.cohort.images.cache``); None: images are kept in memory. If the folder cannot be written,
            a warning is logged, and images are kept in memory if they fit.
        select: the site's own names of what a study selects among series.
    """

    masks: Path | None = None
    deidentification: Deidentification = "quarantine"
    max_quarantined: float = 0.1
    cache: Path | None = None
    select: SiteSelect | None = None


class Found(NamedTuple):
    """An image of the person in ``row``: ``where`` names it, ``load`` reads it, from ``files`` and according to ``part``."""

    row: int
    where: Path
    load: Callable[[], Raw]
    files: tuple[Path, ...]
    part: str = ""
    unit: str = ""


def found_images(
    path: Path, kind: str, persons: Sequence[str], shape: ImageShape | None, *, codes: Sequence[Code] | None = None,
    rules: ImageRules = ImageRules(),
) -> list[Found]:  # fmt: skip
    """The images of ``persons``, not read yet. Headers that were read at an earlier start are not read again (``state_index``)."""
    row = {person: at for at, person in enumerate(persons)}
    if kind != "dicom" and shape is not None and shape.units:
        text = f'[cohort.image] units = "{shape.units}" is computed from DICOM headers, and data.image format is "{kind}"'
        raise InputError(f"{path}: {text}; give the DICOM series, or a study without units.")
    if kind == "npz":
        return list(_npz(path, row, shape, codes))
    if kind != "dicom":
        return list(_files(path, kind, row, shape, rules, codes))
    with remembering(None if rules.cache is None else rules.cache / INDEX):
        return list(_dicom(path, row, shape, codes, rules))


def _dicom(folder: Path, row: dict[str, int], shape: ImageShape | None, codes: Sequence[Code] | None, rules: ImageRules) -> Iterator[Found]:
    from fedml.cohort.dicom.first_read import read_ahead
    from fedml.cohort.dicom.persons import Masks, Series, series_of

    def load(read: Callable[[], Series], where: Path, person: str, files: Sequence[Path]) -> Raw:
        for file in files:
            require_clean(file, folder if file.is_relative_to(folder) else file.parent, person, rules.deidentification, header=False)
        series = read()
        return Raw(channels_first(series.voxels, shape, where, volumes=not series.flat), series.affine, series.mask)

    _need_folder(folder)
    masks = None if codes is None else Masks(rules.masks, codes)
    select = None if shape is None or shape.select is None else shape.select.at(rules.select)
    read_ahead(folder, list(row))
    for person, at in row.items():
        found = series_of(folder, person, masks=masks, shape=shape, deidentification=rules.deidentification, rules=select)
        for where, files, read, about, unit in found:
            # Part of the cache key: reading depends on file names, and the de-identification check on the person's id.
            rest = [*([about] if about else []), *([] if select is None else [select.model_dump_json()])]
            part = json.dumps([person, *(file.name for file in files), *rest])
            yield Found(at, where, partial(load, read, where, person, files), files, part, unit)


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct data.image in site.toml.")


def _files(
    folder: Path, kind: str, row: dict[str, int], shape: ImageShape | None, rules: ImageRules, codes: Sequence[Code] | None
) -> Iterator[Found]:
    form, masks = FORMATS[kind], rules.masks
    rule = "one" if shape is None else shape.volumes

    def voxels_of(path: Path) -> Voxels:
        raw, affine = form.read(path)
        several = shape is not None and form.volumes and rule != "one" and raw.ndim == len(shape.size) + 1
        return (one_of_many(raw, rule, path) if several else raw), affine

    def load(paths: Sequence[Path], drawn: Sequence[Path], person: str) -> Raw:
        path = paths[0]
        for one in paths:
            require_clean(one, folder, person, rules.deidentification)
        for one in drawn:
            require_clean(one, masks or folder, person, rules.deidentification)
        raw, affine = voxels_of(path)
        if shape is not None and shape.channel_files:
            others = zip(shape.channel_files[1:], paths[1:], strict=True)
            parts = [(shape.channel_files[0].name, raw, affine), *((c.name, *voxels_of(p)) for c, p in others)]
            raw = on_one_grid(parts, path)
        image = channels_first(raw, shape, path, volumes=form.volumes)
        if codes is None:
            return Raw(image, affine)
        if not drawn:
            raise ItemError(Unusable.NO_MASK, f"{path}: has no mask.")
        for one in drawn:
            for picture in paths:
                require_same_turn(picture, one)
        if shape is not None and shape.mask_files:
            return Raw(image, affine, labels.of_files(drawn, (affine, image.shape[1:]), shape, codes, path))
        return Raw(image, affine, labels.as_classes(mask_files.read(drawn[0], affine, image.shape[1:]), codes, drawn[0], shape))

    def all_of(paths: Sequence[Path], drawn: Sequence[Path]) -> tuple[Path, ...]:
        """With the further files that reading them opens."""
        more = [form.others(path) for path in paths if form.others is not None]
        more += [kind.others(path) for path in drawn if (kind := by_ending(path)) is not None and kind.others is not None]
        return (*paths, *drawn, *(path for some in more for path in some))

    def masks_of(name: str) -> list[Path]:
        if masks is None or codes is None:
            return []
        if shape is not None and shape.mask_files:
            return labels.files_of(masks, name)
        return [] if (one := mask_files.find(masks, name)) is None else [one]

    _need_folder(folder)
    if shape is not None and shape.orientation and not form.anatomical:
        text = f'files of the format "{kind}" do not say which side of a body an axis points to; remove orientation from [cohort.image]'
        raise InputError(f"{folder}: {text}, or give another format.")
    if shape is not None and shape.channel_files:
        for person, files in files_of(folder, row, form.endings).items():
            try:
                paths = one_each(files, shape.channel_files, form.endings, folder / person)
            except ItemError as error:
                yield Found(row[person], folder / person, partial(_raise, error), (folder / person,), str(error))
                continue
            drawn = masks_of(person)
            files_read = all_of(paths, drawn)
            part = json.dumps([person, *(file.name for file in files_read)])
            yield Found(row[person], paths[0], partial(load, paths, drawn, person), files_read, part)
        return
    for person, at in row.items():
        candidates = [(folder / f"{person}{ending}", person, ending) for ending in form.endings]
        if (folder / person).is_dir():
            inside = sorted(p for p in (folder / person).iterdir() if p.name.endswith(form.endings))
            candidates += [(p, f"{person}/{p.name}", next(e for e in form.endings if p.name.endswith(e))) for p in inside]
        for path, name, ending in candidates:
            if path.exists():
                drawn = masks_of(name.removesuffix(ending))
                read_too = all_of([path], drawn)
                part = json.dumps([person, *(file.name for file in read_too)])
                yield Found(at, path, partial(load, [path], drawn, person), read_too, part)


def _raise(error: ItemError) -> Raw:
    raise error


_LAYOUT = "docs/images.md shows how to write the file (One npz file)"


def _npz(path: Path, row: dict[str, int], shape: ImageShape | None, codes: Sequence[Code] | None) -> Iterator[Found]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sizes = {entry.filename: (entry.compress_size, entry.file_size) for entry in arrays.zip.infolist()}
            for name in ("ids.npy", "images.npy"):  # masks compress too well for this check; their size is compared with the images below
                require_plausible(path, *sizes.get(name, (0, 0)))
            if sizes.get("masks.npy", (0, 0))[1] > 8 * sizes.get("images.npy", (0, 0))[1] + 4096:
                raise ItemError(Unusable.WRONG_LENGTH, "the masks are larger than the images")
            ids, images = arrays["ids"].astype(str), arrays["images"]
            drawn = arrays["masks"] if codes is not None and "masks" in arrays else None
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct data.image in site.toml.") from error
    except Exception as error:  # zipfile, zlib and NumPy raise different exceptions
        raise InputError(f"{path}: cannot be read as .npz with arrays ids and images ({told(error)}); {_LAYOUT}.") from error
    if ids.ndim != 1 or images.ndim < 3:
        raise InputError(f"{path}: ids has shape {ids.shape}, images {images.shape}; ids needs one axis, images at least three; {_LAYOUT}.")
    if len(ids) != len(images):
        raise InputError(f"{path}: has {len(ids)} ids but {len(images)} images; give one id for each image; {_LAYOUT}.")
    if codes is not None and (drawn is None or drawn.ndim < 3 or len(drawn) != len(ids)):
        raise InputError(f"{path}: has no array masks with one mask for each image; segmentation needs it; {_LAYOUT}.")

    def load(k: int) -> Raw:
        image = channels_first(images[k], shape, path)
        if codes is None or drawn is None:
            return Raw(image)
        if drawn[k].shape != image.shape[1:]:
            text = f"{path}: the mask of image {k} has shape {drawn[k].shape}, the image {image.shape[1:]}; give them the same shape."
            raise ItemError(Unusable.MASK_MISMATCH, text)
        return Raw(image, None, labels.as_classes(drawn[k], codes, path, shape))

    check_ids(list(row), set(ids.tolist()), str(path))
    for k, person in enumerate(ids):
        if person in row:
            yield Found(row[person], path, partial(load, k), (path,), str(k))
