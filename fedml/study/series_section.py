"""``[cohort.image.select]``: which series of a person's DICOM study is the image, and ``volumes``: which of the volumes of a series."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study.section import Section

Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=50)]
Values = Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_ .-]{1,64}$")], ...], Field(max_length=50)]
Range = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(max_length=2)]
Axis = Literal["axial", "sagittal", "coronal"]
Prefer = Literal["most-slices", "thinnest", "newest"]
Overlap = Literal["refuse", "later", "earlier"]
PATTERN = "patterns with * and ?, of which one must fit; capitals do not matter"


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value


Numbers = Annotated[
    tuple[Annotated[int, Field(ge=0, le=65_535)], ...], BeforeValidator(_listed), Field(min_length=1, max_length=256)
]  # fmt: skip


class ChannelFile(Section):
    """One named channel of an image, a file or a series of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")] = Field(description="the channel's name, such as t1")
    pattern: Pattern = Field(description="pattern of the file's name without its ending, or of the series description, such as *_T1w*")


class SiteSelect(Section):
    """``data.image.select`` in ``site.toml``: how this site names what the study selects. A key that is given replaces the study's."""

    description: Patterns | None = Field(default=None, description=f"series description: {PATTERN}; default: the study's")
    not_description: Patterns | None = Field(default=None, description="patterns of descriptions that must not fit; default: the study's")
    kernel: Patterns | None = Field(default=None, description=f"convolution kernel: {PATTERN}; default: the study's")


class Select(Section):
    """``[cohort.image.select]``: which series of a person's DICOM files is the image; the others are left out.

    Localizers and derived and secondary series are no images unless a key admits them. If more than one series remains, ``prefer``
    decides; if none or several remain, the person's image is excluded, with a list of the series at the site.
    """

    modality: Values = Field(default=(), description="modalities, such as CT, of which one must be the series'; empty: any")
    image_type: Values = Field(default=(), description="values that Image Type must all have, such as AXIAL; empty: any")
    not_image_type: Values = Field(default=(), description="values of which Image Type must have none, such as MIP; empty: any")
    description: Patterns = Field(default=(), description=f"series description: {PATTERN}; empty: any")
    not_description: Patterns = Field(default=(), description="patterns of series descriptions that must not fit; empty: none")
    kernel: Patterns = Field(default=(), description=f"convolution kernel of CT: {PATTERN}; empty: any")
    orientation: Literal["", "axial", "sagittal", "coronal"] = Field(
        default="", description="plane of the slices: the nearest of axial, sagittal and coronal; empty: any"
    )
    thickness_mm: Range = Field(default=(), description="least and largest slice thickness, mm; empty: any")
    view: Values = Field(default=(), description="view positions of a plate, such as PA, of which one must be its; empty: any")
    echo_time_ms: Range = Field(default=(), description="least and largest echo time, ms; empty: any")
    b_value: Range = Field(default=(), description="least and largest b-value of diffusion, s/mm2; empty: any")
    phase: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=200)] = Field(
        default=(), description="temporal positions, as the files number them, which are read; empty: any"
    )
    localizer: bool = Field(default=False, description="whether localizers (scouts) are images")
    derived: bool = Field(default=False, description="whether derived series are images, such as reformatted planes and computed maps")
    secondary: bool = Field(default=False, description="whether secondary series are images, such as screen captures and dose pages")
    prefer: Annotated[tuple[Prefer, ...], Field(max_length=3)] = Field(
        default=(), description="which of several series is the image, by the first rule that tells them apart; empty: none of them"
    )
    several: bool = Field(default=False, description="whether every series that remains is an image of the person; else exactly one is")

    @model_serializer(mode="wrap")
    def _stated(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if getattr(self, key) != type(self).model_fields[key].default}

    @model_validator(mode="after")
    def _possible(self) -> Select:
        for name in ("thickness_mm", "echo_time_ms", "b_value"):
            two = getattr(self, name)
            if len(two) == 1 or (two and two[0] > two[1]):
                raise ValueError(f"{name} has two numbers, the least and the largest, such as [0, 5]; not {list(two)}")
        if self.several and self.prefer:
            raise ValueError("several = true takes every series, so prefer has nothing to decide; remove one of them")
        return self

    @property
    def of_volumes(self) -> bool:
        """True if a rule is about the volumes within a series."""
        return bool(self.echo_time_ms or self.b_value or self.phase)

    def at(self, site: SiteSelect | None) -> Select:
        """These rules with a site's own names of what they select."""
        if site is None:
            return self
        return self.model_copy(update={key: value for key, value in site.model_dump().items() if value is not None})


class ImageSource(Section):
    """The keys of ``[cohort.image]`` that say which files, series and volumes of a person are the image."""

    select: Select | None = Field(
        default=None,
        description="which series of a person's DICOM study is the image; default: the only one, or the only one that is no localizer and "
        "neither derived nor secondary",
    )
    volumes: Literal["one", "channels", "mean", "stack"] | Annotated[int, Field(ge=1, le=10_000)] = Field(
        default="one",
        description="of a file or series with several volumes (phases, b-values, echoes, time): the image has one, or they are its "
        "channels, or their mean is the image, or the one of this number from 1 is; stack: the frames of a cine are slices",
    )
    channel_files: Annotated[tuple[ChannelFile, ...], Field(max_length=64)] = Field(
        default=(),
        description="channels that are a file or series each, in their order; written as channels = { NAME = PATTERN, .. }; empty: none",
    )

    units: Literal["", "SUVbw"] = Field(
        default="",
        description="SUVbw: PET series as standardised uptake values by body weight, g/ml, from weight, dose, half-life and times of the "
        "DICOM headers; an image that does not state them all is excluded; empty: as the files have them",
    )
    segments: Annotated[dict[str, Patterns], Field(max_length=256)] = Field(
        default={},
        description="of DICOM segmentations and RT structure sets, the segments or regions of each class, by patterns of their labels or "
        'as SCHEME:VALUE of their code: { 1 = ["spleen*", "SCT:78961009"] }; segments that no class names are the first class; default: '
        "segment numbers are classes",
    )
    labels: Annotated[dict[str, Numbers], Field(max_length=256)] = Field(
        default={},
        description="of masks, the values of each class: { tumour = [1, 4], edema = 2 }; values that no class names are the first class; "
        "default: the values are the classes",
    )
    mask_files: Annotated[dict[str, Patterns], Field(max_length=256)] = Field(
        default={},
        description='the mask files of each class in masks/<id>/, by patterns of their names without ending: { 1 = ["spleen"] }; a file '
        "marks its class where it is not 0; default: one mask of all classes",
    )
    overlap: Overlap = Field(
        default="refuse",
        description="which class a voxel of two segments, regions or mask files has: the later or the earlier in [cohort] classes; refuse: "
        "the image is excluded",
    )

    @property
    def rules(self) -> str:
        """The rules that choose among a person's files, for the plan that a site approves: every pattern is shown. Empty without rules."""
        stated = {} if self.select is None else self.select.model_dump()
        parts = [
            f"{name} {' or '.join(map(str, value)) if isinstance(value, tuple) else str(value).lower()}" for name, value in stated.items()
        ]
        parts += [f"channel {one.name} from {one.pattern}" for one in self.channel_files]
        parts += [f"class {name} from segments {' or '.join(patterns)}" for name, patterns in sorted(self.segments.items())]
        parts += [f"class {name} from values {' or '.join(map(str, values))}" for name, values in sorted(self.labels.items())]
        parts += [f"class {name} from masks {' or '.join(patterns)}" for name, patterns in sorted(self.mask_files.items())]
        parts += [] if self.overlap == "refuse" else [f"of two classes of a voxel the {self.overlap}"]
        parts += [f"values as {self.units}"] if self.units else []
        parts += [] if self.volumes == "one" else [f"volumes {self.volumes}"]
        return f" ({'; '.join(parts)})" if parts else ""

    @model_validator(mode="after")
    def _possible_source(self) -> ImageSource:
        given = [number for numbers in self.labels.values() for number in numbers]
        if len(set(given)) < len(given):
            raise ValueError("a value is of two classes in labels")
        if self.labels and self.mask_files:
            raise ValueError("labels are values in one mask and mask_files are a mask for each class; remove one of them")
        names = [one.name for one in self.channel_files]
        if len(set(names)) < len(names):
            raise ValueError("a channel is named twice in channels")
        if names and len(names) != getattr(self, "channels", len(names)):
            raise ValueError(f"channel_files names {len(names)} channels, channels is {getattr(self, 'channels', 0)}; write channels once")
        if names and self.volumes == "channels":
            raise ValueError('volumes = "channels" and named channels both say what the channels are; remove one of them')
        if names and self.select is not None and self.select.several:
            raise ValueError("named channels are one series each, so select.several is not possible; remove it")
        return self


def gather_channels(plan: Any) -> Any:
    """A study's plan with named channels, which a file writes as ``channels = { NAME = PATTERN, .. }``, under ``channel_files``. Not in
    place."""
    cohort = plan.get("cohort") if isinstance(plan, dict) else None
    image = cohort.get("image") if isinstance(cohort, dict) else None
    named = image.get("channels") if isinstance(image, dict) else None
    if not isinstance(cohort, dict) or not isinstance(image, dict) or not isinstance(named, dict) or "channel_files" in image:
        return plan
    files = [{"name": name, "pattern": pattern} for name, pattern in named.items()]
    return {**plan, "cohort": {**cohort, "image": {**image, "channels": len(files), "channel_files": files}}}
