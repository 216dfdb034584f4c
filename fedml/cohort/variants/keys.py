"""Names of variants, in columns: a million take 35 MB, where Python objects take 250.

    keys = from_text(text)                       # Keys, a sequence of Variant
    keys[3].ref, keys[10:20], keys.take(order)   # a variant, and parts that stay in columns
    keys.by_alleles(is_ambiguous)                # computed once for each pair of alleles that occurs, then looked up
    columns_of(some_tuple)                       # any sequence of variants in columns

Columns that few values occur in are numbers into a list of these values: contigs, and the pairs of REF and ALT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, final, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
_TOGETHER = 1 << 18  # variants whose text is made, or whose objects exist, at a time
_FIELDS = ("contig", "position", "id", "ref", "alt")


class Variant(NamedTuple):
    """One ALT allele at one position. ``position`` is 1-based; ``contig`` as in the file, or canonical (``canonical_contig``)."""

    contig: str
    position: int
    id: str
    ref: str
    alt: str


@final
@dataclass(frozen=True, eq=False, repr=False)
class Keys(Sequence[Variant]):
    """Variants in columns. ``contig`` (variants,): numbers into ``contigs``; ``position`` (variants,); ``ids`` (variants,) an Arrow array
    of text; ``alleles`` (variants,): numbers into ``pairs`` of (REF, ALT). ``contigs`` and ``pairs`` may have values of no variant."""

    contigs: tuple[str, ...]
    contig: Codes
    position: Ints
    ids: Any
    pairs: tuple[tuple[str, str], ...]
    alleles: Codes

    def __len__(self) -> int:
        return len(self.position)

    def __repr__(self) -> str:
        return f"Keys({len(self)} variants)"

    @overload
    def __getitem__(self, at: int) -> Variant: ...

    @overload
    def __getitem__(self, at: slice) -> Keys: ...

    def __getitem__(self, at: int | slice) -> Variant | Keys:
        if isinstance(at, slice):
            begin, end, step = at.indices(len(self))
            if step != 1:
                return self.take(np.arange(begin, end, step))
            part = slice(begin, max(begin, end))
            ids = self.ids.slice(begin, len(self.position[part]))
            return replace(self, contig=self.contig[part], position=self.position[part], ids=ids, alleles=self.alleles[part])
        place = range(len(self))[at]  # a negative index, or one that is out of range
        contig, pair = self.contigs[self.contig[place]], self.pairs[self.alleles[place]]
        return Variant(contig, int(self.position[place]), self.ids[place].as_py(), *pair)

    def __iter__(self) -> Iterator[Variant]:
        for begin in range(0, len(self), _TOGETHER):
            part = self[begin : begin + _TOGETHER]
            for contig, position, name, pair in zip(
                part.contig.tolist(), part.position.tolist(), part.ids.to_pylist(), part.alleles.tolist(), strict=True
            ):
                yield Variant(self.contigs[contig], position, name, *self.pairs[pair])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return len(self) == len(other) and (self is other or to_text(self) == to_text(other))
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal to a tuple, whose hash it does not have

    def take(self, at: npt.NDArray[Any]) -> Keys:
        """The variants ``at``: indices, or a mask (variants,)."""
        index = np.flatnonzero(at) if at.dtype == bool else np.asarray(at, np.int64)
        ids = self.ids.take(pa.array(index))
        return replace(self, contig=self.contig[index], position=self.position[index], ids=ids, alleles=self.alleles[index])

    def by_alleles(self, value: Callable[[str, str], Any], dtype: npt.DTypeLike = bool) -> npt.NDArray[Any]:
        """(variants,): ``value`` of each variant's REF and ALT."""
        return np.array([value(ref, alt) for ref, alt in self.pairs], dtype)[self.alleles] if len(self) else np.zeros(0, dtype)

    def by_contig(self, value: Callable[[str], Any], dtype: npt.DTypeLike = bool) -> npt.NDArray[Any]:
        """(variants,): ``value`` of each variant's contig."""
        return np.array([value(name) for name in self.contigs], dtype)[self.contig] if len(self) else np.zeros(0, dtype)

    def letters(self, which: int) -> Any:
        """(variants,) an Arrow array of text: REF (0) or ALT (1), in capitals."""
        return pa.array([pair[which].upper() for pair in self.pairs], pa.large_string()).take(pa.array(self.alleles))

    def by_id(self, value: Callable[[Any], Any]) -> npt.NDArray[np.bool_]:
        """(variants,): ``value`` of the whole column of ids, an Arrow function that gives truth values."""
        return np.asarray(value(self.ids)).astype(bool)

    @cached_property
    def short(self) -> Keys:
        """The same variants; each contig and pair that occurs is listed once, and no other."""
        contigs, contig = _listed(self.contigs, self.contig)
        pairs, alleles = _listed(self.pairs, self.alleles)
        return replace(self, contigs=contigs, contig=contig, pairs=pairs, alleles=alleles)


def _listed(values: Sequence[Any], column: Codes) -> tuple[tuple[Any, ...], Codes]:
    used, inverse = np.unique(column, return_inverse=True)
    numbers: dict[Any, int] = {}
    again = np.array([numbers.setdefault(values[at], len(numbers)) for at in used.tolist()], np.int32)
    return tuple(numbers), again[inverse] if len(again) else column


def columns_of(keys: Sequence[Variant]) -> Keys:
    """``keys`` in columns; returned as they are if they are so already."""
    if isinstance(keys, Keys):
        return keys
    contigs: dict[str, int] = {}
    pairs: dict[tuple[str, str], int] = {}
    contig = np.fromiter((contigs.setdefault(key.contig, len(contigs)) for key in keys), np.int32, len(keys))
    alleles = np.fromiter((pairs.setdefault((key.ref, key.alt), len(pairs)) for key in keys), np.int32, len(keys))
    position = np.fromiter((key.position for key in keys), np.int64, len(keys))
    return Keys(tuple(contigs), contig, position, pa.array([key.id for key in keys], pa.large_string()), tuple(pairs), alleles)


def joined(parts: Sequence[Sequence[Variant]]) -> Keys:
    """The variants of all ``parts``, one part after the other."""
    several = [columns_of(part) for part in parts]
    if len(several) == 1:
        return several[0]
    contigs: dict[str, int] = {}
    pairs: dict[tuple[str, str], int] = {}
    contig, alleles = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for part in several:
        contig.append(np.array([contigs.setdefault(name, len(contigs)) for name in part.contigs], np.int32)[part.contig])
        alleles.append(np.array([pairs.setdefault(pair, len(pairs)) for pair in part.pairs], np.int32)[part.alleles])
    position = np.concatenate([np.zeros(0, np.int64), *(part.position for part in several)])
    ids = pa.concat_arrays([pa.array([], pa.large_string()), *(part.ids for part in several)])
    return Keys(tuple(contigs), np.concatenate(contig), position, ids, tuple(pairs), np.concatenate(alleles))


def to_text(keys: Sequence[Variant]) -> bytes:
    """Keys as tab-separated lines, the format on the wire and in a saved model's folder."""
    if not isinstance(keys, Keys):
        return "".join(f"{k.contig}\t{k.position}\t{k.id}\t{k.ref}\t{k.alt}\n" for k in keys).encode()
    contigs = pa.array(keys.contigs, pa.large_string())
    pairs = pa.array([f"{ref}\t{alt}\n" for ref, alt in keys.pairs], pa.large_string())
    out = []
    for begin in range(0, len(keys), _TOGETHER):
        part = keys[begin : begin + _TOGETHER]
        columns = (contigs.take(pa.array(part.contig)), pa.array(part.position).cast(pa.large_string()), part.ids)
        lines = pc.binary_join_element_wise(*columns, pairs.take(pa.array(part.alleles)), pa.scalar("\t", pa.large_string()))
        out.append(bytes_of(lines))
    return b"".join(out)


def bytes_of(lines: Any) -> bytes:
    """The text of an Arrow array of large strings, one after the other."""
    _, offsets, letters = lines.buffers()  # they follow each other there
    ends = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    found: bytes = letters.slice(int(ends[0]), int(ends[-1] - ends[0])).to_pybytes()
    return found


def from_text(text: bytes) -> Keys:
    """The inverse of ``to_text``.

    Raises:
        ValueError: a line does not have five fields, its position is not a number, or the text is not UTF-8.
    """
    if not text:
        return columns_of(())
    if b"\r" in text:  # Arrow takes it as the end of a line; an id may contain it
        return _slowly(text)
    return read_columns(text, _FIELDS)


def read_columns(text: bytes, names: Sequence[str]) -> Keys:
    """The variants of tab-separated lines with the columns ``names``, among them contig, position, id, ref and alt.

    Raises:
        ValueError: a line has another number of fields, its position is not a number, or the text is not UTF-8.
    """
    few = pa.dictionary(pa.int32(), pa.large_string())
    types = {"contig": few, "position": pa.int64(), "id": pa.large_string(), "ref": few, "alt": few}
    table = pyarrow.csv.read_csv(
        pa.py_buffer(text),
        pyarrow.csv.ReadOptions(use_threads=False, block_size=min(len(text) + 1, 2**31 - 1), column_names=list(names)),
        pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, double_quote=False, escape_char=False, ignore_empty_lines=False),
        pyarrow.csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False, include_columns=list(_FIELDS)),
    ).unify_dictionaries()
    contig, ref, alt = (table[name].combine_chunks() for name in ("contig", "ref", "alt"))
    contig, ref, alt = (column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in (contig, ref, alt))
    first, second = ref.dictionary.to_pylist(), alt.dictionary.to_pylist()
    both = np.asarray(ref.indices).astype(np.int64) * len(second) + np.asarray(alt.indices)
    used, alleles = np.unique(both, return_inverse=True)
    pairs = tuple((first[at // len(second)], second[at % len(second)]) for at in used.tolist())
    ids = table["id"].combine_chunks()
    ids = ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids
    position = np.ascontiguousarray(table["position"].to_numpy(), np.int64)
    names = tuple(contig.dictionary.to_pylist())
    return Keys(names, np.asarray(contig.indices).astype(np.int32), position, ids, pairs, alleles.astype(np.int32))


def _slowly(text: bytes) -> Keys:
    lines = text.decode().removesuffix("\n").split("\n")  # not splitlines: an id may contain other line separators
    fields = [line.split("\t") for line in lines]
    try:
        return columns_of([Variant(contig, int(position), id_, ref, alt) for contig, position, id_, ref, alt in fields])
    except OverflowError as error:
        raise ValueError(f"a position has more than 64 bits: {error}") from error
