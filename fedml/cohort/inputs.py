"""The interface of a cohort's inputs (``Input``), and its implementation for a table of numbers (``Table``).

table = Table("clinical", values, present)      # (persons, columns), NaN where missing
table.has(persons), table.tensors(rows, None)   # which persons have it; its tensors in a batch
table.select(rows), table.content()             # a subset of the persons; the bytes that the data digest covers
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
_KEPT = 1 << 22  # values of a table of which a float32 copy is kept, 16 MiB; a larger one is converted batch by batch


class Input(Protocol):
    """One input of all persons of a cohort, in the order of its persons."""

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): whether each person of the cohort has the input."""

    def tensors(self, rows: Rows, draw: torch.Generator | None) -> dict[str, Any]:
        """The tensors of the persons in ``rows``, by key (``fedml.cohort.persons``), without ``<name>_present``, which the cohort
        adds. ``draw``: generator for sampling in a training step; None: everything is read."""

    def select(self, rows: Rows) -> Self:
        """The input of the persons in ``rows`` (ascending)."""

    def content(self) -> dict[str, bytes]:
        """Part name -> bytes that identify the data that were read: equal data give equal bytes."""


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers of persons: ``values`` (persons, columns) float64, NaN where missing; ``present`` (persons,): whether a person has a row."""

    name: str
    values: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]

    @cached_property
    def _floats(self) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.values.astype(np.float32))

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): ``present``."""
        return self.present

    def tensors(self, rows: Rows, draw: torch.Generator | None) -> dict[str, Any]:
        """``<name>``: (persons, columns) float32, NaN where missing."""
        import torch

        if self.values.size > _KEPT:
            return {self.name: torch.from_numpy(self.values[rows].astype(np.float32))}
        return {self.name: self._floats[torch.from_numpy(rows)]}

    def select(self, rows: Rows) -> Table:
        """The rows of these persons."""
        return Table(self.name, self.values[rows], self.present[rows])

    def content(self) -> dict[str, bytes]:
        """The values."""
        return {self.name: content_of(self.values)}


def pool_tables(parts: Sequence[tuple[Table | None, int]]) -> Table:
    """The tables of several sites concatenated; a site without a table contributes missing rows. At least one table is required."""
    first = next(table for table, _ in parts if table is not None)
    blanks = (Table(first.name, np.full((persons, first.values.shape[1]), np.nan), np.zeros(persons, bool)) for _, persons in parts)
    tables = [blank if table is None else table for (table, _), blank in zip(parts, blanks, strict=True)]
    return Table(first.name, np.concatenate([t.values for t in tables]), np.concatenate([t.present for t in tables]))


def content_of(values: Any) -> bytes:
    """Bytes that identify an array: its ``digest`` attribute if it has one, otherwise a hash of values, shape and type."""
    if hasattr(values, "digest"):
        return bytes(values.digest)
    plain = np.ascontiguousarray(values)
    return hashlib.sha256(f"{plain.dtype.str}{plain.shape}".encode() + hashlib.sha256(plain.data).digest()).digest()


def rows_of_items(person: npt.NDArray[np.int64], rows: Rows) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """(items,): whether the item's ``person`` is in ``rows`` (ascending); and the new row for each of these items."""
    place = np.searchsorted(rows, person)
    kept = np.isin(person, rows)
    return kept, place[kept]
