"""Newton's steps of a regression over the sites, with an intercept for each site or one for all."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedml.analytics import glm
from fedml.errors import RunError
from fedml.strategies.agreement.step import BySite
from fedml.strategies.gwas.intercepts import Intercepts
from fedml.strategies.outcomes.work import Floats, Work
from fedml.wire.records import Phase


def places_of(work: Work, *, each: bool) -> tuple[Intercepts, list[str]]:
    """Where a site's coefficients are in the whole model, and the names of its coefficients; ``each``: an intercept for each site."""
    intercepts = [f"(intercept) {site}" for site in work.sites] if each else ["(intercept)"]
    return Intercepts(len(work.sites), 1 + len(work.names), each), [*intercepts, *work.names]


def at_sites(work: Work, places: Intercepts, beta: Floats) -> BySite:
    """Site -> its own coefficients (K,) of ``beta`` (width,)."""
    return BySite({site: beta[places.rows(at, places.columns)] for at, site in enumerate(work.sites)})


def newton(
    work: Work, design: dict[str, Any], family: str, places: Intercepts, start: Floats, what: str = "the regression"
) -> tuple[glm.Solved, list[Floats]]:
    """The maximum over all sites, of standardised covariates (``design``), and the score (width,) of each site at it.

    Raises:
        RunError: ``what`` cannot be estimated, and why; or a site did not answer.
    """
    names = places_of(work, each=places.each)[1]
    last: list[Floats] = []

    def asked(beta: Floats, robust: bool) -> glm.Sums:
        given = {**design, "beta_one": at_sites(work, places, beta), "robust": np.array([robust], np.uint8)}
        sums = list(work.take(Phase.REGRESSION, given).values())
        last[:] = [places.vector(s["gradient"], at) for at, s in enumerate(sums)]
        return glm.Sums(
            np.sum(last, axis=0), np.sum([places.matrix(s["information"], at) for at, s in enumerate(sums)], axis=0),
            np.sum([places.matrix(s["meat"], at) for at, s in enumerate(sums)], axis=0),
            float(sum(s["log_likelihood"][0] for s in sums)), float(sum(s["squares"][0] for s in sums)),
            int(sum(s["persons"][0] for s in sums)),
        )  # fmt: skip

    try:
        return glm.solve(asked, family, names, start), last  # type: ignore[arg-type]
    except (ValueError, np.linalg.LinAlgError) as error:
        raise RunError(f"{what} cannot be estimated: {error}.") from error


def units(places: Intercepts, design: dict[str, Any]) -> Floats:
    """(width, width): coefficients of standardised covariates -> of covariates in their own units."""
    turn = np.eye(places.width)
    first = places.width - places.columns + 1
    turn[first:, first:] = np.diag(1 / design["scale"])
    turn[:first, first:] = -design["centre"] / design["scale"]
    return turn
