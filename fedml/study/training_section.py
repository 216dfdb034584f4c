"""``[training]``: one site's work in one round, and how it changes from round to round.

training_of_round(study, 7).lr     # the learning rate of round 7, from the study alone
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study import limits
from fedml.study.code_section import Given, is_own, known_or_own, names_schema
from fedml.study.imaging import Augment
from fedml.study.mask_losses import MASK_LOSSES, UNWEIGHTED, options_problem
from fedml.study.section import Precision, Section, without_unused

Weight = Annotated[float, Field(gt=0, le=1e6)]
LossName = Annotated[str, AfterValidator(known_or_own(tuple(MASK_LOSSES))), names_schema(tuple(MASK_LOSSES))]


class Schedule(Section):
    """``[training.schedule]``: the learning rate of each round as a share of ``lr``, which is the largest.

    In the first ``warmup`` rounds W, round r has r / (W + 1). Afterwards, with t rounds since then of T: ``constant`` 1; ``step``
    ``factor`` ^ (t // ``every``); ``cosine`` ``lowest`` + (1 - ``lowest``) (1 + cos(pi t / T)) / 2 (Loshchilov and Hutter 2017).
    """

    kind: Literal["constant", "cosine", "step"] = Field(description="how the rate goes on after warmup")
    warmup: Annotated[int, Field(ge=0, le=100_000, description="rounds in which the rate rises to lr")] = 0
    every: Annotated[int, Field(ge=0, le=100_000, description="step: rounds between two changes")] = 0
    factor: Annotated[float, Field(gt=0, lt=1, description="step: what each change multiplies the rate by")] = 0.1
    lowest: Annotated[float, Field(ge=0, lt=1, description="cosine: the share of lr that is approached at the end")] = 0.0

    @model_validator(mode="after")
    def _of_kind(self) -> Self:
        if (self.kind == "step") != bool(self.every):
            raise ValueError('kind = "step" needs every = ROUNDS, and other kinds must not have it')
        for key, kind, off in (("factor", "step", 0.1), ("lowest", "cosine", 0.0)):
            if getattr(self, key) != off and self.kind != kind:
                raise ValueError(f'{key} needs kind = "{kind}"')
        if self.kind == "constant" and not self.warmup:
            raise ValueError('kind = "constant" without warmup changes nothing; set warmup = ROUNDS, or remove [training.schedule]')
        return self

    def share(self, number: int, rounds: int) -> float:
        """The share of ``lr`` in round ``number`` (from 1) of so many ``rounds``."""
        if number <= self.warmup:
            return number / (self.warmup + 1)
        since = number - 1 - self.warmup
        if self.kind == "step":
            return float(self.factor ** (since // self.every))
        if self.kind == "cosine":
            return self.lowest + (1 - self.lowest) * (1 + math.cos(math.pi * since / max(rounds - self.warmup, 1))) / 2
        return 1.0


class Training(Section):
    """``[training]``: one site's work in one round."""

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = Field(default="adam", description="optimiser of the local steps")
    lr: Annotated[float, Field(gt=0, le=1e6, description="learning rate of the local steps")] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1, description="sgd, rmsprop: fraction of the last step that is added; 0: none")] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1e6, description="weight decay as torch.optim defines it for the optimizer")] = 0.0
    batch_size: Annotated[int, Field(ge=0, le=1_000_000, description="persons in a local step; 0: all persons in one batch")] = 32
    local_epochs: Annotated[int, Field(ge=0, le=10_000, description="passes over a site's training persons in a round")] = 1
    evaluate_every: Annotated[int, Field(ge=0, le=100_000, description="rounds from one validation to the next; 0: at the end only")] = 1
    threads: Annotated[int, Field(ge=1, le=64, description="torch threads; results are bit-equal only for equal numbers")] = 1
    precision: Precision = Field(default="float32", description="number format of products and convolutions; weights and sums are float32")
    augment: Augment = Field(default=Augment(), description="random changes of training images")
    local_steps: Annotated[
        int, Field(ge=0, le=limits.STEPS, description="steps a round in place of local_epochs; persons are shuffled again after each pass")
    ] = 0
    schedule: Schedule | None = Field(default=None, description="the learning rate over the rounds")
    nesterov: bool = Field(default=False, description="sgd: the gradient is taken where the momentum leads")
    max_norm: Annotated[float, Field(ge=0, le=1e6, description="longest gradient of a step, over all weights; 0: as it is")] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="share of a label that is spread over all classes")] = 0.0
    focal: Annotated[float, Field(ge=0, le=10, description="gamma of the focal loss: persons who are right count less; 0: off")] = 0.0
    class_weights: Annotated[tuple[Weight, ...], Field(max_length=limits.CLASSES)] | Literal["inverse"] = Field(
        default=(), description="what a person's loss is multiplied by, for each of [cohort] classes; \"inverse\": from all sites' counts"
    )
    loss: LossName | None = Field(
        default=None,
        description="of masks: a loss by name; or own loss as module:name, in place of the task's; default: that of the task",
    )
    loss_options: dict[str, Given] = Field(default={}, description="arguments of the loss, by name: { gamma = 2.0 }")
    sampling: Literal["each", "balanced"] = Field(
        default="each", description="balanced: a pass draws as many persons, with replacement, each class alike"
    )
    keep_optimizer: bool = Field(default=False, description="the optimiser's state stays at the site between rounds")
    ema: Annotated[float, Field(ge=0, lt=1, description="the result is this moving average of the rounds' models; 0: the last one")] = 0.0
    freeze: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=100)] = Field(
        default=(), description="patterns of the names of weights that are not trained, such as encoder.image.*"
    )
    keep: Literal["last", "best"] = Field(default="last", description="the round whose model is the result, by validation metrics")
    patience: Annotated[int, Field(ge=0, le=100_000, description="the run ends after so many rounds without a better one; 0: never")] = 0

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = without_unused(self, dump(self), first=_FIRST)
        if self.local_steps:
            values.pop("local_epochs", None)  # a part of the section may be asked for
        return values

    @model_validator(mode="after")
    def _optimizer(self) -> Self:
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError('momentum needs optimizer = "sgd" or "rmsprop"')
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError('nesterov needs optimizer = "sgd" and a momentum, such as momentum = 0.9')
        if self.local_steps and self.local_epochs != 1:
            raise ValueError(f"local_steps and local_epochs = {self.local_epochs} exclude each other; remove one of them")
        if self.keep_optimizer and self.optimizer == "sgd" and not self.momentum:
            raise ValueError('keep_optimizer needs an optimiser with a state; set a momentum, or optimizer = "adam"')
        return self

    @model_validator(mode="after")
    def _loss(self) -> Self:
        if self.loss is None and self.loss_options:
            raise ValueError('loss_options are for a loss by name; set loss = "tversky", or loss = "module:name"')
        named = self.loss is not None and not is_own(self.loss)
        if self.loss is not None and named and (problem := options_problem(self.loss, self.loss_options)):
            raise ValueError(problem)
        fixed = ("sampling", "class_weights") if named and self.loss not in UNWEIGHTED else ("sampling",)
        if self.loss is not None and (keys := [key for key in self.loss_keys if key not in fixed]):
            raise ValueError(f"loss and {keys[0]} exclude each other; remove one of them")
        if self.focal and self.label_smoothing:
            raise ValueError("focal and label_smoothing exclude each other; remove one of them")
        if self.sampling == "balanced" and not self.batch_size:
            raise ValueError('sampling = "balanced" draws persons for each step; set batch_size, such as batch_size = 32')
        if self.sampling == "balanced" and self.class_weights:
            raise ValueError('sampling = "balanced" and class_weights both make up for rare classes; remove one of them')
        return self

    @model_validator(mode="after")
    def _result(self) -> Self:
        if (self.keep == "best" or self.patience) and not self.evaluate_every:
            raise ValueError('keep = "best" and patience compare validation metrics of the rounds; set evaluate_every = 1')
        if self.patience and self.patience < self.evaluate_every:
            raise ValueError(f"patience is {self.patience} rounds, but metrics come every {self.evaluate_every} (evaluate_every)")
        if self.keep == "best" and self.ema:
            raise ValueError(
                'ema and keep = "best" exclude each other, because the metrics of a round are not those of the average; remove one'
            )
        return self

    def is_frozen(self, name: str) -> bool:
        """Whether a weight of this name is not trained."""
        return any(fnmatchcase(name, pattern) for pattern in self.freeze)

    @property
    def length_keys(self) -> str:
        """The keys that give the number of steps in a round, for an error."""
        return "local_steps" if self.local_steps else "local_epochs and batch_size"

    @property
    def loss_keys(self) -> list[str]:
        """The keys that are given and change the loss or the choice of persons by their class."""
        return [key for key in ("label_smoothing", "focal", "class_weights", "sampling") if getattr(self, key) not in (0.0, (), "each")]


def training_problems(plan: Training, *, rounds: int, unit: str, label: str, classes: int) -> Iterator[str]:
    """What speaks against ``[training]`` in the light of other sections, as sentences.

    Args:
        unit: of ``[privacy]``. label: what is predicted (``TaskTraits.label``). classes: their number.
    """
    work, epochs = rounds * plan.local_steps, rounds * plan.local_epochs
    if not plan.local_steps and epochs > limits.EPOCHS:
        yield f"[training] local_epochs times [federation] rounds is {epochs:,}, the limit is {limits.EPOCHS:,}"
    if work > limits.STEPS:
        yield f"[training] local_steps times [federation] rounds is {work:,}, the limit is {limits.STEPS:,}"
    if plan.schedule is not None and plan.schedule.warmup >= max(rounds, 1):
        yield f"[training.schedule] warmup is {plan.schedule.warmup} rounds, [federation] rounds is {rounds}; warmup must be smaller"
    if label == "ordered" and (keys := [key for key in plan.loss_keys if key != "sampling"]):
        yield f"[training] {keys[0]} is not built for ordered classes; remove it"
    elif (keys := [key for key in plan.loss_keys if label != "mask" or key != "class_weights"]) and label not in ("classes", "ordered"):
        yield f"[training] {keys[0]} needs classes of persons, which [model] task does not predict; remove it"
    if label == "mask" and plan.class_weights == "inverse":
        yield '[training] class_weights = "inverse" counts persons of a class, and masks have voxels; state weights, or a loss that weighs'
    if label != "mask" and plan.loss is not None and not is_own(plan.loss):
        yield f'[training] loss = "{plan.loss}" is of masks, which [model] task does not predict; remove it'
    if isinstance(plan.class_weights, tuple) and len(plan.class_weights) not in (0, classes):
        yield f"[training] class_weights has {len(plan.class_weights)} numbers, [cohort] classes has {classes}; give one for each class"
    if plan.keep == "best" and rounds < 2:
        yield '[training] keep = "best" needs [federation] rounds of at least 2: a round\'s metrics are known when the next one begins'
    yield from _private_problems(plan, unit)


def wire_problems(wire: str, unit: str) -> Iterator[str]:
    """Why updates cannot have this format in a study with this privacy unit."""
    if wire != "float32" and unit != "none":
        yield f'[federation] wire = "{wire}" is not built for [privacy] unit = "{unit}"; remove it'


def _private_problems(plan: Training, unit: str) -> Iterator[str]:
    if unit != "none" and plan.class_weights == "inverse":
        yield (
            f'[training] class_weights = "inverse" needs exact counts of each class, which [privacy] unit = "{unit}" does not cover; state '
            "weights, such as class_weights = [1.0, 3.0]"
        )
    if unit != "none" and plan.keep_optimizer:
        yield f'[training] keep_optimizer is not built for [privacy] unit = "{unit}"; remove it'
    if unit == "patient" and plan.sampling == "balanced":
        yield (
            '[training] sampling = "balanced" draws persons with chances that depend on the others, which [privacy] unit = "patient" '
            "does not allow; state class_weights"
        )
    if unit == "patient" and plan.freeze:
        yield '[training] freeze is not built for [privacy] unit = "patient"; remove it'
    if unit == "patient" and plan.max_norm:
        yield '[training] max_norm: with unit = "patient" each person\'s gradient is clipped to [privacy] clipping_norm; remove max_norm'


_FIRST = (  # keys of the first studies, whose canonical JSON holds them with their defaults
    "optimizer", "lr", "momentum", "weight_decay", "batch_size", "local_epochs", "evaluate_every", "threads", "precision", "augment",
)  # fmt: skip
