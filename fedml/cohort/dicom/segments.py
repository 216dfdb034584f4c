"""Segments of DICOM segmentations and regions of RT structure sets by their name or code, as the classes of a study; a series may have
several of both.

    values = read_classes(paths, volume, {"1": ("spleen*", "SCT:78961009")}, (0, 1))      # uint8: the index of the class

A segment that no class names is background, as the first class is. A segment that two classes name is refused, and so is a voxel of two
classes, unless the study says which has it (``fedml.cohort.images.labels``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import open_dataset, reading
from fedml.cohort.dicom.header_index import header_of
from fedml.cohort.dicom.segmentation import read_seg
from fedml.cohort.dicom.series import Volume
from fedml.cohort.dicom.structures import MODALITY, names_of_regions, open_regions, read_regions
from fedml.cohort.images.labels import merge
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.section import Code, normal
from fedml.study.series_section import Overlap

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_classes(
    paths: Sequence[Path], volume: Volume, segments: Mapping[str, Sequence[str]], classes: Sequence[Code], overlap: Overlap = "refuse"
) -> npt.NDArray[np.uint8]:
    """The index in ``classes`` of each voxel of ``volume``, (columns, rows, slices).

    Args:
        paths: segmentations and structure sets of the image, at least one.
        segments: class, as text -> patterns of segment labels or names of regions (capitals do not matter), or codes as ``SCHEME:VALUE``
            of a segment's type.

    Raises:
        ItemError: mask-mismatch: no segment is of a class, or one is of two; overlapping-segments: a voxel is of two classes; or as
            ``read_seg``.
    """
    known = [normal(code) for code in classes]
    out = np.zeros(volume.voxels.shape[:3], np.uint8)
    any_found = False
    for path in paths:
        with reading(path):
            regions = header_of(path).modality == MODALITY
            names = names_of_regions(open_regions(path)) if regions else _names_of_segments(open_dataset(path, pixels=False))
        of_class = {
            place: [n for n, own in names.items() if _fits(own, segments[name])] for place, name in enumerate(known) if name in segments
        }
        numbers = [n for found in of_class.values() for n in found]
        if twice := sorted({n for n in numbers if numbers.count(n) > 1}):
            raise ItemError(Unusable.MASK_MISMATCH, f"{path}: segment {twice[0]} is of two classes of [cohort.image] segments.")
        for place, found in of_class.items():
            if not found:
                continue
            any_found = True
            here = read_regions(path, volume, found) if regions else read_seg(path, volume, segments=found)[0] > 0
            merge(out, here, place, overlap, path)
    if not any_found:
        raise ItemError(Unusable.MASK_MISMATCH, f"{paths[0]}: none of its segments is a class of [cohort.image] segments.")
    return out


def _names_of_segments(dataset: Dataset) -> dict[int, list[str]]:
    return {int(one.SegmentNumber): names_of(one) for one in dataset.get("SegmentSequence") or []}


def names_of(segment: Dataset) -> list[str]:
    """What a segment may be called by: its label, and the code of its property type as ``SCHEME:VALUE``."""
    kind = segment.get("SegmentedPropertyTypeCodeSequence") or []
    coded = [f"{one.get('CodingSchemeDesignator') or ''}:{one.get('CodeValue') or ''}" for one in kind]
    return [str(segment.get("SegmentLabel") or ""), *coded]


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.strip().casefold(), pattern.casefold()) for name in names if name for pattern in patterns)
