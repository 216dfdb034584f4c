"""Rows of tables inside of events (``fedml.runs.events``)."""

from __future__ import annotations

from typing import NamedTuple, TypedDict


class ColumnRow(TypedDict):
    """One column at one site: training persons with a value, their mean and standard deviation; None where these are not told."""

    known: int
    mean: float | None
    sd: float | None


class VariantRow(TypedDict):
    """One of the strongest associations."""

    chromosome: str
    position: int
    rsid: str
    effect_allele: str
    other_allele: str
    beta: float
    standard_error: float
    p_value: str
    frequency: float
    n: int
    method: str


class Again(NamedTuple):
    """How many requests for a round, and for the last evaluation, may have been answered twice."""

    rounds: int
    evaluations: int


NONE_AGAIN = Again(0, 0)
