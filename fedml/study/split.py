"""``[cohort] split``: which share of persons trains, validates and tests."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study.section import Fraction, Section, without_unused


class Split(Section):
    """Fractions of persons in each part. A person's part follows from a keyed hash of the id (``fedml.cohort.table``)."""

    train: Fraction = Field(default=0.7, description="fraction of persons who train the model; the three fractions sum to 1")
    val: Fraction = Field(default=0.1, description="fraction of persons for the metrics during training")
    test: Fraction = Field(default=0.2, description="fraction of persons for the metrics of the final model")
    folds: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="cross-validation: number of equal shares of persons, each of which is tested in turn; 0: none"
    )
    fold: Annotated[int, Field(ge=0, le=1000)] = Field(default=0, description="with folds: the share that is tested, from 1 to folds")

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("train", "val", "test"))

    @model_validator(mode="after")
    def _fold(self) -> Self:
        if self.folds == 1 or not (1 <= self.fold <= self.folds or self.fold == self.folds == 0):
            raise ValueError(f"folds is {self.folds} and fold is {self.fold}; set folds to 2 or more, and fold from 1 to folds")
        if self.folds and abs(self.test - 1 / self.folds) > 1e-9:
            raise ValueError(f"with folds = {self.folds}, test must be 1 / folds = {1 / self.folds:.12g}, not {self.test:g}")
        return self

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(f"train + val + test must be 1, not {self.train + self.val + self.test:g}")
        return self
