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
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.ploidy import sexes
from fedml.study.study import Study
from fedml.wire.records import ANALYSIS, unpack

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
    everyone = np.ones(len(rows), dtype=bool)
    groups = np.stack([everyone, *(level[rows] for level in levels)])
    controls = cohort.labels[rows] == 0 if study.gwas is not None and forms.kind(study) == "logistic" else everyone
    both = sexes(None if dosages is None else dosages.sex, len(cohort))
    return Analysed(rows, raw[rows], cohort.labels[rows], groups, controls, both[:, rows])


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
    given = unpack(content.array_records[ANALYSIS])
    return forms.EVERYONE in given and not given[forms.EVERYONE].any()
