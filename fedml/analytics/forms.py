"""Names, types and shapes of the arrays in requests and replies of a genotype analysis. Gates and server refuse all other arrays.

Letters in shapes: m variants of the message's panel, b columns of a basis, C covariate columns, K = 1 + C + components (the intercept
first), J = K + 1 (with the variant), U and T the triangles of K and J, M variants used for the components, k components, G rows of counts
(7; 9 with sums of dosages).

    genotypes    ->                                   counts
    covariates   ->                                   moments, persons
    subspace     -> frequency, basis                  product
    null         -> design, everyone, theta           linear: xx, xy, yy, n; logistic: gradient, information, log_likelihood, n, cases
    association  -> design, everyone, frequency,      used, and linear: xg, gg, gy; logistic: xwg, gwg, score
                    theta
    fit          -> design, everyone, frequency,      used, gradient, information, log_likelihood, n
                    theta_fit, inverse, penalised

``design``: centre and scale (R,) of covariates and outcome, and the loadings from which a site computes its persons' components.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedml.errors import Reason, SiteError
from fedml.study.study import Study
from fedml.wire.records import Phase

Shape = tuple[int | str, ...]
EVERYONE = "everyone"  # uint8 (1,): 0 where a step is about the men alone, for variants on Y
_WHO: dict[str, tuple[str, Shape]] = {EVERYONE: ("uint8", (1,))}
DESIGN: dict[str, tuple[str, Shape]] = {
    "centre": ("float64", ("R",)),
    "scale": ("float64", ("R",)),
    "loadings": ("float64", ("M", "k")),
    "loading_values": ("float64", ("k",)),
    "loading_frequency": ("float64", ("M",)),
    "loading_panel": ("uint8", (None,)),  # type: ignore[dict-item]  # text of any length
    "loading_flips": ("uint8", (None,)),  # type: ignore[dict-item]
}
REQUEST: dict[Phase, dict[str, tuple[str, Shape]]] = {
    Phase.GENOTYPES: {},
    Phase.COVARIATES: {},
    Phase.SUBSPACE: {"frequency": ("float64", ("m",)), "basis": ("float64", ("m", "b"))},
    Phase.NULL: {**DESIGN, **_WHO, "theta": ("float64", ("K",))},
    Phase.ASSOCIATION: {**DESIGN, **_WHO, "frequency": ("float64", ("m",)), "theta": ("float64", ("K",))},
    Phase.FIT: {**DESIGN, **_WHO, "frequency": ("float64", ("m",)), "theta_fit": ("float64", ("J", "m")),
                "inverse": ("float64", ("T", "m")), "penalised": ("uint8", (1,))},
}  # fmt: skip
REPLY: dict[Phase, dict[str, dict[str, Shape]]] = {
    Phase.GENOTYPES: {"": {"counts": ("G", "m")}},
    Phase.COVARIATES: {"": {"moments": (3, "R"), "persons": (1,)}},
    Phase.SUBSPACE: {"": {"product": ("m", "b")}},
    Phase.NULL: {
        "linear": {"xx": ("K", "K"), "xy": ("K",), "yy": (1,), "n": (1,)},
        "logistic": {"gradient": ("K", 1), "information": ("U", 1), "log_likelihood": (1,), "n": (1,), "cases": (1,)},
    },
    Phase.ASSOCIATION: {
        "linear": {"used": ("m",), "xg": ("K", "m"), "gg": ("m",), "gy": ("m",)},
        "logistic": {"used": ("m",), "xwg": ("K", "m"), "gwg": ("m",), "score": ("m",)},
    },
    Phase.FIT: {"": {"used": ("m",), "gradient": ("J", "m"), "information": ("T", "m"), "log_likelihood": ("m",), "n": ("m",)}},
}
INTEGERS = {"counts": "int64", "persons": "int64", "n": "int64", "cases": "int64", "used": "uint8"}
REPLY_TYPES: dict[str, str] = {
    name: INTEGERS.get(name, "float64") for kinds in REPLY.values() for shapes in kinds.values() for name in shapes
}


def kind(study: Study) -> str:
    """``linear`` for a quantitative outcome, ``logistic`` for two classes."""
    if study.traits.gwas is None:
        raise ValueError(f'[model] task = "{study.model.task}": an association with variants is not built')
    return study.traits.gwas


def covariate_columns(study: Study) -> int:
    """Number of covariate columns: one per numeric covariate, number of categories - 1 per categorical covariate."""
    spec = study.cohort.clinical
    if study.gwas is None or spec is None:
        return 0
    return sum(len(spec.categories[c]) - 1 if c in spec.categories else 1 for c in study.gwas.covariates)


def sizes(study: Study, variants: int, basis: int = 0, loadings: int = 0) -> dict[str, int]:
    """The values of the letters in shapes."""
    components = study.gwas.components if study.gwas else 0
    columns = covariate_columns(study)
    known = 1 + columns + components
    triangles = {"U": known * (known + 1) // 2, "T": (known + 1) * (known + 2) // 2}
    rows = 9 if study.cohort.variants.fractions else 7
    return {"G": rows, "m": variants, "b": basis, "R": columns + 1, "K": known, "J": known + 1, **triangles, "M": loadings, "k": components}


def check_request(study: Study, phase: Phase, given: Mapping[str, Any], variants: int) -> None:
    """Checks that the arrays of a request's analysis record are those that its phase declares.

    Raises:
        SiteError: undeclared: a name, type or shape differs, or the study has no ``[gwas]``.
    """
    if study.gwas is None and phase is not Phase.GENOTYPES:
        raise SiteError(Reason.UNDECLARED, "the study has no [gwas]")
    declared = REQUEST[phase]
    if given.keys() != declared.keys():
        raise SiteError(Reason.UNDECLARED, "the analysis record has other arrays than this phase declares")
    loadings = given["loading_panel"].tobytes().count(b"\n") if "loading_panel" in given else 0
    basis = given["basis"].shape[1] if "basis" in given and given["basis"].ndim == 2 else 0
    size = sizes(study, variants, basis, loadings)
    for name, (dtype, shape) in declared.items():
        value = given[name]
        expected = [size[n] if isinstance(n, str) else n for n in shape]
        fits = str(value.dtype) == dtype and value.ndim == len(expected)
        if not fits or any(want is not None and have != want for have, want in zip(value.shape, expected, strict=True)):
            raise SiteError(Reason.UNDECLARED, f"{name} does not have the declared shape and type")


def reply_shapes(study: Study, phase: Phase, variants: int, basis: int = 0) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the sums in a step's reply."""
    kinds = REPLY[phase]
    declared = kinds[""] if "" in kinds else kinds[kind(study)]
    size = sizes(study, variants, basis)
    return {name: tuple(size[n] if isinstance(n, str) else n for n in shape) for name, shape in declared.items()}
