"""The loss of a classification: cross-entropy, and what ``[training]`` makes of it.

A person's loss is multiplied by the weight of the person's class, and a batch has the mean over its persons. It is not divided by the sum
of the weights, as ``torch.nn.CrossEntropyLoss(weight=...)`` does: so the loss of some persons and of others adds up to that of all, at
several sites as at one, and privacy of a patient can clip what each person adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.study.training_section import Training

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The mean over persons."""
    return functional.cross_entropy(output, label.long())


def classification_loss(plan: Training, weights: Sequence[float] | None = None) -> Loss:
    """The loss of ``plan``.

    Args:
        weights: of each class, where they follow from counts (``inverse_weights``); None: those that ``plan`` states.
    """
    stated = plan.class_weights if isinstance(plan.class_weights, tuple) else ()
    given = tuple(stated if weights is None else weights)
    if plan.focal:
        return _focal(plan.focal, given)
    if not given and not plan.label_smoothing:
        return cross_entropy

    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        each = functional.cross_entropy(
            output, label.long(), weight=_like(output, given), reduction="none", label_smoothing=plan.label_smoothing
        )
        return each.mean()

    return loss


def _focal(gamma: float, weights: Sequence[float]) -> Loss:
    """-w (1 - p)^gamma log p, p the probability of the person's class. Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 5."""

    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        log_p = functional.log_softmax(output, 1).gather(1, label.long()[:, None])[:, 0]
        wrong = (-torch.expm1(log_p)).clamp_min(torch.finfo(output.dtype).tiny)  # at 0 a power below 1 has no gradient
        each = -(wrong**gamma) * log_p
        weight = _like(output, weights)
        return (each if weight is None else each * weight[label.long()]).mean()

    return loss


def _like(output: torch.Tensor, weights: Sequence[float]) -> torch.Tensor | None:
    return torch.tensor(weights, dtype=output.dtype, device=output.device) if weights else None


def inverse_weights(persons: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(classes,) weights inverse to the frequency of each class, whose mean over ``persons`` (classes,) is 1; 0 where a class has none."""
    present = persons > 0
    weights = np.zeros(len(persons))
    weights[present] = persons.sum() / (present.sum() * persons[present])
    return weights.astype(np.float32)
