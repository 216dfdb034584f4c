"""DP-SGD at a site with the person as the unit (Abadi et al. 2016; Poisson sampling as in Mironov et al. 2019).

    privacy = PrivateSteps(clipping_norm=1.0, noise_multiplier=1.1, rate=0.02, expected_batch=0.02 * 4000, steps=50)
    private_train(model, cohort, study.training, task, privacy)

A step: every training person is sampled with probability ``rate``, independently; the sampled persons' gradients, each over all of a
person's images and records and clipped to ``clipping_norm`` over all parameters together, are summed; N(0, (noise_multiplier x
clipping_norm)^2) is added to each coordinate of the sum, also of parameters without input from the sampled persons, and also if no person
was sampled; the sum is divided by ``expected_batch``; then the strategy's hooks and the study's optimiser run on the noisy mean.

The accountant may count ``steps`` Poisson-subsampled Gaussian mechanisms per round with this rate and multiplier (neighbours: one person
more or less), because no other value that depends on a person leaves the site: the number of steps and the divisor come from the study,
buffers do not change, and neither the loss nor the number of sampled persons is returned. Sampling, noise and dropout use random numbers of
the operating system, not the study's seed, so two runs differ. This includes dropout: with a known seed, an added person would shift the
masks of the others and so change their gradients; with a secret seed, masks are independent of the set of persons.
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
from fedml.cohort.wide.matrix import Matrix
from fedml.learning.training import CPU, GradientHook, make_optimizer
from fedml.models.device import on_device, to_device
from fedml.networks.variants import GeneLayer
from fedml.privacy.noise import Entropy, add_gaussian, uniform_words
from fedml.privacy.persongrad import clipped_gradient_sum, refuse_shared_statistics
from fedml.seeds import torch_seed
from fedml.study.training_section import Training
from fedml.tasks.task import Task

MEMORY = 2**30  # bytes; limit of the gradients of one physical batch, by a rough upper estimate


@dataclass(frozen=True)
class PrivateSteps:
    """Parameters of one round of DP-SGD at a site, none of which depends on the site's data in the round.

    ``expected_batch``: the divisor, in persons: ``rate`` x the public number of training persons, or another constant. For a site with a
    private number of persons it is a constant of the study.
    """

    clipping_norm: float
    noise_multiplier: float
    rate: float
    expected_batch: float
    steps: int
    memory: float = MEMORY  # bytes that the gradients of a physical batch may take; changes nothing but rounding
    device: torch.device = CPU  # where gradients are computed and clipped; changes nothing but rounding

    def __post_init__(self) -> None:
        positive = (self.clipping_norm, self.noise_multiplier, self.rate, self.expected_batch, self.memory)
        if not all(math.isfinite(v) and v > 0 for v in positive) or self.rate > 1 or self.steps < 0:
            raise ValueError(f"every number of {self} must be positive and finite, rate at most 1")


def poisson_rows(rows: npt.NDArray[np.int64], rate: float, *, entropy: Entropy = os.urandom) -> npt.NDArray[np.int64]:
    """A Poisson sample of ``rows``: each is included with probability ``rate`` (to 2^-64), independently; may be empty."""
    threshold = int(rate * 2**64)
    return rows if threshold >= 2**64 else rows[uniform_words(len(rows), entropy) < np.uint64(threshold)]


def noisy_mean(total: Mapping[str, torch.Tensor], privacy: PrivateSteps, *, entropy: Entropy = os.urandom) -> dict[str, torch.Tensor]:
    """(``total`` + N(0, (noise_multiplier x clipping_norm)^2)) / expected_batch in every coordinate.

    Raises:
        ValueError: a value of ``total`` is not finite.
    """
    std = privacy.noise_multiplier * privacy.clipping_norm
    return {name: add_gaussian(value, std, entropy=entropy).div_(privacy.expected_batch) for name, value in total.items()}


def person_losses(task: Task, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(persons,): the task's loss of each person; the task defines the loss as a mean over persons."""
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
    """Parameter name -> sum of the clipped gradients of the persons in ``rows``, on the device of ``model``.

    Adding or removing a person changes the sum by at most ``clipping_norm`` (L2 over all parameters), up to float rounding.

    Args:
        sizes: (persons,) bytes, from ``person_bytes``.
        memory: limit of the sizes in a physical batch, in bytes; a batch has at least one person.
    """
    sizes = person_bytes(model, cohort) if sizes is None else sizes
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    device = next(iter(total.values())).device if total else CPU
    for chosen in _physical(rows, sizes[rows], memory):
        batch = to_device(cohort.batch(chosen), device)

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
    entropy: Entropy = os.urandom,
) -> int:
    """Trains ``model`` in place by ``privacy.steps`` private steps on the training persons of ``cohort``; returns their number.

    Rate and steps of ``privacy`` replace batch size and epochs of ``plan``. ``entropy`` is a parameter for tests. The clipped sums are
    computed on ``privacy.device``; the noise is added on the CPU, from the operating system's random numbers as everywhere.

    Raises:
        InputError: the model has batch norm.
        FloatingPointError: a weight is not finite after training.
    """
    refuse_shared_statistics(model)
    rows = cohort.rows("train")
    torch.set_num_threads(plan.threads)
    sizes, seed = person_bytes(model, cohort), secrets.randbits(62)  # the seed is for dropout: see the module's docstring
    device = privacy.device
    with on_device(model, device, seed=seed, back=True) as network, torch_seed(seed):
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(plan, list(parameters.values()))
        network.train()
        for _ in range(privacy.steps):
            sampled = poisson_rows(rows, privacy.rate, entropy=entropy)
            total = clipped_sum(network, cohort, sampled, task, privacy.clipping_norm, sizes=sizes, memory=privacy.memory)
            for name, gradient in noisy_mean({k: v.cpu() for k, v in total.items()}, privacy, entropy=entropy).items():
                parameters[name].grad = gradient.to(device)
            for hook in hooks:
                hook(parameters)
            optimizer.step()
        optimizer.zero_grad()
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise FloatingPointError("a weight is not finite")
    return privacy.steps


def person_bytes(model: nn.Module, cohort: Cohort) -> npt.NDArray[np.float64]:
    """(persons,): a rough upper estimate of the bytes of memory needed to compute each person's gradients."""
    sizes = np.full(len(cohort), float(sum(p.numel() * 4 for m in model.modules() for p in _materialised(m))))
    if (images := cohort.input("image", Images)) is not None:
        each = np.bincount(images.person, minlength=len(cohort))
        sizes += each * _image_bytes(model.get_submodule("encoder.image"), images.shape)
    for value in cohort.inputs.values():
        if isinstance(value, Matrix):
            sizes += 4 * 4 * value.shape[1]  # a row as it is read, standardised, and what these are made of
    return sizes


def _physical(rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.float64], memory: float) -> Iterator[npt.NDArray[np.int64]]:
    """``rows`` in runs whose ``sizes`` sum to at most ``memory``; a person with a larger size forms a run alone."""
    begin, used = 0, 0.0
    for at, size in enumerate(sizes):
        if at > begin and used + size > memory:
            yield rows[begin:at]
            begin, used = at, 0.0
        used += size
    if len(rows):
        yield rows[begin:]


def _materialised(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of a layer for which every person's gradient may be held in memory."""
    return (p for p in module.parameters(recurse=False) if not (isinstance(module, nn.Linear | GeneLayer) and p is module.weight))


def _image_bytes(encoder: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of one image in ``encoder``: outputs of its layers, unfolded inputs of its convolutions, and their gradients."""
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
