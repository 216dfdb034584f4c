"""``[frequencies]``: allele frequencies of the persons of all sites, by population and sex."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from fedml.study import limits
from fedml.study.cohort_section import Cohort
from fedml.study.federation_section import Federation
from fedml.study.section import Code, Section, normal
from fedml.study.sections import Privacy

MOST = 20  # populations


class Frequencies(Section):
    """``[frequencies]``: allele counts and frequencies of each variant over the persons of all sites (``fedml frequencies``)."""

    population: Annotated[str, Field(max_length=200)] = Field(
        default="", description="column of the persons table, or of the clinical table, with each person's population; empty: none"
    )
    populations: Annotated[tuple[Code, ...], Field(max_length=MOST)] = Field(
        default=(), description="its values, each a population of the table; an empty cell means not known"
    )
    by_sex: bool = Field(default=False, description="also counts of men and of women; needs [cohort.variants] sex")
    min_ac: Annotated[int, Field(ge=0, le=2**53)] = Field(
        default=0, description="least number of copies of the rarer allele, over all sites, of a variant in the table; 0: no threshold"
    )
    min_sites: Annotated[int, Field(ge=0, le=limits.SITES)] = Field(
        default=0, description="least number of sites that have a variant of the table; 0: every site"
    )
    partial: bool = Field(
        default=False,
        description="also tell sums of some sites, where others withhold a group's numbers: such frequencies of rare alleles are biased",
    )
    block: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=10_000, description="variants per message")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if bool(self.population) != bool(self.populations):
            raise ValueError('population and populations go together, such as population = "ancestry" and populations = ["AFR", "EUR"]')
        names = [normal(code) for code in self.populations]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'populations has "{twice[0]}" twice; take one away')
        for name in names:
            if not name.isascii() or not name.replace("-", "").replace(".", "").isalnum():
                raise ValueError(f'populations has "{name}"; a population is named by ASCII letters, digits, - and .')
        return self

    def groups(self) -> list[tuple[int, int]]:
        """(population, sex) of each group of the table, in its order: -1 is all, men are 0 and women 1. The first is everyone; then the
        sexes, each population, and each population's sexes."""
        sexes = (0, 1) if self.by_sex else ()
        found = [(-1, -1), *((-1, sex) for sex in sexes)]
        for place in range(len(self.populations)):
            found += [(place, -1), *((place, sex) for sex in sexes)]
        return found

    def names(self) -> list[str]:
        """The ending of each group's columns: empty for everyone, ``_XY`` for men, ``_AFR_XX`` for the women of a population."""
        sex = {-1: "", 0: "_XY", 1: "_XX"}
        return [(f"_{normal(self.populations[place])}" if place >= 0 else "") + sex[which] for place, which in self.groups()]


def frequencies_problems(
    plan: Frequencies | None, cohort: Cohort, privacy: Privacy, federation: Federation, *, association: bool
) -> Iterator[str]:
    """What other sections of the study contradict in ``[frequencies]``.

    Args:
        association: the study has ``[gwas]``.
    """
    if plan is None:
        return
    if "variants" not in cohort.inputs:
        yield '[frequencies] needs variants: add "variants" to [cohort] inputs'
    if association:
        yield "[frequencies] and [gwas] are about different persons (an association leaves out who lacks a covariate); give each its study"
    if privacy.unit != "none":
        yield '[frequencies] releases exact counts, so it needs [privacy] unit = "none"; noised frequencies are not built'
    if federation.evaluate_only:
        yield "[frequencies] trains no model that [federation] evaluate_only could test; leave evaluate_only out"
    if plan.by_sex and cohort.variants.sex is None:
        yield '[frequencies] by_sex needs each person\'s sex: add [cohort.variants] sex = { column = "sex", male = "M", female = "F" }'
