"""Numbers of persons that stay on disk, as an input of a person (``fedml.cohort.inputs.Input``): a ``Table`` that is not in memory.

matrix = Matrix("omics", (stored,), which, at, present)
matrix.floats(rows), matrix.floats(rows, 10, 20)       # float32 (rows, columns), NaN where missing: read here
for block in matrix.blocks(rows): ...                  # float64, a few rows at a time, for sums
pool_numbers([(matrix, 500), (table, 80), (None, 20)]) # the sites' persons in one; nothing is read
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.inputs import Rows, Table, pool_tables
from fedml.cohort.wide.stored import Floats, Stored, digests_of

_BLOCK = 1 << 18  # numbers of a block: 2 MiB of float64, of which a few copies exist at a time
_COLUMNS = 1 << 20  # numbers of a block of columns: of each person some are read, so that fewer would be slower
_TOGETHER = 1 << 20  # numbers of persons who are evaluated together: 4 MiB of float32
Source = Stored | Floats


@dataclass(frozen=True, eq=False)
class Matrix:
    """Numbers of persons: person p has row ``at[p]`` of ``sources[which[p]]``, or none where ``which`` is -1; ``present`` as in ``Table``.

    What ``fedml.clients.site.few`` changes is changed when it is read: a ``hidden`` column is missing for everybody, and a gap of a
    present person is ``fill`` of its column (NaN: it stays a gap).
    """

    name: str
    sources: tuple[Source, ...]
    which: Rows
    at: Rows
    present: npt.NDArray[np.bool_]
    hidden: npt.NDArray[np.bool_] | None = None
    fill: Floats | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(persons, columns)."""
        return len(self.present), self.sources[0].shape[1]

    @property
    def together(self) -> int:
        """How many persons may be evaluated at once, at least 1."""
        return max(1, _TOGETHER // self.shape[1])

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): ``present``."""
        return self.present

    def tensors(self, rows: Rows, draw: Any) -> dict[str, Any]:
        """``<name>``: (persons, columns) float32, NaN where missing."""
        import torch

        return {self.name: torch.from_numpy(self.floats(rows))}

    def select(self, rows: Rows) -> Matrix:
        """The rows of these persons; nothing is read."""
        return replace(self, which=self.which[rows], at=self.at[rows], present=self.present[rows])

    def content(self) -> dict[str, bytes]:
        """SHA-256 over the shape and the SHA-256 of each person's row, which is kept with the rows: nothing is read."""
        found = hashlib.sha256(f"float32 {self.shape}".encode())
        each = np.zeros((len(self.present), 32), np.uint8)
        for source, places, at in self._parts(np.arange(len(self.present))):
            each[places] = source.digests[at] if isinstance(source, Stored) else digests_of(source[at])
        for part in (each, self.hidden, self.fill):
            found.update(b"-" if part is None else np.ascontiguousarray(part).data)
        return {self.name: found.digest()}

    def known(self) -> Rows:
        """(persons,): how many numbers each person has in the sources."""
        out = np.zeros(len(self.present), np.int64)
        for source, places, at in self._parts(np.arange(len(self.present))):
            out[places] = source.known[at] if isinstance(source, Stored) else (~np.isnan(source[at])).sum(1)
        return out

    def floats(self, rows: Rows, start: int = 0, stop: int | None = None) -> Floats:
        """float32 (persons in ``rows``, columns ``start`` to ``stop``), NaN where missing, in new memory."""
        columns = slice(start, self.shape[1] if stop is None else stop)
        out = np.empty((len(rows), columns.stop - start), np.float32)
        for source, places, at in self._parts(rows):
            if isinstance(source, Stored):
                source.read(at, out, places, start)
            else:
                out[places] = source[at, columns]
        out[self.which[rows] < 0] = np.nan
        if self.fill is not None:
            gaps = np.isnan(out) & self.present[rows][:, None]
            np.copyto(out, self.fill[columns], where=gaps)
        if self.hidden is not None:
            out[:, self.hidden[columns]] = np.nan
        return out

    def blocks(self, rows: Rows) -> Iterator[npt.NDArray[np.float64]]:
        """The persons in ``rows`` in that order, some at a time: float64 (some, columns)."""
        step = max(1, _BLOCK // self.shape[1])
        for begin in range(0, len(rows), step):
            yield self.floats(rows[begin : begin + step]).astype(np.float64)

    def column_blocks(self, rows: Rows) -> Iterator[tuple[int, Floats]]:
        """(first column, float32 (persons in ``rows``, some columns)), from the first column to the last."""
        columns, step = self.shape[1], max(1, _COLUMNS // max(1, len(rows)))
        for start in range(0, columns, step):
            yield start, self.floats(rows, start, min(start + step, columns))

    def _parts(self, rows: Rows) -> Iterator[tuple[Source, Rows, Rows]]:
        """Of each source: which places of ``rows`` it has, and their rows in it."""
        which, at = self.which[rows], self.at[rows]
        for number, source in enumerate(self.sources):
            places = np.flatnonzero(which == number)
            if len(places):
                yield source, places, at[places]


def matrix_of(name: str, stored: Stored) -> Matrix:
    """The persons for whom an entry was made. A person without a row, or with a row without a number, is not present."""
    there = stored.rows >= 0
    at = np.where(there, stored.rows, 0)
    known = stored.known[at] > 0 if len(stored.known) else np.zeros(len(at), bool)
    return Matrix(name, (stored,), np.where(there, 0, -1), at, there & known)


def pool_numbers(parts: Sequence[tuple[Table | Matrix | None, int]]) -> Table | Matrix:
    """The persons of several sites, in the order given; a site without numbers contributes missing rows. At least one has numbers.

    With one matrix among them it is a matrix, and tables are float32 in it. Nothing is read.
    """
    if not any(isinstance(value, Matrix) for value, _ in parts):
        return pool_tables([(value if isinstance(value, Table) else None, persons) for value, persons in parts])
    pieces, sources = list[Matrix](), list[Source]()
    name = next(value.name for value, _ in parts if value is not None)
    for value, persons in parts:
        if isinstance(value, Matrix):
            if value.hidden is not None or value.fill is not None:
                raise ValueError("matrices are pooled before what few persons have is left out")
            piece = value
        elif value is None:
            piece = Matrix(name, (), np.full(persons, -1), np.zeros(persons, np.int64), np.zeros(persons, bool))
        else:
            piece = Matrix(name, (value.values.astype(np.float32),), np.zeros(persons, np.int64), np.arange(persons), value.present)
        pieces.append(replace(piece, which=np.where(piece.which < 0, -1, piece.which + len(sources))))
        sources += piece.sources
    which, at, present = (np.concatenate([getattr(p, key) for p in pieces]) for key in ("which", "at", "present"))
    return Matrix(name, tuple(sources), which, at, present)
