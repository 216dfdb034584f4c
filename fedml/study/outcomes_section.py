"""Analyses of outcomes over sites: survival curves and Cox regression (``[survival.curves]``, ``[survival.cox]``), regression (``[glm]``)
and the table that describes the persons (``[describe]``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedml.errors import nearest
from fedml.study.section import Section

if TYPE_CHECKING:
    from fedml.study.cohort_section import ClinicalColumns
    from fedml.study.study import Study

Names = Annotated[tuple[str, ...], Field(max_length=100)]
FAMILIES = {"number": "gaussian", "classes": "binomial", "count": "poisson"}  # label of a task -> family of its regression


class Curves(Section):
    """``[survival.curves]``: Kaplan-Meier, Nelson-Aalen and cumulative incidence curves, log-rank tests and restricted means."""

    groups: str | None = Field(default=None, description="column of [cohort.clinical] categories whose groups are compared; default: none")
    quantiles: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1, max_length=9)] = Field(
        default=(0.5,), description="quantiles of the time to the event, as shares of persons; 0.5: the median"
    )
    level: Annotated[float, Field(ge=0.5, lt=1)] = Field(default=0.95, description="level of confidence bands and intervals")


class CoxModel(Section):
    """``[survival.cox]``: Cox regression of the event of interest on columns of ``[cohort.clinical]``; competing events count as censored
    (cause-specific hazards)."""

    covariates: Annotated[Names, Field(min_length=1)] = Field(description="columns of [cohort.clinical]; a category has its first level as reference")
    ties: Literal["efron", "breslow"] = Field(default="efron", description="how events at the same time of the grid are counted")
    baseline: Literal["common", "site"] = Field(
        default="common", description="common: one baseline hazard; site: each site has its own (stratified by site)"
    )
    ridge: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="penalty: the log partial likelihood less ridge / 2 times the sum of squared coefficients of standardised columns"
    )
    level: Annotated[float, Field(ge=0.5, lt=1)] = Field(default=0.95, description="level of confidence intervals")


class Glm(Section):
    """``[glm]``: regression of the target on columns of ``[cohort.clinical]`` (``fedml glm``); linear for a number, logistic for two
    classes, Poisson for a count (with ``[cohort] exposure`` as its offset)."""

    covariates: Annotated[Names, Field(min_length=1)] = Field(description="columns of [cohort.clinical]; a category has its first level as reference")
    intercept: Literal["site", "one"] = Field(default="site", description="an intercept for each site, or one for all")
    level: Annotated[float, Field(ge=0.5, lt=1)] = Field(default=0.95, description="level of confidence intervals")


class Describe(Section):
    """``[describe]``: the table of the persons (``fedml describe``)."""

    columns: Names = Field(default=(), description="columns of [cohort.clinical] in the table; empty: all")
    groups: str | None = Field(default=None, description="column of [cohort.clinical] categories whose groups are compared; default: none")


def columns_of(spec: ClinicalColumns | None, names: tuple[str, ...]) -> list[str]:
    """The names of the design's columns: each number, and each level but the first of a category, as ``stage=III``."""
    found = list[str]()
    for name in names:
        levels = [] if spec is None else list(spec.categories.get(name, ()))
        found += [f"{name}={level}" for level in levels[1:]] if levels else [name]
    return found


def outcome_problems(study: Study) -> Iterator[str]:
    """What other sections of the study contradict in the sections of this file."""
    survival = study.survival
    curves, cox = (None, None) if survival is None else (survival.curves, survival.cox)
    asked = {"survival.curves": curves, "survival.cox": cox, "glm": study.glm, "describe": study.describe}
    given = [name for name, section in asked.items() if section is not None]
    if not given:
        return
    first, spec = given[0], study.cohort.clinical
    if study.privacy.unit != "none":
        yield (
            f'[{first}] releases exact counts and sums, so it needs [privacy] unit = "none"; with noise neither its intervals nor its '
            "tests would hold, and noised ones are not built"
        )
    if study.gwas is not None or study.frequencies is not None:
        yield f"[{first}] and an analysis of variants are about different persons; give each its study"
    if study.cohort.cluster is not None:
        yield f"[cohort] cluster is not built for [{first}], whose intervals it would not change; remove it"
    if study.cohort.standardise == "site":
        yield f'[{first}] reports covariates in their own units; remove [cohort] standardise = "site"'
    if study.federation.evaluate_only:
        yield f"[{first}] trains no model that [federation] evaluate_only could test; leave evaluate_only out"
    if study.glm is not None and study.traits.label not in FAMILIES:
        yield '[glm] needs a number, two classes or a count as target; set [model] task = "regression", "classification" or "count"'
    if study.glm is not None and study.traits.label == "classes" and len(study.cohort.classes) != 2:
        yield f"[glm] compares two classes, [cohort] classes lists {len(study.cohort.classes)}"
    known = spec.columns if spec is not None else ()
    for name, section in asked.items():
        key = "columns" if name == "describe" else "covariates"
        for column in getattr(section, key, ()):
            if column not in known:
                yield f'[{name}] {key} names "{column}", which is not a column of [cohort.clinical]{nearest(column, known)}'
        groups = getattr(section, "groups", None)
        if groups is not None and (spec is None or groups not in spec.categories):
            categories = () if spec is None else spec.categories
            yield f'[{name}] groups is "{groups}", which [cohort.clinical] categories does not list{nearest(groups, categories)}'
