"""``[cohort.radiomics]``: features of a region of each person's image, by the names of PyRadiomics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study.section import Section
from fedml.study.series_section import ChannelFile, ImageSource, Pattern, Patterns, Select

Family = Literal["shape", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

FEATURES: Mapping[str, tuple[str, ...]] = {
    "shape": (
        "Elongation", "Flatness", "LeastAxisLength", "MajorAxisLength", "Maximum2DDiameterColumn", "Maximum2DDiameterRow",
        "Maximum2DDiameterSlice", "Maximum3DDiameter", "MeshVolume", "MinorAxisLength", "Sphericity", "SurfaceArea", "SurfaceVolumeRatio",
        "VoxelVolume",
    ),
    "firstorder": (
        "10Percentile", "90Percentile", "Energy", "Entropy", "InterquartileRange", "Kurtosis", "Maximum", "MeanAbsoluteDeviation", "Mean",
        "Median", "Minimum", "Range", "RobustMeanAbsoluteDeviation", "RootMeanSquared", "Skewness", "TotalEnergy", "Uniformity", "Variance",
    ),
    "glcm": (
        "Autocorrelation", "ClusterProminence", "ClusterShade", "ClusterTendency", "Contrast", "Correlation", "DifferenceAverage",
        "DifferenceEntropy", "DifferenceVariance", "Id", "Idm", "Idmn", "Idn", "Imc1", "Imc2", "InverseVariance", "JointAverage",
        "JointEnergy", "JointEntropy", "MCC", "MaximumProbability", "SumAverage", "SumEntropy", "SumSquares",
    ),
    "glrlm": (
        "GrayLevelNonUniformity", "GrayLevelNonUniformityNormalized", "GrayLevelVariance", "HighGrayLevelRunEmphasis", "LongRunEmphasis",
        "LongRunHighGrayLevelEmphasis", "LongRunLowGrayLevelEmphasis", "LowGrayLevelRunEmphasis", "RunEntropy", "RunLengthNonUniformity",
        "RunLengthNonUniformityNormalized", "RunPercentage", "RunVariance", "ShortRunEmphasis", "ShortRunHighGrayLevelEmphasis",
        "ShortRunLowGrayLevelEmphasis",
    ),
    "glszm": (
        "GrayLevelNonUniformity", "GrayLevelNonUniformityNormalized", "GrayLevelVariance", "HighGrayLevelZoneEmphasis", "LargeAreaEmphasis",
        "LargeAreaHighGrayLevelEmphasis", "LargeAreaLowGrayLevelEmphasis", "LowGrayLevelZoneEmphasis", "SizeZoneNonUniformity",
        "SizeZoneNonUniformityNormalized", "SmallAreaEmphasis", "SmallAreaHighGrayLevelEmphasis", "SmallAreaLowGrayLevelEmphasis",
        "ZoneEntropy", "ZonePercentage", "ZoneVariance",
    ),
    "gldm": (
        "DependenceEntropy", "DependenceNonUniformity", "DependenceNonUniformityNormalized", "DependenceVariance", "GrayLevelNonUniformity",
        "GrayLevelVariance", "HighGrayLevelEmphasis", "LargeDependenceEmphasis", "LargeDependenceHighGrayLevelEmphasis",
        "LargeDependenceLowGrayLevelEmphasis", "LowGrayLevelEmphasis", "SmallDependenceEmphasis", "SmallDependenceHighGrayLevelEmphasis",
        "SmallDependenceLowGrayLevelEmphasis",
    ),
    "ngtdm": ("Busyness", "Coarseness", "Complexity", "Contrast", "Strength"),
}  # fmt: skip
_WIDTH, _COUNT, _SPACING = 25.0, 32, 1.0


def feature_names(families: Sequence[str]) -> tuple[str, ...]:
    """The names of all features of these families, such as ``original_glcm_Contrast``, in their order."""
    return tuple(f"original_{family}_{name}" for family in families for name in FEATURES[family])


class RadiomicsFeatures(Section):
    """Which region of which image, how it is resampled and its intensities sorted, and which features of it the model reads.

    Without bins, a CT has bins of 25 HU from 0, as PyRadiomics has: HU mean the same at every scanner. Any other modality has 32 bins over
    the region's own range: its units are arbitrary (MR, ultrasound) or differ between exports (PET), so a fixed width would count noise at
    one scanner and nothing at another. Volumes are resampled to 1 mm, because a neighbour must be equally far in each direction and at
    each site.
    """

    modality: Literal["CT", "MR", "PT", "US", "other"] = Field(
        description="modality of the images, which decides the bins where neither bin_width nor bin_count is given"
    )
    labels: Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], Field(min_length=1, max_length=255)] = Field(
        default=(1,), description="values of the mask that are the region, together"
    )
    segment: Patterns = Field(
        default=(),
        description="of DICOM segmentations, the segments that are the region, by patterns of their labels or as SCHEME:VALUE of their "
        "type's code; empty: the segments with the numbers of labels",
    )
    families: Annotated[tuple[Family, ...], Field(min_length=1)] = Field(
        default=("shape", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm"),
        description="families of features; of pictures (axes = 2) shape is left out by default and not built",
    )
    features: Annotated[tuple[str, ...], Field(max_length=200)] = Field(
        default=(), description="names of the features that the model reads, such as original_glcm_Contrast; empty: all of the families"
    )
    axes: Literal[2, 3] = Field(default=3, description="3: volumes; 2: pictures")
    bin_width: Positive | None = Field(
        default=None, description="width of a bin of intensities, in the units of the file; default: 25 of CT"
    )
    bin_count: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        default=None, description="number of bins over the range of each region; default: 32 where the modality is not CT"
    )
    spacing_mm: Annotated[tuple[Positive, ...], Field(max_length=3)] | None = Field(
        default=None,
        description="millimetres from voxel to voxel after resampling (images linear, masks nearest; axes RAS); []: as in the file; "
        "default: 1 along each axis of volumes, as in the file of pictures",
    )
    channels: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="channels of an image")
    channel: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="number, from 1, of the channel whose features are computed")
    file: Pattern | None = Field(
        default=None,
        description="pattern of the file's name without its ending, or of the series description, where a person has several; default: any",
    )
    select: Select | None = Field(
        default=None, description="which series of a person's DICOM study is the image, as [cohort.image.select]; default: as there"
    )
    volumes: Literal["one", "channels", "mean"] | Annotated[int, Field(ge=1, le=10_000)] = Field(
        default="one", description="of a file or series with several volumes, as [cohort.image] volumes"
    )
    ranges: dict[str, tuple[Finite, Finite]] = Field(
        default={}, description="lowest and highest plausible value of each feature, which a private study needs"
    )

    @model_serializer(mode="wrap")
    def _stated(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Families and bins are always in the canonical JSON, other keys where they differ from their defaults."""
        always, fields = ("modality", "labels", "families", "axes", "spacing_mm"), type(self).model_fields
        return {key: value for key, value in dump(self).items() if key in always or getattr(self, key) != fields[key].default}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.bin_width is not None and self.bin_count is not None:
            raise ValueError("bin_width and bin_count exclude each other")
        if self.axes == 2 and "shape" in self.families:
            if "families" in self.model_fields_set:
                raise ValueError('families lists "shape", which is built for volumes (axes = 3); remove it')
            object.__setattr__(self, "families", tuple(family for family in self.families if family != "shape"))
        # Set explicitly, so that the study's hash covers them.
        if self.bin_width is None and self.bin_count is None:
            object.__setattr__(self, *(("bin_width", _WIDTH) if self.modality == "CT" else ("bin_count", _COUNT)))
        if self.spacing_mm is None:
            object.__setattr__(self, "spacing_mm", (_SPACING,) * 3 if self.axes == 3 else ())
        if self.spacing_mm and len(self.spacing_mm) != self.axes:
            raise ValueError(f"spacing_mm has {len(self.spacing_mm)} numbers, axes is {self.axes}")
        if len(set(self.families)) < len(self.families) or len(set(self.features)) < len(self.features):
            raise ValueError("a family or a feature is listed twice")
        known = feature_names(self.families)
        for name in (*self.features, *self.ranges):
            if name not in known:
                raise ValueError(f'"{name}" is no feature of the families ({", ".join(self.families)}), such as {known[-1]}')
        for name, (low, high) in self.ranges.items():
            if not low < high:
                raise ValueError(f"ranges of {name} are from {low:g} to {high:g}; the first must be smaller")
        if self.channel > self.channels:
            raise ValueError(f"channel is {self.channel}, channels is {self.channels}")
        if self.file is not None and (self.channels > 1 or (self.select is not None and self.select.several)):
            raise ValueError("file names one file or series of one channel; remove channels and select.several")
        if self.select is not None and self.select.several:
            raise ValueError("features are of one image of a person; remove select.several")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The features that the model reads, in order."""
        names = feature_names(self.families)
        return names if not self.features else tuple(name for name in names if name in self.features)

    @property
    def source(self) -> ImageSource:
        """Which files, series, volumes and segments are a person's image and mask."""
        return ImageSource(
            select=self.select,
            volumes=self.volumes,
            channel_files=() if self.file is None else (ChannelFile(name="image", pattern=self.file),),
            segments={str(self.labels[0]): self.segment} if self.segment else {},
        )

    @property
    def bins(self) -> str:
        """The bins, in words."""
        return f"bins of width {self.bin_width:g}" if self.bin_width is not None else f"{self.bin_count} bins over each region's range"

    @property
    def grid(self) -> str:
        """The grid, in words."""
        return f"resampled to {' x '.join(f'{mm:g}' for mm in self.spacing_mm)} mm" if self.spacing_mm else "in the file's own spacing"

    @property
    def region(self) -> str:
        """The region, in words."""
        segments = f" or segments {' or '.join(self.segment)}" if self.segment else ""
        channel = f", of channel {self.channel} of {self.channels}" if self.channels > 1 else ""
        return f"mask value {' or '.join(map(str, self.labels))}{segments}{channel}"
