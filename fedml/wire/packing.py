"""One object a record on the wire: the arrays of a record as one array of bytes, and back.

Flower sends, stores and asks for every array of a message by itself, twice over (the array and its chunks): sixty weights are a hundred and
twenty requests a site, whatever their size. A bundled record is one. Inside a process nothing is bundled, and Flower's own strategies see
plain records. A bundle is an index and the arrays' own bytes, each from a multiple of 64, as ``.npy`` data wants to lie.

    bundle(content), unbundle(content)      the inverse of each other; what is no bundle passes as it is
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from flwr.app import Array, ArrayRecord, RecordDict

from fedml.errors import Reason, SiteError

_NAME, _STYPE = "bundle", "fedml.wire.packing"
_ALIGN = 64
_LENGTH = 8  # bytes that say how long the index is
_MOST = 16_000_000  # bytes of an index


def bundle(content: RecordDict, made: dict[int, ArrayRecord] | None = None) -> RecordDict:
    """``content`` with each of its array records in one array. ``made`` keeps records that several messages share: pass one dictionary."""
    kept = {} if made is None else made
    out = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            if id(record) not in kept:
                kept[id(record)] = ArrayRecord({_NAME: _bundled(record)})
            out[name] = kept[id(record)]
        else:
            out[name] = record
    return out


def is_bundled(content: RecordDict) -> bool:
    """Does any of its records come as a bundle?"""
    return any(_single(record) is not None for record in content.array_records.values())


def unbundle(content: RecordDict) -> RecordDict:
    """``content`` with plain array records.

    Raises:
        SiteError: a bundle is not well formed.
    """
    try:
        return _unbundled(content)
    except ValueError as error:
        raise SiteError(Reason.BAD_MESSAGE, str(error)) from error


def _unbundled(content: RecordDict) -> RecordDict:
    if not is_bundled(content):
        return content
    out = RecordDict()
    for name, record in content.items():
        whole = _single(record) if isinstance(record, ArrayRecord) else None
        out[name] = record if whole is None else ArrayRecord(dict(_parts(whole.data)))
    return out


def _single(record: Mapping[str, Array]) -> Array | None:
    whole = record.get(_NAME) if len(record) == 1 else None
    return whole if whole is not None and whole.stype == _STYPE else None


def _bundled(record: ArrayRecord) -> Array:
    index, at = [], 0
    for key, array in record.items():
        index.append([key, array.dtype, list(array.shape), array.stype, at, len(array.data)])
        at += -(-len(array.data) // _ALIGN) * _ALIGN
    told = json.dumps(index).encode()
    head = _LENGTH + len(told)
    pieces = [len(told).to_bytes(_LENGTH, "little"), told, bytes(-head % _ALIGN)]
    for array in record.values():
        pieces += [array.data, bytes(-len(array.data) % _ALIGN)]
    data = b"".join(pieces)
    return Array("uint8", (len(data),), _STYPE, data)


def _parts(data: bytes) -> Iterator[tuple[str, Array]]:
    length = int.from_bytes(data[:_LENGTH], "little")
    if not 0 < length <= min(len(data) - _LENGTH, _MOST):
        raise ValueError("a bundle's index is longer than the bundle")
    try:
        index = json.loads(data[_LENGTH : _LENGTH + length])
    except (ValueError, RecursionError) as error:
        raise ValueError("a bundle's index cannot be read") from error
    start = -(-(_LENGTH + length) // _ALIGN) * _ALIGN
    end = 0
    names = set[str]()
    if not isinstance(index, list):
        raise ValueError("a bundle's index is no list")
    for row in index:
        if not (isinstance(row, list) and len(row) == 6 and all(map(isinstance, row, (str, str, list, str, int, int)))):
            raise ValueError("a bundle's index is not well formed")
        key, dtype, shape, stype, at, size = row
        # In order and apart: no two arrays share a byte, so what is counted once is there once.
        if key in names or not end <= at or size < 0 or start + at + size > len(data) or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("a bundle's index does not fit its bytes")
        names.add(key)
        end = at + size
        yield key, Array(dtype, tuple(shape), stype, data[start + at : start + end])
