"""One input of a cohort's persons as a value: what a cohort asks of it, whatever it is made of (``Input``), and a table of numbers as one.

table = Table("clinical", values, present)      # (persons, columns), NaN where missing
table.has(persons), table.tensors(rows, None)   # who has it; what a batch holds of it
table.select(rows), table.content()             # fewer persons; what the digest of the data covers
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]


class Input(Protocol):
    """One input of all persons of a cohort, in the order of its persons."""

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): which of the cohort's ``persons`` have it."""

    def tensors(self, rows: Rows, draw: torch.Generator | None) -> dict[str, Any]:
        """What a batch of the persons in ``rows``, in that order, holds of it, by key (``fedml.cohort.persons``); ``<name>_present`` is the
        cohort's work. ``draw``: what is random in a step of training; None: all that there is."""

    def select(self, rows: Rows) -> Self:
        """The same of the persons in ``rows`` (ascending)."""

    def content(self) -> dict[str, bytes]:
        """Bytes that stand for all that was read, by the name of each part: the same data give the same."""


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers of persons: ``values`` (persons, columns) float64, NaN where missing; ``present`` (persons,): who has a row at all."""

    name: str
    values: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]

    @cached_property
    def _floats(self) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.values.astype(np.float32))

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,)."""
        return self.present

    def tensors(self, rows: Rows, draw: torch.Generator | None) -> dict[str, Any]:
        """``<name>``: (persons, columns) float32, NaN where missing."""
        import torch

        return {self.name: self._floats[torch.from_numpy(rows)]}

    def select(self, rows: Rows) -> Table:
        """The table of those persons."""
        return Table(self.name, self.values[rows], self.present[rows])

    def content(self) -> dict[str, bytes]:
        """The values."""
        return {self.name: content_of(self.values)}


def pool_tables(parts: Sequence[tuple[Table | None, int]]) -> Table:
    """Several sites' tables, at least one of them there, one under the other; of a site without one as many persons with nothing."""
    first = next(table for table, _ in parts if table is not None)
    blanks = (Table(first.name, np.full((persons, first.values.shape[1]), np.nan), np.zeros(persons, bool)) for _, persons in parts)
    tables = [blank if table is None else table for (table, _), blank in zip(parts, blanks, strict=True)]
    return Table(first.name, np.concatenate([t.values for t in tables]), np.concatenate([t.present for t in tables]))


def content_of(values: Any) -> bytes:
    """Bytes that stand for an array: a digest of its own, or of its numbers with shape and type."""
    if hasattr(values, "digest"):
        return bytes(values.digest)
    plain = np.ascontiguousarray(values)
    return hashlib.sha256(f"{plain.dtype.str}{plain.shape}".encode() + hashlib.sha256(plain.data).digest()).digest()


def rows_of_items(person: npt.NDArray[np.int64], rows: Rows) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Of items with the row of their ``person``: (items,) which belong to the persons in ``rows`` (ascending), and the new row of those."""
    place = np.searchsorted(rows, person)
    kept = np.isin(person, rows)
    return kept, place[kept]
