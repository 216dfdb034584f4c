"""Packs the arrays of a record into one byte array for the wire, and unpacks them.

Flower sends, stores and requests every array of a message separately, with two requests per array (the array and its chunks): sixty weights
take 120 requests per site, independent of their size. A packed record takes one. Within a process nothing is packed, and Flower's own
strategies get plain records. A packed record is an index followed by the arrays' bytes, each aligned to 64 bytes, as in ``.npy`` files.

    bundle(content), unbundle(content)      inverse of each other; records that are not packed pass unchanged
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from flwr.app import Array, ArrayRecord, RecordDict

from fedml.errors import Reason, SiteError

_NAME, _STYPE = "bundle", "fedml.wire.packing"
_ALIGN = 64
_LENGTH = 8  # bytes that give the length of the index
_MAX_INDEX_BYTES = 1_000_000  # of all records together: about 10,000 arrays, which take a second to read


def bundle(content: RecordDict, made: dict[int, ArrayRecord] | None = None) -> RecordDict:
    """``content`` with each of its array records packed into one array. ``made``: a cache for records that several messages share; pass the
    same dictionary for all of them."""
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
    """True if any record of ``content`` is packed."""
    return any(_single(record) is not None for record in content.values() if isinstance(record, ArrayRecord))


def unbundle(content: RecordDict) -> RecordDict:
    """``content`` with its packed records unpacked.

    Raises:
        SiteError: bad-message: a packed record is not well formed.
    """
    try:
        return _unbundled(content)
    except ValueError as error:
        raise SiteError(Reason.BAD_MESSAGE, str(error)) from error


def _unbundled(content: RecordDict) -> RecordDict:
    if not is_bundled(content):
        return content
    out, left = RecordDict(), _MAX_INDEX_BYTES
    for name, record in content.items():
        whole = _single(record) if isinstance(record, ArrayRecord) else None
        if whole is not None:
            left -= (length := int.from_bytes(whole.data[:_LENGTH], "little"))
            if left < 0:
                raise ValueError(f"the indexes of packed records are longer than {_MAX_INDEX_BYTES:,} bytes, or than a record ({length:,})")
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
    text = json.dumps(index).encode()
    head = _LENGTH + len(text)
    pieces = [len(text).to_bytes(_LENGTH, "little"), text, bytes(-head % _ALIGN)]
    for array in record.values():
        pieces += [array.data, bytes(-len(array.data) % _ALIGN)]
    data = b"".join(pieces)
    return Array("uint8", (len(data),), _STYPE, data)


def _parts(data: bytes) -> Iterator[tuple[str, Array]]:
    length = int.from_bytes(data[:_LENGTH], "little")
    if not 0 < length <= len(data) - _LENGTH:
        raise ValueError("the index of a packed record is longer than the record")
    try:
        index = json.loads(data[_LENGTH : _LENGTH + length])
    except (ValueError, RecursionError) as error:
        raise ValueError("the index of a packed record cannot be read") from error
    start = -(-(_LENGTH + length) // _ALIGN) * _ALIGN
    end = 0
    names = set[str]()
    if not isinstance(index, list):
        raise ValueError("the index of a packed record is not a list")
    for row in index:
        if not (isinstance(row, list) and len(row) == 6 and all(map(isinstance, row, (str, str, list, str, int, int)))):
            raise ValueError("the index of a packed record is not well formed")
        key, dtype, shape, stype, at, size = row
        # In order and disjoint: no two arrays share a byte, so an array's bytes cannot be counted twice.
        if key in names or not end <= at or size < 0 or start + at + size > len(data) or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("the index of a packed record does not match its bytes")
        names.add(key)
        end = at + size
        yield key, Array(dtype, tuple(shape), stype, data[start + at : start + end])
