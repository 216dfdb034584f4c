"""Reads images of persons: files with one image each (``fedml.cohort.images.formats``), DICOM series, or one ``.npz`` array.

Files: ``<id>.<ending>``, or ``<id>/<anything>.<ending>`` for persons with several (DICOM: ``fedml.cohort.dicom.persons``). An ``.npz``
contains ``ids`` (text), ``images`` (images, then the axes of one image) and for segmentation ``masks`` (images, *size); an id may occur
several times. Intensities stay raw unless the study states a window; the model standardises them.

    images = read_images(Path("images"), "nifti", ids, study.cohort.image)
    images.excluded                                       # excluded images, each with its reason

An unusable image is excluded and the others are read. If too many are excluded, ``TooManyExcluded`` is raised.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.found_images import Found, ImageRules, found_images
from fedml.cohort.identifiers.names import shown
from fedml.cohort.images.formats import FORMATS
from fedml.cohort.images.histograms import HistogramView, histogram_item
from fedml.cohort.images.images import Images
from fedml.cohort.images.items import Item, Raw
from fedml.cohort.images.mapped import mapped
from fedml.cohort.images.originals import Finder, Folded, OriginalMasks, folded, open_originals, pack
from fedml.cohort.images.reasons import Exclusion, ItemError, Unusable, check_exclusion_limit
from fedml.cohort.images.transforms import prepared, spacing_after, windowed
from fedml.cohort.images.volumes import volumes
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.cohort_section import ImageShape
from fedml.study.imaging import Preprocess
from fedml.study.section import Code

if TYPE_CHECKING:
    from fedml.cohort.images.cache import ImageCache

    _Entry = tuple[ImageCache, OriginalMasks | None]  # prepared images, and their masks as the files have them

Affine = npt.NDArray[np.float64]
READER_VERSION = 3  # increment when a reader returns other values for the same file
_DECODERS = ("nibabel", "numpy", "pillow", "pydicom")
_SOURCE = ("volumes", "channel_files", "segments", "labels", "mask_files", "overlap", "units")  # of [cohort.image], besides preprocessing
_IN_MEMORY = 2**30  # most bytes of prepared images in memory if the cache cannot be written
log = logging.getLogger("fedml.site")


class _Folder(NamedTuple):
    """The request: images of ``persons`` of the format ``kind`` in ``path``; only images with masks if ``masked``."""

    path: Path
    kind: str
    persons: list[str]
    masked: bool


def read_images(
    path: Path, kind: str, persons: list[str], shape: ImageShape | None, *, codes: Sequence[Code] | None = None,
    window: tuple[float, float] | None = None, rules: ImageRules = ImageRules(),
) -> Images:  # fmt: skip
    """The images of ``persons`` in the table's order; a person may have none or several.

    Args:
        path: the folder, or the ``.npz`` file when ``kind`` is ``npz``.
        kind: ``npz``, ``dicom`` or a key of ``fedml.cohort.images.formats.FORMATS``.
        persons: ids; images of other persons are not read.
        shape: the study's; None: the most frequent shape, and images of another shape are excluded.
        codes: the study's classes; None: no masks are read. With classes, an image without a mask is excluded.
        window: the window that the sites agreed on, if ``shape`` has percentiles; None: histograms in place of images
            (``fedml.cohort.images.histograms``). Percentiles need ``rules.cache``.

    Raises:
        TooManyExcluded: persons with an excluded image exceed ``rules.max_quarantined``; the message names the first file.
        InputError: a folder or array is missing; no person has an image; a file is not de-identified and the policy is to refuse.
    """
    request, cache = _Folder(path, kind, persons, codes is not None), rules.cache
    found = found_images(path, kind, persons, shape, codes=codes, rules=rules)
    spec = None if shape is None else shape.preprocess
    if cache is not None and spec is not None and shape is not None and found:
        if spec.percentiles and window is not None:
            spec = windowed(spec, *window)
        settings: list[Any] = [kind, shape.channels, len(shape.size), None if codes is None else list(codes), rules.deidentification]
        settings.append(shape.model_dump(mode="json", include={*_SOURCE}))
        reader = json.dumps([READER_VERSION, settings, [version(package) for package in decoders_of(kind)]])
        entry = _cached(cache, request, found, shape, spec, reader, 0 if codes is None else len(codes))
        if entry is not None:
            read_back = _from_cache(entry, request, found, shape, rules.max_quarantined, counted=bool(spec.percentiles))
            return replace(read_back, units=_units(found))
    if shape is not None and shape.patches is not None and found:
        raise InputError("[cohort.image] patches are drawn from the cache of prepared images, and the site has none; give it one.")
    read: list[tuple[int, Path, Raw]] = []
    whole: dict[int, npt.NDArray[np.uint8]] = {}  # by id of a prepared image: its mask as the file has it
    excluded: list[Exclusion] = []
    persons_with_images: set[int] = set()
    for image in found:
        persons_with_images.add(image.row)
        try:
            raw = image.load()
            read.append((image.row, image.where, _prepared(raw, spec)))
            if spec is not None and codes is not None and (drawn_after := read[-1][2].mask) is not None:
                whole[id(read[-1][2])] = pack(spec, folded(raw), drawn_after[0], len(codes))
        except InputError:
            raise
        except Exception as error:  # a decoder may raise any exception on a damaged file
            excluded.append(Exclusion(persons[image.row], _shown(image.where, request), *_why(error, image, request)))
    if shape is None and read:
        most = Counter(raw.image.shape for _, _, raw in read).most_common(1)[0][0]
        for at, where, raw in [r for r in read if r[2].image.shape != most]:
            place = _shown(where, request)
            text = f"{place}: is {raw.image.shape}, most images in the folder are {most} (channels, *size); resample it to this shape."
            excluded.append(Exclusion(persons[at], place, Unusable.GEOMETRY, text))
        read = [r for r in read if r[2].image.shape == most]
    check_exclusion_limit(excluded, len(persons_with_images), rules.max_quarantined)
    if not read:
        raise _no_images(request, bool(excluded))
    read.sort(key=lambda r: r[0])  # stable: a person's images keep their order
    raws = [raw for _, _, raw in read]
    drawn = [raw.mask for raw in raws if raw.mask is not None]
    return Images(
        np.stack([raw.image for raw in raws]),
        np.array([at for at, _, _ in read], dtype=np.int64),
        np.stack(drawn) if drawn else None,
        np.stack([spacing_after(spec, r.affine, r.image.ndim - 1) for r in raws])
        if drawn and any(raw.affine is not None for raw in raws)
        else None,
        tuple(excluded),
        OriginalMasks(tuple(whole[id(raw)] for raw in raws)) if whole else None,
        units=_units(found),
    )


def _units(found: Sequence[Found]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(image.unit for image in found if image.unit).items()))


def decoders_of(kind: str) -> tuple[str, ...]:
    """The packages whose versions may change the voxels that are read from this format."""
    package = FORMATS[kind].package if kind in FORMATS else ""
    return (*_DECODERS, *([package] if package and package not in _DECODERS else []))


def _no_images(request: _Folder, any_excluded: bool) -> InputError:
    kind = request.kind
    expected = "in its array ids" if kind == "npz" else "as <id>.dcm or <id>/" if kind == "dicom" else "as <id>{0} or <id>/<name>{0}"
    expected = expected.format(FORMATS[kind].endings[0]) if kind in FORMATS else expected
    usable = "usable image with a mask" if request.masked else "usable image" if any_excluded else "image"
    return InputError(f"{request.path}: has no {usable} of a person in the persons table {expected}; correct data.image in site.toml.")


def _cached(
    cache: Path, request: _Folder, found: Sequence[Found], shape: ImageShape, spec: Preprocess, reader: str, classes: int
) -> _Entry | None:
    """The cache entry of these images, and their masks as the files have them; None if an entry cannot be written and the images fit into
    memory."""
    from fedml.cohort.images.cache import CannotKeep, Reader, open_cache

    by_item = {Item(_shown(image.where, request), image.files, image.part): image for image in found}
    aside: dict[Item, Folded] = {}

    def read(item: Item) -> Raw:
        image = by_item[item]
        try:
            raw = image.load()
            if raw.mask is not None:
                aside[item] = folded(raw)
            return raw
        except InputError:
            raise
        except Exception as error:  # a decoder may raise any exception on a damaged file
            raise ItemError(*_why(error, image, request)) from error

    try:
        if spec.percentiles:
            raw = spec.model_copy(update={"percentiles": None, "size": (), "transforms": (), "at_least": ()})
            counting = Reader(read, f"{reader} counted", histogram_item)
            return open_cache(cache, request.path / "voxels", list(by_item), raw, counting, log.info), None
        entry, items = open_cache(cache, request.path, list(by_item), spec, Reader(read, reader), log.info), list(by_item)
        if not request.masked or not len(entry):
            return entry, None
        finder = Finder(lambda item: aside.get(item) or folded(read(item)), reader, classes)
        return entry, open_originals(entry, cache, request.path, items, spec, finder, log.info)
    except CannotKeep as error:
        if shape.percentiles or shape.patches or 4 * len(found) * shape.channels * math.prod(shape.size) > _IN_MEMORY:
            raise
        log.warning("%s The images are read into memory at every start.", error)
        return None


def _from_cache(
    entry: tuple[ImageCache, OriginalMasks | None],
    request: _Folder,
    found: Sequence[Found],
    shape: ImageShape,
    limit: float,
    *,
    counted: bool,
) -> Images:
    """The images of ``found`` in the cache, as ``read_images`` returns them; ``counted``: the cache has histograms."""
    (cache, originals), excluded = entry, []
    for at, reason in sorted(cache.excluded.items()):
        why = _why(ItemError(reason, cache.texts[at]), found[at], request)
        excluded.append(Exclusion(request.persons[found[at].row], _shown(found[at].where, request), *why))
    check_exclusion_limit(excluded, len({f.row for f in found}), limit)
    if not len(cache):
        raise _no_images(request, bool(excluded))
    rows = np.array([found[at].row for at in cache.kept], dtype=np.int64)
    order = np.argsort(rows, kind="stable")  # a person's images keep their order
    if counted:
        view = HistogramView(tuple((cache, at) for at in order.tolist()), (shape.channels, *shape.size))
        return Images(view, rows[order], excluded=tuple(excluded))
    axes = len(cache.shapes[0]) - 1
    spacing = np.array([cache.spacings[at] or (math.nan,) * axes for at in order])
    known = request.masked and bool(np.isfinite(spacing).any())
    patch = None if shape.patches is None else shape.patches.size
    pixels, masks = (
        None if wanted and not request.masked
        else mapped(cache, order, masks=wanted) if patch is None
        else volumes(cache, order.tolist(), patch, masks=wanted)
        for wanted in (False, True)
    )  # fmt: skip
    assert pixels is not None  # noqa: S101  only masks may not be wanted
    return Images(
        pixels,
        rows[order],
        masks,
        spacing if known else None,
        tuple(excluded),
        None if originals is None else originals.take(order),
        shape.patches,
    )


def _prepared(raw: Raw, spec: Preprocess | None) -> Raw:
    if spec is None:
        return raw
    image, mask = prepared(spec, raw.image, raw.affine, raw.mask)
    return Raw(image, raw.affine, mask)


def _shown(path: Path, request: _Folder) -> str:
    """The path of a file, without names in which a rule finds an identifier."""
    root = request.path
    return str(root / shown(path, root)) if path.is_relative_to(root) and path != root else str(path)


def _why(error: Exception, image: Found, request: _Folder) -> tuple[Unusable, str]:
    where = _shown(image.where, request)
    if isinstance(error, ItemError):
        text = str(error)
        for file in image.files:
            if str(file) in text:
                text = text.replace(str(file), _shown(file, request))
        named = where in text or text.startswith("/") or error.reason is Unusable.NOT_DE_IDENTIFIED
        return error.reason, text if named else f"{where}: {text.rstrip('.')}; replace the file."
    text = f"{where}: cannot be read as {request.kind} ({told(error)}); replace or delete the file."
    if isinstance(error, MemoryError):
        return Unusable.TOO_LARGE, text
    short = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return Unusable.TRUNCATED if short else Unusable.UNREADABLE, text
