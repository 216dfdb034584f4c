"""A study's sections about images: preprocessing and augmentation, as frozen pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study.code_section import Given, is_own, known_or_own, names_schema
from fedml.study.monai_transforms import MONAI, transform_problem

_CODES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


Finite = Annotated[float, Field(allow_inf_nan=False)]


Positive = Annotated[float, Field(gt=0)]


TransformName = Annotated[str, AfterValidator(known_or_own(MONAI)), names_schema(MONAI)]


Pixels = Annotated[int, Field(ge=1, le=4096)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class OwnTransform(_Section):
    """A transform of MONAI by name, or of own code, pinned: what it makes of an image follows from these values alone. In the file, each
    key besides ``name`` is an option."""

    name: TransformName = Field(description="a dictionary transform of MONAI, or own code as module:name; arguments are further keys")
    options: dict[str, Given] = Field(default_factory=dict, description="arguments of the function or class, by name")
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of the file; reading the study fills it")

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _arguments(self) -> Self:
        if not self.is_own and (problem := transform_problem(self.name, self.options)):
            raise ValueError(problem)
        if not self.is_own and self.sha256:
            raise ValueError(f"sha256 is of own code; {self.name} is of MONAI: take the key away")
        return self

    @property
    def is_own(self) -> bool:
        """Whether it is own code."""
        return is_own(self.name)


class Patches(_Section):
    """``[cohort.image] patches``: images keep their own size, training is on patches of them, and evaluation goes over each whole image
    window by window."""

    size: Annotated[tuple[Pixels, ...], Field(min_length=2, max_length=3)] = Field(description="voxels of a patch along each axis")
    per_step: Annotated[int, Field(ge=1, le=256)] = Field(default=1, description="patches of each image in a training step, drawn anew")
    foreground: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="share of patches whose centre is a voxel of a class other than the background; others are anywhere"
    )
    balanced: bool = Field(default=False, description="such a centre is of each class of the image alike often, however few voxels it has")


class Preprocess(_Section):
    """Preprocessing of every image before the network. A step whose key is not set is skipped."""

    orientation: str = Field(default="", description="such as RAS: voxels run from left to Right, to Anterior, to Superior")
    spacing_mm: tuple[Positive, ...] = Field(default=(), description="millimetres from voxel to voxel along each axis")
    window: tuple[Finite, Finite] | None = Field(default=None, description="raw intensities (CT: HU) that become 0 and 1; clipped")
    percentiles: tuple[Finite, Finite] | None = Field(default=None, description="the window, as percentiles of all sites' voxels")
    size: tuple[Pixels, ...] = Field(default=(), description="voxels along each axis, cropped and padded around the centre")
    transforms: tuple[OwnTransform, ...] = Field(default=(), description="own transforms in their order, after the window and before size")
    at_least: tuple[Pixels, ...] = Field(default=(), description="voxels along each axis to which a smaller image is padded; never cropped")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.orientation and sorted(_CODES.get(code, -1) for code in self.orientation) != [0, 1, 2]:
            raise ValueError(f'orientation is one of R or L, one of A or P, one of S or I, such as RAS; not "{self.orientation}"')
        if len(self.spacing_mm) not in (0, 2, 3):
            raise ValueError(f"spacing_mm has 2 or 3 numbers, not {len(self.spacing_mm)}")
        if len(self.size) not in (0, 2, 3):
            raise ValueError(f"size has 2 or 3 numbers, not {len(self.size)}")
        size = self.size or self.at_least  # of patches
        if size and self.spacing_mm and len(size) != len(self.spacing_mm):
            raise ValueError("size and spacing_mm must have the same number of values, one per axis")
        if self.orientation and 2 in (len(size), len(self.spacing_mm)):
            raise ValueError("orientation needs images of three axes")
        if self.window and self.percentiles:
            raise ValueError("window and percentiles exclude each other")
        if self.window and self.window[0] >= self.window[1]:
            raise ValueError(f"window is (low, high), low below high, not {self.window[0]:g}, {self.window[1]:g}")
        if self.percentiles and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles are two numbers from 0 to 100, the lower first")
        return self

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if key not in ("transforms", "at_least") or value}

    @property
    def axes(self) -> int | None:
        """Number of axes that an image must have; None: any number."""
        return len(self.size or self.at_least) or len(self.spacing_mm) or (3 if self.orientation else None)

    @property
    def needs_geometry(self) -> bool:
        """True if the image file must have an affine."""
        return bool(self.orientation or self.spacing_mm)


class Augment(_Section):
    """Random augmentation in training, drawn separately for every image. The defaults change nothing.

    ``flip``: axes (0 is left-right in RAS: such a flip moves the heart to the right). ``rotate_degrees``: largest angle about each axis.
    ``scale`` and ``shift``: intensities become ``x * (1 + s) + t`` with |s| and |t| up to these values; ``noise``: standard deviation.
    Intended for intensities in 0..1.
    """

    flip: Annotated[tuple[Annotated[int, Field(ge=0, le=2)], ...], Field(max_length=3)] = Field(
        default=(), description="axes that are flipped with probability 1/2; in RAS, 0 is left-right; empty: none"
    )
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = Field(
        default=0.0, description="largest angle of a rotation about each axis, degrees"
    )
    scale: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="intensities are multiplied by 1 + s, s up to this value either way"
    )
    shift: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="t is added to intensities (from 0 to 1), t up to this value either way"
    )
    noise: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="standard deviation of Gaussian noise on intensities (from 0 to 1)"
    )
    stain: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="tiles of slides: each stain is scaled by 1 + s and shifted by t, s and t up to this value either way"
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if key != "stain" or value}
