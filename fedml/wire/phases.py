"""The kinds of requests to a site, without the import of Flower: who records a run needs only their names."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """The kind of request to a site."""

    DESCRIBE = "describe"
    VOXELS = "voxels"
    STATISTICS = "statistics"
    ROUND = "round"
    EVALUATE = "evaluate"
    GENOTYPES = "genotypes"
    COVARIATES = "covariates"
    SUBSPACE = "subspace"
    NULL = "null"
    ASSOCIATION = "association"
    FIT = "fit"
    GENES = "genes"
    FREQUENCIES = "frequencies"
    FOLDS = "folds"
    BLOCKS = "blocks"
    LEVEL = "level"
    RIDGE = "ridge"
    GRID = "grid"
    TIMES = "times"
    MOMENTS = "moments"
    HAZARD = "hazard"
    SCORE = "score"
    MEANS = "means"
    RESIDUALS = "residuals"
    ALONE = "alone"
    REGRESSION = "glm"
    DESCRIPTION = "description"
    WEIGHTED = "weighted"
    CENSORING = "censoring"
    TREATED = "treated"
    STANDARDISED = "standardised"
