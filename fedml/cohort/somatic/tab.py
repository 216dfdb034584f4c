"""Tab-separated exports of genomic pipelines: lines of comments (``#version 2.4``) above the header, some columns of many.

Read are UTF-8 with or without byte order mark, UTF-16 with one, any line end, gzip, and cells in quotes where the header is in quotes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedml.cohort.sheet import MISSING_WORDS, first_line
from fedml.errors import InputError, nearest
from fedml.text import printable

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.csv import InvalidRow

_HEAD_BYTES = 1 << 24
_BLOCK_BYTES = 1 << 22


class Head(NamedTuple):
    """The header of a file: ``names`` of its columns, lines ``above`` it, its ``encoding``, and whether cells are ``quoted``."""

    names: tuple[str, ...]
    above: int
    encoding: str
    quoted: bool


def head_of(path: Path) -> Head:
    """The header of the file: its first line that is not empty and does not begin with ``#``.

    Raises:
        InputError: the file cannot be read, is no text, or has no header.
    """
    try:
        with _stream(path) as stream:
            start = stream.read(_HEAD_BYTES)
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf8"
        text = start.decode(encoding, "replace").removeprefix("\ufeff")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path in site.toml.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); give a tab-separated text file.") from error
    if "\0" in text:
        raise InputError(f"{path}: is no text; give a tab-separated text file (UTF-8), plain or gzip.")
    for above, line in enumerate(io.StringIO(text, newline=None)):
        if line.strip() and not line.startswith("#"):
            cells = line.rstrip("\n").split("\t")
            quoted = len(cells) > 1 and all(len(c) > 1 and c[0] == c[-1] == '"' for c in cells if c)
            return Head(tuple((c.strip('"') if quoted else c).strip() for c in cells), above, encoding, quoted)
    raise InputError(f"{path}: is empty; give the file that the pipeline wrote.")


def _stream(path: Path) -> Any:
    """The file's bytes, unpacked if its first bytes are those of gzip."""
    import pyarrow as pa

    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return pa.input_stream(str(path), compression="gzip" if packed else None)


def place_of(head: Head, wanted: str, path: Path, what: str) -> int:
    """The place of a column that must be there once.

    Raises:
        InputError: it is not there, or twice; the message says that the file is no ``what``.
    """
    found = [at for at, name in enumerate(head.names) if name == wanted]
    if not found:
        raise InputError(f'{path}: has no column "{wanted}"{nearest(wanted, head.names)}; give {what}, separated by tabs.')
    if len(found) > 1:
        raise InputError(f'{path}: has the column "{wanted}" {len(found)} times; keep one.')
    return found[0]


def read_columns(path: Path, head: Head, texts: Sequence[int], numbers: Sequence[int] = ()) -> pa.Table:
    """The columns at the places ``texts`` as text, then those at ``numbers`` as float32, null where missing; names are ``str(place)``.

    Raises:
        InputError: a row has more or fewer cells than the header, or a cell is no number.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    wrong: list[InvalidRow] = []

    def note(row: InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    width = len(head.names)
    kinds = {str(at): pa.string() for at in texts} | {str(at): pa.float32() for at in numbers}
    try:
        with _stream(path) as stream:
            table = arrow.read_csv(
                stream,
                read_options=arrow.ReadOptions(
                    encoding=head.encoding, use_threads=False, skip_rows=head.above, skip_rows_after_names=1,
                    column_names=[str(at) for at in range(width)], block_size=max(_BLOCK_BYTES, 64 * width),
                ),
                parse_options=arrow.ParseOptions(
                    delimiter="\t", quote_char='"' if head.quoted else False, double_quote=head.quoted, invalid_row_handler=note
                ),
                convert_options=arrow.ConvertOptions(
                    column_types=kinds, include_columns=list(kinds), strings_can_be_null=False, null_values=list(MISSING_WORDS)
                ),
            )  # fmt: skip
    except (OSError, ValueError) as error:  # pyarrow's errors are of these types
        named = str(error)
        for at in numbers:
            named = named.replace(f"column #{at}:", f'column "{printable(head.names[at])}":')
        raise InputError(f"{path}: cannot be read as a table ({first_line(ValueError(named))}); correct the file.") from error
    if wrong:
        row = f"a row after line {head.above + 1} has {wrong[0].actual_columns} cells, the header has {width}"
        raise InputError(f"{path}: {row} ({printable(wrong[0].text[:60])}...); copy or export the file again.")
    return table


def clean(table: pa.Table, at: int) -> list[str]:
    """The cells of the column of text that was at the place ``at``, without spaces around."""
    from pyarrow import compute as pc

    cells: list[str] = pc.utf8_trim_whitespace(table.column(str(at))).to_pylist()
    return cells
