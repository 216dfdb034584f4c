"""DP-SGD at a site, where the unit is the person (Abadi et al. 2016; Poisson sampling as in Mironov et al. 2019).

    privacy = PrivateSteps(clipping_norm=1.0, noise_multiplier=1.1, rate=0.02, expected_batch=0.02 * 4000, steps=50)
    private_train(model, cohort, study.training, task, privacy)

A step: every training person is drawn with probability ``rate``, independently of the others; the drawn persons' gradients, each over
all of a person's images and records and clipped to ``clipping_norm`` over all parameters together, are summed; N(0, (noise_multiplier x
clipping_norm)^2) is added to each coordinate of the sum, also of a parameter that nobody drawn has an input for, also when nobody was
drawn; the sum is divided by ``expected_batch``; then the strategies' hooks and the study's optimiser, which see no person's data.

The accountant may count ``steps`` Poisson-subsampled Gaussian mechanisms a round with this rate and multiplier (neighbours: one person
more or less), since nothing else that depends on a person leaves: the number of steps and the divisor are the study's, buffers do not
move, and neither the loss nor the number drawn is returned. Sampling, noise and dropout come from the operating system, never from the
study's seed, so no two runs are equal. Dropout too: with a known seed a person who joins would shift the others' masks, and so change
their gradients; masks that nobody knows are independent of who is there.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedml.cohort.images.images import Images
from fedml.cohort.persons import Cohort
from fedml.learning.task import Task
from fedml.learning.training import GradientHook, make_optimizer
from fedml.networks.variants import GeneLayer
from fedml.privacy.noise import Entropy, add_gaussian, uniform_words
from fedml.privacy.persongrad import clipped_gradient_sum, refuse_shared_statistics
from fedml.seeds import torch_seed
from fedml.study.sections import Training

MEMORY = 2**30  # bytes that the gradients of one physical batch may take, by a rough upper estimate


@dataclass(frozen=True)
class PrivateSteps:
    """What one round of DP-SGD at a site is told, none of it drawn from the site's data in the round.

    ``expected_batch`` is the divisor, in persons: ``rate`` x the number of training persons that the site has made known, or another
    constant. A site that keeps its number private gives a constant of the study.
    """

    clipping_norm: float
    noise_multiplier: float
    rate: float
    expected_batch: float
    steps: int

    def __post_init__(self) -> None:
        positive = (self.clipping_norm, self.noise_multiplier, self.rate, self.expected_batch)
        if not all(math.isfinite(v) and v > 0 for v in positive) or self.rate > 1 or self.steps < 0:
            raise ValueError(f"every number of {self} must be positive and finite, rate at most 1")


def poisson_rows(rows: npt.NDArray[np.int64], rate: float, *, entropy: Entropy = os.urandom) -> npt.NDArray[np.int64]:
    """Those of ``rows`` that are drawn, each with probability ``rate`` (to 2^-64), independently; possibly none."""
    threshold = int(rate * 2**64)
    return rows if threshold >= 2**64 else rows[uniform_words(len(rows), entropy) < np.uint64(threshold)]


def noisy_mean(total: Mapping[str, torch.Tensor], privacy: PrivateSteps, *, entropy: Entropy = os.urandom) -> dict[str, torch.Tensor]:
    """(``total`` + N(0, (noise_multiplier x clipping_norm)^2)) / expected_batch in every coordinate.

    Raises:
        ValueError: a number of ``total`` is not finite.
    """
    std = privacy.noise_multiplier * privacy.clipping_norm
    return {name: add_gaussian(value, std, entropy=entropy).div_(privacy.expected_batch) for name, value in total.items()}


def person_losses(task: Task, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(persons,): the task's loss, a mean over persons, for each person alone."""
    losses: torch.Tensor = torch.func.vmap(lambda o, y: task.loss(o[None], y[None]))(output, label)
    return losses


def clipped_sum(
    model: nn.Module,
    cohort: Cohort,
    rows: npt.NDArray[np.int64],
    task: Task,
    clipping_norm: float,
    *,
    sizes: npt.NDArray[np.float64] | None = None,
    memory: float = MEMORY,
) -> dict[str, torch.Tensor]:
    """The clipped gradients of the persons in ``rows``, summed, by parameter.

    Adding or taking away a person changes it by at most ``clipping_norm`` (L2 over all parameters), to float rounding. ``sizes`` are
    those of ``person_bytes``; physical batches stay within ``memory`` bytes of them, but have at least one person.
    """
    sizes = person_bytes(model, cohort) if sizes is None else sizes
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for chosen in _physical(rows, sizes[rows], memory):
        batch = cohort.batch(chosen)

        def losses(batch: Mapping[str, torch.Tensor] = batch) -> torch.Tensor:
            return person_losses(task, model(batch), batch["label"])

        rows_of = {f"encoder.{name}": batch[f"{name}_person"] for name in cohort.inputs if f"{name}_person" in batch} or None
        part = clipped_gradient_sum(model, losses, clipping_norm=clipping_norm, rows_of=rows_of)
        for name, value in part.total.items():
            total[name] += value
    return total


def private_train(
    model: nn.Module,
    cohort: Cohort,
    plan: Training,
    task: Task,
    privacy: PrivateSteps,
    *,
    hooks: Sequence[GradientHook] = (),
    memory: float = MEMORY,
    entropy: Entropy = os.urandom,
) -> int:
    """Trains ``model`` in place by ``privacy.steps`` private steps on the training persons of ``cohort``; returns their number.

    Of ``plan``, batch size and epochs have no say: rate and steps take their place. ``entropy`` is for tests.

    Raises:
        InputError: the model has batch norm.
        FloatingPointError: a weight is no longer a finite number.
    """
    refuse_shared_statistics(model)
    rows = cohort.rows("train")
    torch.set_num_threads(plan.threads)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(plan, list(parameters.values()))
    model.train()
    sizes = person_bytes(model, cohort)
    with torch_seed(secrets.randbits(62)):  # dropout: see the module's text
        for _ in range(privacy.steps):
            drawn = poisson_rows(rows, privacy.rate, entropy=entropy)
            total = clipped_sum(model, cohort, drawn, task, privacy.clipping_norm, sizes=sizes, memory=memory)
            for name, gradient in noisy_mean(total, privacy, entropy=entropy).items():
                parameters[name].grad = gradient
            for hook in hooks:
                hook(parameters)
            optimizer.step()
    optimizer.zero_grad()
    if not all(bool(torch.isfinite(p).all()) for p in parameters.values()):
        raise FloatingPointError("a weight is not finite")
    return privacy.steps


def person_bytes(model: nn.Module, cohort: Cohort) -> npt.NDArray[np.float64]:
    """(persons,): a rough upper estimate of the bytes that each person's gradients take while they are computed."""
    sizes = np.full(len(cohort), float(sum(p.numel() * 4 for m in model.modules() for p in _kept(m))))
    if (images := cohort.input("image", Images)) is not None:
        each = np.bincount(images.person, minlength=len(cohort))
        sizes += each * _image_bytes(model.get_submodule("encoder.image"), images.shape)
    return sizes


def _physical(rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.float64], memory: float) -> Iterator[npt.NDArray[np.int64]]:
    """``rows`` in runs whose ``sizes`` sum to at most ``memory``; none is empty, so a larger person is alone."""
    begin, used = 0, 0.0
    for at, size in enumerate(sizes):
        if at > begin and used + size > memory:
            yield rows[begin:at]
            begin, used = at, 0.0
        used += size
    if len(rows):
        yield rows[begin:]


def _kept(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of a layer of which every person's gradient may be kept."""
    return (p for p in module.parameters(recurse=False) if not (isinstance(module, nn.Linear | GeneLayer) and p is module.weight))


def _image_bytes(encoder: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of one image's way through ``encoder``: what its layers put out, its convolutions' unfolded inputs, and the gradients."""
    numbers = [math.prod(shape)]

    def count(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        numbers.append(output.numel())
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            numbers.append(math.prod(module.kernel_size) * arguments[0].numel() // math.prod(module.stride))

    handles = [m.register_forward_hook(count) for m in encoder.modules() if not any(True for _ in m.children())]
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
    return 2 * 4 * sum(numbers)
