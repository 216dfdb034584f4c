"""Analyses of outcomes over sites: survival curves and Cox regression (``[survival.curves]``, ``[survival.cox]``), regression (``[glm]``),
comparison of treatments (``[treatment]``) and the table that describes the persons (``[describe]``)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fedml.study.section import Code, Section, without_unused

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
    """``[survival.cox]``: Cox regression of the event of interest on columns of ``[cohort.clinical]``, of cause-specific hazards or of the
    subdistribution's."""

    covariates: Annotated[Names, Field(min_length=1)] = Field(
        description="columns of [cohort.clinical]; the first level of a category is the reference"
    )
    ties: Literal["efron", "breslow"] = Field(default="efron", description="how events at the same time of the grid are counted")
    baseline: Literal["common", "site"] = Field(
        default="common", description="common: one baseline hazard; site: each site has its own (stratified by site)"
    )
    ridge: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0,
        description="penalty: the log partial likelihood less ridge / 2 times the sum of squared coefficients of standardised columns",
    )
    level: Annotated[float, Field(ge=0.5, lt=1)] = Field(default=0.95, description="level of confidence intervals")
    hazard: Literal["cause", "subdistribution"] = Field(
        default="cause",
        description="cause: competing events count as censored; subdistribution: who has one stays at risk (Fine and Gray)",
    )
    weights: str | None = Field(
        default=None, description="column of [cohort.clinical] with case weights above 0; default: every person counts once"
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("covariates", "ties", "baseline", "ridge", "level"))

    @property
    def shown(self) -> Literal["model", "robust"]:
        """The kind of variance that intervals and p values stand for: with weights the model's own is none of an estimate."""
        return "robust" if self.weights is not None or self.hazard == "subdistribution" else "model"


class Glm(Section):
    """``[glm]``: regression of the target on columns of ``[cohort.clinical]`` (``fedml glm``); linear for a number, logistic for two
    classes, Poisson for a count (with ``[cohort] exposure`` as its offset)."""

    covariates: Annotated[Names, Field(min_length=1)] = Field(
        description="columns of [cohort.clinical]; the first level of a category is the reference"
    )
    intercept: Literal["site", "one"] = Field(default="site", description="an intercept for each site, or one for all")
    level: Annotated[float, Field(ge=0.5, lt=1)] = Field(default=0.95, description="level of confidence intervals")
    standardise: str | None = Field(
        default=None,
        description="a category among covariates, of which the mean outcome is given if everyone had each level (g-formula); default: none",
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("covariates", "intercept", "level"))


class Treatment(Section):
    """``[treatment]``: comparison of two treatments by weights from a propensity score; the outcome is the target, a number or two classes
    (``fedml glm``), or a time to an event (``fedml survival``)."""

    column: str = Field(description="column of [cohort.clinical] categories with the treatments")
    levels: Annotated[tuple[Code, ...], Field(max_length=2)] = Field(
        default=(), description="the two levels that are compared, the control first; default: both levels of the column"
    )
    covariates: Annotated[Names, Field(min_length=1)] = Field(description="columns of [cohort.clinical] of the propensity model")
    estimand: Literal["ate", "att", "overlap"] = Field(
        default="ate",
        description="ate: the effect in everyone (weights 1 / score); att: in the treated; overlap: in those who might get either",
    )
    trim: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="persons with a score below it or above 1 - it are left out; not built for overlap weights and times"
    )
    intercept: Literal["site", "one"] = Field(default="site", description="of the propensity model: one for each site, or one for all")
    level: Annotated[float, Field(ge=0.5, lt=1)] = Field(default=0.95, description="level of confidence intervals")


class Describe(Section):
    """``[describe]``: the table of the persons (``fedml describe``)."""

    columns: Names = Field(default=(), description="columns of [cohort.clinical] in the table; empty: all")
    groups: str | None = Field(default=None, description="column of [cohort.clinical] categories whose groups are compared; default: none")
