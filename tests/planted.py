"""Identifiers of persons who do not exist, planted one a file: where exports of hospitals have them. ``PLANTED``: label -> what writes the
file; each value has ``WORD`` in it where it is text, so that a search can tell whether it got out."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.dicom_files import item, write_slice

WORD = "Wexfordquill"
NAME = f"{WORD}^Anna"
Write = Callable[[Path], None]
_PIXELS = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)


def dicom(change: Callable[[Dataset], None] = lambda dataset: None, person: str = "", **values: Any) -> Write:
    def write(folder: Path) -> None:
        own = person or folder.name
        told = {"PatientID": own, "PatientName": own, "PatientIdentityRemoved": "YES", "DeidentificationMethod": "x"} | values
        path = write_slice(folder / "1.dcm", _PIXELS.astype(np.uint16), (0, 0, 0), **told)
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)

    return write


def within(dataset: Dataset) -> None:
    dataset.OriginalAttributesSequence = Items([item(ModifiedAttributesSequence=Items([item(PatientName=NAME)]))])


def requested(dataset: Dataset) -> None:
    dataset.RequestAttributesSequence = Items([item(ScheduledProcedureStepDescription=WORD)])


def at(tag: tuple[int, int], vr: str, value: Any, creator: str = "") -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        if creator:
            dataset.add_new((tag[0], 0x0010), "LO", creator)
        dataset.add_new(tag, vr, value)

    return change


def preamble(dataset: Dataset) -> None:
    dataset.preamble = f"PATIENT {WORD}".encode().ljust(128, b"\0")


def nifti(
    field: str = "", value: str = "", *, code: int | None = None, ending: str = ".nii", second: bool = False, behind: bool = False
) -> Write:
    def write(folder: Path) -> None:
        kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
        image = kind(np.arange(32, dtype=np.float32).reshape(4, 4, 2), np.eye(4))
        if code is not None:
            content = f"{value}".encode()
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, content))
        elif not behind and field:
            image.header[field] = value.encode()
        folder.mkdir(parents=True)
        path = folder / f"image{ending}"
        nibabel.save(image, path)
        if behind:
            data = bytearray(path.read_bytes())
            data[148 : 148 + 80] = (b"x\0" + value.encode()).ljust(80, b"\0")
            path.write_bytes(bytes(data))

    return write


def data(name: str, content: bytes | str | Callable[[], bytes]) -> Write:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        made = content() if callable(content) else content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(made)

    return write


def picture(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.stack([_PIXELS] * 3, -1)).save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        whole = picture("PNG")
        end = whole.index(b"IEND") - 4
        return whole[:end] + struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)) + whole[end:]

    return make


def segment(marker: int, content: bytes) -> Callable[[], bytes]:
    return lambda: (lambda whole: whole[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + whole[2:])(
        picture("JPEG")
    )


def png_text(key: str, value: str, *, zip: bool = False) -> Callable[[], bytes]:
    def make() -> bytes:
        info = PngInfo()
        info.add_text(key, value, zip=zip)
        return picture("PNG", pnginfo=info)

    return make


def exif(tag: int, value: Any, *, gps: bool = False, inner: bool = False) -> Callable[[], bytes]:
    def make() -> bytes:
        found = Image.Exif()
        if gps:
            found.get_ifd(0x8825)[1] = value
        elif inner:
            found.get_ifd(0x8769)[tag] = value
        else:
            found[tag] = value
        return picture("JPEG", exif=found)

    return make


def tiff(tag: int, value: str, *, big: bool = False, second: bool = False) -> Callable[[], bytes]:
    def make() -> bytes:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[tag] = value
        if not second:
            return picture("TIFF", tiffinfo=info, big_tiff=big)
        out, page = io.BytesIO(), Image.fromarray(_PIXELS)
        other = Image.fromarray(_PIXELS)
        other.encoderinfo = {"tiffinfo": info}  # type: ignore[attr-defined]
        page.save(out, "TIFF", save_all=True, append_images=[other])
        return out.getvalue()

    return make


def side(**values: Any) -> Write:
    return data("scan.json", json.dumps(values))


def named(*parts: str) -> Write:
    def write(folder: Path) -> None:
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True)
        path.write_bytes(picture("PNG"))

    return write


def _nhs() -> str:
    return "943 476 5919"  # the example of the NHS's own data dictionary


_NRRD = "type: uint8\ndimension: 1\nsizes: 1\nencoding: raw\n\n\0"
_APERIO = "Aperio Image Library v11|AppMag = 40|MPP = 0.25|{}"
PLANTED: dict[str, Write] = {
    # DICOM: attributes, names and numbers
    **{
        f"dicom {key}": dicom(**{key: value})
        for key, value in {
            "PatientName": NAME,
            "PatientID": f"HN{WORD}",
            "PatientBirthDate": "19700302",
            "OtherPatientIDs": f"X{WORD}",
            "OtherPatientNames": NAME,
            "PatientAddress": f"{WORD} Road 3",
            "PatientTelephoneNumbers": "0301234567",
            "PatientBirthName": NAME,
            "PatientMotherBirthName": NAME,
            "PatientComments": WORD,
            "AdditionalPatientHistory": WORD,
            "ReferringPhysicianName": NAME,
            "PerformingPhysicianName": NAME,
            "OperatorsName": NAME,
            "PhysiciansOfRecord": NAME,
            "NameOfPhysiciansReadingStudy": NAME,
            "RequestingPhysician": NAME,
            "ResponsiblePerson": NAME,
            "InstitutionName": WORD,
            "InstitutionAddress": WORD,
            "StationName": WORD,
            "AccessionNumber": WORD,
            "StudyDate": "20190302",
            "AcquisitionDateTime": "20190302101112",
            "ContentDate": "20190302",
            "SeriesDescription": WORD,
            "StudyDescription": WORD,
            "ImageComments": WORD,
            "DeviceSerialNumber": WORD,
            "PatientAge": "093Y",
            "FilterType": f"MRS {WORD}".upper(),
            "SoftwareVersions": f"for Dr. {WORD}",
            "BurnedInAnnotation": "YES",
            "SeriesInstanceUID": "1.3.12.2.1107.5.2.19.45152.2013030808061520200285270",
            "ImageType": ["DERIVED", "PRIMARY", "LABEL"],
        }.items()
    },
    "dicom private text": dicom(at((0x0029, 0x1010), "LO", WORD, "ACME")),
    "dicom private creator": dicom(at((0x0031, 0x0010), "LO", NAME)),
    "dicom private bytes": dicom(at((0x0033, 0x1010), "UN", f"\0\1{WORD} and {WORD}".encode(), "ACME")),
    "dicom private date": dicom(at((0x0035, 0x1010), "LO", "19700302", "ACME")),
    "dicom private number": dicom(at((0x0037, 0x1010), "LO", _nhs(), "ACME")),
    "dicom sequence": dicom(within),
    "dicom sequence text": dicom(requested),
    "dicom preamble": dicom(preamble),
    "dicom overlay comment": dicom(at((0x6000, 0x4000), "LT", WORD)),
    "dicom trailing padding": dicom(at((0xFFFC, 0xFFFC), "OB", f"{WORD} {WORD}".encode())),
    # volumes
    "nifti descrip": nifti("descrip", f"{WORD} Anna 1970"),
    "nifti aux_file": nifti("aux_file", f"{WORD}.hdr"),
    "nifti intent_name": nifti("intent_name", "Doe^Jane"),
    "nifti db_name": nifti("db_name", WORD[:17]),
    "nifti behind": nifti(value=WORD, behind=True),
    "nifti extension dicom": nifti(value=f"(0010,0010) {NAME}", code=2),
    "nifti extension afni": nifti(value=f"<AFNI_atr>{WORD}</AFNI_atr>", code=4),
    "nifti extension comment": nifti(value=f"of Mrs {WORD}", code=6),
    "nifti compressed": nifti("descrip", f"Patient: {WORD}", ending=".nii.gz"),
    "nifti second version": nifti("descrip", f"Frau {WORD}", second=True),
    "nrrd comment": data("a.nrrd", f"NRRD0004\n# of Mrs {WORD}\n{_NRRD}"),
    "nrrd key": data("a.nrrd", f"NRRD0004\ntype: uint8\ndimension: 1\nsizes: 1\nencoding: raw\nowner:={WORD}\n\n\0"),
    # pictures
    "png author": data("a.png", png_text("Author", WORD)),
    "png compressed": data("a.png", png_text("Description", f"{WORD} " * 9, zip=True)),
    "png international": data("a.png", chunk(b"iTXt", f"Comment\0\0\0de\0\0{WORD}".encode())),
    "png other keyword": data("a.png", png_text("PatientBirthDate", f"1970 {WORD}")),
    "png exif": data("a.png", lambda: picture("PNG", exif=(lambda e: (e.__setitem__(0x013B, WORD), e)[1])(Image.Exif()))),
    "png time": data("a.png", chunk(b"tIME", struct.pack(">HBBBBB", 2019, 3, 2, 10, 11, 12))),
    "png behind": data("a.png", lambda: picture("PNG") + f"{WORD} {WORD}".encode()),
    "jpeg artist": data("a.jpg", exif(0x013B, WORD)),
    "jpeg user comment": data("a.jpg", exif(0x9286, b"ASCII\0\0\0" + WORD.encode(), inner=True)),
    "jpeg position": data("a.jpg", exif(1, "N", gps=True)),
    "jpeg date": data("a.jpg", exif(0x9003, "2019:03:02 10:11:12", inner=True)),
    "jpeg comment": data("a.jpg", segment(0xFE, WORD.encode())),
    "jpeg XMP": data("a.jpg", segment(0xE1, f"http://ns.adobe.com/xap/1.0/\0<x><dc:creator>Dr. {WORD}</dc:creator></x>".encode())),
    "jpeg IPTC": data("a.jpg", segment(0xED, b"Photoshop 3.0\0" + WORD.encode())),
    # slides
    "svs user": data("a.svs", tiff(270, _APERIO.format(f"User = {WORD}"))),
    "svs filename": data("a.svs", tiff(270, _APERIO.format(f"Filename = {WORD}"))),
    "svs date": data("a.svs", tiff(270, _APERIO.format("Date = 03/02/19"))),
    "svs artist": data("a.svs", tiff(315, WORD)),
    "tiff second picture": data("a.tif", tiff(270, f"of Mrs {WORD}", second=True)),
    "tiff large": data("a.tif", tiff(316, WORD, big=True)),
    "tiff document": data("a.tif", tiff(269, WORD)),
    "ndpi properties": data("a.ndpi", tiff(65449, f"Product=NDP\nSlideId={WORD}\nPatient name={WORD}\n")),
    # sidecars
    "sidecar name": side(PatientName=NAME),
    "sidecar birth": side(PatientBirthDate="1970-03-02"),
    "sidecar moment": side(AcquisitionDateTime="2019-03-02T10:11:12"),
    "sidecar institution": side(InstitutionName=WORD),
    "sidecar within": side(global_={"const": {"ReferringPhysicianName": NAME}}),
    "sidecar comment": side(Comments=[f"seen by Dr. {WORD}"]),
    "text beside": data("notes.txt", f"{WORD}, Anna"),
    # names
    "file named as a person": named("study", f"{WORD}_Anna.png"),
    "folder named as a person": named(NAME, "a.png"),
    "folder with a comma": named(f"{WORD}, Anna", "a.png"),
    "folder of a day": named("2019-03-02", "a.png"),
    "file with a number": named(f"MRN{'0' * 3}47110815.png"),
    "file with a checked number": named("9434765919.png"),
    "file with an address": named("anna@wexfordquill.example.png"),
    "file named by a dated UID": named("1.3.12.2.1107.5.2.19.45152.2013030808061520200285270.png"),
}

CLEAN: dict[str, Write] = {
    "dicom": dicom(),
    "nifti": nifti("descrip", "FSL5.0"),
    "nifti by itk": nifti("descrip", "TE=30;Time=0"),
    "png": data("a.png", lambda: picture("PNG")),
    "jpeg": data("a.jpg", lambda: picture("JPEG")),
    "tiff": data("a.tif", lambda: picture("TIFF")),
    "svs": data("a.svs", tiff(270, _APERIO.format("Left = 25.1"))),
    "nrrd": data(
        "a.nrrd", f"NRRD0004\n# Complete NRRD file format specification at:\n# http://teem.sourceforge.net/nrrd/format.html\n{_NRRD}"
    ),
    "sidecar": side(
        EchoTime=0.03, RepetitionTime=2.0, Manufacturer="Siemens", SeriesDescription="t1_mprage_sag", ImageType=["ORIGINAL", "PRIMARY", "M"]
    ),
    "bids": named("ses-01", "anat", "sub-01_ses-01_acq-MPRAGE_T1w.png"),
    "uid": named("1.2.826.0.1.3680043.8.498.10000000000000000000000000000000000001", "IM-0001-0001.png"),
    "words": named("Axial_T2_Flair", "Image_0001_Mask.png"),
}
