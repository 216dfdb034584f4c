"""Images of persons: files of one image each (``fedml.cohort.images.formats``), DICOM series, or one ``.npz`` array.

Files: ``<id>.<ending>``, or ``<id>/<anything>.<ending>`` where a person has several (DICOM: ``fedml.cohort.dicom.persons``). An ``.npz``
holds ``ids`` (text), ``images`` (images, then the axes of one image) and for segmentation ``masks`` (images, *size); an id may stand there
several times. Intensities stay raw unless the study says otherwise; the model standardises.

    images = read_images(Path("images"), "nifti", ids, study.cohort.image)
    images.aside                                       # excluded images, each with its reason

An unusable image is excluded and the others are read; too many of them are one ``TooManyAside``.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.deidentified import Deidentification
from fedml.cohort.images import masks as mask_files
from fedml.cohort.images.bounds import require_plausible
from fedml.cohort.images.formats import FORMATS
from fedml.cohort.images.histograms import Counted, counted
from fedml.cohort.images.images import Images
from fedml.cohort.images.items import Item, Raw
from fedml.cohort.images.mapped import mapped
from fedml.cohort.images.reasons import Aside, ItemError, Unusable
from fedml.cohort.images.transforms import prepared, spacing_after, windowed
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.imaging import Preprocess
from fedml.study.section import Code

if TYPE_CHECKING:
    from fedml.cohort.images.cache import ImageCache

Affine = npt.NDArray[np.float64]
READER_VERSION = 1  # increment when a reader returns other values for the same file
_DECODERS = ("nibabel", "numpy", "pillow", "pydicom")
_IN_MEMORY = 2**30  # bytes of prepared images that are held in memory where they cannot be kept on disk
log = logging.getLogger("fedml.site")


class TooManyAside(InputError):
    """More persons have an unusable image than the site's policy allows; ``aside``: all excluded images."""

    def __init__(self, text: str, aside: tuple[Aside, ...] = ()) -> None:
        super().__init__(text)
        self.aside = aside


@dataclass(frozen=True)
class ImageRules:
    """How a site treats its images.

    Args:
        masks: the folder of masks.
        deidentification: what is done with a DICOM file that is not de-identified.
        max_quarantined: the largest fraction of the persons with images of whom an image may be excluded.
        cache: folder of prepared images (``fedml.cohort.images.cache``); None: they are held in memory. If it cannot be written, this is
            logged, and they are held in memory if they fit.
    """

    masks: Path | None = None
    deidentification: Deidentification = "quarantine"
    max_quarantined: float = 0.1
    cache: Path | None = None


class _Folder(NamedTuple):
    """What was asked for: images of the format ``kind`` in ``path``, of ``persons``; only those with masks if ``masked``."""

    path: Path
    kind: str
    persons: list[str]
    masked: bool


class _Found(NamedTuple):
    """An image of the person in ``row``: ``where`` names it, ``load`` reads it, from ``files`` and according to ``part``."""

    row: int
    where: Path
    load: Callable[[], Raw]
    files: tuple[Path, ...]
    part: str = ""


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
        TooManyAside: persons with an excluded image exceed ``rules.max_quarantined``; the sentence names the first file.
        InputError: a folder or array is missing; no person has an image; a file is not de-identified and the policy is to refuse.
    """
    asked, cache = _Folder(path, kind, persons, codes is not None), rules.cache
    row = {person: at for at, person in enumerate(persons)}
    found = list(
        _npz(path, row, shape, codes)
        if kind == "npz"
        else _dicom(path, row, shape, codes, rules)
        if kind == "dicom"
        else _files(path, kind, row, shape, rules.masks, codes)
    )
    spec = None if shape is None else shape.preprocess
    if cache is not None and spec is not None and shape is not None and found:
        if spec.percentiles and window is not None:
            spec = windowed(spec, *window)
        how = [kind, shape.channels, len(shape.size), None if codes is None else list(codes), rules.deidentification]
        reader = json.dumps([READER_VERSION, how, [version(package) for package in decoders_of(kind)]])
        kept = _kept(cache, asked, found, shape, spec, reader)
        if kept is not None:
            one = (shape.channels, *shape.size)
            return _from_cache(kept, asked, found, one if spec.percentiles else None, rules.max_quarantined)
    read: list[tuple[int, Path, Raw]] = []
    aside: list[Aside] = []
    seen: set[int] = set()
    for at, where, load, _, _ in found:
        seen.add(at)
        try:
            read.append((at, where, _prepared(load(), spec)))
        except InputError:
            raise
        except Exception as error:  # a decoder raises whatever it likes on a broken file
            reason, text = _why(error, where, kind)
            aside.append(Aside(persons[at], str(where), reason, text))
    if shape is None and read:
        most = Counter(raw.image.shape for _, _, raw in read).most_common(1)[0][0]
        for at, where, raw in [r for r in read if r[2].image.shape != most]:
            text = f"{where}: is {raw.image.shape}, most images here are {most} (channels, *size); make them alike."
            aside.append(Aside(persons[at], str(where), Unusable.GEOMETRY, text))
        read = [r for r in read if r[2].image.shape == most]
    hold(aside, len(seen), rules.max_quarantined)
    if not read:
        raise _no_images(asked, bool(aside))
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
        tuple(aside),
    )


def decoders_of(kind: str) -> tuple[str, ...]:
    """The packages whose versions decide what is read of an image of that format."""
    own = FORMATS[kind].package if kind in FORMATS else ""
    return (*_DECODERS, *([own] if own and own not in _DECODERS else []))


def _no_images(asked: _Folder, aside: bool) -> InputError:
    kind = asked.kind
    expected = "in its array ids" if kind == "npz" else "as <id>.dcm or <id>/" if kind == "dicom" else "as <id>{0} or <id>/<name>{0}"
    expected = expected.format(FORMATS[kind].endings[0]) if kind in FORMATS else expected
    usable = "image with a mask that can be used" if asked.masked else "image that can be used" if aside else "image"
    return InputError(f"{asked.path}: holds no {usable} of a person in the persons table {expected}; correct data.image in site.toml.")


def _kept(cache: Path, asked: _Folder, found: Sequence[_Found], shape: ImageShape, spec: Preprocess, reader: str) -> ImageCache | None:
    """The cache's entry of these images; None where it cannot be written and they fit into memory."""
    from fedml.cohort.images.cache import CannotKeep, Reader, open_cache

    by_item = {Item(str(one.where), one.files, one.part): one for one in found}

    def read(item: Item) -> Raw:
        one = by_item[item]
        try:
            return one.load()
        except InputError:
            raise
        except Exception as error:  # a decoder raises whatever it likes on a broken file
            raise ItemError(*_why(error, one.where, asked.kind)) from error

    try:
        if spec.percentiles:
            raw = spec.model_copy(update={"percentiles": None, "size": ()})
            return open_cache(cache, asked.path / "voxels", list(by_item), raw, Reader(read, f"{reader} counted", counted), log.info)
        return open_cache(cache, asked.path, list(by_item), spec, Reader(read, reader), log.info)
    except CannotKeep as error:
        if shape.percentiles or 4 * len(found) * shape.channels * math.prod(shape.size) > _IN_MEMORY:
            raise
        log.warning("%s The images are read into memory, and will be again at the next start.", error)
        return None


def _from_cache(cache: ImageCache, asked: _Folder, found: Sequence[_Found], one: tuple[int, ...] | None, max_quarantined: float) -> Images:
    """The images of ``found`` that are in the cache, as ``read_images`` returns them; ``one``: shape of an image if the cache has
    histograms."""
    aside = []
    for at, reason in sorted(cache.left_out.items()):
        where = found[at].where
        reason, text = _why(ItemError(reason, cache.texts[at]), where, asked.kind)
        aside.append(Aside(asked.persons[found[at].row], str(where), reason, text))
    hold(aside, len({f.row for f in found}), max_quarantined)
    if not len(cache):
        raise _no_images(asked, bool(aside))
    rows = np.array([found[at].row for at in cache.kept], dtype=np.int64)
    order = np.argsort(rows, kind="stable")  # a person's images keep their order
    if one is not None:
        return Images(Counted(tuple((cache, at) for at in order.tolist()), one), rows[order], aside=tuple(aside))
    axes = len(cache.shapes[0]) - 1
    spacing = np.array([cache.spacings[at] or (math.nan,) * axes for at in order])
    known = asked.masked and bool(np.isfinite(spacing).any())
    return Images(
        mapped(cache, order),
        rows[order],
        mapped(cache, order, masks=True) if asked.masked else None,
        spacing if known else None,
        tuple(aside),
    )


def _prepared(raw: Raw, spec: Preprocess | None) -> Raw:
    if spec is None:
        return raw
    image, mask = prepared(spec, raw.image, raw.affine, raw.mask)
    return Raw(image, raw.affine, mask)


def _why(error: Exception, where: Path, kind: str) -> tuple[Unusable, str]:
    if isinstance(error, ItemError):
        text = str(error)
        return error.reason, text if str(where) in text or text.startswith("/") else f"{where}: {text.rstrip('.')}; replace the file."
    text = f"{where}: cannot be read as {kind} ({_short(error)}); replace the file or take it away."
    if isinstance(error, MemoryError):
        return Unusable.TOO_LARGE, text
    short = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return Unusable.TRUNCATED if short else Unusable.UNREADABLE, text


def hold(aside: Sequence[Aside], persons: int, most: float) -> None:
    """Raises ``TooManyAside`` above the fraction ``most`` of ``persons``; an image that nobody drew a mask for is no fault."""
    faults = [a for a in aside if a.reason is not Unusable.NO_MASK]
    hit = len({a.person for a in faults})
    if faults and hit > most * persons:
        told = f"{hit} of {persons} persons with images have one that cannot be used, [policy] max_quarantined is {most:g}"
        raise TooManyAside(f"{faults[0].text.rstrip('.')} ({told}).", tuple(aside))


def _dicom(
    folder: Path, row: dict[str, int], shape: ImageShape | None, codes: Sequence[Code] | None, rules: ImageRules
) -> Iterator[_Found]:
    from fedml.cohort.dicom.persons import Masks, Series, series_of

    def load(read: Callable[[], Series], where: Path) -> Raw:
        one = read()
        return Raw(channels_first(one.voxels, shape, where, volumes=not one.flat), one.affine, one.mask)

    _need_folder(folder)
    axes = None if shape is None else len(shape.size)
    masks = None if codes is None else Masks(rules.masks, codes)
    for person, at in row.items():
        for where, files, read in series_of(folder, person, masks=masks, axes=axes, deidentification=rules.deidentification):
            # A file's name decides how it is read, and the person's id whether it is de-identified.
            yield _Found(at, where, partial(load, read, where), files, json.dumps([person, *(file.name for file in files)]))


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct data.image in site.toml.")


def _files(
    folder: Path, kind: str, row: dict[str, int], shape: ImageShape | None, masks: Path | None, codes: Sequence[Code] | None
) -> Iterator[_Found]:
    form = FORMATS[kind]

    def load(path: Path, drawn: Path | None) -> Raw:
        raw, affine = form.read(path)
        image = channels_first(raw, shape, path, volumes=form.volumes)
        if codes is None:
            return Raw(image, affine)
        if drawn is None:
            raise ItemError(Unusable.NO_MASK, f"{path}: has no mask.")
        return Raw(image, affine, mask_files.as_classes(mask_files.read(drawn, affine, image.shape[1:]), codes, drawn))

    _need_folder(folder)
    for person, at in row.items():
        own = [(folder / f"{person}{ending}", person, ending) for ending in form.endings]
        if (folder / person).is_dir():
            inside = sorted(p for p in (folder / person).iterdir() if p.name.endswith(form.endings))
            own += [(p, f"{person}/{p.name}", next(e for e in form.endings if p.name.endswith(e))) for p in inside]
        for path, name, ending in own:
            if path.exists():
                drawn = None if masks is None or codes is None else mask_files.find(masks, name.removesuffix(ending))
                files = (path,) if drawn is None else (path, drawn)
                yield _Found(at, path, partial(load, path, drawn), files, json.dumps([file.name for file in files]))


def _npz(path: Path, row: dict[str, int], shape: ImageShape | None, codes: Sequence[Code] | None) -> Iterator[_Found]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sizes = {entry.filename: (entry.compress_size, entry.file_size) for entry in arrays.zip.infolist()}
            for name in ("ids.npy", "images.npy"):  # masks are mostly nothing, and are held against the images
                require_plausible(path, *sizes.get(name, (0, 0)))
            if sizes.get("masks.npy", (0, 0))[1] > 8 * sizes.get("images.npy", (0, 0))[1] + 4096:
                raise ValueError("its masks are larger than its images")
            ids, images = arrays["ids"].astype(str), arrays["images"]
            drawn = arrays["masks"] if codes is not None and "masks" in arrays else None
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct data.image in site.toml.") from error
    except Exception as error:  # zip, zlib and numpy each have their own
        raise InputError(f"{path}: cannot be read as .npz with arrays ids and images ({_short(error)}); save it again.") from error
    if ids.ndim != 1 or images.ndim < 3:
        raise InputError(f"{path}: ids is {ids.shape} and images {images.shape}; ids has one axis, images one more than an image.")
    if len(ids) != len(images):
        raise InputError(f"{path}: has {len(ids)} ids but {len(images)} images; give one id an image.")
    if codes is not None and (drawn is None or drawn.ndim < 3 or len(drawn) != len(ids)):
        raise InputError(f"{path}: has no array masks with one mask an image, as segmentation needs; add it.")

    def load(k: int) -> Raw:
        image = channels_first(images[k], shape, path)
        if codes is None or drawn is None:
            return Raw(image)
        if drawn[k].shape != image.shape[1:]:
            text = f"{path}: the mask of image {k} is {drawn[k].shape}, the image {image.shape[1:]}; make them alike."
            raise ItemError(Unusable.MASK_MISMATCH, text)
        return Raw(image, None, mask_files.as_classes(drawn[k], codes, path))

    for k, person in enumerate(ids):
        if person in row:
            yield _Found(row[person], path, partial(load, k), (path,), str(k))


def channels_first(raw: npt.NDArray[Any], shape: ImageShape | None, path: Path, *, volumes: bool = False) -> npt.NDArray[Any]:
    """``raw`` as (channels, *size), uint8 or float32. Where the study preprocesses, ``size`` is not asked for yet.

    Raises:
        ItemError: the image cannot be brought to ``shape`` by naming its axes, or a voxel is not finite.
    """
    if raw.dtype.kind not in "buif":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: holds {raw.dtype}, not plain numbers; replace the file or take it away.")
    out = _any_shape(raw, path, volumes) if shape is None else _named_axes(raw, shape)
    if out is None and shape is not None:
        text = f"{path}: is {raw.shape}, the study expects {shape.size} with {shape.channels} channel(s); "
        raise ItemError(Unusable.GEOMETRY, text + "resample it or change [cohort.image].")
    assert out is not None  # noqa: S101 - for the type checker
    if out.dtype != np.uint8:
        out = out.astype(np.float32)
        if not np.isfinite(out).all():
            raise ItemError(Unusable.NON_FINITE, f"{path}: holds voxels that are not finite numbers; replace the file or take it away.")
    return np.ascontiguousarray(out)


def _any_shape(raw: npt.NDArray[Any], path: Path, volumes: bool) -> npt.NDArray[Any]:
    if not 2 <= raw.ndim <= 4:
        text = f"{path}: has {raw.ndim} axes, an image has 2 to 4; replace the file or take it away."
        raise ItemError(Unusable.NOT_AN_IMAGE, text)
    picture = raw.ndim == 3 and raw.shape[-1] in ((1,) if volumes else (1, 3, 4))
    return np.moveaxis(raw, -1, 0) if picture or raw.ndim == 4 else raw[None]


def _named_axes(raw: npt.NDArray[Any], shape: ImageShape) -> npt.NDArray[Any] | None:
    free = shape.preprocess is not None
    axes = len(shape.size)

    def fits(size: tuple[int, ...]) -> bool:
        return len(size) == axes and (free or size == shape.size)

    if shape.channels == 1 and fits(raw.shape):
        return raw[None]
    if raw.ndim == axes + 1:
        last, first = raw.shape[-1] == shape.channels, raw.shape[0] == shape.channels
        if first and fits(raw.shape[1:]) and not (free and last):
            return raw
        if last and fits(raw.shape[:-1]):
            return np.moveaxis(raw, -1, 0)
    return None


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120].rstrip(".")
