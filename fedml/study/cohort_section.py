"""``[cohort]`` and its inputs: what every site must have of each person."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, FailFast, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator
from pydantic_core import PydanticKnownError

from fedml.errors import nearest
from fedml.study import limits
from fedml.study.contigs import canonical_contig
from fedml.study.imaging import Preprocess
from fedml.study.omics import OmicsColumns
from fedml.study.section import Code, Fraction, Section, normal, without_later
from fedml.study.task_traits import either


class Split(Section):
    """Fractions of persons in each part. A person's part follows from a keyed hash of the id (``fedml.cohort.table``)."""

    train: Fraction = 0.7
    val: Fraction = 0.1
    test: Fraction = 0.2

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(f"train + val + test must be 1, not {self.train + self.val + self.test:g}")
        return self


ColumnName = Annotated[str, Field(max_length=200)]
Codes = Annotated[tuple[Code, ...], Field(max_length=10_000), FailFast()]


class ClinicalColumns(Section):
    """``[cohort.clinical]``: the columns that every site must have, in order; categories of categorical columns; codes of missing
    values."""

    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1, max_length=limits.COLUMNS), FailFast()]
    categories: dict[str, Codes] = Field(default_factory=dict)
    missing: dict[str, Codes] = Field(default_factory=dict)
    indicate: bool = True

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("a column is listed twice in columns")
        for key, table in (("categories", self.categories), ("missing", self.missing)):
            for column in table:
                if column not in self.columns:
                    raise ValueError(f'{key} names "{column}", which is not in columns{nearest(column, self.columns)}')
        return self


class Tiles(Section):
    """``[cohort.image] tiles``: each person's slides are cut into square tiles, and the tiles with tissue are used
    (``fedml.cohort.slides.slide``)."""

    size_px: Annotated[int, Field(ge=16, le=2048, description="pixels per side")] = 256
    mpp: Annotated[float, Field(ge=0.05, le=50)] | None = Field(
        default=None, description="micrometres per pixel, equal at every site; default: a slide's finest level, not resampled"
    )
    min_tissue: Annotated[float, Field(gt=0, le=1, description="least share of a tile that is tissue")] = 0.5
    per_step: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=64, description="tiles of a person in a training step, drawn again for each step; evaluation uses all tiles"
    )


class ImageShape(Section):
    """``[cohort.image]``: channels and voxels of every image. Without the section, the sites' image shape is used if all sites agree.

    Without further keys, an image of another size is refused. With one of them, every image is reoriented, resampled, windowed, then
    cropped and padded to ``size`` (``fedml.study.imaging.Preprocess``), and cached in half precision. With ``tiles``, images are whole
    slides, and channels and size are those of a tile.
    """

    channels: Annotated[int, Field(ge=1, le=64)] = 1
    size: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(min_length=2, max_length=3)] = ()
    orientation: str = Field(default="", description="such as RAS; for images of three axes")
    spacing_mm: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=3)] = Field(
        default=(), description="millimetres from voxel to voxel along each axis"
    )
    window: tuple[float, ...] = Field(default=(), description="raw intensities (CT: HU) that become 0 and 1; values beyond are clipped")
    percentiles: tuple[float, ...] = Field(default=(), description="the window, as two percentiles of all sites' training voxels")
    crop: bool = Field(default=False, description="crop and pad to size around the centre, without other preprocessing")
    tiles: Tiles | None = Field(default=None, description="tiles of whole slides; replaces all other keys")

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of each image when it is read; None: no preprocessing."""
        if not (self.orientation or self.spacing_mm or self.window or self.percentiles or self.crop):
            return None
        window = (self.window[0], self.window[1]) if len(self.window) == 2 else None
        two = (self.percentiles[0], self.percentiles[1]) if len(self.percentiles) == 2 else None
        return Preprocess(orientation=self.orientation, spacing_mm=self.spacing_mm, window=window, percentiles=two, size=self.size)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(self.window) not in (0, 2):
            raise ValueError(f"window has two numbers, (low, high), not {len(self.window)}")
        if len(self.percentiles) not in (0, 2):
            raise ValueError(f"percentiles has two numbers, such as [1, 99], not {len(self.percentiles)}")
        if self.tiles is not None:
            if self.preprocess is not None:
                raise ValueError(
                    "tiles of slides have no further preprocessing; remove orientation, spacing_mm, window, percentiles and crop (use mpp)"
                )
            side = self.tiles.size_px
            if (self.channels, self.size) not in ((1, ()), (3, ()), (3, (side, side))):
                raise ValueError(f"tiles have three channels and {side} x {side} pixels; remove channels and size")
            # Set explicitly, so that other code reads the actual shape and the study's hash covers it.
            object.__setattr__(self, "channels", 3)
            object.__setattr__(self, "size", (side, side))
            if (values := self.tiles.per_step * limits.values_of(self.size, self.channels)) > limits.TILE_VALUES:
                raise ValueError(f"tiles per_step gives {values:,} values of a person in a step, the limit is {limits.TILE_VALUES:,}")
        elif not self.size:
            raise ValueError("size is missing; add size, or tiles for whole slides")
        if (values := limits.values_of(self.size, self.channels)) > limits.VOXELS:
            raise ValueError(f"size and channels give {values:,} values of an image, the limit is {limits.VOXELS:,}")
        try:
            _ = self.preprocess
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error
        return self


_STATED = re.compile(r"([A-Za-z0-9._-]{1,40}):([0-9]{1,10}):([ACGTN]{1,1000}):([ACGTN]{1,1000})")


class Variants(Section):
    """``[cohort.variants]``: which variants are read, how they are matched between sites, and quality thresholds of the shared variants.

    The thresholds apply to genotype counts pooled over sites; if all thresholds are 0, no counts are requested.
    """

    match: Literal["position", "rsid"] = "position"
    build: Literal["", "NCBI36", "GRCh37", "GRCh38", "T2T-CHM13"] = Field(default="", description="the build that every site must have")
    regions: Annotated[tuple[str, ...], Field(max_length=10_000), FailFast()] = Field(
        default=(), description="such as 22 or 22:17000000-18000000"
    )
    listed: Annotated[tuple[str, ...], Field(max_length=limits.FEATURES), FailFast()] = Field(
        default=(), description="rsIDs, or contig:position:ref:alt"
    )
    min_shared: Fraction = Field(default=0.1, description="shared variants, as a fraction of the variants of the site with the fewest")
    min_call_rate: Fraction = 0.0
    min_maf: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    min_hwe_p: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def stated(self) -> tuple[tuple[str, int, str, str], ...]:
        """(contig, position, REF, ALT) of each listed variant; empty if nothing is listed, if one is listed by its name only or with
        another name of its contig, or if ``regions`` or rsIDs select too."""
        parts = [_STATED.fullmatch(text) for text in self.listed]
        found = tuple((m[1], int(m[2]), m[3], m[4]) for m in parts if m and canonical_contig(m[1]) == m[1])
        return found if len(found) == len(parts) and self.match == "position" and not self.regions else ()

    @property
    def counted(self) -> bool:
        """True if a threshold needs genotype counts."""
        return bool(self.min_call_rate or self.min_maf or self.min_hwe_p)


class Inputs(Section):
    """The sections of the inputs in ``[cohort]``: a field for each input, whose name is the input's name."""

    image: ImageShape | None = None
    variants: Variants = Variants()
    clinical: ClinicalColumns | None = None
    omics: OmicsColumns | None = None


def _known_input(name: str) -> str:
    if name not in Inputs.model_fields:
        raise PydanticKnownError("literal_error", {"expected": either(list(Inputs.model_fields)).replace('"', "'")})
    return name


InputName = Annotated[str, AfterValidator(_known_input)]


class Cohort(Inputs):
    """``[cohort]``: the inputs and the target of each person, and the split into parts."""

    inputs: Annotated[tuple[InputName, ...], Field(min_length=1)]
    target: str
    classes: Annotated[tuple[Code, ...], Field(min_length=2, max_length=limits.CLASSES)] = (0, 1)
    split: Split = Split()
    split_key: str = Field(default="", description="key of the hash that assigns persons to parts; empty: the study's seed")

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(dump(self))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError("an input is listed twice in inputs")
        if len({normal(c) for c in self.classes}) < len(self.classes):
            raise ValueError("a class is listed twice in classes")
        if "clinical" in self.inputs and self.clinical is None:
            raise ValueError('inputs lists "clinical" but [cohort.clinical] is missing; add it with columns = [...]')
        if "omics" in self.inputs and self.omics is None:
            raise ValueError('inputs lists "omics", so a section [cohort.omics] with columns = [...] or features = "FILE" is needed')
        for name in Inputs.model_fields:
            if name not in self.inputs and getattr(self, name) not in (None, Variants()):
                raise ValueError(f'[cohort.{name}] is given but inputs does not list "{name}"')
        if self.omics is not None and self.target in self.omics.columns:
            raise ValueError(f'the target "{self.target}" is also among the omics columns, which would reveal it to the model')
        if self.clinical is not None and self.target in self.clinical.columns:
            raise ValueError(f'the target "{self.target}" is also among the clinical columns, which would reveal it to the model')
        return self
