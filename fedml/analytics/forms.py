"""Names, types and shapes of the arrays in requests and replies of a genotype analysis (of an analysis of
outcomes: ``fedml.analytics.outcome_forms``). Gates and server refuse all other arrays.

Letters in shapes: m variants of the message's panel, b columns of a basis, C covariate columns, K = 1 + C + components (the intercept
first), J = K + 1 (with the variant), U and T the triangles of K and J, M variants used for the components, k components, Q rows of counts
(7; 9 with sums of dosages). c columns of genes, t the triangles of the columns of each gene, gene by gene.

    genotypes    ->                                   counts
    covariates   ->                                   moments, persons, relatives
    subspace     -> frequency, basis                  product
    null         -> design, everyone, theta           linear: xx, xy, yy, n; logistic: gradient, information, log_likelihood, n, cases
    association  -> design, everyone, frequency,      used, and linear: xg, gg, gy; logistic: xwg, gwg, score
                    theta
    fit          -> design, everyone, frequency,      used, gradient, information, log_likelihood, n
                    theta_fit, inverse, penalised
    frequencies  ->                                   alleles (G groups of [frequencies]: AC, AN, homozygotes, hemizygotes; -1: withheld)
    genes        -> design, theta, column, gene       used, alleles, xg, gram, score, third

With ``[gwas.polygenic]`` the last three have the arrays of ``OFFSET`` too, and there are four more (``fedml.analytics.ridge``). Letters: F
folds, R ridge parameters, B variants of a block, P variants in blocks, L predictions of level 0, A fits.

    folds        -> design, everyone                  used, xx, xy, yy, n by fold
    blocks       -> design, everyone, blocked,        gg, xg, gy by fold
                    frequency
    level        -> design, everyone, blocked, level  ww, xw, wy by fold
    ridge        -> the same, theta, beta, constant,  gradient, rest, log_likelihood (of the persons in the fit, and of the fold)
                    fold

``design``: centre and scale (R,) of covariates and outcome, and the loadings from which a site computes its persons' components.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fedml.analytics import outcome_forms
from fedml.errors import Reason, SiteError
from fedml.study.study import Study
from fedml.wire.records import OUTCOMES, POLYGENIC, Phase

UNKNOWN = -2  # in place of a number of relatives: the site has too few variants to tell
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
OFFSET: dict[str, tuple[str, Shape]] = {  # a person's prediction from all chromosomes but ``poly_leave``; without variants 0
    "poly_panel": ("uint8", (None,)),  # type: ignore[dict-item]
    "poly_flips": ("uint8", (None,)),  # type: ignore[dict-item]
    "poly_frequency": ("float64", ("P",)),
    "poly_weights": ("float64", ("P", "F")),
    "poly_shift": ("float64", ("K", "F")),
    "poly_leave": ("int64", (1,)),  # the chromosome's place among those of the panel; -1: none is left out
}
BLOCKED = {name: OFFSET[name] for name in ("poly_panel", "poly_flips", "poly_frequency")}
LEVEL: dict[str, tuple[str, Shape]] = {
    **DESIGN, **_WHO, **BLOCKED, "level": ("float64", ("P", "RF")), "level_shift": ("float64", ("K", "LF"))
}  # fmt: skip
REQUEST: dict[Phase, dict[str, tuple[str, Shape]]] = {
    Phase.GENOTYPES: {},
    Phase.COVARIATES: {},
    Phase.SUBSPACE: {"frequency": ("float64", ("m",)), "basis": ("float64", ("m", "b"))},
    Phase.NULL: {**DESIGN, **_WHO, "theta": ("float64", ("K",))},
    Phase.ASSOCIATION: {**DESIGN, **_WHO, "frequency": ("float64", ("m",)), "theta": ("float64", ("K",))},
    Phase.FIT: {**DESIGN, **_WHO, "frequency": ("float64", ("m",)), "theta_fit": ("float64", ("J", "m")),
                "inverse": ("float64", ("T", "m")), "penalised": ("uint8", (1,))},
    Phase.FREQUENCIES: {},
    Phase.GENES: {**DESIGN, "theta": ("float64", ("K",)), "column": ("int64", ("m",)), "gene": ("int64", ("c",))},
    Phase.FOLDS: {**DESIGN, **_WHO},
    Phase.BLOCKS: {**DESIGN, **_WHO, **BLOCKED, "frequency": ("float64", ("m",))},
    Phase.LEVEL: LEVEL,
    Phase.RIDGE: {**LEVEL, "theta": ("float64", ("K",)), "beta": ("float64", ("L", "A")), "constant": ("float64", ("A",)),
                  "fold": ("int64", ("A",))},
}  # fmt: skip
REPLY: dict[Phase, dict[str, dict[str, Shape]]] = {
    Phase.GENOTYPES: {"": {"counts": ("Q", "m")}},
    Phase.COVARIATES: {"": {"moments": (3, "R"), "persons": (1,), "relatives": (1,)}},
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
    Phase.FREQUENCIES: {"": {"alleles": ("G", 4, "m")}},
    Phase.GENES: {"": {"used": ("c",), "alleles": ("c",), "xg": ("K", "c"), "gram": ("t",), "score": ("c",), "third": ("c",)}},
    Phase.FOLDS: {"": {"used": ("m",), "xx": ("F", "K", "K"), "xy": ("F", "K"), "yy": ("F",), "n": ("F",)}},
    Phase.BLOCKS: {"": {"gg": ("F", "m", "B"), "xg": ("F", "K", "m"), "gy": ("F", "m")}},
    Phase.LEVEL: {"": {"ww": ("F", "L", "L"), "xw": ("F", "K", "L"), "wy": ("F", "L")}},
    Phase.RIDGE: {"": {"gradient": ("L", "A"), "rest": ("A",), "log_likelihood": (2, "A")}},
}
INTEGERS = {
    "counts": "int64", "persons": "int64", "relatives": "int64", "n": "int64", "cases": "int64", "used": "uint8", "alleles": "int64",
}  # fmt: skip
REPLY_TYPES: dict[str, str] = {
    name: INTEGERS.get(name, "float64") for kinds in REPLY.values() for shapes in kinds.values() for name in shapes
}


def reply_type(phase: Phase, name: str) -> str:
    """The type of an array in a reply."""
    return outcome_forms.reply_type(phase, name) if phase in OUTCOMES else REPLY_TYPES[name]


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
    groups = len(study.frequencies.groups()) if study.frequencies else 0
    return {
        "m": variants,
        "b": basis,
        "G": groups,
        "Q": 9 if study.cohort.variants.fractions else 7,
        "R": columns + 1,
        "K": known,
        "J": known + 1,
        **triangles,
        "M": loadings,
        "k": components,
    }


def check_section(study: Study, phase: Phase) -> None:
    """Checks that the study has the section whose analysis has the step ``phase``.

    Raises:
        SiteError: undeclared: the study has no such section.
    """
    if phase in OUTCOMES:
        return outcome_forms.check_section(study, phase)
    section = {Phase.GENOTYPES: "", Phase.FREQUENCIES: "frequencies"}.get(phase, "gwas")
    if section and getattr(study, section) is None:
        raise SiteError(Reason.UNDECLARED, f"the study has no [{section}]")


def declared(study: Study, phase: Phase) -> dict[str, tuple[str, Shape]]:
    """Name -> type and shape of the arrays in a request of ``phase``; none of a phase that the study does not have."""
    whole = study.gwas is not None and study.gwas.polygenic is not None
    if phase in POLYGENIC and not whole:
        raise SiteError(Reason.UNDECLARED, "the study has no [gwas.polygenic]")
    of_genes = study.gwas is not None and study.gwas.genes is not None
    if phase is Phase.GENES and not of_genes:
        raise SiteError(Reason.UNDECLARED, "the study has no [gwas.genes]")
    if phase in (Phase.ASSOCIATION, Phase.FIT) and of_genes:  # the sums of a gene less those of its variants would be about few persons
        raise SiteError(Reason.UNDECLARED, "the study tests genes, and variants are not tested one by one")
    offset = OFFSET if whole and phase in (Phase.NULL, Phase.ASSOCIATION, Phase.FIT) else {}
    return {**REQUEST[phase], **offset}


def asked(study: Study, given: Mapping[str, Any]) -> dict[str, int]:
    """The values of the letters that follow from the arrays of a request (of any site, where they differ); 0 where they do not fit."""

    def shape(name: str, axis: int) -> int:
        value = given.get(name, np.zeros((0, 0)))
        value = next(iter(value.values())) if isinstance(value, Mapping) else value
        return int(value.shape[axis]) if value.ndim == 2 else 0

    def lines(name: str) -> int:
        return given[name].tobytes().count(b"\n") if name in given else 0

    out = {"b": shape("basis", 1), "M": lines("loading_panel"), "P": lines("poly_panel"), "A": shape("beta", 1)}
    if study.gwas is not None and (plan := study.gwas.polygenic) is not None:
        columns = shape("level_shift", 1)
        out |= {"F": plan.folds, "B": plan.block, "RF": len(plan.ridge) * plan.folds, "L": columns // plan.folds, "LF": columns}
    return out | gene_sizes(given.get("gene"))


def check_request(study: Study, phase: Phase, given: Mapping[str, Any], variants: int) -> None:
    """Checks that the arrays of a request's analysis record are those that its phase declares.

    Raises:
        SiteError: undeclared: a name, type or shape differs, or the study has no ``[gwas]``.
    """
    if phase in OUTCOMES:
        return outcome_forms.check_request(study, phase, given)
    check_section(study, phase)
    wanted = declared(study, phase)
    if given.keys() != wanted.keys():
        raise SiteError(Reason.UNDECLARED, "the analysis record has other arrays than this phase declares")
    size = sizes(study, variants) | asked(study, given)
    for name, (dtype, shape) in wanted.items():
        value = given[name]
        expected = [size[n] if isinstance(n, str) else n for n in shape]
        fits = str(value.dtype) == dtype and value.ndim == len(expected)
        if not fits or any(want is not None and have != want for have, want in zip(value.shape, expected, strict=True)):
            raise SiteError(Reason.UNDECLARED, f"{name} does not have the declared shape and type")


def gene_sizes(gene: Any) -> dict[str, int]:
    """The letters c and t for columns of these genes, (columns,) integers; nothing if there are none."""
    if gene is None or gene.ndim != 1 or gene.dtype != np.int64:
        return {} if gene is None else {"c": -1, "t": -1}  # no array has such a shape
    columns = np.unique(gene, return_counts=True)[1]
    return {"c": len(gene), "t": int((columns * (columns + 1) // 2).sum())}


def reply_shapes(study: Study, phase: Phase, variants: int, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the sums in a step's reply to a request with the arrays ``given``."""
    if phase in OUTCOMES:
        return outcome_forms.reply_shapes(study, phase, given)
    kinds = REPLY[phase]
    shapes = kinds[""] if "" in kinds else kinds[kind(study)]
    size = sizes(study, variants) | asked(study, given)
    return {name: tuple(size[n] if isinstance(n, str) else n for n in shape) for name, shape in shapes.items()}
