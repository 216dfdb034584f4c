"""What is done to a real DICOM segmentation: kind, name, how often, verdict, reasons, how."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.image_mutations import PERSON, Bench, Mutation
from tests.image_mutations_dicom import ANYTHING, CUT, Change, put


def seg(change: Callable[[Dataset, random.Random], None]) -> Mutation:
    def how(b: Bench, r: random.Random) -> None:
        path = b.masks / f"{PERSON}.dcm"
        dataset = pydicom.dcmread(path)
        change(dataset, r)
        dataset.save_as(path)

    return how


def seg_bytes(change: Callable[[bytes, random.Random], bytes]) -> Mutation:
    def how(b: Bench, r: random.Random) -> None:
        path = b.masks / f"{PERSON}.dcm"
        path.write_bytes(change(path.read_bytes(), r))

    return how


def move(index: int, by: float) -> Change:
    def change(dataset: Dataset, r: random.Random) -> None:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            place = group.PlanePositionSequence[0]
            position = [float(v) for v in place.ImagePositionPatient]
            position[index] += by
            place.ImagePositionPatient = position

    return change


def half_a_pixel(dataset: Dataset, r: random.Random) -> None:
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    move(1, 0.49 * float(spacing[0]))(dataset, r)


def fewer_groups(dataset: Dataset, r: random.Random) -> None:
    dataset.PerFrameFunctionalGroupsSequence = Items(list(dataset.PerFrameFunctionalGroupsSequence)[:-1])


def more_frames(dataset: Dataset, r: random.Random) -> None:
    dataset.NumberOfFrames = int(dataset.NumberOfFrames) * r.choice((2, 1000, 10**6))


def another_segment(dataset: Dataset, r: random.Random) -> None:
    group = r.choice(list(dataset.PerFrameFunctionalGroupsSequence))
    group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def another_series(dataset: Dataset, r: random.Random) -> None:
    other = Dataset()
    other.SeriesInstanceUID = "1.2.3.4.5"
    dataset.ReferencedSeriesSequence = Items([other])


def tilted(dataset: Dataset, r: random.Random) -> None:
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0.98, 0.199, 0, 0, 0, -1]


def frames_in_another_order(dataset: Dataset, r: random.Random) -> None:
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    order = r.sample(range(len(groups)), len(groups))
    pixels = np.frombuffer(dataset.PixelData, np.uint8).reshape(len(groups), -1)
    dataset.PerFrameFunctionalGroupsSequence = Items([groups[k] for k in order])
    dataset.PixelData = pixels[order].tobytes()


def swapped_frames(dataset: Dataset, r: random.Random) -> None:
    """Two frames' positions changed for each other: this file names no slice that a frame was drawn on."""
    one, other = r.sample(list(dataset.PerFrameFunctionalGroupsSequence), 2)
    one.PlanePositionSequence, other.PlanePositionSequence = other.PlanePositionSequence, one.PlanePositionSequence


TABLE: list[tuple[str, str, int, str, str, Mutation]] = [
    ("DICOM + SEG", name, count, verdict, reasons, how)
    for name, count, verdict, reasons, how in [
        ("mask moved in its plane", 1, "wrong", "mask-mismatch", seg(move(1, 5.0))),
        ("mask moved by two slices", 1, "untold", ANYTHING, seg(move(0, 4.0))),
        ("mask of another frame of reference", 1, "wrong", "mask-mismatch", seg(put("FrameOfReferenceUID", "1.2.3.4"))),
        ("mask of another series", 1, "wrong", "mask-mismatch no-mask", seg(another_series)),
        ("mask tilted", 1, "wrong", "mask-mismatch", seg(tilted)),
        ("two frames' positions swapped", 1, "untold", ANYTHING, seg(swapped_frames)),
        ("fewer frames described than declared", 1, "wrong", "wrong-length", seg(fewer_groups)),
        ("more frames declared", 2, "wrong", "wrong-length too-large", seg(more_frames)),
        ("a segment that is not described", 1, "wrong", "mask-mismatch", seg(another_segment)),
        ("mask cut short", 2, "wrong", CUT + " not-an-image", seg_bytes(lambda data, r: data[: r.randrange(200, len(data) - 2)])),
        ("mask is no DICOM", 1, "wrong", "unreadable not-an-image", seg_bytes(lambda data, r: r.randbytes(2000))),
        ("frames in another order", 1, "harmless", ANYTHING, seg(frames_in_another_order)),
        ("origin half a pixel off", 1, "harmless", ANYTHING, seg(half_a_pixel)),
    ]
]  # fmt: skip
