"""Dosages with fractions at 16 bits each: a table of persons x variants, in memory or memory-mapped, in the place of a ``Packed`` one.

    table = Fine.of(codes(dosage))                 # float (persons, variants) of 0 to 2, nan where missing
    table.floats(rows), table.fractions(0, 4096)   # float32, -1.0 where missing: some persons, or a range of variants
    table[rows], table.block(0, 4096)              # int8: the nearest genotype (0, 1, 2, -1), for whatever counts persons

A dosage is a whole number of 1/16384 ALT alleles, as in PLINK 2, so it differs from a file's number by at most 1/32768 (3.1e-5), and a
.pgen file is kept exactly. Of persons with one copy the number counts halves of it (1/16384 of their copy), and the nearest genotype is 0
or 2. A half is rounded up: 0.5 is 1, and 1.0 of one copy (a probability of one half) is 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.packed import MISSING, Int8s, Packed, Rows, View, chosen_rows

SCALE = 16384  # codes per allele
NONE = 0xFFFF  # code of a missing dosage
ONE_COPY = 2 * SCALE + 1  # code of 0 ALT alleles of a person with one copy; up to ONE_COPY + SCALE
_DIGEST_ROWS = 64  # persons at a time
Uint16s = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


def _decodings() -> tuple[Floats, Int8s]:
    """float32 and int8 (2 x 65,536,): dosage and nearest genotype of each code; the second half for exchanged alleles."""
    number = np.full(1 << 16, np.nan)
    number[:ONE_COPY] = np.arange(ONE_COPY) / SCALE
    number[ONE_COPY : ONE_COPY + SCALE + 1] = np.arange(SCALE + 1) * 2 / SCALE
    both = np.concatenate([number, 2 - number])
    # Of an exchanged allele the nearest genotype is that of the file, exchanged: 0.5 is 1 as 1.5 is.
    nearest = np.floor(np.nan_to_num(number) + 0.5)
    nearest[ONE_COPY:] = np.where(np.nan_to_num(number[ONE_COPY:]) >= 1, 2, 0)
    copies = np.concatenate([nearest, 2 - nearest])
    return np.nan_to_num(both, nan=MISSING).astype(np.float32), np.where(np.isnan(both), MISSING, copies).astype(np.int8)


_NUMBER, _COPIES = _decodings()


@final
@dataclass(frozen=True, eq=False, repr=False)
class Fine(View):
    """Dosages of persons x variants. ``table`` uint16 (stored persons, stored variants); ``rows``, ``columns`` and ``flip`` as in
    ``Packed``. ``coarse`` (variants,): where ``floats`` and ``fractions`` give the nearest genotype instead; None: nowhere."""

    table: Uint16s
    rows: npt.NDArray[np.intp] | None = None
    columns: npt.NDArray[np.intp] | None = None
    flip: npt.NDArray[np.bool_] | None = None
    coarse: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.table.dtype != np.uint16 or self.table.ndim != 2:
            raise ValueError(f"table is {self.table.dtype} {self.table.shape}, expected uint16 (persons, variants)")

    @property
    def digest(self) -> bytes:
        """SHA-256 over the table and the view; 32 bytes."""
        sha256 = hashlib.sha256(f"{self.table.shape} 16".encode())
        for begin in range(0, len(self.table), _DIGEST_ROWS):
            sha256.update(np.ascontiguousarray(self.table[begin : begin + _DIGEST_ROWS]).data)
        for chosen in (self.rows, self.columns, self.flip, self.coarse):
            sha256.update(b"-" if chosen is None else np.ascontiguousarray(chosen).data)
        return sha256.digest()

    @property
    def shape(self) -> tuple[int, int]:
        """(persons, variants)."""
        return len(self), self.table.shape[1] if self.columns is None else len(self.columns)

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        return f"Fine{self.shape}"

    def floats(self, rows: Rows, out: Floats | None = None) -> Floats:
        """float32 (persons in ``rows``, variants): dosages, -1.0 where missing.

        Args:
            out: array to write to, C-contiguous float32 of that shape.

        Raises:
            IndexError: a person index is out of range.
            ValueError: ``out`` has another type, shape or memory layout.
        """
        chosen, shape = self._persons(rows), self.shape
        if out is None:
            out = np.empty((len(chosen), shape[1]), np.float32)
        elif out.shape != (len(chosen), shape[1]) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, expected C-contiguous float32 {(len(chosen), shape[1])}")
        return self._fractions(chosen, 0, shape[1], out)

    def block(self, start: int, stop: int, rows: Rows | None = None) -> Int8s:
        """Variants ``start`` to ``stop`` (not included) of all persons, or of those in ``rows``: int8 (persons, stop - start), the nearest
        genotypes. ``IndexError`` as in ``fractions``."""
        chosen = self._range(start, stop, rows)
        out = np.empty((len(chosen), stop - start), np.int8)
        self._decode(_COPIES, chosen, start, stop, out)
        return out

    def fractions(self, start: int, stop: int, rows: Rows | None = None) -> Floats:
        """Variants ``start`` to ``stop`` (not included) of all persons, or of those in ``rows``: float32 (persons, stop - start), -1.0
        where missing.

        Raises:
            IndexError: the range or a person index is out of range.
        """
        chosen = self._range(start, stop, rows)
        return self._fractions(chosen, start, stop, np.empty((len(chosen), stop - start), np.float32))

    def aligned(self, columns: npt.NDArray[np.integer[Any]], flip: npt.NDArray[np.bool_]) -> Fine:
        """As ``Packed.aligned``: a view whose variant j is this view's variant ``columns[j]``, 2 - d where ``flip[j]``."""
        if columns.shape != flip.shape or columns.ndim != 1:
            raise ValueError(f"columns {columns.shape} and flip {flip.shape} are not both (panel,)")
        if len(columns) and not (columns.min() >= MISSING and columns.max() < self.shape[1]):
            raise IndexError(f"a column is not in -1 to {self.shape[1] - 1}")
        stored, flipped = columns.astype(np.intp), flip.astype(bool)
        coarse = self.coarse
        if self.shape[1]:
            if coarse is not None:
                coarse = np.where(stored < 0, False, coarse[stored])
            if self.columns is not None and self.flip is not None:
                stored, flipped = np.where(stored < 0, MISSING, self.columns[stored]), flipped ^ self.flip[stored]
        if len(stored) == self.table.shape[1] and not flipped.any() and np.array_equal(stored, np.arange(len(stored))):
            return replace(self, columns=None, flip=None, coarse=coarse)
        return replace(self, columns=stored, flip=flipped, coarse=coarse)

    def take(self, rows: Rows) -> Fine:
        """A view of the persons in ``rows``, in that order; ``IndexError``: a person index is out of range."""
        return replace(self, rows=self._persons(rows))

    def rounded(self, where: npt.NDArray[np.bool_]) -> Fine:
        """A view that has no fractions at the variants ``where`` (variants,)."""
        return replace(self, coarse=where if self.coarse is None else self.coarse | where) if where.any() else self

    def _persons(self, rows: Rows) -> npt.NDArray[np.intp]:
        chosen = chosen_rows(rows, len(self))
        return chosen if self.rows is None else self.rows[chosen]

    def _range(self, start: int, stop: int, rows: Rows | None) -> npt.NDArray[np.intp]:
        if not 0 <= start <= stop <= self.shape[1]:
            raise IndexError(f"variants {start} to {stop} of {self.shape[1]}")
        return self._persons(slice(None) if rows is None else rows)

    def _fractions(self, rows: npt.NDArray[np.intp], start: int, stop: int, out: Floats) -> Floats:
        self._decode(_NUMBER, rows, start, stop, out)
        if self.coarse is not None and (at := np.flatnonzero(self.coarse[start:stop])).size:
            out[:, at] = self._decode(_COPIES, rows, start, stop, np.empty(out.shape, np.int8))[:, at]
        return out

    def _decode(
        self, table: npt.NDArray[Any], rows: npt.NDArray[np.intp], start: int, stop: int, out: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Writes what ``table`` has for the codes of variants ``start`` to ``stop`` of ``rows`` into ``out``, which is returned."""
        if not self.table.shape[1]:
            out[...] = MISSING
        elif self.columns is None or self.flip is None:
            for at, row in enumerate(rows):
                np.take(table, self.table[row, start:stop], mode="clip", out=out[at])
        else:
            columns, half = np.maximum(self.columns[start:stop], 0), self.flip[start:stop].astype(np.intp) << 16
            for at, row in enumerate(rows):
                np.take(table, self.table[row][columns] + half, mode="clip", out=out[at])
            out[:, self.columns[start:stop] < 0] = MISSING
        return out


def codes(dosage: npt.NDArray[np.floating[Any]]) -> Uint16s:
    """The codes of dosages from 0 to 2 of persons with two copies, nan where missing: the nearest whole number of 1/16384.

    Raises:
        ValueError: a dosage is not from 0 to 2.
    """
    missing = np.isnan(dosage)
    number = np.floor(np.where(missing, 0.0, dosage) * SCALE + 0.5)
    if number.size and not 0 <= number.min() <= number.max() <= 2 * SCALE:
        raise ValueError("a dosage is not from 0 to 2")
    return np.where(missing, NONE, number).astype(np.uint16)


def one_copy(code: Uint16s) -> Uint16s:
    """The same dosages (from 0 to 2) as those of persons with one copy."""
    return np.where(code > 2 * SCALE, code, ONE_COPY + (code.astype(np.uint32) + 1) // 2).astype(np.uint16)


def concat_fine(pieces: Sequence[Fine | Packed]) -> Fine:
    """The persons of ``pieces`` concatenated as one table in memory; the genotypes of packed ones as whole dosages.

    Raises:
        ValueError: there is no piece, or the pieces differ in their number of variants.
    """
    if not pieces or len({piece.shape[1] for piece in pieces}) > 1:
        raise ValueError(f"pieces of {[piece.shape[1] for piece in pieces]} variants cannot be stacked")
    out = np.empty((sum(map(len, pieces)), pieces[0].shape[1]), np.uint16)
    at = 0
    for piece in pieces:
        for row in range(len(piece)):
            if isinstance(piece, Packed):
                copies = piece[row].astype(np.int64)
                out[at] = np.where(copies < 0, NONE, copies * SCALE)
            else:
                out[at] = _codes_of(piece, row)
            at += 1
    return Fine(out)


def _codes_of(piece: Fine, row: int) -> Uint16s:
    """(variants,) the codes of one person of a view."""
    stored = piece.table[row if piece.rows is None else piece.rows[row]]
    if piece.columns is None or piece.flip is None:
        return np.asarray(stored)
    code = stored[np.maximum(piece.columns, 0)].astype(np.int64)
    turned = np.where(code >= ONE_COPY, 2 * ONE_COPY + SCALE - code, 2 * SCALE - code)
    code = np.where(piece.flip & (code != NONE), turned, code)
    return np.where(piece.columns < 0, NONE, code).astype(np.uint16)
