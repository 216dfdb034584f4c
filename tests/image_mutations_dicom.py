"""What is done to a real DICOM series and to its segmentation: kind, name, how often, verdict, reasons, how."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from tests.image_mutations import PERSON, Bench, Mutation

Change = Callable[[Dataset, random.Random], None]
PIXELS = struct.pack("<HH", 0x7FE0, 0x0010)
DEFLATED = "1.2.840.10008.1.2.1.99"


def any_slice(b: Bench, r: random.Random) -> Path:
    return r.choice(b.slices())


def inner(b: Bench, r: random.Random) -> Path:
    """A slice that is not the first or last: without it there is a gap."""
    return r.choice(b.slices()[1:-1])


def header_length(path: Path) -> int:
    return path.read_bytes().rindex(PIXELS)


def cut_pixels(b: Bench, r: random.Random) -> None:
    path = any_slice(b, r)
    data, start = path.read_bytes(), header_length(path) + 12
    path.write_bytes(data[: r.randrange(start, len(data) - 1)])


def cut_header(b: Bench, r: random.Random) -> None:
    path = any_slice(b, r)
    path.write_bytes(path.read_bytes()[: r.randrange(0, header_length(path))])


def edited(change: Change, *, every: bool = False) -> Mutation:
    """A slice rewritten by pydicom after ``change``; ``every``: all of them."""

    def how(b: Bench, r: random.Random) -> None:
        for path in b.slices() if every else [any_slice(b, r)]:
            dataset = pydicom.dcmread(path)
            change(dataset, r)
            dataset.save_as(path)

    return how


def put(keyword: str, *values: Any) -> Change:
    return lambda dataset, r: setattr(dataset, keyword, r.choice(values))


def raw(keyword: str, vr: str, value: bytes) -> Change:
    """A value that pydicom would not write."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    def change(dataset: Dataset, r: random.Random) -> None:
        tag = Tag(keyword)
        del dataset[tag]
        dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return change


def drop(keyword: str) -> Change:
    return lambda dataset, r: delattr(dataset, keyword)


def flip(low: Callable[[Path], int], high: Callable[[Path], int], count: int = 1) -> Mutation:
    def how(b: Bench, r: random.Random) -> None:
        path = any_slice(b, r)
        data = bytearray(path.read_bytes())
        for _ in range(count):
            data[r.randrange(low(path), high(path))] ^= 1 << r.randrange(8)
        path.write_bytes(data)

    return how


def remove_inner(b: Bench, r: random.Random) -> None:
    inner(b, r).unlink()


def remove_run(b: Bench, r: random.Random) -> None:
    first = r.randrange(1, 6)
    for path in b.slices()[first : first + r.randrange(2, 5)]:
        path.unlink()


def remove_end(b: Bench, r: random.Random) -> None:
    b.slices()[r.choice((0, -1))].unlink()


def twice(b: Bench, r: random.Random) -> None:
    path = any_slice(b, r)
    path.with_name("copy of " + path.name).write_bytes(path.read_bytes())


def twice_otherwise(b: Bench, r: random.Random) -> None:
    """Sent a second time under another instance UID, with other pixels."""
    path = any_slice(b, r)
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID + ".9"
    dataset.PixelData = bytes(reversed(dataset.PixelData))
    dataset.save_as(path.with_name("sent again.dcm"))


def in_anothers_place(b: Bench, r: random.Random) -> None:
    one, other = r.sample(b.slices(), 2)
    dataset = pydicom.dcmread(one)
    dataset.ImagePositionPatient = pydicom.dcmread(other).ImagePositionPatient
    dataset.save_as(one)


def swap(*keywords: str) -> Mutation:
    def how(b: Bench, r: random.Random) -> None:
        one, other = r.sample(b.slices(), 2)
        first, second = pydicom.dcmread(one), pydicom.dcmread(other)
        for keyword in keywords:
            kept = getattr(first, keyword)
            setattr(first, keyword, getattr(second, keyword))
            setattr(second, keyword, kept)
        first.save_as(one)
        second.save_as(other)

    return how


def swap_names(b: Bench, r: random.Random) -> None:
    files = b.slices()
    order = r.sample(range(len(files)), len(files))
    for path in files:
        path.rename(path.with_suffix(".old"))
    for path, k in zip(files, order, strict=True):
        path.with_suffix(".old").rename(path.with_name(f"{k:02d}.dcm"))


def guest(same_series: bool) -> Mutation:
    """A slice of another maker's series in the folder; with the same series UID where ``same_series``."""

    def how(b: Bench, r: random.Random) -> None:
        others = sorted((b.data / "dicom_mr/CMB-CRC-SCAN_001/adc_image").glob("*.dcm"))
        dataset = pydicom.dcmread(r.choice(others))
        dataset.PatientID = PERSON
        if same_series:
            dataset.SeriesInstanceUID = pydicom.dcmread(b.slices()[0]).SeriesInstanceUID
        dataset.save_as(b.images / PERSON / "guest.dcm")

    return how


def longer(dataset: Dataset, r: random.Random) -> None:
    dataset.PixelData = dataset.PixelData + bytes(2 * r.randrange(1, 5000))


def shorter(dataset: Dataset, r: random.Random) -> None:
    dataset.PixelData = dataset.PixelData[: -2 * r.randrange(1, 5000)]


def flat_float(bad: float) -> Change:
    def change(dataset: Dataset, r: random.Random) -> None:
        pixels = dataset.pixel_array.astype("<f4")
        pixels[r.randrange(256), r.randrange(256)] = bad
        del dataset.PixelData
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, keyword)
        dataset.BitsAllocated = 32
        dataset.FloatPixelData = pixels.tobytes()

    return change


def noted_syntax(uid: str) -> Mutation:
    """The header says another transfer syntax than the file has."""

    def how(b: Bench, r: random.Random) -> None:
        path = any_slice(b, r)
        own = b"1.2.840.10008.1.2.1\0"
        data = path.read_bytes()
        assert own in data
        path.write_bytes(data.replace(own, uid.encode().ljust(len(own), b"\0"), 1))

    return how


def packed(data: Dataset) -> tuple[bytes, bytes]:
    """(preamble and meta, data set) of a file written deflated."""
    import io

    data.file_meta.TransferSyntaxUID = DEFLATED
    data.save_as(out := io.BytesIO(), enforce_file_format=True)
    whole = out.getvalue()
    start = 132 + 12 + int(pydicom.dcmread(io.BytesIO(whole), stop_before_pixels=True).file_meta.FileMetaInformationGroupLength)
    return whole[:start], zlib.decompressobj(-15).decompress(whole[start:])


def zeros(megabytes: int, *, before: bytes = b"", end: bool = True) -> bytes:
    """Raw deflate of ``before`` and many zeros: full flushes let one block of a megabyte be repeated."""
    one = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = one.compress(before) + one.flush(zlib.Z_FULL_FLUSH)
    two = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = two.compress(bytes(2**20)) + two.flush(zlib.Z_FULL_FLUSH)
    return start + block * megabytes + (zlib.compressobj(9, zlib.DEFLATED, -15).flush() if end else b"")


def deflate_bomb(megabytes: int, *, honest_header: bool = False) -> Mutation:
    def how(b: Bench, r: random.Random) -> None:
        path = any_slice(b, r)
        dataset = pydicom.dcmread(path)
        if honest_header:  # Rows and Columns that fit the zeros
            dataset.Rows = dataset.Columns = int((megabytes * 2**20 // 2) ** 0.5) // 2 * 2
        del dataset.PixelData
        head, body = packed(dataset)
        length = 2 * int(dataset.Rows) * int(dataset.Columns) if honest_header else megabytes * 2**20
        body += PIXELS + b"OW\0\0" + struct.pack("<I", length)
        path.write_bytes(head + zeros(megabytes, before=body))

    return how


def rewritten(syntax: str) -> Mutation:
    """The same values in another encoding."""

    def how(b: Bench, r: random.Random) -> None:
        for path in b.slices():
            dataset = pydicom.dcmread(path)
            if syntax == "1.2.840.10008.1.2.2":
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(path, dataset, implicit_vr=syntax == "1.2.840.10008.1.2", little_endian=syntax != "1.2.840.10008.1.2.2")

    return how


def coded(codec: str, syntax: str, spoil: Callable[[bytes, random.Random], bytes] = lambda stream, r: stream) -> Mutation:
    """All slices lossless by ``codec``; one of them spoiled."""

    def how(b: Bench, r: random.Random) -> None:
        import imagecodecs

        spoiled = any_slice(b, r)
        for path in b.slices():
            dataset = pydicom.dcmread(path)
            pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(int(dataset.Rows), int(dataset.Columns))
            if codec == "rle":
                from pydicom.pixels.encoders import RLELosslessEncoder

                stream = next(iter(RLELosslessEncoder.iter_encode(dataset)))
            else:
                options = {"level": 0, "reversible": True, "codecformat": "j2k"} if codec == "jpeg2k" else {}
                stream = getattr(imagecodecs, f"{codec}_encode")(np.ascontiguousarray(pixels), **options)
            stream = spoil(bytes(stream), r) if path == spoiled else bytes(stream)
            dataset.PixelData = encapsulate([stream])
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(path)

    return how


def cut_stream(stream: bytes, r: random.Random) -> bytes:
    return stream[: r.randrange(len(stream) // 4, len(stream) - 64)]


def flip_stream(stream: bytes, r: random.Random) -> bytes:
    out = bytearray(stream)
    out[r.randrange(200, len(out))] ^= 1 << r.randrange(8)
    return bytes(out)


def huge_stream(stream: bytes, r: random.Random) -> bytes:
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    return stream[:at] + struct.pack(">II", 60000, 60000) + stream[at + 8 :]


def huge_coded(b: Bench, r: random.Random) -> None:
    """A JPEG 2000 stream of a few hundred bytes whose header and the file's both say 20,000 x 20,000."""
    import imagecodecs

    path = any_slice(b, r)
    dataset = pydicom.dcmread(path)
    stream = bytes(imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint16), level=0, reversible=True, codecformat="j2k"))
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    stream = (
        stream[:at] + struct.pack(">II", 20000, 20000) + stream[at + 8 : at + 16] + struct.pack(">II", 20000, 20000) + stream[at + 24 :]
    )
    dataset.Rows = dataset.Columns = 20000
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset.save_as(path)


def before_pixels(middle: Callable[[random.Random], bytes], *, repeated: int = 1) -> Mutation:
    """Bytes of elements put in before the pixels."""

    def how(b: Bench, r: random.Random) -> None:
        path = any_slice(b, r)
        data, at = path.read_bytes(), header_length(path)
        path.write_bytes(data[:at] + middle(r) * repeated + data[at:])

    return how


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def deep(levels: int) -> Callable[[random.Random], bytes]:
    """Sequences of undefined length in one another, all closed again."""
    begin = struct.pack("<HH2sHI", 0x7FDF, 0x1010, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return lambda r: begin * levels + end * levels


def deep_of_length(levels: int) -> Callable[[random.Random], bytes]:
    """Sequences that say their length, made from the innermost outwards."""

    def make(r: random.Random) -> bytes:
        out = b""
        for _ in range(levels):
            item = struct.pack("<HHI", 0xFFFE, 0xE000, len(out)) + out
            out = struct.pack("<HH2sHI", 0x7FDF, 0x1010, b"SQ", 0, len(item)) + item
        return out

    return make


def many_elements(count: int) -> Callable[[random.Random], bytes]:
    def make(r: random.Random) -> bytes:
        return b"".join(element(0x0031 + 2 * (k // 60000), 0x1000 + k % 60000, b"US", b"\1\0") for k in range(count))

    return make


def many_within(count: int) -> Callable[[random.Random], bytes]:
    """The elements in one item of a sequence."""

    def make(r: random.Random) -> bytes:
        inner = many_elements(count)(r)
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        return struct.pack("<HH2sHI", 0x7FDF, 0x1010, b"SQ", 0, len(item)) + item

    return make


def many_items(count: int) -> Callable[[random.Random], bytes]:
    def make(r: random.Random) -> bytes:
        items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * count
        return struct.pack("<HH2sHI", 0x7FDF, 0x1010, b"SQ", 0, len(items)) + items

    return make


def long_claim(r: random.Random) -> bytes:
    """An element that says it is 4 GB long."""
    return struct.pack("<HH2sHI", 0x7FDF, 0x1010, b"OB", 0, 0xFFFFFFF0)


def nested_folders(b: Bench, r: random.Random) -> None:
    for k, path in enumerate(b.slices()):
        to = path.parent / f"study {k % 3}" / "a" / f"IM{r.randrange(10**6):06d}{k}"
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)


def strangers(b: Bench, r: random.Random) -> None:
    folder = b.images / PERSON
    (folder / "README.txt").write_text("slices of one series")
    (folder / ".DS_Store").write_bytes(bytes(range(256)))
    (folder / "Thumbs.db").write_bytes(b"")


def report(b: Bench, r: random.Random) -> None:
    """A structured report of the same study."""
    dataset = pydicom.dcmread(b.slices()[0], stop_before_pixels=True)
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ImagePositionPatient"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    dataset.Modality, dataset.SeriesInstanceUID = "SR", dataset.SeriesInstanceUID + ".5"
    dataset.save_as(b.images / PERSON / "report.dcm")


def overwritten(content: Callable[[random.Random], bytes]) -> Mutation:
    def how(b: Bench, r: random.Random) -> None:
        any_slice(b, r).write_bytes(content(r))

    return how


def private(dataset: Dataset, r: random.Random) -> None:
    dataset.private_block(0x0099, "SCANNER 1.0", create=True).add_new(0x10, "DS", "1.5")


def padded(dataset: Dataset, r: random.Random) -> None:
    dataset.DataSetTrailingPadding = bytes(2048)


def folder_for_file(b: Bench, r: random.Random) -> None:
    path = inner(b, r)
    path.unlink()
    path.mkdir()


ANYTHING = ""
CUT = "truncated unreadable wrong-length"
NAMED = "1.2.840.10008.1.2.4."
TABLE: list[tuple[str, str, int, str, str, Mutation]] = [
    ("DICOM", name, count, verdict, reasons, how)
    for name, count, verdict, reasons, how in [
        ("cut within the pixels", 7, "wrong", CUT, cut_pixels),
        ("cut within the header", 7, "wrong", CUT + " not-an-image", cut_header),
        ("an empty file", 1, "wrong", CUT + " not-an-image", overwritten(lambda r: b"")),
        ("another content", 2, "wrong", "unreadable not-an-image", overwritten(lambda r: r.randbytes(5000))),
        ("text for a slice", 1, "wrong", "unreadable not-an-image", overwritten(lambda r: b"<html>404 not found</html>" * 40)),
        ("a folder for a slice", 1, "wrong", "gap unreadable", folder_for_file),
        ("flipped bit in the magic word", 2, "wrong", "unreadable not-an-image", flip(lambda p: 128, lambda p: 132)),
        ("flipped bits in raw pixels", 5, "untold", ANYTHING, flip(lambda p: header_length(p) + 12, lambda p: p.stat().st_size, 3)),
        ("flipped bit in the header", 12, "untold", ANYTHING, flip(lambda p: 132, header_length)),
        ("flipped bits in the header", 6, "untold", ANYTHING, flip(lambda p: 132, header_length, 20)),
        ("an inner slice is missing", 5, "wrong", "gap", remove_inner),
        ("several slices are missing", 2, "wrong", "gap", remove_run),
        ("the last slice is missing", 2, "wrong", "geometry", remove_end),  # the study says how many
        ("a slice twice", 3, "wrong", "duplicate-slices", twice),
        ("a slice sent again with other pixels", 3, "wrong", "duplicate-slices", twice_otherwise),
        ("a slice in another's place", 3, "wrong", "duplicate-slices gap", in_anothers_place),
        ("positions of two slices swapped", 3, "wrong", "geometry", swap("ImagePositionPatient")),
        ("pixels of two slices swapped", 2, "untold", ANYTHING, swap("PixelData")),
        ("another series in the folder", 2, "wrong", "geometry mixed-series", guest(False)),
        ("a slice of another series under the same UID", 3, "wrong", "mixed-series geometry", guest(True)),
        ("too many bytes of pixels", 3, "wrong", "wrong-length", edited(longer)),
        ("too few bytes of pixels", 3, "wrong", "wrong-length truncated", edited(shorter)),
        ("rows", 2, "wrong", "wrong-length mixed-series too-large", edited(put("Rows", 128, 512, 65535))),
        ("columns", 1, "wrong", "wrong-length mixed-series too-large", edited(put("Columns", 255, 257, 65535))),
        ("rows and columns of every slice", 1, "wrong", "wrong-length too-large", edited(put("Rows", 65535), every=True)),
        ("bits allocated", 2, "wrong", "wrong-length", edited(put("BitsAllocated", 8, 32, 64))),
        ("bits stored above those allocated", 2, "wrong", "wrong-length", edited(put("BitsStored", 20, 200))),
        ("high bit outside", 1, "wrong", "wrong-length", edited(put("HighBit", 40))),
        ("number of frames", 2, "wrong", "wrong-length geometry too-large", edited(put("NumberOfFrames", 2, 100, 10**9))),
        ("samples per pixel", 1, "wrong", "wrong-length mixed-series", edited(put("SamplesPerPixel", 3, 7))),
        ("no bits allocated", 1, "wrong", "wrong-length", edited(drop("BitsAllocated"))),
        ("no rows", 1, "wrong", "truncated not-an-image", edited(drop("Rows"))),
        ("no pixels", 1, "wrong", "truncated", edited(drop("PixelData"))),
        ("pixel spacing of 0", 1, "wrong", "geometry", edited(put("PixelSpacing", [0, 0], [-1, 1]), every=True)),
        ("another pixel spacing", 1, "wrong", "mixed-series geometry", edited(put("PixelSpacing", [2.5, 2.5]))),
        ("position not a number", 1, "wrong", "geometry unreadable", edited(raw("ImagePositionPatient", "DS", b"nan\\1\\2 "))),
        ("position is text", 1, "wrong", "geometry unreadable", edited(raw("ImagePositionPatient", "DS", b"left\\1\\2"))),
        ("no position", 1, "wrong", "geometry mixed-series", edited(drop("ImagePositionPatient"))),
        ("orientation not at right angles", 1, "wrong", "geometry", edited(put("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]))),
        ("another orientation", 1, "wrong", "mixed-series geometry", edited(put("ImageOrientationPatient", [0, 1, 0, 1, 0, 0]))),
        ("rescale slope of 0", 1, "wrong", "rescale", edited(put("RescaleSlope", 0), every=True)),
        ("rescale slope not finite", 1, "wrong", "rescale unreadable", edited(raw("RescaleSlope", "DS", b"inf "), every=True)),
        ("rescaled beyond float32", 1, "wrong", "non-finite rescale", edited(put("RescaleSlope", "1e38"), every=True)),
        ("transfer syntax of JPEG on raw pixels", 1, "wrong", "unreadable wrong-length compressed", noted_syntax("1.2.840.10008.1.2.5")),
        ("transfer syntax implicit on explicit", 1, "untold", ANYTHING, noted_syntax("1.2.840.10008.1.2")),
        ("transfer syntax unknown", 1, "wrong", "compressed unreadable", noted_syntax("1.2.840.10008.9.9")),
        ("a voxel is not a number", 2, "wrong", "non-finite mixed-series", edited(flat_float(float("nan")), every=True)),
        ("a voxel is infinite", 1, "wrong", "non-finite mixed-series", edited(flat_float(float("inf")), every=True)),
        ("deflated bomb", 2, "wrong", "too-large wrong-length", deflate_bomb(3000)),
        ("deflated bomb whose header agrees", 1, "wrong", "too-large wrong-length", deflate_bomb(1000, honest_header=True)),
        ("deep sequences", 1, "wrong", "unreadable too-large not-de-identified", before_pixels(deep(2_000))),
        ("very deep sequences", 1, "wrong", "unreadable too-large not-de-identified", before_pixels(deep(200_000))),
        ("deep sequences of stated length", 1, "wrong", "unreadable too-large not-de-identified", before_pixels(deep_of_length(3_000))),
        ("a million elements", 1, "wrong", "unreadable too-large not-de-identified", before_pixels(many_elements(1_000_000))),
        ("a million items", 1, "wrong", "unreadable too-large not-de-identified", before_pixels(many_items(1_000_000))),
        ("a million elements in an item", 1, "wrong", "unreadable too-large not-de-identified", before_pixels(many_within(1_000_000))),
        ("an element of 4 GB", 1, "wrong", CUT, before_pixels(long_claim)),
        ("JPEG 2000 cut short", 2, "wrong", "compressed truncated wrong-length", coded("jpeg2k", NAMED + "90", cut_stream)),
        ("JPEG-LS cut short", 1, "wrong", "compressed truncated wrong-length", coded("jpegls", NAMED + "80", cut_stream)),
        (
            "run lengths cut short",
            1,
            "wrong",
            "compressed truncated wrong-length unreadable",
            coded("rle", "1.2.840.10008.1.2.5", cut_stream),
        ),
        ("JPEG 2000 that says it is huge", 1, "wrong", "wrong-length too-large", coded("jpeg2k", NAMED + "90", huge_stream)),
        ("JPEG 2000 bomb", 1, "wrong", "wrong-length too-large mixed-series", huge_coded),
        ("flipped bit in JPEG 2000", 2, "untold", ANYTHING, coded("jpeg2k", NAMED + "90", flip_stream)),
        ("flipped bit in JPEG-LS", 2, "untold", ANYTHING, coded("jpegls", NAMED + "80", flip_stream)),
        ("files named in another order", 3, "harmless", ANYTHING, swap_names),
        ("files in folders, without endings", 2, "harmless", ANYTHING, nested_folders),
        ("other files in the folder", 1, "harmless", ANYTHING, strangers),
        ("a report in the folder", 1, "harmless", ANYTHING, report),
        ("instance numbers of two slices swapped", 1, "harmless", ANYTHING, swap("InstanceNumber")),
        ("private numbers", 1, "harmless", ANYTHING, edited(private, every=True)),
        ("padding after the pixels", 1, "harmless", ANYTHING, edited(padded, every=True)),
        ("implicit VR", 1, "harmless", ANYTHING, rewritten("1.2.840.10008.1.2")),
        ("big endian", 1, "harmless", ANYTHING, rewritten("1.2.840.10008.1.2.2")),
        ("deflated", 1, "harmless", ANYTHING, rewritten(DEFLATED)),
        ("lossless JPEG 2000", 1, "harmless", ANYTHING, coded("jpeg2k", NAMED + "90")),
        ("lossless JPEG-LS", 1, "harmless", ANYTHING, coded("jpegls", NAMED + "80")),
        ("run lengths", 1, "harmless", ANYTHING, coded("rle", "1.2.840.10008.1.2.5")),
    ]
]
