"""The first reading of images, prepared and written to the image cache, against MONAI's ``LoadImaged`` with the same transforms.

Ours reads as a site does: de-identification checked, geometry checked, files and results hashed, half precision on the disk. MONAI loads
and transforms, and keeps nothing. Both on one thread, in turn, on copies of one DICOM series and one NIfTI volume (public data).

    .venv/bin/python experiments/bench/image_cold.py [REPEATS] [PERSONS]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import pydicom
import torch

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.transforms import deterministic
from fedml.cohort.read_images import read_images
from fedml.experiments.bench.timing import machine, paired, seconds, table
from fedml.quiet import hush_process
from fedml.study.cohort_section import ImageShape
from fedml.study.imaging import Preprocess

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE = ImageShape(size=(96, 96, 48), orientation="RAS", spacing_mm=(1.5, 1.5, 3.0), window=(0.0, 1500.0))
SPEC = Preprocess(size=(96, 96, 48), orientation="RAS", spacing_mm=(1.5, 1.5, 3.0), window=(0.0, 1500.0))


def dicom(folder: Path, persons: int) -> list[Path]:
    """One series a person, each with the person's id."""
    source = sorted((DATA / "dicom_mr" / "UCSF-BR-06" / "image_dce_ser").glob("*.dcm"))
    for n in range(persons):
        for k, path in enumerate(source):
            dataset = pydicom.dcmread(path)
            dataset.PatientID = f"p{n}"
            (folder / f"p{n}").mkdir(parents=True, exist_ok=True)
            dataset.save_as(folder / f"p{n}" / f"{k}.dcm")
    return [folder / f"p{n}" for n in range(persons)]


def nifti(folder: Path, persons: int) -> list[Path]:
    """One compressed volume a person."""
    source = DATA / "nifti" / "spleen_ct" / "sub-spleen2" / "ct" / "sub-spleen2_ct.nii.gz"
    folder.mkdir(parents=True)
    for n in range(persons):
        shutil.copy(source, folder / f"p{n}.nii.gz")
    return [folder / f"p{n}.nii.gz" for n in range(persons)]


def ours(folder: Path, kind: str, persons: int) -> float:
    """Seconds of a first reading."""
    with tempfile.TemporaryDirectory() as cache:
        return seconds(lambda: read_images(folder, kind, [f"p{n}" for n in range(persons)], SHAPE, rules=ImageRules(cache=Path(cache))))


def theirs(paths: list[Path], reader: str) -> float:
    """Seconds of MONAI's reading."""
    steps: list[Any] = [
        mt.LoadImaged("image", reader=reader, ensure_channel_first=True),
        *deterministic(SPEC, ("image",)).transforms,
    ]
    load = mt.Compose(steps)
    return seconds(lambda: [load({"image": str(path)}) for path in paths])


def main() -> None:
    """Measures and prints."""
    repeats, persons = (*map(int, sys.argv[1:3]), *(5, 4)[len(sys.argv[1:3]) :])
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    hush_process()
    print(machine())
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind, make, reader in (("dicom", dicom, "PydicomReader"), ("nifti", nifti, "NibabelReader")):
            paths = make(Path(temporary) / kind, persons)
            check(Path(temporary) / kind, kind, paths, reader)
            pairs = paired(partial(ours, Path(temporary) / kind, kind, persons), partial(theirs, paths, reader), repeats)
            rows.append(pairs.row(kind, 1e3 / persons))
    table(f"first reading of an image, median of {repeats}", ("", "ours (ms)", "MONAI (ms)", "ratio", "range"), rows)


def check(folder: Path, kind: str, paths: list[Path], reader: str) -> None:
    """Both give the same voxels, within half precision; MONAI's reader of DICOM may have other corners of the grid."""
    read = read_images(folder, kind, ["p0"], SHAPE).pixels[0]
    load = mt.Compose([mt.LoadImaged("image", reader=reader, ensure_channel_first=True), *deterministic(SPEC, ("image",)).transforms])
    other = np.asarray(load({"image": str(paths[0])})["image"])
    assert read.shape == other.shape
    print(f"{kind}: {np.mean(np.abs(read - other) < 2**-9):.4f} of the voxels are equal within half precision")


if __name__ == "__main__":
    main()
