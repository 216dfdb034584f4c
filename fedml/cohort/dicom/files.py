"""Opens DICOM files with limits and decodes their frames; used by ``series``, ``segmentation`` and ``deidentified``.

    header = open_dataset(path, pixels=False)
    for frame in frames(open_dataset(path), path): ...    # (rows, columns) or (rows, columns, 3), stored values

A file's header may be wrong: every declared size is compared with the bytes in the file before memory is allocated. imagecodecs decodes
JPEG, JPEG-LS and JPEG 2000, not a plug-in of pydicom, because GDCM terminates the process on some damaged streams.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.bounds import inflated, require_plausible
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.quiet import hush

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_MB = 2048  # of a file, and of a volume in float32
_KEPT_MB = 512  # of files that ``keeping`` keeps
_HEADER_MB = 32  # the header of an enhanced image of 10,000 frames has about 20
_HEADER_READS = 2_000_000  # an element takes two or three reads
_ELEMENTS = 20_000  # outside sequences; a scanner writes some hundreds
_INFLATED_MB = 512  # of a deflated file
_SNIFF = 132
_EXPLICIT, _DEFLATED, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
_NATIVE = ("1.2.840.10008.1.2", _EXPLICIT, "1.2.840.10008.1.2.2", _DEFLATED)
_JPEG = "1.2.840.10008.1.2.4."
_LOSSY_JPEG = (_JPEG + "50", _JPEG + "51")
# Transfer syntax (PS3.6 table A-1) -> codec of imagecodecs. OpenJPEG also decodes High-Throughput JPEG 2000, because imagecodecs ignores
# errors of OpenJPH and returns incomplete images.
_CODECS = {
    _JPEG + "50": "jpeg8", _JPEG + "51": "jpeg8", _JPEG + "57": "jpeg8", _JPEG + "70": "jpeg8",
    _JPEG + "80": "jpegls", _JPEG + "81": "jpegls",
    _JPEG + "90": "jpeg2k", _JPEG + "91": "jpeg2k", _JPEG + "201": "jpeg2k", _JPEG + "202": "jpeg2k", _JPEG + "203": "jpeg2k",
}  # fmt: skip
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream and of its size segment


class _Whole(Exception):
    """pydicom asks for the rest of the file in one piece: it is deflated, and pydicom would decompress it without a limit."""


class _Bounded:
    """A file with a limited number of reads: a header of millions of small elements would fill the memory."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self._reads = file, path, 0
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            raise _Whole
        self._reads += 1
        if self._reads > _HEADER_READS:
            raise ItemError(Unusable.TOO_LARGE, f"{self._path}: has more elements than the limit for an image.")
        return self._file.read(size)


class _Kept:
    """Data sets that are open within ``keeping``, and what was found in elements that are equal in other files of it."""

    def __init__(self) -> None:
        self.datasets: dict[Path, Dataset] = {}
        self.memo: dict[Any, Any] = {}
        self.left = _KEPT_MB * 2**20


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def keeping() -> Iterator[None]:
    """Within the block each file is parsed once, however often it is opened, as long as the files have 512 MB in all."""
    token = _kept.set(_Kept())
    try:
        yield
    finally:
        _kept.reset(token)


def memo() -> dict[Any, Any] | None:
    """What is known of elements of the other files within ``keeping``; None outside."""
    found = _kept.get()
    return None if found is None else found.memo


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Converts every exception of pydicom, which parses lazily, to ``ItemError(unreadable)``; drops its log and warnings, which quote
    values."""
    try:
        with hush():
            yield
    except ItemError:
        raise
    except Exception as error:  # pydicom and the decoders raise exceptions of any class, RecursionError and MemoryError included
        raise ItemError(Unusable.UNREADABLE, f"{path}: cannot be read as DICOM ({type(error).__name__}).") from error


def looks_dicom(path: Path) -> bool:
    """True if the file begins like DICOM: ``DICM`` after 128 bytes (PS3.10 section 7.1), or with an element of group 2 or 8."""
    with path.open("rb") as file:
        start = file.read(_SNIFF)
    return start[128:] == b"DICM" or _bare(start)


def _bare(start: bytes) -> bool:
    if len(start) < 12:
        return False
    group, element, length = struct.unpack("<HHI", start[:8])
    return group in (2, 8) and element < 0x1000 and ((start[4:6].isalpha() and start[4:6].isupper()) or length <= 1024)


def open_dataset(path: Path, *, pixels: bool = True, tags: Sequence[str | int] | None = None, max_mb: int = MAX_MB) -> Dataset:
    """The file as a pydicom ``Dataset`` with ``file_meta``.

    Args:
        path: the file.
        pixels: if False, reading stops before the pixel data; later elements are then absent. An image file that ends there is truncated.
        tags: keywords or numbers of tags to keep; None keeps all.
        max_mb: size limit of the file, also after decompression of a deflated file, in MB of 2**20 bytes.

    Raises:
        ItemError: unreadable, truncated, too large, or not DICOM.
    """
    kept = _kept.get()
    if kept is None or tags is not None:
        return _opened(path, pixels, tags, max_mb)
    if path not in kept.datasets:
        size = path.stat().st_size if path.exists() else 0
        if size > kept.left:
            return _opened(path, pixels, tags, max_mb)
        kept.left -= size
        kept.datasets[path] = _opened(path, True, None, max_mb)
    whole = kept.datasets[path]
    if not pixels and is_image(whole) and not any(name in whole for name in _PIXELS):
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated before the pixel data.")
    return whole


def _opened(path: Path, pixels: bool, tags: Sequence[str | int] | None, max_mb: int) -> Dataset:
    with reading(path):
        size, limit = path.stat().st_size, max_mb * 2**20
        if size > limit:
            raise ItemError(Unusable.TOO_LARGE, f"{path}: has {size >> 20} MB, the limit is {max_mb}.")
        if not looks_dicom(path):
            raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is not DICOM.")
        from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
        from pydicom.tag import Tag

        stop = _Stop(path, pixels)
        kept: list[Any] | None = None if tags is None else [Tag(tag) for tag in tags]
        with path.open("rb") as file:
            headed = file.read(_SNIFF)[128:] == b"DICM"
            file.seek(0)
            source = _Bounded(file, path)
            try:
                dataset: Dataset = read_partial(cast(Any, source), stop, force=not headed, specific_tags=kept)
            except _Whole:
                meta = read_file_meta_info(path)
                # The data set begins after the preamble, DICM, and the file meta group.
                file.seek(_SNIFF + 12 + int(meta.FileMetaInformationGroupLength))
                plain = _inflated(file.read(), min(limit, _INFLATED_MB * 2**20), path)
                source, size, stop = _Bounded(io.BytesIO(plain), path), len(plain), _Stop(path, pixels)
                dataset = read_dataset(cast(Any, source), False, True, stop_when=stop, specific_tags=kept)
                dataset.file_meta = meta
                dataset.set_original_encoding(False, True)
            if not pixels and tags is None and source.tell() > _HEADER_MB * 2**20:
                raise ItemError(Unusable.TOO_LARGE, f"{path}: its header has more than {_HEADER_MB} MB.")
            if not pixels and source.tell() >= size and is_image(dataset):
                raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated before the pixel data.")
        return dataset


class _Stop:
    """Called by pydicom for each element outside sequences; True stops reading, at the pixel data if they are not needed."""

    def __init__(self, path: Path, pixels: bool) -> None:
        self._path, self._pixels, self._elements = path, pixels, 0

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        self._elements += 1
        if self._elements > _ELEMENTS:
            raise ItemError(Unusable.TOO_LARGE, f"{self._path}: has more elements than the limit for an image.")
        return not self._pixels and int(tag) in _PIXEL_TAGS


def is_image(dataset: Dataset) -> bool:
    """True if the file declares an image, not a report, a plan or a segmentation."""
    return "Image Storage" in getattr(dataset.file_meta.get("MediaStorageSOPClassUID"), "name", "")


def _inflated(data: bytes, limit: int, path: Path) -> bytes:
    length, ended, _ = inflated(data, -zlib.MAX_WBITS, limit)  # first pass: only measures the length
    if length > limit:
        raise ItemError(Unusable.TOO_LARGE, f"{path}: decompresses to more than {limit >> 20} MB.")
    if not ended:
        raise ItemError(Unusable.TRUNCATED, f"{path}: the deflated data are truncated.")
    require_plausible(path, len(data), length)
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)


def declared(dataset: Dataset, path: Path, *, max_mb: int = MAX_MB) -> tuple[int, int, int, int]:
    """(frames, rows, columns, samples per pixel), all at least 1, of an image that takes at most ``max_mb`` MB as float32.

    Raises:
        ItemError: the file is not an image, or too large.
    """
    if "Rows" not in dataset or "Columns" not in dataset:
        if is_image(dataset):
            raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated before Rows and Columns.")
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: contains no image ({dataset.get('Modality', 'no modality')}).")
    count = int(dataset.get("NumberOfFrames") or 1)
    shape = (count, int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1))
    if min(shape) < 1 or shape[3] not in (1, 3):
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {shape} frames, rows, columns and samples.")
    if 4 * count * shape[1] * shape[2] * shape[3] > max_mb * 2**20:
        raise ItemError(Unusable.TOO_LARGE, f"{path}: declares {shape} frames, rows, columns and samples, the limit is {max_mb} MB.")
    return shape


def frames(dataset: Dataset, path: Path, *, max_mb: int = MAX_MB) -> Iterator[npt.NDArray[Any]]:
    """Every frame in file order: (rows, columns) stored values, or (rows, columns, 3) as RGB; before rescaling.

    Bits outside Bits Stored (old overlays) are cleared and the sign is restored, independent of the decoder.

    Raises:
        ItemError: the pixel data are truncated, differ in length from the header, or have a compression without a decoder.
    """
    with reading(path):
        source = _decoded(dataset, path, declared(dataset, path, max_mb=max_mb))
    while True:
        with reading(path):  # not around the yield, which would suppress the caller's warnings
            frame = next(source, None)
        if frame is None:
            return
        yield frame


def _decoded(dataset: Dataset, path: Path, shape: tuple[int, int, int, int]) -> Iterator[npt.NDArray[Any]]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    if "BitsAllocated" not in dataset:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: has no BitsAllocated.")
    allocated = int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored") or allocated)
    high = stored - 1 if dataset.get("HighBit") is None else int(dataset.HighBit)
    if not 0 < stored <= allocated or not stored - 1 <= high < allocated:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {stored} bits up to bit {high} in {allocated}.")
    present = [name for name in _PIXELS if name in dataset]
    if not present:
        raise ItemError(Unusable.TRUNCATED, f"{path}: has an image header but no pixel data.")
    raw = cast(Any, dataset.get_item(present[0]))  # the raw element, with its declared length
    value = cast(bytes, raw.value) or b""
    if getattr(raw, "length", 0xFFFFFFFF) != 0xFFFFFFFF and len(value) < raw.length:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated, {len(value)} of {raw.length} bytes of pixel data are present.")
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if syntax in _CODECS:
        for coded in _codec(value, syntax, dataset, path, shape):
            yield _stored(coded, dataset)
        return
    if syntax == _RLE:
        _check_rle(value, shape[0], math.prod(shape[1:]) * int(dataset.BitsAllocated) // 8, path)
    elif syntax in _NATIVE or not syntax:
        _check_native(len(value), dataset, path, shape)
    else:
        raise ItemError(Unusable.COMPRESSED, f"{path}: no decoder for the transfer syntax {syntax}.")
    if int(dataset.BitsAllocated) == 1 and syntax != _RLE:  # pydicom cannot iterate over frames that end within a byte
        bits = np.unpackbits(np.frombuffer(value, dtype=np.uint8), count=math.prod(shape), bitorder="little")
        yield from bits.reshape(shape[:3])
        return
    for frame, about in get_decoder(UID(syntax or _bare_syntax(dataset))).iter_array(dataset):
        yield _rgb(_stored(frame, dataset), str(about["photometric_interpretation"]), dataset)


def _bare_syntax(dataset: Dataset) -> str:
    implicit, little = dataset.original_encoding
    return _NATIVE[0] if implicit else _EXPLICIT if little else _NATIVE[2]


def _check_native(length: int, dataset: Dataset, path: Path, shape: tuple[int, int, int, int]) -> None:
    bits = int(dataset.BitsAllocated) * shape[0] * shape[1] * shape[2] * shape[3]
    if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        bits = bits // 3 * 2  # two pixels share chrominance (PS3.3 section C.7.6.3.1.2)
    expected = -(-bits // 8)
    if length not in (expected, expected + expected % 2):
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: has {length} bytes of pixel data where {shape} needs {expected}.")


def _encapsulated(value: bytes, count: int, path: Path) -> Iterator[bytes]:
    from pydicom.encaps import generate_frames

    found = 0
    for found, frame in enumerate(generate_frames(value, number_of_frames=count), start=1):
        if found > count:
            break
        yield frame
    if found != count:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {count} frames and contains another number.")


def _check_rle(value: bytes, count: int, size: int, path: Path) -> None:
    # Two bytes can expand to 128. A valid frame is hardly longer than its pixels, so a maximum length is enforced too.
    if any(len(frame) > 2 * size + 1024 for frame in _encapsulated(value, count, path)):
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: a run-length coded frame is longer than its pixels.")


def _codec(value: bytes, syntax: str, dataset: Dataset, path: Path, shape: tuple[int, int, int, int]) -> Iterator[npt.NDArray[Any]]:
    try:
        import imagecodecs
    except ImportError as error:
        raise ItemError(Unusable.COMPRESSED, f"{path}: is compressed ({syntax}); install imagecodecs to read it.") from error
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    name = _CODECS[syntax]
    # The decoder converts lossy colour JPEG from YCbCr to RGB; other streams keep the colour space that the header names.
    converted = (syntax in _LOSSY_JPEG and photometric != "RGB") or photometric in ("YBR_RCT", "YBR_ICT")
    options = {"colorspace": "RGB", "outcolorspace": "RGB"} if name == "jpeg8" and shape[3] == 3 and not converted else {}
    for stream in _encapsulated(value, shape[0], path):
        if _codestream_size(stream) != shape[1:]:
            raise ItemError(Unusable.WRONG_LENGTH, f"{path}: a compressed frame does not have the size that the header declares.")
        if name != "jpeg2k" and not stream.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # fill bytes may follow; libjpeg invents missing rows
            raise ItemError(Unusable.TRUNCATED, f"{path}: a compressed frame is truncated.")
        require_plausible(path, len(stream), math.prod(shape[1:]) * int(dataset.BitsAllocated) // 8)
        try:
            frame = np.asarray(getattr(imagecodecs, f"{name}_decode")(stream, **options))
        except Exception as error:  # each codec raises its own class
            raise ItemError(Unusable.COMPRESSED, f"{path}: a compressed frame cannot be decoded ({type(error).__name__}).") from error
        if frame.shape != shape[1:] and frame.shape != shape[1:3]:
            raise ItemError(Unusable.WRONG_LENGTH, f"{path}: a compressed frame decodes to {frame.shape}.")
        yield frame.reshape(shape[1:3]) if shape[3] == 1 else frame if converted else _rgb(frame, photometric, dataset)


def _codestream_size(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) that a JPEG, JPEG-LS or JPEG 2000 stream declares, from which a decoder allocates memory."""
    at = stream.find(_SIZ, 0, 4096)
    if at >= 0 and len(stream) >= at + 42:
        right, bottom, left, top = struct.unpack(">4I", stream[at + 8 : at + 24])
        return bottom - top, right - left, struct.unpack(">H", stream[at + 40 : at + 42])[0]
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF or marker == 0xD8:  # a fill byte; a second start marker (SPIFF)
            at += 1 if marker == 0xFF else 2
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, parts = struct.unpack(">HHB", stream[at + 5 : at + 10])
            return rows, columns, parts
        else:
            at += 2 + int(struct.unpack(">H", stream[at + 2 : at + 4])[0])
    return None


def _stored(frame: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    allocated, signed = int(dataset.get("BitsAllocated", 0)), int(dataset.get("PixelRepresentation", 0)) == 1
    stored = int(dataset.get("BitsStored") or allocated)
    as_is = stored == allocated and frame.dtype.kind == ("i" if signed else "u")
    if frame.dtype.kind == "f" or frame.ndim == 3 or as_is or not 0 < stored <= allocated <= 32:
        return frame
    value = frame.astype(np.int64)
    if str(dataset.file_meta.get("TransferSyntaxUID", "")) not in _CODECS:  # codecs ignore High Bit
        value >>= max(int(dataset.get("HighBit", stored - 1)) + 1 - stored, 0)
    value &= (1 << stored) - 1
    if signed:
        sign = 1 << (stored - 1)
        value = (value ^ sign) - sign
    return value


def _rgb(frame: npt.NDArray[Any], photometric: str, dataset: Dataset) -> npt.NDArray[Any]:
    from pydicom.pixels.processing import apply_color_lut, convert_color_space

    if photometric == "PALETTE COLOR":
        colours = np.asarray(apply_color_lut(frame, dataset))[..., :3]
        return colours >> 8 if colours.dtype.itemsize == 2 else colours  # a palette of 16 bits: in 0..255, as other colours are
    if frame.ndim == 3 and photometric in ("YBR_FULL", "YBR_FULL_422"):
        return np.asarray(convert_color_space(frame, photometric, "RGB"))
    return frame


def printable(data: bytes) -> str:
    """The runs of at least four printable ASCII characters in ``data``, of one or two bytes each, joined by spaces."""
    return " ".join(run.decode("ascii") for text in (data, data.replace(b"\0", b"")) for run in re.findall(rb"[\x20-\x7e]{4,}", text))
