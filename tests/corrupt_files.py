"""Images and masks of every format, whole and damaged in ways that are known: the reader must refuse a case, or read what the file holds.

    for case in cases(300): made = case.make(folder)         # the same files in each run

A case says what must be read, or that nothing true can be read from it, so that it must be refused.
"""

from __future__ import annotations

import bz2
import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image

from tests.dicom_files import write_seg, write_series
from tests.structure_files import write_structures

SEED = 31
SIZE = (9, 8, 6)  # columns, rows, slices
ABOUT = {"PatientIdentityRemoved": "YES", "PatientID": "p"}


class Made(NamedTuple):
    """A case on the disk: ``format`` of data.image; ``image`` and ``mask``: what must be read, None: it must be refused."""

    format: str
    image: Any
    mask: Any = None
    masked: bool = False
    harmless: bool = False  # what is damaged says nothing of the voxels: it may be refused too


class Case(NamedTuple):
    number: int
    kind: str
    damage: str
    make: Callable[[Path], Made]


def voxels(r: random.Random, low: int = -900, high: int = 900) -> Any:
    """(columns, rows, slices) int16, no two slices alike."""
    return np.random.default_rng(r.randrange(2**32)).integers(low, high, SIZE).astype(np.int16)


# --- DICOM


def series(folder: Path, r: random.Random) -> tuple[list[Path], Any]:
    values = voxels(r)
    return write_series(folder / "i" / "p", values.transpose(2, 1, 0), **ABOUT), values.astype(np.float32) - 1024


def edited(change: Callable[[Any, random.Random], None], *, every: bool = False) -> Callable[..., None]:
    def how(files: list[Path], r: random.Random) -> None:
        for path in files if every else [files[r.randrange(1, len(files) - 1)]]:
            dataset = pydicom.dcmread(path)
            change(dataset, r)
            dataset.save_as(path)

    return how


def put(**values: Any) -> Callable[[Any, random.Random], None]:
    def change(dataset: Any, r: random.Random) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def _cut(files: list[Path], r: random.Random) -> None:
    path = files[r.randrange(len(files))]
    data = path.read_bytes()
    path.write_bytes(data[: r.randrange(1, len(data) - 1)])


def _gone(files: list[Path], r: random.Random) -> None:
    files[r.randrange(1, len(files) - 1)].unlink()


def _twice(files: list[Path], r: random.Random) -> None:
    dataset = pydicom.dcmread(files[r.randrange(len(files))])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID + ".9"
    dataset.save_as(files[0].parent / "again.dcm")


def _moved(files: list[Path], r: random.Random) -> None:
    path = files[r.randrange(1, len(files) - 1)]
    dataset = pydicom.dcmread(path)
    place = [float(v) for v in dataset.ImagePositionPatient]
    axis, by = r.choice([(2, 1.5), (2, 3.0), (0, 4.0), (1, -5.0)])
    place[axis] += by
    dataset.ImagePositionPatient = place
    dataset.save_as(path)


def _swapped(files: list[Path], r: random.Random) -> None:
    """Positions of two slices, which Slice Location betrays."""
    for k, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.SliceLocation = 3.0 * k
        dataset.save_as(path)
    one, other = (pydicom.dcmread(files[k]) for k in (1, 3))
    one.ImagePositionPatient, other.ImagePositionPatient = other.ImagePositionPatient, one.ImagePositionPatient
    one.save_as(files[1])
    other.save_as(files[3])


DICOM: dict[str, Callable[..., None]] = {
    "cut": _cut, "slice missing": _gone, "slice twice": _twice, "slice moved": _moved, "slices swapped": _swapped,
    "rows": edited(put(Rows=9)), "columns": edited(put(Columns=8)), "rows of all": edited(put(Rows=4096), every=True),
    "slope 0": edited(put(RescaleSlope=0), every=True), "slope beyond float32": edited(put(RescaleSlope="1e38"), every=True),
    "another unit": edited(put(RescaleType="OD")), "another spacing": edited(put(PixelSpacing=[3, 3])),
    "spacing 0": edited(put(PixelSpacing=[0, 0]), every=True),
    "another orientation": edited(put(ImageOrientationPatient=[0, 1, 0, 1, 0, 0])),
    "skewed orientation": edited(put(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]), every=True),
    "bits allocated": edited(put(BitsAllocated=8)), "bits stored": edited(put(BitsStored=24)), "frames": edited(put(NumberOfFrames=3)),
    "another modality": edited(put(Modality="MR")), "a localizer": edited(put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "short pixels": edited(lambda d, r: setattr(d, "PixelData", d.PixelData[:-2])),
    "long pixels": edited(lambda d, r: setattr(d, "PixelData", d.PixelData + b"\1\2")),
    "no pixels": edited(lambda d, r: delattr(d, "PixelData")), "another person": edited(put(PatientID="q")),
}  # fmt: skip


def dicom(name: str) -> Callable[[Path, random.Random], Made]:
    def make(folder: Path, r: random.Random) -> Made:
        files, values = series(folder, r)
        if name == "a slice's own slope":  # harmless: it is applied slice by slice
            dataset = pydicom.dcmread(files[2])
            dataset.RescaleSlope, dataset.RescaleIntercept = 2, 7
            dataset.save_as(files[2])
            values[:, :, 2] = (values[:, :, 2] + 1024) * 2 + 7
            return Made("dicom", values)
        if name == "names in another order":
            names = files[:]
            r.shuffle(names)
            for path in files:
                path.rename(path.with_suffix(".old"))
            for path, to in zip(files, names, strict=True):
                path.with_suffix(".old").rename(to)
            return Made("dicom", values)
        DICOM[name](files, r)
        return Made("dicom", None)

    return make


def segmented(name: str) -> Callable[[Path, random.Random], Made]:
    def make(folder: Path, r: random.Random) -> Made:
        _, values = series(folder, r)
        drawn = np.random.default_rng(r.randrange(2**32)).integers(0, 2, SIZE).astype(np.uint8)
        planes = [(1, (-5.0, 7.0, 10.0 + 3 * k), drawn[:, :, k].T) for k in range(SIZE[2])]
        r.shuffle(planes)  # the order of frames does not matter
        more: dict[str, Any] = dict(ABOUT)
        (folder / "m").mkdir()
        if name == "half a slice off":
            planes = [(n, (x, y, z + 1.5), p) for n, (x, y, z), p in planes]
        elif name == "a slice beyond":
            planes = [(n, (x, y, z + 3), p) for n, (x, y, z), p in planes]
        elif name == "frame twice":
            planes.append(planes[0])
        elif name == "turned":
            more["axes"] = (0, 1, 0, 1, 0, 0)
        elif name == "another spacing":
            more["spacing"] = (2.4, 1.8)
        elif name == "another reference":
            more["FrameOfReferenceUID"] = "1.2.3"
        elif name == "shifted in the plane":
            planes = [(n, (x + 1.2, y, z), p) for n, (x, y, z), p in planes]
        path = write_seg(folder / "m" / "p.dcm", planes, **more)
        if name == "cut":
            data = path.read_bytes()
            path.write_bytes(data[: r.randrange(len(data) // 2, len(data) - 1)])
        elif name == "a group missing":
            dataset = pydicom.dcmread(path)
            del dataset.PerFrameFunctionalGroupsSequence[0]
            dataset.save_as(path)
        whole = name == "frames in any order"
        return Made("dicom", values if whole else None, drawn if whole else None, True)

    return make


def structured(name: str) -> Callable[[Path, random.Random], Made]:
    def make(folder: Path, r: random.Random) -> Made:
        _, values = series(folder, r)
        low, high, first = r.randrange(1, 3), r.randrange(4, 7), r.randrange(0, 3)
        drawn = np.zeros(SIZE, np.uint8)
        drawn[low:high, low:high, first : first + 3] = 1

        def corner(c: float, row: float, k: float) -> tuple[float, float, float]:
            return -5 + 1.5 * c, 7 + 2 * row, 10 + 3.0 * k

        shift = {"between slices": 0.4, "beyond": 7.0}.get(name, 0.0)
        a, b = low - 0.5, high - 0.5
        outlines: list[Any] = [
            [corner(a, a, k + shift), corner(b, a, k + shift), corner(b, b, k + shift), corner(a, b, k + shift)]
            for k in range(first, first + 3)
        ]
        if name == "a point not finite":
            outlines[1][2] = (float("nan"), 1.0, 1.0)
        elif name == "across slices":
            outlines[0][0] = corner(a, a, first + 1)
        elif name == "twice":
            outlines.append(outlines[0])
        elif name == "crossing":
            outlines.append([corner(x + 1, y + 1, first) for x, y in ((a, a), (b, a), (b, b), (a, b))])
        elif name == "outside":
            outlines[0] = [corner(x + 20, y, first) for x, y in ((a, a), (b, a), (b, b), (a, b))]
        elif name == "a count":
            outlines[0] = {"points": outlines[0], "NumberOfContourPoints": 3}
        elif name == "a point":
            outlines[0] = {"points": outlines[0], "ContourGeometricType": "POINT"}
        elif name == "every second slice":
            outlines = [outlines[0], outlines[2]]
        elif name == "another slice named":
            outlines[0] = {"points": outlines[0], "source": pydicom.dcmread(folder / "i" / "p" / "5.dcm").SOPInstanceUID}
        more: dict[str, Any] = {"another series": {"series": "1.2.3"}, "another reference": {"reference": "1.2.3"}}.get(name, {})
        path = write_structures(folder / "m" / "p.dcm", {"GTV": outlines}, **more, **ABOUT)
        if name == "cut":
            data = path.read_bytes()
            path.write_bytes(data[: r.randrange(200, len(data) - 8)])
        whole = name in ("whole", "points in the other direction")
        return Made("dicom", values if whole else None, drawn if whole else None, True)

    return make


# --- files of one image


def _nifti(values: Any) -> bytes:
    out = io.BytesIO()
    image = nibabel.Nifti1Image(values, np.diag([-1.5, -2.0, 3.0, 1.0]))
    image.to_file_map({"image": nibabel.FileHolder(fileobj=out), "header": nibabel.FileHolder(fileobj=out)})
    return out.getvalue()


def _nrrd(values: Any, encoding: str = "raw") -> bytes:
    pack = {"raw": bytes, "gzip": lambda b: gzip.compress(b, mtime=0), "bzip2": bz2.compress}[encoding]
    head = (
        "NRRD0004\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 9 8 6\n"
        "space directions: (1.5,0,0) (0,2,0) (0,0,3)\nkinds: domain domain domain\nendian: little\n"
        f"encoding: {encoding}\nspace origin: (0,0,0)\n\n"
    )
    return head.encode() + pack(values.astype("<i2").tobytes(order="F"))


def _mha(values: Any, packed: bool = False) -> bytes:
    body = values.astype("<i2").tobytes(order="F")
    body = zlib.compress(body) if packed else body
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {packed}\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1.5 2 3\nDimSize = 9 8 6\nElementType = MET_SHORT\n"
        "ElementDataFile = LOCAL\n"
    )
    return head.encode() + body


def _png(values: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray((values[:, :, 0].T & 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _tiff(values: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values.transpose(2, 1, 0), photometric="minisblack", metadata=None, **options)
    return out.getvalue()


WRITERS: dict[str, tuple[str, str, Callable[[Any], bytes]]] = {
    "NIfTI": ("nifti", ".nii", _nifti), "NIfTI, gzip": ("nifti", ".nii.gz", lambda v: gzip.compress(_nifti(v), mtime=0)),
    "NRRD": ("nrrd", ".nrrd", _nrrd), "NRRD, gzip": ("nrrd", ".nrrd", lambda v: _nrrd(v, "gzip")),
    "NRRD, bzip2": ("nrrd", ".nrrd", lambda v: _nrrd(v, "bzip2")), "MHA": ("mha", ".mha", _mha),
    "MHA, packed": ("mha", ".mha", lambda v: _mha(v, True)), "PNG": ("png", ".png", _png), "TIFF": ("tiff", ".tif", _tiff),
    "TIFF, deflate": ("tiff", ".tif", lambda v: _tiff(v, compression="zlib")),
    "TIFF, LZW": ("tiff", ".tif", lambda v: _tiff(v, compression="lzw", predictor=True)),
}  # fmt: skip


def _bytes_cut(data: bytes, r: random.Random) -> bytes:
    return data[: r.randrange(1, len(data) - 1)]


def _tail(data: bytes, r: random.Random) -> bytes:
    return data[: -r.randrange(2, 10)]


def _flipped_early(data: bytes, r: random.Random) -> bytes:
    out = bytearray(data)
    out[r.randrange(0, 4)] ^= 1 << r.randrange(1, 7)
    return bytes(out)


def _more(data: bytes, r: random.Random) -> bytes:
    return data + bytes(r.randrange(1, 256) for _ in range(r.randrange(1, 2000)))


def _other(data: bytes, r: random.Random) -> bytes:
    return r.choice([b"", b"<html>404</html>" * 50, r.randbytes(4000), b"PK\3\4" + data])


def _replaced(old: bytes, new: bytes) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, r: data.replace(old, new, 1)


def _field(at: int, form: str, *value: Any) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, r: data[:at] + struct.pack("<" + form, *value) + data[at + struct.calcsize("<" + form) :]


def _inside(change: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, r: gzip.compress(change(gzip.decompress(data), r), mtime=0)


COMMON: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _bytes_cut, "the last bytes missing": _tail, "more behind the end": _more, "another content": _other,
    "first bytes": _flipped_early,
}  # fmt: skip
_NIFTI: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "sizes": _field(42, "3h", 9, 8, 7), "sizes negative": _field(42, "3h", 9, -8, 6), "sizes huge": _field(42, "3h", 32767, 32767, 32767),
    "type": _field(70, "hh", 64, 64), "slope infinite": _field(112, "f", float("inf")), "pixdim": _field(80, "3f", 9.0, 9.0, 9.0),
    "affine singular": _field(280, "4f", 0, 0, 0, 0), "affine not finite": _field(280, "4f", float("nan"), 0, 0, 0),
    "offset": _field(108, "f", 5000.0),
}  # fmt: skip
_TEXT: dict[str, dict[str, Callable[[bytes, random.Random], bytes]]] = {
    "NRRD": {
        "sizes": _replaced(b"9 8 6", b"9 8 7"), "sizes huge": _replaced(b"9 8 6", b"90000 80000 60000"),
        "type": _replaced(b"int16", b"double"),
        "endian": _replaced(b"endian: little\n", b""), "space": _replaced(b"left-posterior-superior", b"scanner-xyz"),
        "direction": _replaced(b"(1.5,0,0)", b"(0,0,0)"), "not finite": _replaced(b"(1.5,0,0)", b"(nan,0,0)"),
        "another file": _replaced(b"encoding", b"data file: ../x.raw\nencoding"), "axes": _replaced(b"dimension: 3", b"dimension: 4"),
    },
    "MHA": {
        "sizes": _replaced(b"9 8 6", b"9 8 7"), "sizes huge": _replaced(b"9 8 6", b"90000 80000 60000"),
        "type": _replaced(b"MET_SHORT", b"MET_DOUBLE"), "endian": _replaced(b"BinaryDataByteOrderMSB = False\n", b""),
        "direction": _replaced(b"1 0 0 0 1 0", b"1 0 0 1 0 0"), "spacing": _replaced(b"1.5 2 3", b"1.5 0 3"),
        "not finite": _replaced(b"1.5 2 3", b"nan 2 3"), "another file": _replaced(b"LOCAL", b"/etc/passwd"),
        "axes": _replaced(b"NDims = 3", b"NDims = 2"), "skip": _replaced(b"NDims", b"HeaderSize = 8\nNDims"),
    },
}  # fmt: skip


# Bytes behind the end of a picture, the size of its own header that a NIfTI file states, and the bytes behind TIFF's last directory
HARMLESS = {("png", "more behind the end"), ("tiff", "more behind the end"), ("tiff", "the last bytes missing"), ("nifti", "first bytes")}


def written(kind: str, name: str, change: Callable[[bytes, random.Random], bytes] | None) -> Callable[[Path, random.Random], Made]:
    form, ending, write = WRITERS[kind]

    def make(folder: Path, r: random.Random) -> Made:
        values = voxels(r)
        data = write(values)
        (folder / "i").mkdir(parents=True)
        changed = data if change is None else change(data, r)
        (folder / "i" / f"p{ending}").write_bytes(changed)
        truth = (values[:, :, 0].T & 255).astype(np.float32) if form == "png" else values.astype(np.float32)
        return Made(form, truth if change is None or (form, name) in HARMLESS else None, harmless=change is not None)

    return make


def spoiled(value: float) -> Callable[[Path, random.Random], Made]:
    def make(folder: Path, r: random.Random) -> Made:
        values = voxels(r).astype(np.float32)
        values[r.randrange(9), r.randrange(8), r.randrange(6)] = value
        (folder / "i").mkdir(parents=True)
        (folder / "i" / "p.nii").write_bytes(_nifti(values))
        return Made("nifti", None)

    return make


def _kinds() -> Iterator[tuple[str, str, Callable[[Path, random.Random], Made]]]:
    for name in (*DICOM, "a slice's own slope", "names in another order"):
        yield "DICOM", name, dicom(name)
    for name in (
        "frames in any order", "half a slice off", "a slice beyond", "frame twice", "turned", "another spacing", "another reference",
        "shifted in the plane", "cut", "a group missing",
    ):  # fmt: skip
        yield "SEG", name, segmented(name)
    for name in (
        "whole", "between slices", "beyond", "a point not finite", "across slices", "twice", "crossing", "outside", "a count", "a point",
        "every second slice", "another slice named", "another series", "another reference", "cut",
    ):  # fmt: skip
        yield "RTSTRUCT", name, structured(name)
    for kind in WRITERS:
        yield kind, "whole", written(kind, "whole", None)
        for name, change in COMMON.items():
            yield kind, name, written(kind, name, change)
        for name, change in _TEXT.get(kind.partition(",")[0], {}).items():
            yield kind, name, written(kind, name, change)
        for name, change in _NIFTI.items() if kind.startswith("NIfTI") else ():
            yield kind, name, written(kind, name, _inside(change) if "gzip" in kind else change)
    for value in (float("nan"), float("inf")):
        yield "NIfTI", f"a voxel is {value}", spoiled(value)


def cases(least: int) -> list[Case]:
    """At least ``least`` cases: every kind of damage in turn, each time drawn anew."""
    kinds, out = list(_kinds()), list[Case]()
    while len(out) < least:
        for kind, name, make in kinds:
            number = len(out)
            drawn = random.Random(f"{SEED} {kind} {name} {number}")
            out.append(Case(number, kind, name, lambda folder, make=make, drawn=drawn: make(folder, drawn)))
    return out
