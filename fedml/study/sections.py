"""The sections of a study file, one frozen pydantic model each: keys, defaults, and rules within a section.

``fedml.study.study.Study`` combines the sections and has the rules between them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)  # fmt: skip

from fedml.study import limits
from fedml.study.code_section import OwnName, OwnOptions, known_or_own, names_schema
from fedml.study.imaging import Pixels
from fedml.study.section import COLUMN, Code, Name, Option, Section, normal, without_later, without_unused
from fedml.study.start import Start
from fedml.study.task_traits import TaskName, traits_of

Width = Annotated[int, Field(ge=1, le=limits.WIDTH)]
Widths = Annotated[tuple[Width, ...], Field(max_length=limits.LAYERS)]
Channels = Annotated[int, Field(ge=1, le=limits.CHANNELS)]
Stride = Annotated[int, Field(ge=1, le=64)]
Persons = Annotated[int, Field(ge=1, le=100_000_000)]
_TABLE, _VARIANT = ("linear", "mlp"), ("linear", "mlp", "genes")
TableNet = Annotated[str, AfterValidator(known_or_own(_TABLE)), names_schema(_TABLE)]
VariantNet = Annotated[str, AfterValidator(known_or_own(_VARIANT)), names_schema(_VARIANT)]


class About(Section):
    """``[study]``: name, research question, permitted purpose, and the seed of all random numbers that are not for privacy."""

    name: Name = Field(description="name of the study, also of its runs, its registered model and its MLflow experiment")
    question: str = Field(default="", description="the research question, one or more sentences for approvers and readers; empty: none")
    purpose: str = Field(default="", description="Data Use Ontology term of the permitted use, such as DUO:0000042; empty: not stated")
    seed: Annotated[int, Field(ge=0, lt=2**62)] = Field(
        default=0, description="seed of initial weights, batches and augmentation; privacy noise has a random seed of its own"
    )


class ImageNetwork(OwnOptions):
    """``[model] image``: a MONAI network by name (``fedml.networks.image.NETWORKS``), and the pooling over a person's images or tiles: the
    mean, or a mean weighted by learned attention (``fedml.networks.mil``)."""

    net: str = Field(default="cnn", description="name of the network on one image or tile")
    norm: Literal["batch", "group", "instance"] = Field(default="group", description="normalisation layers of the network")
    channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=limits.LAYERS)] = Field(
        default=(16, 32, 64), description="net cnn: output channels of each convolution; other networks ignore it"
    )
    pooling: Literal["mean", "attention"] = Field(
        default="mean", description="how the features of a person's images or tiles become one: their mean, or a mean with learned weights"
    )


class SegmentationNetwork(OwnOptions):
    """``[model] segmentation``: a network by name (``fedml.networks.segmentation``), its window, and whether HD95 is measured."""

    net: str = Field(default="unet", description="name of the network from an image to a class of each voxel")
    norm: Literal["batch", "group", "instance"] = Field(default="instance", description="normalisation layers of the network")
    channels: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=limits.LAYERS)] = Field(
        default=(16, 32, 64, 128), description="channels of each level, from the finest to the coarsest"
    )
    strides: Annotated[tuple[Stride | Annotated[tuple[Stride, ...], Field(max_length=3)], ...], Field(max_length=limits.LAYERS)] = Field(
        default=(), description="one stride between two levels, a number or one number per axis; empty: 2 everywhere"
    )
    window: Annotated[tuple[Pixels, ...], Field(max_length=3)] = Field(
        default=(), description="voxels per axis of the windows into which an image is cut; empty: whole images"
    )
    distances: bool = Field(default=True, description="whether HD95 (95th percentile of surface distances, mm) is measured; it takes time")
    deep_supervision: Annotated[int, Field(ge=0, le=4)] = Field(
        default=0, description="net dynunet: coarser levels whose outputs are trained too, each with half the weight of the finer one"
    )

    @model_serializer(mode="wrap")
    def _without_supervision(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = self._without_unused_options(dump)
        if not self.deep_supervision:
            values.pop("deep_supervision", None)  # studies without it keep their identity
        return values

    @model_validator(mode="after")
    def _supervised(self) -> Self:
        if self.deep_supervision and self.net != "dynunet":
            raise ValueError(f'deep_supervision is for net = "dynunet"; net is "{self.net}"')
        if self.deep_supervision and self.deep_supervision > len(self.channels) - 2:
            most = len(self.channels) - 2
            raise ValueError(f"deep_supervision is {self.deep_supervision}, and {len(self.channels)} channels have {most} coarser outputs")
        return self


class TableNetwork(OwnOptions):
    """``[model] clinical``: ``linear``, or ``mlp`` with its hidden widths."""

    net: TableNet = Field(default="linear", description="linear: one layer; mlp: a layer for each width of hidden, then one")
    hidden: Widths = Field(default=(), description="net mlp: features of each hidden layer, such as [32, 16]")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="probability that training drops a hidden feature")

    @model_validator(mode="after")
    def _widths(self) -> Self:
        if (self.net == "mlp") != bool(self.hidden):
            raise ValueError('net = "mlp" needs hidden = [widths], and net = "linear" must not have it')
        return self


class VariantNetwork(OwnOptions):
    """``[model] variants``: ``linear``; ``mlp`` with hidden widths; ``genes`` with ``width`` features per gene, then hidden widths over all
    genes.

    In a study file ``genes = "genes.gff3.gz"`` (GFF3, GTF or BED) names the genes; ``read_study`` replaces it by the intervals, so that all
    sites group variants equally and the study's hash covers the intervals.
    """

    net: VariantNet = Field(
        default="linear", description="linear: one weight a variant; mlp: hidden layers; genes: features of each gene from its own variants"
    )
    hidden: Widths = Field(default=(), description="features of each hidden layer; net genes: of those over all genes, may be empty")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="probability that training drops a hidden feature")
    width: Annotated[int, Field(ge=1, le=1024)] = Field(default=4, description="net genes: features of each gene")
    l1: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="net linear: factor of the sum of absolute weights in the loss; needs optimizer sgd without momentum"
    )
    intervals: Annotated[tuple[tuple[str, int, int, str], ...], Field(max_length=limits.GENES), FailFast()] = Field(
        default=(), description='net genes: [contig, start, end, name] of each gene; genes = "FILE" fills it'
    )

    @model_validator(mode="after")
    def _widths(self) -> Self:
        if (self.net == "mlp" and not self.hidden) or (self.net == "linear" and self.hidden):
            raise ValueError('net = "mlp" needs hidden = [widths], and net = "linear" must not have it')
        if (self.net == "genes") != bool(self.intervals):
            raise ValueError('net = "genes" needs genes = "FILE" (GFF3, GTF or BED), and other networks must not have it')
        if self.l1 and self.net != "linear":
            raise ValueError('l1 needs net = "linear"')
        return self


class Model(Section):
    """``[model]``: the task, one encoder per input, and the fusion of their outputs."""

    task: TaskName = Field(
        default="classification",
        description="what is predicted: class, number, count, several labels or the time to an event of a person, or class of a voxel",
    )
    image: ImageNetwork = Field(default=ImageNetwork(), description="encoder of images")
    segmentation: SegmentationNetwork = Field(default=SegmentationNetwork(), description="network of the task segmentation")
    variants: VariantNetwork = Field(default=VariantNetwork(), description="encoder of variants")
    clinical: TableNetwork = Field(default=TableNetwork(), description="encoder of clinical columns")
    omics: TableNetwork | None = Field(default=None, description="encoder of omics; default: linear")
    radiomics: TableNetwork | None = Field(default=None, description="encoder of radiomics; default: linear")
    width: Annotated[int, Field(ge=1, le=limits.WIDTH)] = Field(
        default=16, description="features that each input's encoder gives to the fusion, if the study has several inputs"
    )
    hidden: Widths = Field(default=(), description="features of each hidden layer of the fusion; empty: one linear layer")
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="probability that training hides an input of a person, if the study has several inputs"
    )

    start: Start | None = Field(default=None, description="weights from which the model begins, pinned; default: all by the seed")

    counts: Literal["poisson", "negative_binomial"] | None = Field(
        default=None, description="task count: distribution of counts; negative_binomial learns a dispersion; default: poisson"
    )

    survival: Literal["discrete", "cox"] | None = Field(
        default=None,
        description="task survival: discrete learns the odds of an event in each interval of the grid, cox the partial likelihood of the "
        "persons of a step; default: discrete",
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later(dump(self))

    @model_validator(mode="after")
    def _of_task(self) -> Self:
        label = traits_of(self.task).label
        counted, timed = label == "count", label == "time"
        if self.survival is not None and not timed:
            raise ValueError(f'survival = "{self.survival}" is for the time to an event; remove it, or set task to one that predicts it')
        if timed and self.survival is None:  # set explicitly, so that the study's hash covers it
            object.__setattr__(self, "survival", "discrete")
        if self.counts is not None and not counted:
            raise ValueError(f'counts = "{self.counts}" is for counts of events; remove it, or set task to one that predicts them')
        if counted and self.counts is None:  # set explicitly, so that the study's hash covers it
            object.__setattr__(self, "counts", "poisson")
        return self


class Strategy(BaseModel):
    """``[strategy]``: a built-in name or the import path of a Flower strategy (``module:Class``); its options are further keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Option]

    name: str = Field(
        default="fedavg", description="a built-in algorithm, or a Flower strategy as module:Class; its parameters are further keys"
    )

    @property
    def options(self) -> dict[str, Option]:
        """The keys other than the name; ``fedml.strategies.algorithms.registry`` checks them against the strategy's parameters."""
        return dict(self.__pydantic_extra__ or {})


Positive = Annotated[float, Field(ge=1e-6, le=1e6)]  # as far as the accountant computes


class Privacy(Section):
    """``[privacy]``: differential privacy of a ``site`` (the server clips updates and adds noise) or of a ``patient`` (DP-SGD at the site).

    Either ``noise_multiplier`` or ``epsilon`` is given; from ``epsilon`` the multiplier is computed. Statistics needed before training are
    stated (``ranges``, ``image_range``: public knowledge about plausible values) or released with noise (``statistics = "private"``).
    """

    unit: Literal["none", "site", "patient"] = Field(
        default="none", description="whose contribution the noise hides: of one site, of one patient, or none (no noise)"
    )
    noise_multiplier: Positive | None = Field(
        default=None, description="standard deviation of the noise divided by the clipping norm; give it or epsilon"
    )
    epsilon: Positive | None = Field(
        default=None, description="epsilon of the whole run, from which the noise multiplier is computed; give it or noise_multiplier"
    )
    delta: Annotated[float, Field(ge=1e-10, lt=1)] = Field(
        default=1e-5, description="delta of the whole run; unit patient: below 1 / persons of every site"
    )
    clipping_norm: Positive = Field(
        default=1.0, description="largest L2 norm of a site's update or a patient's gradient; clipping adaptive: of the first round"
    )
    clipping: Literal["fixed", "adaptive"] = Field(default="fixed", description="unit site: adaptive tracks a quantile of the norms")
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.5, description="clipping adaptive: the quantile of the norms")
    persons: Annotated[dict[Name, Persons], Field(max_length=limits.SITES)] = Field(
        default={}, description="unit patient: approximate number of training persons of each site; public, sets the sampling rate"
    )
    statistics: Literal["stated", "private"] = Field(
        default="stated", description="standardisation from ranges and image_range, or from sums of the sites with noise (unit patient)"
    )
    statistics_multiplier: Positive = Field(
        default=5.0, description="statistics private: standard deviation of the noise divided by one patient's largest contribution"
    )
    ranges: Annotated[dict[str, tuple[float, float]], Field(max_length=limits.COLUMNS)] = Field(
        default={}, description="lowest and highest plausible value of each clinical column, and of a numeric target"
    )
    image_range: tuple[float, float] = Field(default=(0.0, 255.0), description="lowest and highest plausible intensity of images")
    metrics: Literal["exact", "private"] = Field(
        default="exact",
        description="counts of validation and test persons: exact, or with noise that counts towards epsilon (unit patient)",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.unit == "none":
            given = sorted(self.model_fields_set - {"unit"} - {k for k, v in Privacy.model_fields.items() if getattr(self, k) == v.default})
            if given:
                raise ValueError(f'{given[0]} is given but unit is "none"; set unit = "site" or "patient", or remove {given[0]}')
            return self
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("give exactly one of noise_multiplier and epsilon")
        if self.unit == "site" and self.statistics == "private":
            raise ValueError('statistics = "private" needs unit = "patient"; with unit = "site" set ranges and image_range')
        if self.unit == "site" and self.metrics == "private":
            raise ValueError('metrics = "private" needs unit = "patient"')
        if self.unit == "patient" and self.clipping == "adaptive":
            raise ValueError('clipping = "adaptive" needs unit = "site"')
        for name, (low, high) in {**self.ranges, "image_range": self.image_range}.items():
            if not low < high:
                raise ValueError(f"the range of {name} is from {low:g} to {high:g}; the first must be smaller")
        return self


Column = Annotated[str, Field(pattern=COLUMN)]


class Evaluation(Section):
    """``[evaluation]``: subgroups of test persons with metrics of their own in the report; columns of the persons or clinical table.

    ``subgroups = { sex = [0, 1] }``: one group per value; ``bands = { age = [45, 60] }``: below 45, from 45 to below 60, 60 and above.
    """

    subgroups: Annotated[dict[Column, Annotated[tuple[Code, ...], Field(min_length=1, max_length=20)]], Field(max_length=100)] = Field(
        default_factory=dict, description="values of a column, each a group: { sex = [0, 1] }"
    )
    bands: Annotated[dict[Column, Annotated[tuple[float, ...], Field(min_length=1, max_length=19)]], Field(max_length=100)] = Field(
        default_factory=dict,
        description="ascending edges of a numeric column: { age = [45, 60] }: below 45, from 45 to below 60, 60 and above",
    )
    metrics: Annotated[tuple[OwnName, ...], Field(max_length=20)] = Field(
        default=(),
        description="own measures as module:name: functions of the counts of held-out persons, run at the server only",
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("subgroups", "bands"))

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Variable -> its groups' labels, such as ``sex:1``, ``age:under-45``, ``age:45-to-60``, ``age:60-plus``."""
        found = {name: tuple(f"{name}:{normal(value)}" for value in values) for name, values in self.subgroups.items()}
        for name, edges in self.bands.items():
            between = [f"{name}:{low:g}-to-{high:g}" for low, high in pairwise(edges)]
            found[name] = (f"{name}:under-{edges[0]:g}", *between, f"{name}:{edges[-1]:g}-plus")
        return found

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in self.subgroups.keys() & self.bands.keys():
            raise ValueError(f'"{name}" is in subgroups and in bands; remove it from one of the two')
        for name, edges in self.bands.items():
            if any(low >= high for low, high in pairwise(edges)):
                raise ValueError(f"the edges of {name} must be ascending")
        for name, labels in self.labels().items():
            strange = [label for label in labels if not re.fullmatch(r"[A-Za-z0-9_.:+-]{1,80}", label)]
            if strange or len(set(labels)) < len(labels):
                wrong = f'the label "{strange[0]}" has other characters' if strange else "a label occurs twice"
                raise ValueError(f"labels of groups are distinct and have letters, digits and _ . + - only; of {name}, {wrong}")
        return self


class Policy(Section):
    """``[policy]``: the study's limits. A site has limits too; the stricter one applies."""

    min_persons: Annotated[int, Field(ge=1, le=2**53)] = Field(default=1, description="fewest training persons with whom a site takes part")
    min_count: Annotated[int, Field(ge=1, le=2**53)] = Field(default=1, description="fewest persons in a count or sum that leaves a site")
    max_reply_mb: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="largest reply of a site, MB; 0: only the site's own limit holds"
    )
