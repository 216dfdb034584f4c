"""Reads a table of persons: CSV with any usual separator, TSV, Parquet or AnnData, indexed by the column of ids.

The cells of a text file stay text, because only the study says whether ``01`` is a number and ``NA`` a missing value
(``fedml.cohort.table``). What a spreadsheet or another country's software changes is undone where it can only mean one thing (byte order
mark, UTF-16, semicolons, decimal commas, spaces around cells, empty rows at the end); anything else is refused.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.cohort import h5ad
from fedml.cohort.h5ad import SUFFIX
from fedml.errors import InputError, nearest
from fedml.study.section import normal
from fedml.text import printable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyarrow.csv import InvalidRow

SEPARATORS = (",", ";", "\t", "|")
MISSING_WORDS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?", ".")
_HEADER_BYTES = 1 << 24
_BLOCK_BYTES, _CELL_BYTES = 1 << 20, 64  # read at once; a row must fit, so more where there are many columns
_BATCH_BYTES = 1 << 25  # a row of more is refused
DECIMAL = r"^[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?$"
GROUPED = r"^[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+$"
_PLAIN = r"^[+-]?[0-9]+$"
_SHEETS = (".xlsx", ".xls", ".ods", ".xlsm")


def read_table(path: Path, id_column: str = "id", columns: Collection[str] | None = None, *, numeric: bool = False) -> pd.DataFrame:
    """One row a person, indexed by the text of ``id_column``; cells of text files are text without spaces around, "" where empty.

    Args:
        columns: those to keep, of those that there are; None: all. A name may be in the result twice, as in the file.
        numeric: read cells as float64, which takes a tenth of the memory; as text if any is no number.

    Raises:
        InputError: the file is missing, is no table, has rows of different lengths, lacks ``id_column``, or has an empty id or one twice.
    """
    if path.suffix.lower() in _SHEETS:
        raise InputError(f"{path}: is a spreadsheet; save the sheet as CSV (UTF-8), and correct the path in site.toml.")
    try:
        if path.suffix == SUFFIX:
            table = _h5ad(path, id_column, columns)
        else:
            table = _parquet(path, id_column, columns) if path.suffix == ".parquet" else _text(path, id_column, columns, numeric)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path in site.toml.") from error
    except (OSError, ValueError) as error:  # pyarrow's errors are of these types
        raise InputError(f"{path}: cannot be read as a table ({first_line(error)}); save it as CSV (UTF-8) or Parquet.") from error
    return indexed(table, id_column, path)


def place_of(path: Path, id_column: str, at: int, person: str) -> str:
    """Where the ``person`` at place ``at`` of a table that was read stands in its file: ``line 17``, of Parquet and AnnData ``row 16``."""
    import pyarrow as pa

    if path.suffix in (".parquet", SUFFIX):
        return f"row {at + 1}"
    names, separator = header(path, id_column)
    with pa.input_stream(str(path), compression="detect") as stream:
        text = stream.read().decode(_encoding(path), "replace").removeprefix("\ufeff")
    rows, place = csv.reader(io.StringIO(text, newline=""), delimiter=separator), names.index(id_column)
    return next((f"line {rows.line_num}" for row in rows if len(row) > place and row[place].strip() == person), "a row")


def header(path: Path, id_column: str = "id") -> tuple[list[str], str]:
    """The names of a text file's columns without spaces around, and the separator: the one with which there is ``id_column``, or else that
    with the most columns."""
    import pyarrow as pa

    encoding = _encoding(path)
    with pa.input_stream(str(path), compression="detect") as stream:
        text = stream.read(_HEADER_BYTES).decode(encoding, "replace").removeprefix("\ufeff")
    order = ("\t", *(s for s in SEPARATORS if s != "\t")) if ".tsv" in path.suffixes else SEPARATORS
    found = [([name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=s), [])], s) for s in order]
    return next((row for row in found if id_column in row[0]), max(found, key=lambda row: len(row[0])))


def _encoding(path: Path) -> str:
    import pyarrow as pa

    with pa.input_stream(str(path), compression="detect") as stream:
        start = stream.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in start:
        raise ValueError("it is neither UTF-8 nor UTF-16 with a byte order mark")
    return "utf8"


def _text(path: Path, id_column: str, columns: Collection[str] | None, numeric: bool) -> pd.DataFrame:
    names, separator = header(path, id_column)
    if not any(names):
        raise ValueError("it is empty")
    kept = _kept(names, columns)
    wanted = [at for at, name in enumerate(names) if name == id_column or name in kept]
    if id_column not in names:  # before its rows, which may be those of another kind of file
        return _nothing(names)
    if numeric:
        try:
            table, wrong = _parse(path, separator, len(names), wanted, {at for at in wanted if names[at] != id_column})
            if not wrong:
                return _cells(table, [names[at] for at in wanted], separator, id_column)
        except ValueError:  # read again as text, for an error that names the cell
            pass
    table, wrong = _parse(path, separator, len(names), wanted)
    if (
        wrong and not len(table) and all(row.actual_columns == len(names) + 1 for row in wrong)
    ):  # a separator at the end of each row but the header
        table, others = _parse(path, separator, len(names) + 1, [*wanted, len(names)])
        wrong = others or (wrong if any(table.column(len(wanted)).to_pylist()) else [])
    _all_of_width(wrong, len(names))
    return _cells(table, [names[at] for at in wanted], separator, id_column)


def _nothing(names: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns=pd.Index(names))


def _kept(names: Sequence[str], columns: Collection[str] | None) -> Collection[str]:
    """Names of the columns to read: all, or those asked for; where one is not there, some more, so that an error can name a similar one."""
    return set(names if columns is None else columns if set(columns) <= set(names) else [*columns, *names[:500]])


def _parse(
    path: Path, separator: str, width: int, wanted: Collection[int], numeric: Collection[int] = ()
) -> tuple[pa.Table, list[InvalidRow]]:
    """The columns at the places ``wanted`` as text, those at ``numeric`` as float64, and the rows that have not ``width`` cells."""
    from pyarrow import csv as arrow

    wrong: list[InvalidRow] = []

    def note(row: InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    table = arrow.read_csv(str(path), **_options(path, separator, width, wanted, numeric, note))
    return table, wrong


def _options(
    path: Path, separator: str, width: int, wanted: Collection[int], numeric: Collection[int], note: Callable[[InvalidRow], str]
) -> dict[str, Any]:
    """How pyarrow reads the columns at ``wanted``; ``note`` is told of rows that have not ``width`` cells."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    keys = [str(at) for at in range(width)]  # unique, as a file's names need not be
    kinds = {str(at): pa.float64() if at in numeric else pa.string() for at in range(width)}
    return {
        "read_options": arrow.ReadOptions(
            encoding=_encoding(path),
            use_threads=False,
            column_names=keys,
            skip_rows_after_names=1,
            block_size=max(_BLOCK_BYTES, _CELL_BYTES * width),
        ),
        "parse_options": arrow.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=note),
        "convert_options": arrow.ConvertOptions(
            column_types=kinds, include_columns=[str(at) for at in wanted], strings_can_be_null=False, null_values=MISSING_WORDS
        ),
    }


def batches_of(path: Path, separator: str, width: int, wanted: Sequence[int], *, point: str = ".") -> Iterator[pa.RecordBatch]:
    """A text file some rows at a time, ``_BATCH_BYTES`` of it: the first of the columns at ``wanted`` as text, the others as float64.

    Args:
        width: cells of a row. point: the decimal sign.

    Raises:
        OSError, ValueError: the file cannot be read, a row has another number of cells, or a cell is no number.
    """
    from pyarrow import csv as arrow

    wrong: list[InvalidRow] = []

    def note(row: InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    options = _options(path, separator, width, wanted, set(wanted[1:]), note)
    options["read_options"].block_size, options["convert_options"].decimal_point = _BATCH_BYTES, point
    with arrow.open_csv(str(path), **options) as reader:
        for batch in reader:
            _all_of_width(wrong, width)
            yield batch
    _all_of_width(wrong, width)


def _all_of_width(wrong: Sequence[InvalidRow], width: int) -> None:
    if wrong:
        raise ValueError(f"row {wrong[0].number} has {wrong[0].actual_columns} cells, the header has {width}; row 1 is the header")


def _cells(table: pa.Table, names: list[str], separator: str, id_column: str) -> pd.DataFrame:
    """The columns under their names, without spaces around cells, with decimal points, and without empty rows."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import compute as pc

    def clean(column: Any) -> Any:
        if pa.types.is_floating(column.type):
            return column
        column = pc.utf8_trim_whitespace(column)
        return column if separator == "," else _decimal_points(column)

    keys = [str(at) for at in range(len(names))]
    frame: pd.DataFrame = pa.table([clean(table.column(at)) for at in range(len(names))], names=keys).to_pandas()
    frame.columns = pd.Index(names)
    blank = np.flatnonzero(frame.iloc[:, names.index(id_column)] == "")  # only a row without an id can be empty
    empty = blank[~((frame.iloc[blank] != "") & frame.iloc[blank].notna()).any(axis=1)]
    return frame.drop(index=frame.index[empty])


def _decimal_points(column: Any) -> Any:
    """A column of numbers of which some have a decimal comma, with points in their place. Commas that may group thousands are left, and
    such a cell is then no number."""
    import pyarrow as pa
    from pyarrow import compute as pc

    filled = column.filter(pc.not_equal(column, ""))
    decimal = pc.match_substring_regex(filled, DECIMAL)
    commas = filled.filter(decimal)
    if not len(commas) or pc.all(pc.match_substring_regex(commas, GROUPED)).as_py():
        return column
    if not pc.all(pc.or_(decimal, pc.or_(pc.match_substring_regex(filled, _PLAIN), pc.is_in(filled, pa.array(MISSING_WORDS))))).as_py():
        return column
    return pc.replace_substring(column, ",", ".")


def _parquet(path: Path, id_column: str, columns: Collection[str] | None) -> pd.DataFrame:
    """The columns with their types; categories as their values, text without spaces around."""
    from pyarrow import parquet

    names = parquet.read_schema(path).names
    kept = _kept(names, columns)
    wanted = None if columns is None else [name for name in names if name == id_column or name in kept]
    return frame_of(parquet.read_table(path, columns=wanted))


def _h5ad(path: Path, id_column: str, columns: Collection[str] | None) -> pd.DataFrame:
    """The ids and the features as float64."""
    import pandas as pd

    with h5ad.opened(path) as file:
        names, ids = h5ad.features(file), h5ad.ids(file, id_column)
        if ids is None:
            return _nothing(names)
        kept = _kept(names, columns)
        places = [at for at, name in enumerate(names) if name in kept]
        values = h5ad.block(file, 0, len(ids), places)
    frame = pd.DataFrame(values, columns=pd.Index([names[at] for at in places]))
    frame.insert(0, id_column, ids, allow_duplicates=True)
    return frame


def frame_of(table: pa.Table) -> pd.DataFrame:
    """A table of Parquet: columns with their types, categories as their values, text without spaces around."""
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    for at in range(frame.shape[1]):
        if str(frame.dtypes.iloc[at]) in ("object", "category", "str", "string"):
            frame.isetitem(at, frame.iloc[:, at].astype(object).map(_plain).to_numpy(object))
    frame.columns = frame.columns.map(lambda name: str(name).strip())
    return frame


def _plain(cell: Any) -> Any:
    """A cell of Parquet without spaces around; what has parts, as text."""
    return cell.strip() if isinstance(cell, str) else str(cell) if isinstance(cell, list | dict | tuple | np.ndarray) else cell


def indexed(table: pd.DataFrame, id_column: str, path: Path) -> pd.DataFrame:
    """``table`` without its column of ids, indexed by their text.

    Raises:
        InputError: there is no such column or it is there twice, or an id is empty or there twice.
    """
    import pandas as pd

    places = np.flatnonzero(table.columns == id_column)
    if not len(places):
        named = f"its columns are {printable(', '.join(map(str, table.columns[:6])))}{', ...' if table.shape[1] > 6 else ''}"
        fix = f'add a column "{id_column}" with each person\'s id, or name the column that has it: id = "..." in [data] of site.toml'
        raise InputError(f'{path}: has no column "{id_column}"{nearest(id_column, table.columns)}, {named}; {fix}.')
    if len(places) > 1:
        raise InputError(f'{path}: has the column "{id_column}" {len(places)} times; keep one.')
    ids = table.iloc[:, places[0]].map(_id_text)
    if (ids == "").any():
        row = int(table.index[np.flatnonzero(ids == "")[0]]) + 2  # rows that are empty are not counted out of it
        raise InputError(f"{path}: row {row} has no id; give every row a person's id (row 1 is the header).")
    twice = ids[ids.duplicated()]
    if len(twice):
        raise InputError(f'{path}: person "{twice.iloc[0]}" has {int((ids == twice.iloc[0]).sum())} rows; keep one row a person.')
    table = table.drop(columns=id_column)
    table.index = pd.Index(ids, name="id")
    return table


def _id_text(value: Any) -> str:
    """The text of an id; a whole number, as Parquet has it, without a decimal point."""
    if isinstance(value, float):
        return "" if value != value else normal(value)
    return "" if value is None else str(value).strip()


def first_line(error: Exception) -> str:
    """The first line of an error's text without a full stop, safe to print; the error's type if it has none."""
    return printable(str(error).strip().splitlines()[0].rstrip(".")) if str(error).strip() else type(error).__name__
