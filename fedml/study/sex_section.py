"""``[cohort.variants] sex``: which column says how many copies of X and Y each person has."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedml.study.section import Code, Section, normal


class Sex(Section):
    """``[cohort.variants] sex``: how many copies of X and Y each person has."""

    column: Annotated[str, Field(max_length=200)] = Field(
        description="column of the persons table, or of the clinical table, with each person's sex"
    )
    male: Code = Field(description="its value in men, who have one copy of X and of Y")
    female: Code = Field(description="its value in women; an empty cell means not known")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if normal(self.male) == normal(self.female):
            raise ValueError(f'male and female are both "{normal(self.male)}"; give the two values of column "{self.column}"')
        return self
