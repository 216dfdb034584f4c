"""A NRRD file (teem.sourceforge.net/nrrd/format.html), raw, gzip or bzip2: 3D Slicer and ITK write such files. A header may name the
file of its voxels (``.nhdr``), which then lies beside it.

    voxels, affine = read_nrrd(path)      # (*size), or (*size, channels) where an axis is not one of space; (4, 4) voxel to mm in RAS+

pynrrd parses the header. What the header promises is held against the file before a voxel is decoded; pynrrd alone would unpack all that
is there. Geometry is taken from ``space``, ``space directions`` and ``space origin``; a file without them does not say where its voxels
lie.
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
from fedml.cohort.images.stored import Encoding, beside, read_beside, unpacked
from fedml.cohort.images.transforms import LARGEST
from fedml.quiet import told

ENDINGS = (".nrrd", ".nhdr")
_ENCODINGS: dict[str, Encoding] = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_HEADER = 2**20  # bytes; a longer header is invalid
_TYPES = {
    name: kind
    for kind, names in {
        "i1": "signed char,int8,int8_t", "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t", "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float", "f8": "double",
    }.items()
    for name in names.split(",")
}  # fmt: skip
_TO_RAS = {  # space -> signs that bring it to right, anterior, superior
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1), "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
_OF_SPACE = ("domain", "space")  # kinds of an axis along which voxels lie

Affine = npt.NDArray[np.float64]


def read_nrrd(path: Path, size: Sequence[int] | None = None) -> tuple[npt.NDArray[Any], Affine | None]:
    """The voxels as they are stored, and voxel to mm in RAS+; None where the file has no anatomical space.

    Args:
        size: of a mask, the voxels of its image: any other number of voxels is refused before it is decoded.

    Raises:
        ItemError: not-an-image, truncated, wrong-length, too-large, unreadable, compressed (an encoding that is not read), geometry,
            mask-mismatch.
    """
    data = path.read_bytes()
    if not data:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is empty.")
    header, start = _header(path, data)
    sizes = [int(n) for n in np.atleast_1d(header["sizes"])]
    if not sizes or min(sizes) < 1 or len(sizes) != header["dimension"]:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {tuple(sizes)} voxels on {header['dimension']} axes.")
    count = math.prod(sizes)
    if size is not None and count != math.prod(size):
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: is {tuple(sizes)}, its image {tuple(size)}; export both again.")
    if count > LARGEST:
        raise ItemError(Unusable.TOO_LARGE, f"{path}: declares {tuple(sizes)} voxels, the limit is {LARGEST}.")
    kind = _type(path, header)
    in_space = _axes_of_space(path, header, len(sizes))
    affine = _affine(path, header, in_space)
    packed = memoryview(data)[start:]
    raw = _voxels(path, header, packed, count * kind.itemsize, bomb=size is None)
    values = np.frombuffer(raw, kind, count).reshape(sizes, order="F")
    other = [axis for axis in range(len(sizes)) if axis not in in_space]
    return (np.moveaxis(values, other[0], -1) if other else values), affine


def _header(path: Path, data: bytes) -> tuple[Mapping[str, Any], int]:
    """The fields by name, and where the voxels begin: behind the first empty line."""
    import nrrd

    if not data.startswith(b"NRRD"):
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is not NRRD.")
    end = re.search(rb"\r?\n\r?\n", data[:_HEADER])
    if end is None and re.search(rb"^data ?file:", data[:_HEADER], re.MULTILINE):  # the header alone may end without an empty line
        end = re.search(rb"\s*\Z", data[:_HEADER])
    if end is None:
        reason = Unusable.TRUNCATED if len(data) < _HEADER else Unusable.UNREADABLE
        raise ItemError(reason, f"{path}: its header has no end.")
    lines = data[: end.start()].decode("ascii", "replace").splitlines()
    try:
        header: Mapping[str, Any] = nrrd.read_header(lines)
    except Exception as error:  # pynrrd raises what its parsers meet
        raise ItemError(Unusable.UNREADABLE, f"{path}: its header cannot be read ({told(error)}).") from error
    if lacking := [field for field in ("dimension", "type", "encoding", "sizes") if field not in header]:
        raise ItemError(Unusable.UNREADABLE, f'{path}: its header has no "{lacking[0]}".')
    if any(header.get(field, 0) for field in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise ItemError(Unusable.UNREADABLE, f"{path}: its header asks to skip lines or bytes; save it without.")
    return header, end.end()


def _type(path: Path, header: Mapping[str, Any]) -> np.dtype[Any]:
    if header["type"] not in _TYPES:
        raise ItemError(Unusable.NOT_AN_IMAGE, f'{path}: holds "{header["type"]}", not plain numbers.')
    kind = np.dtype(_TYPES[header["type"]])
    if kind.itemsize == 1:
        return kind
    if header.get("endian") not in ("little", "big"):
        raise ItemError(Unusable.UNREADABLE, f"{path}: its header does not say whether its numbers are little or big endian.")
    return kind.newbyteorder("<" if header["endian"] == "little" else ">")


def _axes_of_space(path: Path, header: Mapping[str, Any], axes: int) -> list[int]:
    """The axes along which voxels lie; one other may hold channels."""
    found, kinds = list(range(axes)), header.get("kinds")
    if (directions := header.get("space directions")) is not None:
        rows = [None if row is None else np.asarray(row, np.float64) for row in directions]
        found = [axis for axis, row in enumerate(rows) if row is not None and not np.isnan(row).all()]
        if len(rows) != axes:
            raise ItemError(Unusable.GEOMETRY, f"{path}: has directions of {len(rows)} axes and sizes of {axes}.")
    elif kinds is not None and any(kind in _OF_SPACE for kind in kinds):
        found = [axis for axis, kind in enumerate(kinds) if kind in _OF_SPACE]
    if len(found) < 2 or axes - len(found) > 1 or (axes > len(found) and len(found) < 3):
        text = f"{path}: has {axes} axes, {len(found)} of them in space; an image has 2 or 3, a volume one more for its channels."
        raise ItemError(Unusable.GEOMETRY, text)
    return found


def _affine(path: Path, header: Mapping[str, Any], in_space: Sequence[int]) -> Affine | None:
    """(4, 4) for volumes; of a picture its spacing alone, on the diagonal."""
    directions, space = header.get("space directions"), str(header.get("space", "")).lower()
    if directions is None or not space:
        return None
    if space not in _TO_RAS:
        raise ItemError(Unusable.GEOMETRY, f'{path}: lies in the space "{space}", which is not anatomical; export it in LPS or RAS.')
    if any(unit not in ("mm", "millimeter", "millimeters", "") for unit in header.get("space units", ())):
        raise ItemError(Unusable.GEOMETRY, f"{path}: is measured in {header['space units'][0]}; export it in mm.")
    columns = np.array([np.asarray(directions[axis], np.float64) for axis in in_space]).T
    origin = np.asarray(header.get("space origin", np.zeros(3)), np.float64)
    if columns.shape[0] != 3 or origin.shape != (3,):
        raise ItemError(Unusable.GEOMETRY, f"{path}: its directions or its origin do not have three numbers.")
    if not (np.isfinite(columns).all() and np.isfinite(origin).all()) or np.linalg.matrix_rank(columns) < len(in_space):
        raise ItemError(Unusable.GEOMETRY, f"{path}: its directions are singular or not finite.")
    if len(in_space) == 2:
        return np.diag([*np.linalg.norm(columns, axis=0), 1.0, 1.0])
    out = np.eye(4)
    signs = np.array(_TO_RAS[space], np.float64)
    out[:3, :3], out[:3, 3] = signs[:, None] * columns, signs * origin
    return out


def _voxels(path: Path, header: Mapping[str, Any], packed: memoryview, expected: int, *, bomb: bool) -> bytes | memoryview:
    """The bytes of the voxels, just as many as the header declares; never more than that is unpacked."""
    encoding = str(header["encoding"]).lower()
    if encoding not in _ENCODINGS:
        raise ItemError(Unusable.COMPRESSED, f'{path}: has the encoding "{encoding}"; save it as raw or gzip.')
    if (name := _data_file(header)) is not None:
        if len(packed.tobytes().strip()):
            raise ItemError(Unusable.UNREADABLE, f"{path}: names another file for its voxels, and goes on behind its header.")
        path = beside(path, name)
        packed = memoryview(read_beside(path, expected))
    return unpacked(path, packed, expected, _ENCODINGS[encoding], bomb=bomb)


def _data_file(header: Mapping[str, Any]) -> str | None:
    found = header.get("data file", header.get("datafile"))
    return None if found is None else str(found)


def others_of(path: Path) -> tuple[Path, ...]:
    """The file of the voxels, if it is another one than ``path`` and there."""
    try:
        with path.open("rb") as file:
            name = _data_file(_header(path, file.read(_HEADER))[0])
        return () if name is None else (beside(path, name),)
    except (ItemError, OSError):
        return ()
