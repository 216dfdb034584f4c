"""ALT dosages at two bits each: a table of persons x variants, in memory or memory-mapped; only the entries that are read are unpacked.

    table = Packed.of(dosage)                      # int8 (persons, variants) of -1, 0, 1, 2
    table[rows], table.floats(rows)                # some persons: int8, or float32 with -1.0 where missing
    table.block(0, 4096)                           # a range of variants of all persons, for a pass over variants
    table.aligned(columns, flip).take(persons)     # another order of variants and persons: a view, nothing is unpacked

A person's row is ceil(variants / 4) consecutive bytes. Variant j is in byte j // 4 at bits 2 * (j % 4), as 0, 1, 2 copies of ALT or 3 for
missing. The bit order is that of PLINK 1, the codes are not. A batch of persons reads only the rows of those persons.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, SupportsIndex, final

import numpy as np
import numpy.typing as npt

MISSING = -1
_DIGEST_ROWS = 256  # persons at a time
_CHUNK = 1 << 22  # bytes of int8 dosages at a time while packing
_GATHER = 1 << 16  # columns at a time while gathering, which bounds temporary memory
_KINDS = 9  # decodings of a byte: 4 positions, each plain or flipped, and absent
Rows = npt.NDArray[Any] | Sequence[int] | slice
Int8s = npt.NDArray[np.int8]


def _decodings() -> Int8s:
    """(kinds, 256) int8: dosage of each byte under each kind; kind = position in the byte, + 4 if flipped, or 8 for an absent variant."""
    codes = (np.arange(256)[None, :] >> (2 * np.arange(4)[:, None])) & 3
    plain = np.array([0, 1, 2, MISSING], np.int8)[codes]
    return np.concatenate([plain, np.where(plain == MISSING, plain, 2 - plain), np.full((1, 256), MISSING)]).astype(np.int8)


_DECODINGS = _decodings()
_ONE = {t: np.ascontiguousarray(_DECODINGS.ravel(), t) for t in (np.dtype(np.int8), np.dtype(np.float32))}  # [kind * 256 + byte]
# [byte]: its four dosages as one void value, so that NumPy copies 4 or 16 bytes per look-up; void needs no alignment of the target.
_FOUR = {t: np.ascontiguousarray(_DECODINGS[:4].T, t).view(f"V{4 * t.itemsize}").ravel() for t in _ONE}


class Window(NamedTuple):
    """A range of bytes of a person's row, ``begin`` to ``end`` (not included); ``at``: the places of a view's variants in it, four to a
    byte; ``turned``: the bits that exchange 0 and 2 copies, (bytes,), or None."""

    begin: int
    end: int
    at: slice | npt.NDArray[np.intp]
    turned: npt.NDArray[np.uint8] | None


class View(ABC):
    """Dosages of persons x variants as a view of a stored table, indexed as an int8 array of the nearest genotypes. Abstract."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(persons, variants)."""

    @abstractmethod
    def block(self, start: int, stop: int, rows: Rows | None = None) -> Int8s:
        """Variants ``start`` to ``stop`` (not included) of all persons, or of those in ``rows``: int8 (persons, stop - start)."""

    @property
    def dtype(self) -> np.dtype[np.int8]:
        """int8, the type of ``self[rows]``."""
        return np.dtype(np.int8)

    def __getitem__(self, rows: Rows | SupportsIndex) -> Int8s:
        """int8 (persons in ``rows``, variants), -1 where missing; (variants,) for a single index.

        Raises:
            IndexError: a person index is out of range, or the index has more than one axis.
        """
        if isinstance(rows, SupportsIndex) and not isinstance(rows, np.ndarray):
            row: Int8s = self.block(0, self.shape[1], [rows.__index__()])[0]
            return row
        return self.block(0, self.shape[1], rows)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table, so that ``np.asarray(table)`` works; for small tables."""
        if copy is False:
            raise ValueError("a table of dosages cannot be converted to an array without a copy")
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Packed(View):
    """Dosages of persons x variants. ``table`` uint8 (stored persons, ceil(stored / 4)) has ``stored`` variants; ``rows`` and ``columns``
    select the persons and variants of this view, None for all in stored order; column -1 is missing for every person; ``flip`` replaces d
    by 2 - d. Construct with ``Packed.of``, with ``stack``, or from an existing packed table with ``Packed(table, variants)``."""

    table: npt.NDArray[np.uint8]
    stored: int
    rows: npt.NDArray[np.intp] | None = None
    columns: npt.NDArray[np.intp] | None = None
    flip: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.table.dtype != np.uint8 or self.table.ndim != 2 or self.table.shape[1] != width(self.stored):
            raise ValueError(f"table is {self.table.dtype} {self.table.shape}, expected uint8 (persons, {width(self.stored)})")

    @staticmethod
    def of(dosage: npt.NDArray[np.int8]) -> Packed:
        """Packs int8 (persons, variants) of -1, 0, 1, 2, block by block.

        Raises:
            ValueError: a value is not -1, 0, 1 or 2, the type is not int8, or the array does not have two axes.
        """
        if dosage.ndim != 2 or dosage.dtype != np.int8:
            raise ValueError(f"dosages are int8 (persons, variants), not {dosage.dtype} {dosage.shape}")
        table = np.empty((len(dosage), width(dosage.shape[1])), np.uint8)
        for begin, end in _spans(len(dosage), dosage.shape[1]):
            pack(dosage[begin:end], table[begin:end])
        return Packed(table, dosage.shape[1])

    @property
    def digest(self) -> bytes:
        """SHA-256 over the table and the view's rows, columns and flips; 32 bytes."""
        sha256 = hashlib.sha256(f"{self.table.shape} {self.stored}".encode())
        for begin in range(0, len(self.table), _DIGEST_ROWS):
            sha256.update(np.ascontiguousarray(self.table[begin : begin + _DIGEST_ROWS]).data)
        for chosen in (self.rows, self.columns, self.flip):
            sha256.update(b"-" if chosen is None else np.ascontiguousarray(chosen).data)
        return sha256.digest()

    @property
    def shape(self) -> tuple[int, int]:
        """(persons, variants)."""
        return len(self), self.stored if self.columns is None else len(self.columns)

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        return f"Packed{self.shape}"

    def floats(self, rows: Rows, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """float32 (persons in ``rows``, variants), -1.0 where missing: equal to ``packed[rows]`` as floats, without a temporary int8 array.

        Args:
            out: array to write to, C-contiguous float32 of that shape; reused memory is faster than newly allocated memory.

        Raises:
            IndexError: a person index is out of range.
            ValueError: ``out`` has another type, shape or memory layout.
        """
        chosen, shape = self._persons(rows), self.shape
        if out is None:
            out = np.empty((len(chosen), shape[1]), np.float32)
        elif out.shape != (len(chosen), shape[1]) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, expected C-contiguous float32 {(len(chosen), shape[1])}")
        self._unpack(chosen, 0, shape[1], out)
        return out

    def block(self, start: int, stop: int, rows: Rows | None = None) -> Int8s:
        """Variants ``start`` to ``stop`` (not included) of all persons, or of those in ``rows``: int8 (persons, stop - start).

        A mapped table is read in pages of 4,096 bytes, 16,384 variants of a person; narrower blocks read pages more than once.

        Raises:
            IndexError: the range or a person index is out of range.
        """
        if not 0 <= start <= stop <= self.shape[1]:
            raise IndexError(f"variants {start} to {stop} of {self.shape[1]}")
        chosen = self._persons(slice(None) if rows is None else rows)
        out = np.empty((len(chosen), stop - start), np.int8)
        self._unpack(chosen, start, stop, out)
        return out

    def aligned(self, columns: npt.NDArray[np.integer[Any]], flip: npt.NDArray[np.bool_]) -> Packed:
        """A view whose variant j is this view's variant ``columns[j]``, 2 - d where ``flip[j]``; column -1: missing for every person.

        Both arguments are (panel,). The identity is stored as no reordering, so reading costs the same as before.

        Raises:
            IndexError: a column is out of range.
            ValueError: ``columns`` and ``flip`` are not vectors of the same length.
        """
        if columns.shape != flip.shape or columns.ndim != 1:
            raise ValueError(f"columns {columns.shape} and flip {flip.shape} are not both (panel,)")
        if len(columns) and not (columns.min() >= MISSING and columns.max() < self.shape[1]):
            raise IndexError(f"a column is not in -1 to {self.shape[1] - 1}")
        stored, flipped = columns.astype(np.intp), flip.astype(bool)
        if self.columns is not None and self.flip is not None and self.shape[1]:
            stored, flipped = np.where(stored < 0, MISSING, self.columns[stored]), flipped ^ self.flip[stored]
        if len(stored) == self.stored and not flipped.any() and np.array_equal(stored, np.arange(self.stored)):
            return replace(self, columns=None, flip=None)
        return replace(self, columns=stored, flip=flipped)

    def take(self, rows: Rows) -> Packed:
        """A view of the persons in ``rows``, in that order.

        Raises:
            IndexError: a person index is out of range.
        """
        return replace(self, rows=self._persons(rows))

    def _persons(self, rows: Rows) -> npt.NDArray[np.intp]:
        """Row indices in ``table`` of this view's persons ``rows``."""
        chosen = chosen_rows(rows, len(self))
        return chosen if self.rows is None else self.rows[chosen]

    @cached_property
    def _gather(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint16]]:
        """For each column, the index of its byte in a row, and its kind * 256; byte value + kind * 256 is an index into ``_ONE``."""
        assert self.columns is not None  # noqa: S101 - for the type checker; the caller has checked
        assert self.flip is not None  # noqa: S101
        kind = np.where(self.columns < 0, _KINDS - 1, self.columns % 4 + 4 * self.flip)
        return np.maximum(self.columns, 0) // 4, (kind * 256).astype(np.uint16)

    def window(self, start: int, stop: int, spread: int = 2) -> Window | None:
        """The range of stored variants in which the view's variants ``start`` to ``stop`` lie; None if they are absent from the file, or
        so scattered that the range would have more than ``spread`` times as many."""
        if self.columns is None or self.flip is None:
            return Window(start // 4, width(stop), slice(start % 4, start % 4 + stop - start), None) if self.stored else None
        columns = self.columns[start:stop]
        if not len(columns) or (first := int(columns.min())) < 0 or (last := int(columns.max())) - first >= spread * len(columns) + 8:
            return None
        begin, at = first // 4, columns - first // 4 * 4
        in_order = last - first + 1 == len(columns) and bool((np.diff(columns) == 1).all())
        end, flip = width(last + 1), self.flip[start:stop]
        turned = None
        if flip.any():
            turned = np.zeros(4 * (end - begin), bool)
            turned[at[flip]] = True
            if not in_order and turned[at].sum() != flip.sum():
                return None  # a variant in both orientations
            turned = (turned.reshape(-1, 4) * np.array([2, 8, 32, 128])).sum(1).astype(np.uint8)  # the upper bits of their codes
        return Window(begin, end, slice(int(at[0]), int(at[0]) + len(at)) if in_order else at, turned)

    def codes(self, window: Window, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """The packed bytes of the view's persons ``rows`` in ``window``, in the view's orientation: uint8 (rows, bytes)."""
        out: npt.NDArray[np.uint8] = self.table[rows if self.rows is None else self.rows[rows], window.begin : window.end]
        if window.turned is not None:  # 0 and 2 copies differ in the upper bit, 1 copy and missing have the lower
            out ^= (~out & 0x55) << 1 & window.turned
        return out

    def _unpack(self, rows: npt.NDArray[np.intp], start: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Writes variants ``start`` to ``stop`` of the table's ``rows`` into ``out``, int8 or float32."""
        if not self.stored or self.columns is not None:
            if (window := self.window(start, stop)) is None:
                self._pick(rows, start, stop, out)
                return
            step, stored = max(1, _CHUNK // (4 * (window.end - window.begin))), replace(self, rows=None)
            for at in range(0, len(rows), step):
                unpacked = np.take(_FOUR[out.dtype], stored.codes(window, rows[at : at + step]), mode="clip")
                out[at : at + step] = unpacked.view(out.dtype)[:, window.at]
            return
        four = _FOUR[out.dtype]
        if start % 4:  # not aligned to bytes: unpack each row of the range into a scratch row first
            scratch = np.empty(width(stop) - start // 4, four.dtype)
            shifted = scratch.view(out.dtype)[start % 4 : start % 4 + stop - start]
            for at, row in enumerate(rows):
                np.take(four, self.table[row, start // 4 : width(stop)], mode="clip", out=scratch)
                out[at] = shifted
            return
        begin, end, whole = start // 4, stop // 4, (stop - start) // 4 * 4
        for at, row in enumerate(rows):
            packed, target = self.table[row, begin : width(stop)], out[at]
            np.take(four, packed[: end - begin], mode="clip", out=target[:whole].view(four.dtype))  # "clip" avoids buffering
            if stop % 4:
                target[whole:] = _DECODINGS[: stop % 4, packed[-1]]

    def _pick(self, rows: npt.NDArray[np.intp], start: int, stop: int, out: npt.NDArray[Any]) -> None:
        """The same through ``columns``: reads only bytes that contain a selected variant."""
        if not self.stored:
            out[...] = MISSING
            return
        byte, kind = self._gather
        one, spans = _ONE[out.dtype], [(i, min(i + _GATHER, stop)) for i in range(start, stop, _GATHER)]
        for at, row in enumerate(rows):
            packed, target = self.table[row], out[at]
            for i, j in spans:
                np.take(one, np.take(packed, byte[i:j], mode="clip") + kind[i:j], mode="clip", out=target[i - start : j - start])


def chosen_rows(rows: Rows, persons: int) -> npt.NDArray[np.intp]:
    """``rows`` as indices into a table of ``persons``.

    Raises:
        IndexError: a person index is out of range, or the index has more than one axis.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(persons), dtype=np.intp)
    index = np.asarray(rows)
    if index.ndim != 1 or not (index.dtype.kind in "iub" or index.size == 0):
        raise IndexError("index persons by a slice, by integers or by one bool per person, on one axis")
    if index.dtype == bool:
        if len(index) != persons:
            raise IndexError(f"{len(index)} bools for {persons} persons")
        index = np.flatnonzero(index)
    chosen = index.astype(np.intp)
    if chosen.size:
        if not -persons <= chosen.min() <= chosen.max() < persons:
            raise IndexError(f"a person is not in 0 to {persons - 1}")
        chosen = np.where(chosen < 0, chosen + persons, chosen)
    return chosen


def width(variants: int) -> int:
    """Bytes of a person's row."""
    return -(-variants // 4)


def pack(dosage: npt.NDArray[np.int8], out: npt.NDArray[np.uint8]) -> None:
    """Packs int8 (persons, variants) into ``out`` uint8 (persons, ceil(variants / 4)); unused bits of the last byte are 0.

    Raises:
        ValueError: a value is not -1, 0, 1 or 2.
    """
    if dosage.size and not MISSING <= dosage.min() <= dosage.max() <= 2:
        raise ValueError("a dosage is not -1, 0, 1 or 2")
    persons, variants = dosage.shape
    padded = np.zeros((persons, 4 * width(variants)), np.uint8)
    np.bitwise_and(dosage.view(np.uint8), 3, out=padded[:, :variants])
    # Four codes as one little-endian number; the product brings code i to bit 24 + 2 i, and no two of its terms share a bit.
    np.right_shift(padded.view("<u4") * np.uint32(0x01041040), 24, out=out, casting="unsafe")


def concat_packed(pieces: Sequence[Packed]) -> Packed:
    """The persons of ``pieces`` concatenated as one table in memory. A single view becomes a table of its columns, which reads faster.

    Raises:
        ValueError: there is no piece, or the pieces differ in their number of variants.
    """
    if not pieces or len({piece.shape[1] for piece in pieces}) > 1:
        raise ValueError(f"pieces of {[piece.shape[1] for piece in pieces]} variants cannot be stacked")
    variants = pieces[0].shape[1]
    table = np.empty((sum(map(len, pieces)), width(variants)), np.uint8)
    at = 0
    for piece in pieces:
        target = table[at : at + len(piece)]
        if piece.columns is None:
            np.take(piece.table, piece._persons(slice(None)), axis=0, mode="clip", out=target)
        else:
            for begin, end in _spans(len(piece), variants):
                pack(piece[begin:end], target[begin:end])
        at += len(piece)
    return Packed(table, variants)


def _spans(persons: int, variants: int) -> Iterable[tuple[int, int]]:
    """Ranges of persons whose dosages are about ``_CHUNK`` bytes."""
    step = max(1, _CHUNK // max(1, variants))
    return ((begin, min(begin + step, persons)) for begin in range(0, persons, step))
