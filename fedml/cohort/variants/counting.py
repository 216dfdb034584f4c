"""Counts and sums over packed genotypes without unpacking them one by one.

    counts = counts_of(table, groups)                    # (groups, 4, variants): persons with 0, 1, 2 ALT alleles, missing
    found = products(table, rows, weights, 0, 4096)      # sums of weights x dosage, and of weights over missing calls; None: not possible

Counts: each of the two bits of a code, and their product, is summed over persons as fields of two bits, which hold 3, then of four bits, of
eight and of 64 (a vertical count). It costs about 14 operations on words of 64 bits, 32 genotypes each, per person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.packed import MISSING, Packed, Window

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_BYTES = 4096  # of a person's row at a time: 16,384 variants
_SPREAD = 8  # a range of bits is counted sooner than an eighth of it is unpacked
_ROWS = 255  # persons whose count fits eight bits
_LOW, _PAIRS, _NIBBLES = (np.uint64(int(text * 8, 16)) for text in ("55", "33", "0f"))
_WORKING = 1 << 18  # floats of unpacked dosages, which fit a processor's cache
# [byte]: its four dosages, or whether they are missing, as float64 in one void value, which NumPy copies at once.
_CODES = (np.arange(256)[:, None] >> (2 * np.arange(4))) & 3
_DOSAGES = np.ascontiguousarray(np.where(_CODES == 3, 0, _CODES), np.float64).view("V32").ravel()
_MISSING = np.ascontiguousarray(_CODES == 3, np.float64).view("V32").ravel()


class Products(NamedTuple):
    """(rows of the weights, variants): sums over persons of weight x dosage, a missing call as 0, and of the weights of missing calls."""

    dosage: Floats
    missing: Floats


def counts_of(table: Packed, groups: Sequence[npt.NDArray[np.intp]]) -> Counts:
    """(groups, 4, variants): of the persons of each group (indices) those with 0, 1, 2 ALT alleles and with a missing call."""
    variants = table.shape[1]
    out = np.empty((len(groups), 4, variants), np.int64)
    same = {rows.tobytes(): at for at, rows in reversed(list(enumerate(groups)))}  # the first of equal groups
    for start in range(0, variants, 4 * _BYTES):
        part = slice(start, min(start + 4 * _BYTES, variants))
        window = table.window(part.start, part.stop, _SPREAD)
        for at, rows in enumerate(groups):
            if (before := same[rows.tobytes()]) < at:
                out[at, :, part] = out[before, :, part]
            elif window is None:
                out[at, :, part] = _scattered(table, rows, part)
            else:
                out[at, :, part] = _vertical(table, rows, window)
    return out


def _scattered(table: Packed, rows: npt.NDArray[np.intp], part: slice) -> Counts:
    """The same of a range that has no window: unpacked."""
    out = np.zeros((4, part.stop - part.start), np.int64)
    for begin in range(0, len(rows), _ROWS):
        block = table.block(part.start, part.stop, rows[begin : begin + _ROWS])
        out += np.stack([np.count_nonzero(block == code, axis=0) for code in (0, 1, 2, MISSING)])
    return out


def _vertical(table: Packed, rows: npt.NDArray[np.intp], window: Window) -> Counts:
    size = window.end - window.begin
    words = -(-size // 8)
    total = np.zeros((3, 4 * 8 * words), np.int64)  # persons whose code has the lower bit, the upper bit, both
    for begin in range(0, len(rows), _ROWS):
        chosen = rows[begin : begin + _ROWS]
        padded = np.zeros((-(-len(chosen) // 15) * 15, 8 * words), np.uint8)
        padded[: len(chosen), :size] = table.codes(window, chosen)
        codes = padded.view("<u8")
        low, high = codes & _LOW, (codes >> np.uint64(1)) & _LOW
        for sums, bits in zip(total, (low, high, low & high), strict=True):
            sums += _summed(bits)
    lower, upper, both = total[:, window.at]
    return np.stack([len(rows) - lower - upper + both, lower - both, upper - both, both])


def _summed(bits: npt.NDArray[np.uint64]) -> Counts:
    """(4 x 8 x words,): sums over rows, a multiple of 15 and at most 255, of fields of two bits that are 0 or 1, in words (rows, words)."""
    pairs = bits[0::3] + bits[1::3]  # at most 3
    pairs += bits[2::3]
    eights = []
    for part in (pairs & _PAIRS, (pairs >> np.uint64(2)) & _PAIRS):
        fours = part[0::5] + part[1::5]  # at most 15
        for other in range(2, 5):
            fours += part[other::5]
        eights += [(fours & _NIBBLES).sum(0, dtype=np.uint64), ((fours >> np.uint64(4)) & _NIBBLES).sum(0, dtype=np.uint64)]
    first, third, second, fourth = (part.view(np.uint8) for part in eights)
    return np.stack([first, second, third, fourth], axis=-1).astype(np.int64).ravel()


def products(table: Packed, rows: npt.NDArray[np.intp], weights: Floats, start: int, stop: int) -> Products | None:
    """Sums over the persons ``rows`` with ``weights`` (k, rows) of variants ``start`` to ``stop``; None if the view has no window there."""
    if (window := table.window(start, stop)) is None:
        return None
    size = window.end - window.begin
    dosage, missing = np.zeros((2, len(weights), 4 * size))
    persons = min(max(len(rows), 1), 4096)
    step = max(16, _WORKING // (4 * persons))
    for begin in range(0, size, step):
        part = window._replace(begin=window.begin + begin, end=window.begin + min(begin + step, size))
        part = part._replace(turned=None if window.turned is None else window.turned[begin : begin + step])
        of = slice(4 * begin, 4 * min(begin + step, size))
        for at in range(0, len(rows), persons):
            chosen = slice(at, at + persons)
            codes = table.codes(part, rows[chosen])
            dosage[:, of] += weights[:, chosen] @ np.take(_DOSAGES, codes, mode="clip").view(np.float64)
            if (codes & (codes >> 1) & 0x55).any():
                missing[:, of] += weights[:, chosen] @ np.take(_MISSING, codes, mode="clip").view(np.float64)
    return Products(dosage[:, window.at], missing[:, window.at])
