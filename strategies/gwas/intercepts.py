"""An intercept for each site, or one for all: where a site's sums belong in the sums of the whole model.

A site's X has one column of ones. With an intercept for each site, that column is the site's own in the model of all sites, and 0 for the
persons of others: the server knows these zeros, so that no message grows with the number of sites. Each site is asked at its own intercept.

    own = Intercepts(sites=3, columns=5, each=True)      # 2 covariates, 2 components: 3 + 4 coefficients
    own.theta(theta, 1)                                  # (5, variants) of site 1, of theta (7, variants)
    own.vector(gradient, 1), own.triangle(information, 1)                # of site 1, at their places in the whole model
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intercepts:
    """``columns``: K of a site, its intercept first; ``each``: an intercept for each of ``sites``. A row for the variant may follow."""

    sites: int
    columns: int
    each: bool

    @property
    def width(self) -> int:
        """Coefficients of the model without a variant."""
        return self.columns + (self.sites - 1 if self.each else 0)

    def rows(self, site: int, size: int) -> npt.NDArray[np.int64]:
        """Places in the whole model of the first ``size`` rows (K, or K + 1 with the variant) of a site."""
        if not self.each:
            return np.arange(size)
        return np.concatenate([[site], np.arange(self.sites, self.sites + size - 1)])

    def theta(self, theta: Floats, site: int) -> Floats:
        """The rows of a site: (K or K + 1, variants) of (width or width + 1, variants)."""
        out: Floats = theta[self.rows(site, len(theta) - self.width + self.columns)]
        return out

    def inverse(self, inverse: Floats, site: int) -> Floats:
        """The triangle of a site from a triangle (rows of the upper half, variants) of the whole model with a variant."""
        out: Floats = inverse[_within(self.rows(site, self.columns + 1), self.width + 1)]
        return out

    def vector(self, values: Floats, site: int) -> Floats:
        """(K or K + 1, ...) of a site at its places in the whole model, 0 elsewhere."""
        out = np.zeros((self.width + len(values) - self.columns, *values.shape[1:]))
        out[self.rows(site, len(values))] = values
        return out

    def matrix(self, values: Floats, site: int) -> Floats:
        """(K, K) of a site at its places in the whole model."""
        out, own = np.zeros((self.width, self.width)), self.rows(site, self.columns)
        out[np.ix_(own, own)] = values
        return out

    def triangle(self, values: Floats, site: int) -> Floats:
        """A triangle of K or K + 1 rows (``values``: its rows, variants) of a site at its places in the whole model's triangle."""
        size = self.columns + (len(values) != self.columns * (self.columns + 1) // 2)
        whole = self.width + size - self.columns
        out = np.zeros((whole * (whole + 1) // 2, values.shape[1]))
        out[_within(self.rows(site, size), whole)] = values
        return out


def _within(rows: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Where the triangle of ``rows`` stands in the triangle of a matrix of ``size`` rows, both row by row."""
    place = np.zeros((size, size), np.int64)
    row, column = np.triu_indices(size)
    place[row, column] = place[column, row] = np.arange(len(row))
    row, column = np.triu_indices(len(rows))
    out: npt.NDArray[np.int64] = place[rows[row], rows[column]]
    return out
