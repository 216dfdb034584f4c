"""MetaImage files (itk.org/Wiki/MetaIO), as ITK and many challenges write them: ``.mha``, and ``.mhd`` with its voxels beside it.

    voxels, affine = read_metaimage(path)      # (*size), or (*size, channels); (4, 4) voxel to mm in RAS+

Positions are in LPS, as ITK has them: row k of TransformMatrix is the direction of axis k. What the header promises is held against the
file before a voxel is decoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.stored import beside, read_beside, unpacked
from fedml.cohort.images.transforms import LARGEST

ENDINGS = (".mha", ".mhd")
_HEADER = 2**16  # bytes; a longer header is invalid
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_SYNONYMS = {
    "Rotation": "TransformMatrix", "Orientation": "TransformMatrix", "Position": "Offset", "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip
_ORTHOGONAL = 1e-3
_LPS = np.array([-1.0, -1.0, 1.0])

Affine = npt.NDArray[np.float64]


def others_of(path: Path) -> tuple[Path, ...]:
    """The file of the voxels, if it is another one than ``path`` and there."""
    try:
        header, _ = _header(path, _start(path))
        name = header["ElementDataFile"]
        return () if name.upper() == "LOCAL" else (beside(path, name),)
    except (ItemError, OSError):
        return ()


def read_metaimage(path: Path, size: Sequence[int] | None = None) -> tuple[npt.NDArray[Any], Affine | None]:
    """The voxels as they are stored, and voxel to mm in RAS+ (of a picture its spacing, on the diagonal).

    Args:
        size: of a mask, the voxels of its image: any other number of voxels is refused before it is decoded.

    Raises:
        ItemError: not-an-image, truncated, wrong-length, too-large, unreadable, geometry, rescale, mask-mismatch.
    """
    start = _start(path)
    header, begin = _header(path, start)
    sizes = [int(n) for n in _numbers(path, header, "DimSize", whole=True)]
    axes = int(_numbers(path, header, "NDims", 1, whole=True)[0])
    if len(sizes) != axes or not sizes or min(sizes) < 1:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {tuple(sizes)} voxels on {axes} axes.")
    if axes not in (2, 3, 4):
        raise ItemError(Unusable.GEOMETRY, f"{path}: has {axes} axes; an image has 2 or 3, a volume one more for its channels.")
    channels = int(_numbers(path, header, "ElementNumberOfChannels", 1, whole=True)[0]) if "ElementNumberOfChannels" in header else 1
    if channels < 1 or (channels > 1 and axes == 4):
        raise ItemError(Unusable.GEOMETRY, f"{path}: has {axes} axes of {channels} values each.")
    count = math.prod(sizes) * channels
    if size is not None and count != math.prod(size):
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: is {tuple(sizes)}, its image {tuple(size)}; export both again.")
    if count > LARGEST:
        raise ItemError(Unusable.TOO_LARGE, f"{path}: declares {count} values, the limit is {LARGEST}.")
    kind, affine = _type(path, header), _affine(path, header, axes)
    raw = _voxels(path, header, begin, count * kind.itemsize, bomb=size is None)
    shape = [channels, *sizes] if channels > 1 else sizes
    values = np.frombuffer(raw, kind, count).reshape(shape, order="F")
    return (np.moveaxis(values, 0, -1) if channels > 1 else values), affine


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER)


def _header(path: Path, start: bytes) -> tuple[Mapping[str, str], int]:
    """The fields by name, and where the voxels begin: behind the line of ElementDataFile."""
    if not start:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is empty.")
    if not re.match(rb"\s*(Comment|ObjectType|ObjectSubType|NDims)\s*=", start):
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is not MetaImage.")
    end = re.search(rb"^ElementDataFile *= *([^\r\n]*)(\r?\n|\Z)", start, re.MULTILINE)
    if end is None:
        reason = Unusable.TRUNCATED if len(start) < _HEADER else Unusable.UNREADABLE
        raise ItemError(reason, f"{path}: its header has no ElementDataFile.")
    fields: dict[str, str] = {}
    for line in start[: end.end()].decode("ascii", "replace").splitlines():
        key, found, value = line.partition("=")
        name = _SYNONYMS.get(key.strip(), key.strip())
        if not found and line.strip():
            raise ItemError(Unusable.UNREADABLE, f"{path}: a line of its header is not of the form key = value.")
        if name in fields and name != "Comment":
            raise ItemError(Unusable.UNREADABLE, f"{path}: its header has {name} twice.")
        fields[name] = value.strip()
    if lacking := [name for name in ("NDims", "DimSize", "ElementType") if name not in fields]:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its header has no {lacking[0]}.")
    if fields.get("ObjectType", "Image") != "Image" or fields.get("BinaryData", "True").lower() != "true":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is no image in binary numbers.")
    if float(fields.get("HeaderSize") or 0) != 0:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its header asks to skip bytes (HeaderSize); save it without.")
    if (fields.get("ElementToIntensityFunctionSlope") or "1", fields.get("ElementToIntensityFunctionOffset") or "0") != ("1", "0"):
        raise ItemError(Unusable.RESCALE, f"{path}: states a slope or an offset of its values, which ITK ignores; save it without.")
    return fields, end.end()


def _numbers(path: Path, header: Mapping[str, str], name: str, count: int | None = None, *, whole: bool = False) -> list[float]:
    words = header[name].split()
    try:
        values = [float(int(word)) if whole else float(word) for word in words]
    except ValueError as error:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its {name} is not made of numbers.") from error
    if not all(map(math.isfinite, values)) or (count is not None and len(values) != count):
        raise ItemError(Unusable.GEOMETRY, f"{path}: its {name} does not have {count or 'only'} finite numbers.")
    return values


def _type(path: Path, header: Mapping[str, str]) -> np.dtype[Any]:
    name = header["ElementType"]
    if name not in _TYPES:
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: holds {name}, not plain numbers of a known size.")
    kind, order = np.dtype(_TYPES[name]), header.get("BinaryDataByteOrderMSB", "").lower()
    if kind.itemsize > 1 and order not in ("true", "false"):
        raise ItemError(Unusable.UNREADABLE, f"{path}: its header does not say whether its numbers are little or big endian.")
    return kind.newbyteorder(">" if order == "true" else "<")


def _affine(path: Path, header: Mapping[str, str], axes: int) -> Affine | None:
    if "ElementSpacing" not in header:
        if "TransformMatrix" in header or "Offset" in header:
            raise ItemError(Unusable.GEOMETRY, f"{path}: has a position or a direction but no ElementSpacing.")
        return None
    spacing = np.array(_numbers(path, header, "ElementSpacing", axes))
    if (spacing <= 0).any():
        raise ItemError(Unusable.GEOMETRY, f"{path}: has a spacing that is not above 0.")
    turned = np.eye(axes)
    if "TransformMatrix" in header:
        turned = np.array(_numbers(path, header, "TransformMatrix", axes * axes)).reshape(axes, axes)
    if np.abs(turned @ turned.T - np.eye(axes)).max() > _ORTHOGONAL:
        raise ItemError(Unusable.GEOMETRY, f"{path}: its TransformMatrix is not of orthogonal unit vectors.")
    origin = np.array(_numbers(path, header, "Offset", axes) if "Offset" in header else np.zeros(axes))
    if axes == 2:
        return np.diag([*spacing, 1.0, 1.0])
    if axes == 4 and (np.abs(turned[3, :3]).max() > _ORTHOGONAL or np.abs(turned[:3, 3]).max() > _ORTHOGONAL):
        raise ItemError(Unusable.GEOMETRY, f"{path}: its fourth axis has a direction in space.")
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = _LPS[:, None] * (turned[:3, :3].T * spacing[:3]), _LPS * origin[:3]
    return out


def _voxels(path: Path, header: Mapping[str, str], begin: int, expected: int, *, bomb: bool) -> bytes | memoryview:
    name = header["ElementDataFile"]
    if name.upper() == "LOCAL":
        if path.stat().st_size > begin + expected + expected // 100 + 2**16:
            raise ItemError(Unusable.WRONG_LENGTH, f"{path}: holds more than the {expected} bytes that its header declares.")
        source, packed = path, memoryview(path.read_bytes())[begin:]
    else:
        if begin < path.stat().st_size:
            raise ItemError(Unusable.UNREADABLE, f"{path}: its header goes on behind ElementDataFile; one image is one file of voxels.")
        source = beside(path, name)
        packed = memoryview(read_beside(source, expected))
    compressed = header.get("CompressedData", "False").lower() == "true"
    if compressed and (stated := header.get("CompressedDataSize")) and int(float(stated)) != len(packed):
        reason = Unusable.TRUNCATED if int(float(stated)) > len(packed) else Unusable.WRONG_LENGTH
        raise ItemError(reason, f"{path}: states {stated} bytes of compressed data, {len(packed)} are there.")
    return unpacked(source, packed, expected, "zlib" if compressed else "raw", bomb=bomb)
