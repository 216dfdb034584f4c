"""The section of omics: the features that are read of every person."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from fedml.errors import InputError
from fedml.study import limits

Feature = Annotated[str, Field(min_length=1, max_length=200)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class OmicsColumns(BaseModel):
    """``[cohort.omics]``: the columns that every site's matrix must have, in order, such as the expression of genes.

    In a file ``features = "genes.txt"`` names them, one a line; ``read_study`` puts the names into the study itself, so that its hash
    covers them. ``range`` states plausible values of every column, which a private study needs.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    columns: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=limits.FEATURES), FailFast()] = Field(
        description="names of the features that the model reads; every site must have each; give columns or features"
    )
    range: tuple[Finite, Finite] | None = Field(
        default=None, description="lowest and highest plausible value of every feature, which a private study needs"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise ValueError(f'columns lists "{twice[0]}" twice')
        if "id" in self.columns:
            raise ValueError('columns lists "id", which is the column of the persons\' ids')
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range is from {self.range[0]:g} to {self.range[1]:g}; the first must be smaller")
        return self


def read_features(path: Path) -> list[str]:
    """The names in a file, one on each line; empty lines are skipped.

    Raises:
        InputError: the file cannot be read, is not UTF-8 text, or holds no name.
    """
    try:
        with path.open("rb") as file:
            text = file.read(limits.TEXT_BYTES + 1)
        lines = text.decode("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct [cohort.omics] features.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save the list of features as UTF-8.") from error
    if len(text) > limits.TEXT_BYTES:
        raise InputError(f"{path}: is longer than {limits.TEXT_BYTES:,} bytes, the limit of a list of features; list fewer.")
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: has no feature; write one name on each line.")
    return names
