"""Starts of a site with many DICOM series: the first, one after which nothing changed, and one after which a series changed.

Synthetic series of 4 slices of 16 x 16 voxels; each start is a process of its own that reads the images of all persons as a study does
(the cache of prepared images included), or finds their series only. Peak memory is that of the process (ru_maxrss).

    .venv/bin/python experiments/bench/series_index.py [SERIES] [SLICES]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from fedml.experiments.bench.timing import machine

_PERSON, _SERIES, _SLICE = "p000000000", "1.2.826.0.1.9.100000000000", "1.2.826.0.1.8.1000000000001"


def template() -> bytes:
    """One slice; its person, series, instance and position have a length that does not change."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(_SLICE)
    dataset.SOPInstanceUID = _SLICE
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PatientID = dataset.PatientName = _PERSON
    dataset.PatientIdentityRemoved, dataset.DeidentificationMethod, dataset.Modality = "YES", "synthetic", "MR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", _SERIES, "1.2.4"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = ["0", "0", "654321.0"], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 1
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = np.random.default_rng(0).integers(0, 900, (16, 16)).astype("<u2").tobytes()
    path = Path(tempfile.mkdtemp()) / "slice.dcm"
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path.read_bytes()


def write_cohort(folder: Path, series: int, slices: int) -> list[str]:
    """One series a person."""
    whole, persons = template(), []
    for n in range(series):
        person = f"p{n:09d}"
        (folder / person).mkdir(parents=True)
        own = whole.replace(_PERSON.encode(), person.encode()).replace(_SERIES.encode(), f"1.2.826.0.1.9.1{n:011d}".encode())
        for k in range(slices):
            one = own.replace(_SLICE.encode(), f"1.2.826.0.1.8.1{n:09d}{k:03d}".encode()).replace(b"654321.0", f"{k:08d}".encode())
            (folder / person / f"{k}.dcm").write_bytes(one)
        persons.append(person)
    return persons


def start(folder: Path, what: str) -> None:
    """One start, in this process; prints what it took."""
    if what == "read":
        import fedml.cohort.images.cache  # noqa: F401 - torch and MONAI take the same seconds at every start
    from fedml.cohort.found_images import ImageRules, found_images
    from fedml.cohort.read_images import read_images
    from fedml.study.cohort_section import ImageShape

    persons = sorted(os.listdir(folder / "images"))
    shape = ImageShape(size=(16, 16, 4), orientation="RAS", window=(0.0, 900.0))
    rules = ImageRules(cache=folder / "cache")
    began, worked = time.perf_counter(), time.process_time()
    count = (
        len(read_images(folder / "images", "dicom", persons, shape, rules=rules).person)
        if what == "read"
        else sum(1 for _ in found_images(folder / "images", "dicom", persons, shape, rules=rules))
    )
    took, cpu, peak = time.perf_counter() - began, time.process_time() - worked, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    below = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu += below.ru_utime + below.ru_stime
    print(json.dumps({"seconds": took, "cpu": cpu, "peak_mb": peak, "images": count}))


def measured(folder: Path, what: str) -> str:
    """One start in a process of its own, as text."""
    done = subprocess.run([sys.executable, __file__, "start", str(folder), what], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return f"{found['seconds']:7.2f} s, of the processor {found['cpu']:7.2f} s, peak {found['peak_mb']:6.0f} MB, {found['images']:,} images"


def main() -> None:
    series, slices = (int(word) for word in [*sys.argv[1:], "2000", "4"][:2]) if len(sys.argv) != 2 else (int(sys.argv[1]), 4)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        persons = write_cohort(place / "images", series, slices)
        os.sync()
        time.sleep(2.5)  # a file that was just written is not remembered
        print(f"{series:,} series of {slices} slices")
        print("series found, first start          ", measured(place, "find"))
        print("series found, nothing changed      ", measured(place, "find"))
        if series <= 5000:
            print("images read, first start           ", measured(place, "read"))
            print("images read, nothing changed       ", measured(place, "read"))
            one = place / "images" / persons[-1] / "0.dcm"
            one.write_bytes(one.read_bytes()[:-2] + b"\1\0")
            print("images read, one slice changed     ", measured(place, "read"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        start(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
