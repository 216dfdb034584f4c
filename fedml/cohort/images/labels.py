"""Masks as the classes of a study, where the study says which value, or which file, is which class.

    as_classes(values, (0, 1, 2), path, shape)         # with labels = { 1 = [1, 4] } values 1 and 4 are class 1
    of_files(files, (affine, size), shape, (0, 1, 2), where)       # a file for each structure: where it is not 0

A value, or a file, that no class names is background, the first class. A voxel of two classes is refused, unless the study says that the
later (or the earlier) of its classes has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images import masks as mask_files
from fedml.cohort.images.named import stem
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.cohort_section import ImageShape
from fedml.study.section import Code, normal
from fedml.study.series_section import Overlap

Grid = tuple[npt.NDArray[np.float64] | None, Sequence[int]]


def as_classes(values: npt.NDArray[Any], classes: Sequence[Code], path: Path, shape: ImageShape | None) -> npt.NDArray[np.uint8]:
    """(1, *size): the index in ``classes`` of each value of a mask, by the study's ``labels`` if it states them.

    Raises:
        ItemError: mask-mismatch: a value is not a class, and there are no ``labels``; or it is no whole number.
    """
    if shape is None or not shape.labels:
        return mask_files.as_classes(values, classes, path)
    if values.dtype.kind not in "bui" and not np.array_equal(values, np.rint(values)):
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: the mask contains values that are no whole numbers; export it again.")
    of_class = {normal(name): numbers for name, numbers in shape.labels.items()}
    out = np.zeros(values.shape, np.uint8)
    for place, code in enumerate(classes):
        if normal(code) in of_class:
            out[np.isin(values, of_class[normal(code)])] = place
    return out[None]


def merge(out: npt.NDArray[np.uint8], here: npt.NDArray[np.bool_], place: int, overlap: Overlap, path: Path) -> None:
    """Marks the voxels ``here`` as the class of index ``place``.

    Raises:
        ItemError: overlapping-segments: a voxel is of another class, and ``overlap`` does not say which it is.
    """
    before = out[here]
    if overlap == "refuse" and ((before != 0) & (before != place)).any():
        text = f"{path}: a voxel is of two classes; correct the masks, or state [cohort.image] overlap."
        raise ItemError(Unusable.OVERLAPPING_SEGMENTS, text)
    out[here] = np.where(before == 0, place, np.minimum(before, place) if overlap == "earlier" else np.maximum(before, place))


def of_files(files: Sequence[Path], grid: Grid, shape: ImageShape, classes: Sequence[Code], where: Path) -> npt.NDArray[np.uint8]:
    """(1, *size): the classes of a person's mask files, each of one structure, by the patterns of ``shape.mask_files``; every class that it
    names needs a file.

    Args:
        grid: affine and size of the image.

    Raises:
        ItemError: no-mask: there is no file; mask-mismatch: a class has none, or a file is of two classes; or as ``masks.read``.
    """
    out, used = np.zeros(tuple(grid[1]), np.uint8), set[Path]()
    of_class = {normal(name): patterns for name, patterns in shape.mask_files.items()}
    fitting = [
        (place, [p for p in files if any(fnmatchcase(stem(p, mask_files.ENDINGS), pattern) for pattern in of_class[normal(code)])])
        for place, code in enumerate(classes)
        if place and normal(code) in of_class
    ]
    if not any(found for _, found in fitting):
        raise ItemError(Unusable.NO_MASK, f"{where}: has no mask of a class of [cohort.image] mask_files.")
    for place, found in fitting:
        if not found:
            text = (
                f'{where}: no mask fits class "{normal(classes[place])}" of [cohort.image] mask_files; an empty mask says that it has none.'
            )
            raise ItemError(Unusable.MASK_MISMATCH, text)
        for path in found:
            if path in used:
                raise ItemError(Unusable.MASK_MISMATCH, f"{path}: is of two classes of [cohort.image] mask_files.")
            used.add(path)
            merge(out, mask_files.read(path, *grid) != 0, place, shape.overlap, path)
    return out[None]


def files_of(folder: Path | None, person: str) -> list[Path]:
    """The mask files in ``<folder>/<person>/``, sorted."""
    if folder is None or not (folder / person).is_dir():
        return []
    return sorted(path for path in (folder / person).iterdir() if path.is_file() and path.name.endswith(mask_files.ENDINGS))
