"""``[cohort]`` and its inputs: what every site must have of each person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from fedml.errors import nearest
from fedml.study import date_rules, limits
from fedml.study.calls_section import Calls
from fedml.study.contigs import canonical_contig
from fedml.study.imaging import OwnTransform, Patches, Preprocess
from fedml.study.monai_transforms import is_random
from fedml.study.omics import OmicsColumns
from fedml.study.radiomics import RadiomicsFeatures
from fedml.study.section import Code, Fraction, Section, normal, without_later, without_unused
from fedml.study.series_section import ImageSource
from fedml.study.sex_section import Sex
from fedml.study.split import Split
from fedml.study.survival_section import TimeToEvent
from fedml.study.target import TARGETS, Target
from fedml.study.task_traits import Label, either
from fedml.study.tiles import Tiles

ColumnName = Annotated[str, Field(max_length=200)]
Codes = Annotated[tuple[Code, ...], Field(max_length=10_000), FailFast()]


class ClinicalColumns(Section):
    """``[cohort.clinical]``: the columns that every site must have, in order; categories of categorical columns; codes of missing
    values."""

    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1, max_length=limits.COLUMNS), FailFast()] = Field(
        description="columns of the clinical table that the model reads; every site must have each"
    )
    categories: dict[str, Codes] = Field(
        default_factory=dict, description='levels of each categorical column, such as { stage = ["I", "II"] }; other columns are numbers'
    )
    missing: dict[str, Codes] = Field(
        default_factory=dict,
        description="codes of a column that stand for a missing value, such as { chol = [0] }; an empty cell always does",
    )
    indicate: bool = Field(default=True, description="whether the model also gets an indicator of each missing number")
    dates: Annotated[dict[str, ColumnName], Field(max_length=1_000)] = Field(
        default_factory=dict,
        description='columns of dates, as numbers: { birth = "age_at:visit" } is years, { relapse = "days_since:birth" } days; another '
        "column or a date such as 2000-01-01 after the colon",
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return values if self.dates else {key: value for key, value in values.items() if key != "dates"}

    @property
    def read(self) -> tuple[str, ...]:
        """The columns of the table that are read: ``columns``, and those that dates refer to."""
        return (*self.columns, *(name for name in date_rules.references(self.dates) if name not in self.columns))

    @model_validator(mode="after")
    def _dated(self) -> Self:
        for name, text in self.dates.items():
            _, reference = date_rules.rule_of(text)
            if name in self.categories:
                raise ValueError(f'"{name}" is in categories and in dates; remove it from one of the two')
            if reference == name:
                raise ValueError(f'dates of "{name}" refers to itself; name another column, or a date such as 2000-01-01')
            if isinstance(reference, str) and reference in self.columns and reference not in self.dates:
                raise ValueError(f'dates of "{name}" refers to "{reference}", which is in columns as a number; give it a rule in dates too')
        if name := date_rules.circle(self.dates):
            raise ValueError(f'the rules of dates lead from "{name}" back to itself, which is the same number twice; leave one out')
        return self

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("a column is listed twice in columns")
        for key, table in (("categories", self.categories), ("missing", self.missing), ("dates", self.dates)):
            for column in table:
                if column not in self.columns:
                    raise ValueError(f'{key} names "{column}", which is not in columns{nearest(column, self.columns)}')
        return self


_IMAGE_FIRST = ("channels", "size", "orientation", "spacing_mm", "window", "percentiles", "crop", "tiles")  # always in canonical JSON


class ImageShape(ImageSource):
    """``[cohort.image]``: channels and voxels of every image. Without the section, the sites' image shape is used if all sites agree.

    Without further keys, an image of another size is refused. With one of them, every image is reoriented, resampled, windowed, then
    cropped and padded to ``size`` (``fedml.study.imaging.Preprocess``), and cached. With ``tiles``, images are whole slides, and
    channels and size are those of a tile. With ``patches``, images keep their own size, and size is that of a patch.
    """

    channels: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="channels of an image: 1 for grey, 3 for colour; or a table of named channels"
    )
    size: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(min_length=2, max_length=3)] = Field(
        default=(), description="voxels (pixels) along each axis; required except with tiles"
    )
    orientation: str = Field(
        default="", description="axes after reorientation, such as RAS, for images of three axes; empty: as in the file"
    )
    spacing_mm: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=3)] = Field(
        default=(), description="millimetres from voxel to voxel along each axis after resampling; empty: as in the file"
    )
    window: tuple[float, ...] = Field(
        default=(), description="raw intensities (CT: HU) that become 0 and 1; values beyond are clipped; empty: intensities as in the file"
    )
    percentiles: tuple[float, ...] = Field(
        default=(), description="the window, as two percentiles of all sites' training voxels, such as [1, 99]; empty: none"
    )
    crop: bool = Field(default=False, description="crop and pad to size around the centre, without other preprocessing")
    tiles: Tiles | None = Field(default=None, description="tiles of whole slides; replaces all other keys")
    patches: Patches | None = Field(default=None, description="patches of images in their own size; replaces size and crop")
    transforms: Annotated[tuple[OwnTransform, ...], Field(max_length=20)] = Field(
        default=(), description="transforms of MONAI or own code, in order, on each image after the window and before it is cropped to size"
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=_IMAGE_FIRST)

    @property
    def encoded(self) -> bool:
        """True if the model's input is the features of a frozen encoder; the sites say how many there are."""
        return self.tiles is not None and self.tiles.encoder is not None

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of each image when it is read; None: no preprocessing."""
        cached = tuple(transform for transform in self.transforms if not is_random(transform.name))
        used = (self.orientation, self.spacing_mm, self.window, self.percentiles, self.crop, cached, self.patches)
        if not any(used):
            return None
        window = (self.window[0], self.window[1]) if len(self.window) == 2 else None
        two = (self.percentiles[0], self.percentiles[1]) if len(self.percentiles) == 2 else None
        return Preprocess(
            orientation=self.orientation, spacing_mm=self.spacing_mm, window=window, percentiles=two,
            size=() if self.patches else self.size, transforms=cached, at_least=self.patches.size if self.patches else (),
        )  # fmt: skip

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(self.window) not in (0, 2):
            raise ValueError(f"window has two numbers, (low, high), not {len(self.window)}")
        if len(self.percentiles) not in (0, 2):
            raise ValueError(f"percentiles has two numbers, such as [1, 99], not {len(self.percentiles)}")
        if self.tiles is not None:
            if self.preprocess is not None:
                raise ValueError("tiles of slides have no further preprocessing (use mpp); remove every other key but channels and size")
            side = self.tiles.size_px
            if (self.channels, self.size) not in ((1, ()), (3, ()), (3, (side, side))):
                raise ValueError(f"tiles have three channels and {side} x {side} pixels; remove channels and size")
            # Set explicitly, so that other code reads the actual shape and the study's hash covers it.
            object.__setattr__(self, "channels", 3)
            object.__setattr__(self, "size", (side, side))
            values = self.tiles.per_step * (limits.FEATURES_OF_TILE if self.encoded else limits.values_of(self.size, self.channels))
            if values > limits.TILE_VALUES:
                raise ValueError(f"tiles per_step gives {values:,} values of a person in a step, the limit is {limits.TILE_VALUES:,}")
        elif self.patches is not None:
            if self.crop or self.size not in ((), self.patches.size):
                raise ValueError("patches keep the size of each image; remove size and crop")
            object.__setattr__(self, "size", self.patches.size)
            if (values := self.patches.per_step * limits.values_of(self.size, self.channels)) > limits.TILE_VALUES:
                raise ValueError(f"patches give {values:,} values of an image in a step, the limit is {limits.TILE_VALUES:,}")
        elif not self.size:
            raise ValueError("size is missing; add size, patches for images that keep their size, or tiles for whole slides")
        if (values := limits.values_of(self.size, self.channels)) > limits.VOXELS:
            raise ValueError(f"size and channels give {values:,} values of an image, the limit is {limits.VOXELS:,}")
        try:
            _ = self.preprocess
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error
        return self


_STATED = re.compile(r"([A-Za-z0-9._:*-]{1,40}):([0-9]{1,10}):([ACGTN]{1,1000}):([ACGTN]{1,1000})")


class Variants(Calls):
    """``[cohort.variants]``: which variants are read, how they are matched between sites, and quality thresholds of the shared variants.

    The thresholds apply to genotype counts pooled over sites; if all thresholds are 0, no counts are requested.
    """

    match: Literal["position", "rsid"] = Field(
        default="position", description="how variants of two sites are matched: by contig, position and alleles, or by rsID and alleles"
    )
    build: Literal["", "NCBI36", "GRCh37", "GRCh38", "T2T-CHM13"] = Field(
        default="", description="genome build that every site must have; empty: any, equal at all sites"
    )
    regions: Annotated[tuple[str, ...], Field(max_length=10_000), FailFast()] = Field(
        default=(), description="contigs or intervals to read, such as 22 or 22:17000000-18000000; empty: all"
    )
    listed: Annotated[tuple[str, ...], Field(max_length=limits.FEATURES), FailFast()] = Field(
        default=(), description="variants to read, by rsID or as contig:position:ref:alt; empty: all"
    )
    min_shared: Fraction = Field(
        default=0.1, description="least number of shared variants, as a fraction of the variants of the site with the fewest"
    )
    min_call_rate: Fraction = Field(
        default=0.0, description="least fraction of persons with a call of a variant, over all sites; 0: no threshold"
    )
    min_maf: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="least minor allele frequency of a variant, over all sites; 0: no threshold"
    )
    min_hwe_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="least p of Hardy-Weinberg equilibrium of a variant at each site, among controls; 0: no threshold"
    )
    filter: Literal["pass", "any"] = Field(
        default="pass", description="records of a VCF or BCF file to read: those whose FILTER is PASS or missing, or any"
    )
    max_palindromic_maf: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.4,
        description="largest minor allele frequency, over all sites, of an A/T or C/G variant whose strand a site does not check with a "
        "reference; where counts are compared; 0.5: no limit, as all files are known to be on one strand",
    )
    sex: Sex | None = Field(
        default=None,
        description="the persons' sex, without which variants on X and Y are left out; default: as in a .fam file, else not known",
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        first = ("match", "build", "regions", "listed", "min_shared", "min_call_rate", "min_maf", "min_hwe_p")
        return without_unused(self, dump(self), first=first)

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

    image: ImageShape | None = Field(
        default=None, description="size and preprocessing of images; default: the size on which all sites agree"
    )
    variants: Variants = Field(default=Variants(), description="which variants are read, and their quality thresholds")
    clinical: ClinicalColumns | None = Field(default=None, description="columns of the clinical table")
    omics: OmicsColumns | None = Field(default=None, description="features of the omics matrix")
    radiomics: RadiomicsFeatures | None = Field(default=None, description="features of a region of each person's image")


def _known_input(name: str) -> str:
    if name not in Inputs.model_fields:
        raise PydanticKnownError("literal_error", {"expected": either(list(Inputs.model_fields)).replace('"', "'")})
    return name


InputName = Annotated[str, AfterValidator(_known_input), WithJsonSchema({"type": "string", "enum": list(Inputs.model_fields)})]


class Cohort(Inputs):
    """``[cohort]``: the inputs and the target of each person, and the split into parts."""

    inputs: Annotated[tuple[InputName, ...], Field(min_length=1)] = Field(description="inputs of the model; a site may lack some of them")
    target: Target = Field(
        description="column of the persons table that the model predicts; task multilabel: a list of columns; task survival: "
        '{ time = "COLUMN", event = "COLUMN" }; task segmentation: a name for what the masks show'
    )
    classes: Annotated[tuple[Code, ...], Field(min_length=2, max_length=limits.CLASSES)] = Field(
        default=(0, 1), description="values of the target, or of voxels of a mask, in the order of the model's outputs"
    )
    exposure: str | None = Field(
        default=None,
        description="task count: column of the persons table with the time or size that each count is of; default: none",
    )
    cluster: str | None = Field(
        default=None,
        description="column of the persons table whose persons belong together: a family, or several rows of one person; they are in one "
        "part, and intervals and tests allow for it; an empty cell is a person alone; default: all persons are alone",
    )
    split: Split = Field(default=Split(), description="fractions of persons in each part, unless a site has a split file")
    split_key: str = Field(default="", description="key of the hash of ids that assigns persons to parts; empty: the study's seed")
    standardise: Literal["all", "site", "centre"] = Field(
        default="all",
        description="mean and SD of numbers (clinical, omics, radiomics): of all sites, of a site's own persons; centre: units stay",
    )

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that the model predicts."""
        if isinstance(self.target, TimeToEvent):
            return self.target.columns
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def time_to_event(self) -> TimeToEvent:
        """The columns of a target that is the time to an event.

        Raises:
            ValueError: the target is another one.
        """
        if not isinstance(self.target, TimeToEvent):
            raise ValueError('[cohort] target is no time to an event; write target = { time = "COLUMN", event = "COLUMN" }')
        return self.target

    @property
    def outcome(self) -> str:
        """The target's name in a text: the column, or all of them."""
        return ", ".join(self.targets)

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = without_later(dump(self))
        return values if self.standardise != "all" else {key: value for key, value in values.items() if key != "standardise"}

    @property
    def by_site(self) -> tuple[str, ...]:
        """The inputs that each site standardises by its own training persons."""
        return tuple(name for name in self.inputs if name in ("clinical", "omics", "radiomics")) if self.standardise == "site" else ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError("an input is listed twice in inputs")
        if len({normal(c) for c in self.classes}) < len(self.classes):
            raise ValueError("a class is listed twice in classes")
        of_masks = ("segments", "labels", "mask_files")
        for key, names in [] if self.image is None else [(key, getattr(self.image, key)) for key in of_masks]:
            if wrong := sorted({normal(name) for name in names} - {normal(code) for code in self.classes[1:]}):
                raise ValueError(f'[cohort.image] {key} names "{wrong[0]}", which is none of the classes behind the first, the background')
        if "clinical" in self.inputs and self.clinical is None:
            raise ValueError('inputs lists "clinical" but [cohort.clinical] is missing; add it with columns = [...]')
        if (sex := self.variants.sex) is not None and self.clinical is not None and sex.column in self.clinical.categories:
            levels = {normal(code) for code in self.clinical.categories[sex.column]}
            for name, code in (("male", sex.male), ("female", sex.female)):
                if normal(code) not in levels:
                    raise ValueError(
                        f'[cohort.variants] sex has {name} = "{normal(code)}", which [cohort.clinical] categories does not list for '
                        f'"{sex.column}" ({", ".join(sorted(levels))})'
                    )
        if "omics" in self.inputs and self.omics is None:
            raise ValueError('inputs lists "omics", so a section [cohort.omics] with columns = [...] or features = "FILE" is needed')
        if "radiomics" in self.inputs and self.radiomics is None:
            raise ValueError('inputs lists "radiomics" but [cohort.radiomics] is missing; add it with modality = "CT"')
        for name in Inputs.model_fields:
            if name not in self.inputs and getattr(self, name) not in (None, Variants()):
                raise ValueError(f'[cohort.{name}] is given but inputs does not list "{name}"')
        if (how := self.standardise) != "all" and not {"clinical", "omics", "radiomics"} & set(self.inputs):
            raise ValueError(f'standardise = "{how}" is built for clinical, omics and radiomics, and inputs lists none; remove standardise')
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("a column is listed twice in target")
        if self.exposure == self.target:
            raise ValueError(f'exposure and target are the same column "{self.target}"; exposure is the time or size of its counts')
        if self.cluster is not None and self.cluster in self.targets:
            raise ValueError(f'cluster and target are the same column "{self.cluster}"; cluster says which persons belong together')
        read = {"omics": self.omics.columns if self.omics else (), "clinical": self.clinical.read if self.clinical else ()}
        for name, columns in read.items():
            for target in self.targets:
                if target in columns:
                    raise ValueError(f'the target "{target}" is also among the {name} columns, which would reveal it to the model')
        return self


def target_problems(cohort: Cohort, label: Label, task: str) -> Iterator[str]:
    """What speaks against target, classes and exposure with a task of this ``label``, as sentences."""
    several = label == "several"
    kind, what = TARGETS.get(label, (str, "one column"))
    if not isinstance(cohort.target, kind):
        yield f'[cohort] target must be {what} with [model] task = "{task}"'
    if several and len(cohort.classes) != 2:
        yield f'[cohort] classes lists {len(cohort.classes)}; each label of [model] task = "{task}" has two levels'
    if cohort.image is not None and cohort.image.patches is not None and label != "mask":
        yield f'[cohort.image] patches are of images with masks, which [model] task = "{task}" has not; give size in their place'
    if cohort.cluster is not None and label not in ("classes", "number", "mask"):
        yield f'[cohort] cluster is not built for [model] task = "{task}", whose intervals it would not change; remove it'
    if cohort.exposure is not None and label != "count":
        yield f'[cohort] exposure is for counts of events, which [model] task = "{task}" does not predict; remove it'
