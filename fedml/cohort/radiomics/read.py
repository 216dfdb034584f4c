"""Features of a region of each person's image, computed once at the site and kept in its cache.

    table = read_radiomics(Path("images"), "nifti", ids, study.cohort.radiomics, rules)
    table.values, table.excluded            # (persons, features); images without a usable region, each with its reason

Images and masks are found, checked for identifiers and read as those of ``[cohort.image]`` (``fedml.cohort.found_images``). The image and
the region are cut to the region's surroundings and resampled, then its features are computed. The cache holds all features of the study's
families, so choosing others of them computes nothing; its keys are those of prepared images: content of the files, settings, versions.

A person has one image with a region. One without a mask is left out; an empty mask, a region too small and two images are exclusions with a
reason, which count for ``[policy] max_quarantined``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.found_images import Found, ImageRules, found_images
from fedml.cohort.identifiers.names import shown
from fedml.cohort.images.cache import CannotKeep, Reader, open_cache
from fedml.cohort.images.items import Item, Raw
from fedml.cohort.images.reasons import Exclusion, ItemError, Unusable, check_exclusion_limit
from fedml.cohort.images.transforms import prepared, spacing_after
from fedml.cohort.inputs import Table
from fedml.cohort.radiomics.features import VERSION, region_features
from fedml.cohort.radiomics.region import MOST_VOXELS, Binning
from fedml.cohort.read_images import READER_VERSION, decoders_of
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.cohort_section import ImageShape
from fedml.study.imaging import Preprocess
from fedml.study.radiomics import RadiomicsFeatures, feature_names

NAME = "radiomics"
_CODES = tuple(range(256))  # every value of a mask is itself; the region is chosen afterwards
_AROUND = 3  # voxels around the region that resampling may read
log = logging.getLogger("fedml.site")


@dataclass(frozen=True, eq=False)
class Features(Table):
    """A table of features. ``excluded``: images without features, each with its reason."""

    excluded: tuple[Exclusion, ...] = ()


def read_radiomics(path: Path, kind: str, persons: Sequence[str], spec: RadiomicsFeatures, rules: ImageRules) -> Features:
    """The features ``spec.columns`` of ``persons``, both in that order; NaN rows for persons without.

    Args:
        path, kind: as of ``fedml.cohort.read_images.read_images``. rules: with the folder of masks.

    Raises:
        TooManyExcluded: persons with an excluded image exceed ``rules.max_quarantined``.
        InputError: a folder is missing; no person has a region; a file is not de-identified and the policy is to refuse.
    """
    found = found_images(path, kind, persons, image_shape(spec), codes=_CODES, rules=rules)
    rows, failed = _computed(path, kind, found, spec, rules)
    excluded = [Exclusion(persons[found[at].row], _shown(found[at].where, path), *why) for at, why in sorted(failed.items())]
    by_person: dict[int, list[int]] = {}
    for at in rows:
        by_person.setdefault(found[at].row, []).append(at)
    usable = {persons[row] for row in by_person}
    excluded = [one for one in excluded if one.reason is not Unusable.NO_MASK or one.person not in usable]
    values = np.full((len(persons), len(spec.columns)), np.nan)
    names = feature_names(spec.families)
    chosen = [names.index(name) for name in spec.columns]
    for row, several in by_person.items():
        if len(several) == 1:
            values[row] = rows[several[0]][chosen]
            continue
        where = _shown(found[several[0]].where, path)
        text = f"{where}: the person has {len(several)} images with the region; name one by [cohort.radiomics] file or select."
        excluded.append(Exclusion(persons[row], where, Unusable.SEVERAL_SERIES, text))
    check_exclusion_limit(excluded, len({image.row for image in found}), rules.max_quarantined)
    present = np.isfinite(values).any(axis=1)
    if not present.any():
        fix = "correct data.radiomics in site.toml, or labels of the study"
        raise InputError(f"{path}: no person in the persons table has an image with {spec.region}; {fix}.")
    return Features(NAME, values, present, tuple(excluded))


def image_shape(spec: RadiomicsFeatures) -> ImageShape:
    """How readers of images take the study's section: any size, the channels as stated."""
    source = spec.source
    return ImageShape(
        channels=spec.channels, size=(1,) * spec.axes, crop=True, select=source.select, volumes=source.volumes,
        channel_files=source.channel_files, segments=source.segments,
    )  # fmt: skip


def features_of(spec: RadiomicsFeatures, raw: Raw) -> npt.NDArray[np.float64]:
    """(features,) of one image as it was read, for all of the study's families.

    Raises:
        ItemError: the image has no usable region, or no geometry where the study resamples.
    """
    if raw.mask is None:
        raise ItemError(Unusable.NO_MASK, "has no mask")
    region = np.isin(raw.mask[0], spec.labels)
    if not region.any():
        raise ItemError(Unusable.EMPTY_MASK, f"its mask has no voxel of {spec.region}")
    image, affine = raw.image[spec.channel - 1], raw.affine
    box = tuple(_around(region, axis) for axis in range(region.ndim))
    image, region = image[box], region[box]
    spacing: Any = np.ones(spec.axes) if affine is None else spacing_after(None, affine, spec.axes)
    if spec.spacing_mm:
        if affine is not None:
            affine = affine.copy()
            affine[:3, 3] += affine[:3, : spec.axes] @ [part.start for part in box]
        after = region.sum() * float(np.prod(spacing)) / float(np.prod(spec.spacing_mm))
        if after > MOST_VOXELS:
            text = f"its region would have {after:.3g} voxels at the study's spacing, the limit is {MOST_VOXELS:,}"
            raise ItemError(Unusable.TOO_LARGE, text)
        resampled, cut = prepared(_grid(spec), image[None], affine, region[None].astype(np.uint8))
        assert cut is not None  # noqa: S101 - a mask was given
        image, region, spacing = resampled[0], cut[0] > 0, spec.spacing_mm
    found = region_features(image, region, spacing, Binning(spec.bin_width, spec.bin_count), spec.families)
    return np.array(list(found.values()))


def _around(region: npt.NDArray[np.bool_], axis: int) -> slice:
    """The places along an axis that have a voxel of the region, and a few more."""
    others = tuple(other for other in range(region.ndim) if other != axis)
    there = np.flatnonzero(region.any(axis=others))
    return slice(max(0, int(there[0]) - _AROUND), int(there[-1]) + 1 + _AROUND)


def _grid(spec: RadiomicsFeatures) -> Preprocess:
    """The resampling; volumes are turned to RAS first, so that spacings are along the same axes at every site."""
    spacing = spec.spacing_mm or ()
    return Preprocess(orientation="RAS" if spacing and spec.axes == 3 else "", spacing_mm=spacing)


def _computed(
    path: Path, kind: str, found: Sequence[Found], spec: RadiomicsFeatures, rules: ImageRules
) -> tuple[dict[int, npt.NDArray[np.float64]], dict[int, tuple[Unusable, str]]]:
    """For each place in ``found`` its features, or why it has none."""
    items = {Item(_shown(image.where, path), image.files, image.part): at for at, image in enumerate(found)}

    def read(item: Item) -> Raw:
        try:
            return found[items[item]].load()
        except InputError:
            raise
        except Exception as error:  # a decoder may raise any exception on a damaged file
            raise ItemError(*_why(error, found[items[item]], path)) from error

    def make(_: Preprocess, raw: Raw) -> tuple[npt.NDArray[np.float32], None]:
        return features_of(spec, raw).astype(np.float32)[None], None

    if rules.cache is not None and found:
        settings = spec.model_dump(mode="json", exclude={"features", "ranges"})
        packages = (*decoders_of(kind), "scipy")
        about = [NAME, VERSION, READER_VERSION, kind, settings, rules.deidentification, [version(package) for package in packages]]
        try:
            reader = Reader(read, json.dumps(about, sort_keys=True), make)
            cache = open_cache(rules.cache, path / NAME, list(items), _grid(spec), reader, log.info)
            rows = {int(at): cache.image(k).numpy()[0].astype(np.float64) for k, at in enumerate(cache.kept)}
            why = {at: _why(ItemError(reason, cache.texts[at]), found[at], path) for at, reason in cache.excluded.items()}
            return rows, why
        except CannotKeep as error:
            log.warning("%s Features are computed at every start.", error)
    return _one_by_one(items, found, path, lambda item: make(_grid(spec), read(item))[0][0])


def _one_by_one(
    items: dict[Item, int], found: Sequence[Found], path: Path, compute: Callable[[Item], npt.NDArray[np.float32]]
) -> tuple[dict[int, npt.NDArray[np.float64]], dict[int, tuple[Unusable, str]]]:
    rows: dict[int, npt.NDArray[np.float64]] = {}
    failed: dict[int, tuple[Unusable, str]] = {}
    for item, at in items.items():
        try:
            rows[at] = compute(item).astype(np.float64)
        except InputError:
            raise
        except Exception as error:
            failed[at] = _why(error, found[at], path)
    return rows, failed


def _shown(file: Path, root: Path) -> str:
    """The path of a file, without names in which a rule finds an identifier."""
    return str(root / shown(file, root)) if file.is_relative_to(root) and file != root else str(file)


def _why(error: Exception, image: Found, root: Path) -> tuple[Unusable, str]:
    """The reason that an image has no features, and a sentence that names its file."""
    where = _shown(image.where, root)
    if not isinstance(error, ItemError):
        return Unusable.UNREADABLE, f"{where}: cannot be read ({told(error)}); replace or delete the file."
    text = str(error).replace("[cohort.image", "[cohort.radiomics")
    for file in image.files:
        text = text.replace(str(file), _shown(file, root))
    named = where in text or text.startswith("/") or error.reason is Unusable.NOT_DE_IDENTIFIED
    return error.reason, text if named else f"{where}: {text.rstrip('.')}; correct the file, or leave it out."
