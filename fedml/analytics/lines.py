"""Tab-separated lines from whole columns, by Arrow: half a million rows of 25 columns in some 3 s of one core.

lines_of([names, numbers(beta), p_values(log10_p)])          # bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedml.cohort.variants.keys import bytes_of

NA = "#NA"
DIGITS = 9
_TEXT = pa.large_string()
_EXACT = 22  # 10^22 is the largest power of ten that a float64 holds exactly
Floats = npt.NDArray[np.float64]


def text(value: str) -> Any:
    """An Arrow text of the type of the columns here."""
    return pa.scalar(value, _TEXT)


def joined(columns: Sequence[Any], separator: str) -> Any:
    """(rows,): the columns' text, with ``separator`` between."""
    return pc.binary_join_element_wise(*columns, text(separator))


def lines_of(columns: Sequence[Any]) -> bytes:
    """A line for each row of the columns, Arrow arrays of text."""
    ended = joined([columns[-1], text("\n")], "")
    return bytes_of(joined([*columns[:-1], ended], "\t"))


def column(values: Any) -> Any:
    """A column as text: numbers with 9 significant digits; ``#NA`` for nan, None and empty text; white space in text becomes blanks."""
    array = np.asarray(values)
    if np.issubdtype(array.dtype, np.floating):
        return numbers(array)
    if array.dtype == bool:
        return pa.array(["False", "True"], _TEXT).take(pa.array(array.astype(np.int8)))
    if array.dtype.kind in "iu":
        return pa.array(array).cast(_TEXT)
    cells = pc.replace_substring_regex(pa.array(array.tolist(), _TEXT), r"\s", " ")
    return pc.if_else(pc.fill_null(pc.equal(cells, ""), True), NA, cells)


def numbers(values: Floats) -> Any:
    """Numbers as text with 9 significant digits at most, ``#NA`` where not finite: the shortest text of the number rounded to them."""
    known = np.isfinite(values)
    x = np.where(known, values, 0.0)
    size = np.abs(x)
    places = DIGITS - 1 - np.floor(np.log10(np.where(size > 0, size, 1.0))).astype(np.int64)
    scale = 10.0 ** np.clip(np.abs(places), 0, _EXACT)
    # A whole number of up to 9 digits divided or multiplied by an exact power of ten is the float64 closest to the decimal number.
    with np.errstate(over="ignore"):  # where the other branch is taken
        rounded = np.where(places >= 0, np.rint(x * scale) / scale, np.rint(x / scale) * scale)
    far = np.flatnonzero(np.abs(places) > _EXACT)
    rounded[far] = [float(f"%.{DIGITS}g" % value) for value in x[far].tolist()]
    return pc.if_else(pa.array(known), pa.array(rounded + 0.0).cast(_TEXT), NA)  # + 0.0: no "-0"


def p_values(log10_p: Floats) -> Any:
    """p values with 7 digits from their log10, of any size: ``4.321000e-400``; ``0`` only where log10 is minus infinity; ``#NA`` for
    nan."""
    known = np.isfinite(log10_p)
    exponent = np.floor(np.where(known, log10_p, 0.0))
    digits = np.rint(1e6 * 10 ** (np.where(known, log10_p, 0.0) - exponent)).astype(np.int64)
    ten = digits >= 10_000_000  # would be written 10.000000
    digits, power = np.where(ten, 1_000_000, digits), exponent.astype(np.int64) + ten
    every, which = np.unique(power, return_inverse=True)
    powers = pa.array([f"e{n:+03d}" for n in every.tolist()], _TEXT).take(pa.array(which.ravel()))
    whole = pa.array(digits).cast(_TEXT)
    first, rest = pc.utf8_slice_codeunits(whole, 0, 1), pc.utf8_slice_codeunits(whole, 1, 7)
    out = joined([joined([first, rest], "."), powers], "")
    return pc.if_else(pa.array(known), out, pc.if_else(pa.array(log10_p < 0), "0", NA))
