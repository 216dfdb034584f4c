"""The persons of an analysis of genotypes at a site.

They are those of the cohort who have genotypes and, if the study has ``[gwas]``, the target and every covariate; the groups in which
carriers are counted; and of them the men, for variants on Y.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedml.analytics import forms
from fedml.clients.site.read import load_cohort
from fedml.clients.work.request import Request
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort
from fedml.cohort.variants.kinship import fewest, left_out, related
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.ploidy import sexes
from fedml.contract.disclosure import HIDDEN
from fedml.errors import InputError
from fedml.study.study import Study
from fedml.wire.records import ANALYSIS, array_record, unpack

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Analysed:
    """The persons of an analysis: ``rows`` of the cohort, raw ``covariates`` (persons, C), ``outcome`` (persons,), ``groups`` (groups,
    persons): everyone, and the levels of covariates; in each, carriers are counted before a sum is sent. ``controls`` (persons,): without
    the disease, or everyone; their genotypes should be in Hardy-Weinberg equilibrium. ``sexes`` (2, persons): men, women."""

    rows: npt.NDArray[np.int64]
    covariates: Floats
    outcome: Floats
    groups: npt.NDArray[np.bool_]
    controls: npt.NDArray[np.bool_]
    sexes: npt.NDArray[np.bool_]


@lru_cache(maxsize=32)
def analysed(manifests: tuple[str, ...], study: Study) -> Analysed:
    """The persons of the analysis at the site with these ``manifests``."""
    cohort = load_cohort(manifests, study)
    dosages = cohort.input("variants", Dosages)
    has = np.zeros(len(cohort), dtype=bool) if dosages is None else dosages.present.copy()
    raw, levels = _covariates(cohort, study)
    if study.gwas is not None:
        has &= np.isfinite(raw).all(1) & np.isfinite(cohort.labels)
    rows = np.flatnonzero(has)
    if study.gwas is not None and study.gwas.relatives == "unrelated":
        if (relatives := _relatives(cohort, study, rows)) is None:
            raise InputError(
                f"{cohort.site}: fewer than {fewest(study.gwas.max_kinship):,} autosomal variants are common and called, too few to find "
                'relatives; read more variants ([cohort.variants] regions, listed), or set [gwas] relatives = "keep".'
            )
        rows = rows[~relatives]
    everyone = np.ones(len(rows), dtype=bool)
    groups = np.stack([everyone, *(level[rows] for level in levels)])
    controls = cohort.labels[rows] == 0 if study.gwas is not None and forms.kind(study) == "logistic" else everyone
    both = sexes(None if dosages is None else dosages.sex, len(cohort))
    return Analysed(rows, raw[rows], cohort.labels[rows], groups, controls, both[:, rows])


@lru_cache(maxsize=32)
def relatives(manifests: tuple[str, ...], study: Study) -> int | None:
    """How many persons of the analysis would have to be left out so that no pair with a kinship above ``max_kinship`` is in it; None if
    the site has too few variants to tell."""
    found = _relatives(load_cohort(manifests, study), study, analysed(manifests, study).rows)
    return None if found is None else int(found.sum())


def told_relatives(request: Request, min_count: int) -> int:
    """``relatives`` as it may leave the site: ``HIDDEN`` if they, or all others, are 1 to ``min_count`` - 1 persons; ``UNKNOWN``."""
    found = relatives(request.manifests, request.study)
    if found is None:
        return forms.UNKNOWN
    rest = len(analysed(request.manifests, request.study).rows) - found
    return HIDDEN if 0 < found < min_count or 0 < rest < min_count else found


def _relatives(cohort: Cohort, study: Study, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
    """(rows,) whom to leave out; None if it cannot be known. Neither outcome nor the order of the table has a part in it."""
    dosages = cohort.input("variants", Dosages)
    if dosages is None or study.gwas is None or (pairs := related(dosages, rows, study.gwas.max_kinship)) is None:
        return None
    return left_out(pairs, [f"{study.split_key}\0{cohort.ids[row]}" for row in rows], len(rows))


def _covariates(cohort: Cohort, study: Study) -> tuple[Floats, list[npt.NDArray[np.bool_]]]:
    """(persons, C) columns, NaN if missing, and, for each categorical or two-valued column, a (persons,) mask for each of its values."""
    spec, columns, levels, clinical = study.cohort.clinical, [], [], cohort.input("clinical", Table)
    for name in study.gwas.covariates if study.gwas else ():
        assert spec is not None  # noqa: S101 - the study was validated
        values = np.full(len(cohort), np.nan) if clinical is None else clinical.values[:, spec.columns.index(name)]
        known = np.unique(values[np.isfinite(values)])
        if name in spec.categories:
            columns += [np.where(np.isfinite(values), values == code, np.nan) for code in range(1, len(spec.categories[name]))]
        else:
            columns.append(values)
        if name in spec.categories or len(known) == 2:
            levels += [values == code for code in known]
    return np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((len(cohort), 0)), levels


def only_men(people: Analysed) -> Analysed:
    """The men of ``people``, who alone have a call on Y."""
    men = people.sexes[0]
    return Analysed(
        people.rows[men], people.covariates[men], people.outcome[men], people.groups[:, men], people.controls[men], people.sexes[:, men]
    )


def asks_men(content: RecordDict) -> bool:
    """Whether a request of an analysis is about the men alone (``fedml.analytics.forms``)."""
    given = unpack(array_record(content, ANALYSIS))
    return forms.EVERYONE in given and not given[forms.EVERYONE].any()
