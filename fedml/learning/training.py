"""The local training loop of all algorithms, and evaluation by counts.

Everything a strategy or a privacy mechanism adds to a step goes through ``hook``, called between backward and step with the
parameters by name; it changes their gradients in place.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedml.cohort.images.images import Images
from fedml.cohort.persons import Batch, Cohort
from fedml.cohort.slides.cohort import Slides
from fedml.cohort.slides.features import SlideFeatures
from fedml.cohort.wide.matrix import Matrix
from fedml.errors import InputError, NotBuilt, nearest
from fedml.learning.augment import augmentation
from fedml.learning.ready import make_ready
from fedml.models.device import autocast, on_device, scaler, to_device
from fedml.networks.variants import shrink
from fedml.seeds import torch_seed
from fedml.study.section import PartName, Precision
from fedml.study.study import Study
from fedml.study.training_section import Training
from fedml.tasks.clusters import design_counts
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.task import Task

GradientHook = Callable[[Mapping[str, nn.Parameter]], None]


@dataclass
class OptimizerState:
    """The optimiser's state between rounds: ``exp_avg/WEIGHT`` and so on, as torch names it, on the CPU; empty before the first round.
    ``train`` replaces it."""

    arrays: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Hooks:
    """Changes of a training step by an algorithm or a penalty.

    Args:
        gradient: called in order between backward and step.
        l1: parameter -> weight of the sum of its absolute values, taken by a proximal step after each step of the optimiser.
        smallest: persons in a step; a last batch of fewer is merged with the one before.
        optimizer: the state from which the optimiser goes on; None: it starts anew.
    """

    gradient: Sequence[GradientHook] = ()
    l1: Mapping[str, float] = field(default_factory=dict)
    smallest: int = 1
    optimizer: OptimizerState | None = None


CPU = torch.device("cpu")
SLIDE_BATCH = 16  # persons whose slides are evaluated together: a person may have 100,000 tiles


@dataclass(frozen=True)
class LocalResult:
    """One site's training in one round: sum of the losses, number of persons in that sum, number of steps."""

    loss_sum: float
    seen: int
    steps: int


def planned_steps(study: Study, persons: int) -> int:
    """Steps of one round at a site with so many training persons."""
    plan = study.training
    return plan.local_steps or plan.local_epochs * (math.ceil(persons / plan.batch_size) if plan.batch_size else 1)


def passes(plan: Training, persons: int) -> int:
    """The most passes over so many persons that a round begins; at least 1."""
    if not plan.local_steps:
        return max(plan.local_epochs, 1)
    return math.ceil(plan.local_steps / max(persons // plan.batch_size if plan.batch_size else 1, 1))


def make_optimizer(plan: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A new instance of the study's optimiser, with the learning rate of ``plan``."""
    options: dict[str, Any] = {"lr": plan.lr, "weight_decay": plan.weight_decay}
    if plan.optimizer == "sgd":
        return _uncompiled(torch.optim.SGD)(parameters, momentum=plan.momentum, nesterov=plan.nesterov, foreach=False, **options)
    if plan.optimizer == "rmsprop":
        return _uncompiled(torch.optim.RMSprop)(parameters, momentum=plan.momentum, **options)
    kind = torch.optim.Adam if plan.optimizer == "adam" else torch.optim.AdamW
    # Fused: one call for all parameters, which saves a third of a small model's step. Results differ from the default in the last bit.
    return _uncompiled(kind)(parameters, fused=True, **options)


@cache
def _uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """``kind`` without the wrappers that import torch's compiler, to tell it what it must not compile: 1 to 2 s and 80 MB a process."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    step = torch.no_grad()(methods["step"])
    step.hooked = True  # else torch wraps it for its profiler: as long as the step of a small model
    return type(kind.__name__, (kind,), {**methods, "step": step})


def trained_parameters(network: nn.Module, freeze: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name. Others get no gradient, and their batch norm keeps its statistics.

    Raises:
        InputError: a pattern matches no parameter, or nothing is left.
    """
    every = dict(network.named_parameters())
    if not freeze:
        for parameter in every.values():  # own code may have left one without a gradient
            parameter.requires_grad_(True)
        return every
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise InputError(
                f'[training] freeze "{pattern}" matches no weight{nearest(pattern, every)}; the first is {next(iter(every), "")}.'
            )
    fixed = {name for name in every if any(fnmatchcase(name, pattern) for pattern in freeze)}
    if len(fixed) == len(every):
        raise InputError("[training] freeze matches every weight of the model, so nothing is trained; remove a pattern.")
    for name, parameter in every.items():
        parameter.requires_grad_(name not in fixed)
    for name, module in network.named_modules():
        own = [f"{name}.{key}".removeprefix(".") for key, _ in module.named_parameters(recurse=False)]
        if own and fixed.issuperset(own) and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return {name: parameter for name, parameter in every.items() if name not in fixed}


def _resume(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], kept: OptimizerState | None) -> None:
    for name, value in ({} if kept is None else kept.arrays).items():
        key, _, weight = name.partition("/")
        optimizer.state[parameters[weight]][key] = value.clone().to(parameters[weight].device)


def _keep(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], kept: OptimizerState | None) -> None:
    if kept is not None:
        kept.arrays = {f"{key}/{name}": value.detach().cpu() for name, p in parameters.items() for key, value in optimizer.state[p].items()}


def batches(
    rows: npt.NDArray[np.int64], size: int, generator: torch.Generator, *, smallest: int = 1, shares: torch.Tensor | None = None
) -> Iterator[npt.NDArray[np.int64]]:
    """``rows`` in a random order, ``size`` at a time (0: all at once). A last batch below ``smallest`` is merged with the one before.

    Args:
        shares: (rows,) draw as many rows with replacement, each with this share of the probability, in place of each row once.
    """
    if shares is not None:
        order = rows[torch.multinomial(shares, len(rows), replacement=True, generator=generator).numpy()]
    else:
        order = rows[torch.randperm(len(rows), generator=generator).numpy()] if size else rows
    size = size or len(rows)
    ends = list(range(size, len(rows), size))
    if ends and len(rows) - ends[-1] < smallest:
        ends.pop()
    parts = np.split(order, ends)
    yield from parts if shares is None else _of_enough(parts, smallest)


def _of_enough(parts: Sequence[npt.NDArray[np.int64]], smallest: int) -> Iterator[npt.NDArray[np.int64]]:
    """``parts``, each merged with the next ones until it has ``smallest`` different persons; what remains at the end is left out."""
    held, before = parts[0][:0], False
    for part in parts:
        held = np.concatenate([held, part])
        if len(np.unique(held)) >= smallest:
            yield held
            held, before = held[:0], True
    if len(held) and not before:
        yield held


def balanced_shares(labels: npt.NDArray[np.float64], smallest: int = 1) -> torch.Tensor:
    """(persons,) float64: each class of ``labels`` is drawn as often as another. A class of fewer than ``smallest`` persons is drawn as one
    of ``smallest`` persons would be, for each of its persons."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return torch.from_numpy(1.0 / np.maximum(counts, smallest)[place])


def round_passes(
    cohort: Cohort, plan: Training, generator: torch.Generator, smallest: int
) -> Iterator[tuple[int, list[npt.NDArray[np.int64]]]]:
    """(pass, training persons of each of its steps) of a round: ``local_epochs`` passes, or passes until ``local_steps`` steps are done."""
    rows, left = cohort.rows("train"), plan.local_steps
    shares = balanced_shares(cohort.labels[rows], smallest) if plan.sampling == "balanced" else None
    for epoch in count() if plan.local_steps else range(plan.local_epochs):
        steps = list(batches(rows, plan.batch_size, generator, smallest=smallest, shares=shares))
        if not plan.local_steps:
            yield epoch, steps
            continue
        yield epoch, steps[:left]
        left -= len(steps[:left])
        if not left:
            return


def train(
    model: nn.Module, cohort: Cohort, plan: Training, task: Task, *, seed: int, hooks: Hooks = Hooks(), device: torch.device = CPU
) -> LocalResult:
    """Trains ``model`` in place on the training persons of ``cohort``; on a CPU bits depend on ``seed`` and ``plan.threads`` only.

    Args:
        plan: of the round (``training_of_round``). device: where training runs. ``model`` itself stays on the CPU.

    Raises:
        FloatingPointError: the loss is no longer a finite number.
    """
    if not (plan.local_steps or plan.local_epochs) or not len(cohort.rows("train")):
        return LocalResult(0.0, 0, 0)
    torch.set_num_threads(plan.threads)
    # Batch norm cannot be trained on a single person.
    alone = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    smallest = max(hooks.smallest, 2 if alone else 1)
    losses, sizes = list[torch.Tensor](), list[int]()
    scale = scaler(device, plan.precision) if plan.precision == "float16" else None
    images = cohort.input("image", Images)
    change = augmentation(plan.augment, () if images is None else images.drawn, seed=seed)
    with on_device(model, device, seed=seed, back=True) as network, torch_seed(seed) as generator:
        network.train()
        parameters = trained_parameters(network, plan.freeze)
        optimizer = make_optimizer(plan, list(parameters.values()))
        _resume(optimizer, parameters, hooks.optimizer)
        changed = list(parameters.values())
        ready = make_ready(network, cohort, device) if change is None else None
        forward, step = network if ready is None else ready.forward, _step(optimizer, plan, changed)
        for epoch, steps in round_passes(cohort, plan, generator, smallest):
            of_steps = _batches(cohort, steps, generator, change, epoch, device) if ready is None else ready.batches(steps)
            for chosen, batch in zip(steps, of_steps, strict=True):
                for parameter in changed:
                    parameter.grad = None
                with autocast(device, plan.precision):
                    output = forward(batch)
                loss = task.loss(output.float(), task.truth(batch))
                (loss if scale is None else scale.scale(loss)).backward()  # type: ignore[no-untyped-call]
                if scale is not None:
                    scale.unscale_(optimizer)
                if hooks.gradient or plan.max_norm:
                    _change_gradients(parameters, hooks.gradient, plan.max_norm)
                if scale is None:
                    step()
                else:
                    scale.step(optimizer)
                    scale.update()
                if hooks.l1:
                    shrink(parameters, {name: plan.lr * amount for name, amount in hooks.l1.items()})
                losses.append(loss.detach())  # read at the end: each reading would wait for an accelerator
                sizes.append(len(chosen))
                del batch  # before the next one is read: of a wide table each takes much memory
        _keep(optimizer, parameters, hooks.optimizer)
        for parameter in network.parameters() if plan.freeze else ():
            parameter.requires_grad_(True)
    loss_sum = sum((torch.stack(losses).cpu() * torch.tensor(sizes, dtype=losses[0].dtype)).tolist(), 0.0)
    largest = torch.stack(torch._foreach_norm([p.detach() for p in model.parameters()], math.inf))
    if not (math.isfinite(loss_sum) and bool(torch.isfinite(largest).all())):
        raise FloatingPointError("the training loss or a weight is not finite")
    return LocalResult(loss_sum, sum(sizes), len(sizes))


def _batches(
    cohort: Cohort, steps: Sequence[npt.NDArray[np.int64]], generator: torch.Generator, change: Any, epoch: int, device: torch.device
) -> Iterator[Batch]:
    """The batch of each step, made when it is needed, with the augmentation ``change`` (None: none)."""
    for chosen in steps:
        batch = cohort.batch(chosen, generator)
        if change is not None:
            batch = change(batch, [cohort.ids[row] for row in chosen], epoch)
        yield to_device(batch, device)


def _step(optimizer: torch.optim.Optimizer, plan: Training, parameters: Sequence[nn.Parameter]) -> Callable[[], Any]:
    """A step of the optimiser. Of SGD that keeps nothing it is one call for all weights, with the bits of ``optimizer.step``."""
    if plan.optimizer != "sgd" or plan.momentum or plan.weight_decay:
        return optimizer.step
    pairs = [(parameter, parameter.detach()) for parameter in parameters]

    def step() -> None:
        found = [(weight, parameter.grad) for parameter, weight in pairs if parameter.grad is not None]
        torch._foreach_add_([weight for weight, _ in found], [grad for _, grad in found], alpha=-plan.lr)

    return step


def _change_gradients(parameters: Mapping[str, nn.Parameter], hooks: Sequence[GradientHook], max_norm: float) -> None:
    """The hooks, then the clipping, which so bounds the whole step."""
    for hook in hooks:
        hook(parameters)
    if max_norm:
        nn.utils.clip_grad_norm_(list(parameters.values()), max_norm)


def evaluate(
    model: nn.Module, cohort: Cohort, part: PartName, task: Task, *, threads: int = 1, device: torch.device = CPU,
    precision: Precision = "float32",
) -> Counts:  # fmt: skip
    """Counts of ``task`` over the persons in ``part``; empty if there are none. The counting is on the CPU, for any device of the model."""
    torch.set_num_threads(threads)
    model.eval()
    with on_device(model, device) as network, torch.inference_mode():
        rows = cohort.rows(part)
        size = task.evaluation_batch if not isinstance(cohort.inputs.get("image"), Slides | SlideFeatures) else SLIDE_BATCH
        size = min([size, *(value.together for value in cohort.inputs.values() if isinstance(value, Matrix))])
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        if cohort.clusters is None or not len(rows):
            return add_counts(_counts(network, cohort, chunk, task, device, precision)[0] for chunk in chunks)
        every = [_counts(network, cohort, chunk, task, device, precision) for chunk in chunks]
        values = np.concatenate([values for _, values in every])
        design = design_counts(task.traits.label, values, cohort.labels[rows], cohort.clusters[rows])
        return {**add_counts(counts for counts, _ in every), **design}


def _counts(
    model: nn.Module, cohort: Cohort, rows: npt.NDArray[np.int64], task: Task, device: torch.device, precision: Precision
) -> tuple[Counts, npt.NDArray[Any]]:
    """The counts of ``rows``; and each person's values of ``Task.compared``, where the study has clusters (else empty)."""
    batch = cohort.batch(rows)
    with autocast(device, precision):
        output = model(to_device(batch, device))
    output, truth = output.float().cpu(), task.truth(batch)
    counts, none = task.counts(output, truth), np.zeros(0)
    if cohort.clusters is None:
        return counts, none
    if task.traits.label == "mask":  # of one person: the counts hold the person's Dice
        return counts, np.where(counts["scored"] > 0, counts["dice_sum"], np.nan)[None]
    return counts, none if isinstance(task.compared, NotBuilt) else task.compared.values(output, truth)
