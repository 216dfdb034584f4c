"""The table of persons from counts, sums and histograms of sites; a count of -1 is hidden by its site."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
_WIDE = 4.0  # standard deviations about the mean that a histogram covers


class Column(NamedTuple):
    """A column of the table: a number if it has no ``levels``."""

    name: str
    levels: tuple[str, ...]


def limits_of(tables: list[Floats], numbers: int) -> Floats:
    """(2, numbers) limits of histograms: the pooled mean and 4 standard deviations about it."""
    total = np.sum([np.where(t[:, 1 : 1 + 3 * numbers : 3].repeat(3, 1) >= 0, t[:, 1 : 1 + 3 * numbers], 0).sum(0) for t in tables], axis=0)
    n, s, q = (total[k::3] for k in range(3))
    mean = np.divide(s, n, out=np.zeros_like(s), where=n > 0)
    sd = np.sqrt(np.maximum(np.divide(q, n, out=np.zeros_like(q), where=n > 0) - mean**2, 0))
    return np.stack([mean - _WIDE * sd, mean + _WIDE * sd])


def moments(table: Floats, at: int) -> tuple[float, float, float, bool]:
    """Of a number's three cells from ``at`` in (sites, cells): known persons, mean, SD, and whether a site hides them."""
    hidden = bool((table[:, at] < 0).any())
    n, s, q = (float(np.where(table[:, at] >= 0, table[:, at + k], 0).sum()) for k in range(3))
    if n < 2:
        return n, float("nan"), float("nan"), hidden
    return n, s / n, float(np.sqrt(max(q - s**2 / n, 0.0) / (n - 1))), hidden


def quantiles(bins: npt.NDArray[np.int64], limits: Floats, shares: tuple[float, ...]) -> list[float]:
    """The quantiles of (BINS,) counts, linear between the ends of bins that have persons."""
    total = int(bins.sum())
    if not total:
        return [float("nan")] * len(shares)
    ends = np.linspace(float(limits[0]), float(limits[1]), len(bins) + 1)
    filled = np.flatnonzero(bins)
    x = np.concatenate([[ends[filled[0]]], ends[filled + 1]])
    y = np.concatenate([[0.0], np.cumsum(bins[filled])]) / total
    return [float(np.interp(share, y, x)) for share in shares]


def column_rows(columns: list[Column], shown: list[tuple[Floats, Any]], limits: Floats) -> tuple[list[list[str]], dict[str, Any]]:
    """The rows of the table as text, and the numbers behind them by row; ``shown``: (sites, cells) and (sites, numbers, bins) of each of
    its columns."""
    persons = [float(table[:, 0].sum()) for table, _ in shown]
    rows: list[list[str]] = [["persons", *(f"{n:.0f}" for n in persons)]]
    values: dict[str, Any] = {"persons": persons}
    numbers = sum(not column.levels for column in columns)
    at, place = 1, 0
    for column in columns:
        if not column.levels:
            found = [moments(table, at) for table, _ in shown]
            rows.append(
                [
                    f"{column.name}, mean (SD)",
                    *("…" if f[0] == 0 and f[3] else f"{f[1]:.4g} ({f[2]:.3g})" + (" …" if f[3] else "") for f in found),
                ]
            )
            middle = [quantiles(bins[:, place].sum(0), limits[:, place], (0.5, 0.25, 0.75)) for _, bins in shown]
            rows.append(
                [
                    f"{column.name}, median (quartiles)",
                    *("…" if np.isnan(m[0]) else f"{m[0]:.4g} ({m[1]:.4g} to {m[2]:.4g})" for m in middle),
                ]
            )
            rows.append([f"{column.name}, missing", *("…" if f[3] else f"{n - f[0]:.0f}" for f, n in zip(found, persons, strict=True))])
            values[column.name] = [{"known": f[0], "mean": f[1], "sd": f[2], "hidden": f[3], "median": m[0], "quartiles": m[1:]}
                                   for f, m in zip(found, middle, strict=True)]  # fmt: skip
            at, place = at + 3, place + 1
            continue
        for level in column.levels:
            cells = [_count(table[:, at]) for table, _ in shown]
            rows.append([f"{column.name}={level}", *("…" if c is None else f"{c:.0f} ({100 * c / n if n else 0:.1f} %)"
                                                    for c, n in zip(cells, persons, strict=True))])  # fmt: skip
            values[f"{column.name}={level}"] = cells
            at += 1
    assert place == numbers  # noqa: S101
    return rows, values


def _count(cells: Floats) -> float | None:
    return None if (cells < 0).any() else float(cells.sum())


def smd_of(columns: list[Column], tables: list[Floats]) -> dict[int, str]:
    """Row of the table -> the largest standardised mean difference between two groups (Austin 2009, Stat Med 28:3083; of a category the
    Mahalanobis distance of its levels, Yang and Dalton 2012)."""
    found, row, at = dict[int, str](), 1, 1
    for column in columns:
        if not column.levels:
            each = [moments(table, at)[1:3] for table in tables]
            gaps = [abs(a[0] - b[0]) / np.sqrt((a[1] ** 2 + b[1] ** 2) / 2) for i, a in enumerate(each) for b in each[i + 1 :]]
            found[row], row, at = _text(gaps), row + 3, at + 3
            continue
        width = len(column.levels)
        parts = [table[:, at : at + width] for table in tables]
        hidden = any((part < 0).any() for part in parts)
        shares = [part.sum(0) / part.sum() if part.sum() > 0 else np.full(width, np.nan) for part in parts]
        gaps = [] if hidden else [_distance(a, b) for i, a in enumerate(shares) for b in shares[i + 1 :]]
        found[row], row, at = _text(gaps) if gaps else "…", row + width, at + width
    return found


def _distance(a: Floats, b: Floats) -> float:
    one, other = a[1:], b[1:]
    spread = (np.diag(one) - np.outer(one, one) + np.diag(other) - np.outer(other, other)) / 2
    gap = one - other
    solved = np.linalg.pinv(spread) @ gap
    if np.abs(spread @ solved - gap).max(initial=0.0) > 1e-9:  # a level that all persons of one group have
        return float("inf")
    return float(np.sqrt(max(float(gap @ solved), 0.0)))


def _text(gaps: list[float]) -> str:
    return "–" if not gaps or not np.isfinite(gaps).all() else f"{max(gaps):.3f}"
