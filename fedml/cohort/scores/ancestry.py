"""Adjustment of a polygenic score for ancestry: the score less its mean, divided by its standard deviation, both linear in principal
components of the persons.

    adjustment = read_adjustment(Path("ancestry.json"))
    adjusted(score, components, adjustment)             # (persons,) Adjusted

Mean: Khera et al. 2019, Circulation 139:1593. Variance, of squared residuals: Khan et al. 2022, Nature Medicine 28:1412 (the PGS Catalog
Calculator's Z_norm2 has the same two steps, the second with a logarithm). Both are ordinary studies of the federation, of the score and of
its squared residual; a site then adjusts its own persons, and sends nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from fedml.errors import InputError
from fedml.study.section import Section

Floats = npt.NDArray[np.float64]
_BYTES = 1 << 20


class Line(Section):
    """intercept + sum of weights x components."""

    intercept: float
    weights: tuple[float, ...] = Field(max_length=200)


class Adjustment(Section):
    """``columns``: the components, in the order of the weights. ``variance``: of the score at these components; None: it is not divided."""

    columns: tuple[str, ...] = Field(min_length=1, max_length=200)
    mean: Line
    variance: Line | None = None
    source: tuple[str, ...] = Field(default=(), max_length=2)  # the studies' SHA-256

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(len(line.weights) != len(self.columns) for line in (self.mean, self.variance) if line is not None):
            raise ValueError("mean and variance need one weight for each of columns")
        return self


class Adjusted(NamedTuple):
    """(persons,) the score without its mean, its square, and the adjusted score; NaN where a component is missing, and ``value`` also where
    the variance is not above 0, far from the persons of the studies."""

    residual: Floats
    squared: Floats
    value: Floats


def read_adjustment(path: Path) -> Adjustment:
    """The file of ``fedml export-adjustment``.

    Raises:
        InputError: it cannot be read, or is no such file.
    """
    try:
        with path.open("rb") as file:
            return Adjustment.model_validate_json(file.read(_BYTES), strict=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give the file of fedml export-adjustment.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}; give the file of fedml export-adjustment.") from error


def adjusted(score: Floats, components: Floats, adjustment: Adjustment) -> Adjusted:
    """The adjusted scores. ``components`` (persons, columns of the adjustment)."""
    residual = score - (adjustment.mean.intercept + components @ np.array(adjustment.mean.weights))
    if adjustment.variance is None:
        return Adjusted(residual, residual**2, residual)
    variance = adjustment.variance.intercept + components @ np.array(adjustment.variance.weights)
    spread = np.sqrt(np.where(variance > 0, variance, np.nan))
    return Adjusted(residual, residual**2, residual / spread)
