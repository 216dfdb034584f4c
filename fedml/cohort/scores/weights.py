"""Reads the rows of a scoring file by columns, where every row is plain; a file with any other row is read row by row
(``fedml.cohort.scores.scoring_file``), which names the row that is wrong. The results are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.study.contigs import canonical_contig

UNKNOWN = frozenset({"", ".", "NA", "NR", "nan", "NaN", "None"})
TRUE, FALSE = frozenset({"true", "1", "1.0", "t", "yes"}), frozenset({"false", "0", "0.0", "f", "no", ""})
_BLOCK_BYTES = 1 << 24


class Places(NamedTuple):
    """The places of a file's columns, None where there is none. ``flags``: of is_dominant and is_recessive, None where there is none, and
    ``false``: of flags that must not be true; ``empty``: of columns that must be empty."""

    width: int
    effect: int
    weight: int
    contig: int | None
    position: int | None
    rsid: tuple[int | None, int | None]
    other: tuple[int | None, int | None]
    frequency: int | None
    flags: tuple[int | None, int | None]
    false: tuple[int, ...]
    empty: tuple[int, ...]


class Columns(NamedTuple):
    """The columns of ``Scoring``, as there; ``model`` 0 additive, 1 dominant, 2 recessive."""

    rsid: tuple[str, ...]
    contig: tuple[str, ...]
    position: npt.NDArray[np.int64]
    effect: tuple[str, ...]
    other: tuple[str, ...]
    weight: npt.NDArray[np.float64]
    frequency: npt.NDArray[np.float64]
    model: npt.NDArray[np.int8]


def read_plain(stream: IO[bytes], at: Places) -> Columns | None:
    """The rows that follow in ``stream``; None if one is not plain: too short, without an allele or a finite weight, with a flag that is no
    truth value, or whatever else a reader by rows has to look at."""
    import pyarrow as pa
    from pyarrow import compute as pc
    from pyarrow import csv as arrow

    wanted = [
        p
        for p in (at.effect, at.weight, at.contig, at.position, *at.rsid, *at.other, at.frequency, *at.flags, *at.false, *at.empty)
        if p is not None
    ]
    names = [str(place) for place in sorted(set(wanted))]
    try:
        table = arrow.read_csv(
            stream,
            read_options=arrow.ReadOptions(use_threads=False, column_names=[str(n) for n in range(at.width)], block_size=_BLOCK_BYTES),
            parse_options=arrow.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=arrow.ConvertOptions(
                column_types={name: pa.string() for name in names}, include_columns=names, strings_can_be_null=False
            ),
        )
        cells = {int(name): _cells(table.column(name)) for name in names}
        rows = len(table)
        blank = pa.repeat(pa.scalar(""), rows)

        def of(*places: int | None) -> Any:
            """The first of these columns that has a cell, row by row."""
            found = blank
            for place in reversed(places):
                if place is not None:
                    found = pc.if_else(pc.equal(cells[place], ""), found, cells[place])
            return found

        effect, other = pc.utf8_upper(of(at.effect)), pc.utf8_upper(of(*at.other))
        weight, frequency = _floats(of(at.weight), 0.0), _floats(of(at.frequency), np.nan)
        contig = of(at.contig).dictionary_encode()
        position = pc.cast(pc.if_else(pc.equal(of(at.position), ""), "0", of(at.position)), pa.int64()).to_numpy(zero_copy_only=False)
        flags = [_truth(of(place)) for place in at.flags]
        stated = pc.not_equal(of(at.frequency), "").to_numpy(zero_copy_only=False)
        checks = (
            bool(rows),
            not pc.any(pc.equal(effect, "")).as_py(),
            not pc.any(pc.equal(of(at.weight), "")).as_py(),
            np.isfinite(weight).all(),
            ((frequency[stated] >= 0) & (frequency[stated] <= 1)).all(),
            (position >= 0).all(),
            not (flags[0] & flags[1]).any(),
            not any(_truth(of(place)).any() for place in at.false),
            all(pc.all(pc.equal(cells[place], "")).as_py() for place in at.empty),
        )
    except (ValueError, OSError):  # pyarrow's errors are of these types
        return None
    if not all(checks):
        return None
    known = [canonical_contig(name) for name in contig.dictionary.to_pylist()]
    codes = contig.indices.to_numpy()
    unplaced = np.array([not name for name in contig.dictionary.to_pylist()], bool)[codes]
    return Columns(
        rsid=tuple(of(*at.rsid).to_pylist()),
        contig=tuple(known[code] for code in codes.tolist()),
        position=np.where(unplaced, 0, position),
        effect=tuple(effect.to_pylist()),
        other=tuple(pc.if_else(pc.utf8_is_alpha(other), other, "").to_pylist()),
        weight=weight,
        frequency=frequency,
        model=(flags[0] + 2 * flags[1]).astype(np.int8),
    )


def _cells(column: Any) -> Any:
    """Cells without spaces around, "" where unknown."""
    import pyarrow as pa
    from pyarrow import compute as pc

    text = pc.utf8_trim_whitespace(column.combine_chunks())
    return pc.if_else(pc.is_in(text, pa.array(sorted(UNKNOWN))), "", text)


def _floats(text: Any, empty: float) -> npt.NDArray[np.float64]:
    """The numbers, ``empty`` where there is none. ``ValueError``: one is no number."""
    import pyarrow as pa
    from pyarrow import compute as pc

    found = pc.cast(pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text), pa.float64())
    numbers: npt.NDArray[np.float64] = pc.fill_null(found, empty).to_numpy(zero_copy_only=False)
    return numbers


def _truth(text: Any) -> npt.NDArray[np.bool_]:
    """Whether each cell is true. ``ValueError``: one is neither true nor false."""
    words = text.dictionary_encode()
    known: Sequence[str] = [word.lower() for word in words.dictionary.to_pylist()]
    if not all(word in TRUE or word in FALSE for word in known):
        raise ValueError("neither true nor false")
    found: npt.NDArray[np.bool_] = np.array([word in TRUE for word in known], bool)[words.indices.to_numpy()]
    return found
