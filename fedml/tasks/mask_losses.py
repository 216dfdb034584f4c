"""Losses of a segmentation: MONAI's, of each image by itself, so that the loss of some persons and of others adds up to that of all.

    loss = mask_loss("tversky", {"alpha": 0.3, "beta": 0.7}, class_weights=())
    loss(logits, truth)                  # the mean over persons of the mean over their images (or patches)

    dice                Dice loss without the background (Milletari et al. 2016)
    dice_ce             that and the cross-entropy, each by its weight (MONAI's DiceCELoss); the default
    focal               focal loss of softmax scores (Lin et al. 2017), with dice: dice_focal
    tversky             alpha weighs voxels found wrongly, beta voxels missed (Salehi et al. 2017), without the background
    generalized_dice    classes weighed by the inverse of their (squared) size, the background included (Sudre et al. 2017)

Class weights multiply the terms of each class: of Dice and Tversky those without the background, of cross-entropy and focal loss all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from fedml.tasks.segmentation_counts import Truth
from fedml.tasks.several import Several

EachImage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits, mask (images, *size) -> (images,)


@cache
def _monai(name: str, **options: Any) -> Any:
    from monai import losses

    return getattr(losses, name)(to_onehot_y=True, reduction="none", **options)


def _flat(loss: Any, weights: Sequence[float] = ()) -> EachImage:
    """Of a MONAI loss; ``weights``: of the classes that it is of."""

    def each(output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(output, mask[:, None])
        if weights:
            value = value.flatten(2).mean(2) * torch.tensor(weights, device=value.device)
        return value.flatten(1).mean(1)

    return each


def _dice(weights: Sequence[float]) -> EachImage:
    return _flat(_monai("DiceLoss", include_background=False, softmax=True), weights[1:])


def _tversky(alpha: float, beta: float, weights: Sequence[float]) -> EachImage:
    return _flat(_monai("TverskyLoss", include_background=False, softmax=True, alpha=alpha, beta=beta), weights[1:])


def _focal(gamma: float, weights: Sequence[float]) -> EachImage:
    return _flat(_monai("FocalLoss", use_softmax=True, gamma=gamma), weights)


def _generalized(weight: str) -> EachImage:
    return _flat(_monai("GeneralizedDiceLoss", softmax=True, w_type=weight))


def _cross_entropy(weights: Sequence[float]) -> EachImage:
    def each(output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not weights:
            return functional.cross_entropy(output, mask, reduction="none").flatten(1).mean(1)
        by_class = torch.tensor(weights, device=output.device)
        summed = functional.cross_entropy(output, mask, weight=by_class, reduction="none").flatten(1).sum(1)
        return summed / by_class[mask].flatten(1).sum(1)  # as torch's mean

    return each


def _together(parts: Sequence[tuple[float, EachImage]]) -> EachImage:
    used = [(weight, part) for weight, part in parts if weight]

    def each(output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        total = used[0][1](output, mask) if used[0][0] == 1 else used[0][0] * used[0][1](output, mask)
        for weight, part in used[1:]:
            total = total + (part(output, mask) if weight == 1 else weight * part(output, mask))
        return total

    return each


def _each_image(name: str, options: Mapping[str, Any], weights: Sequence[float]) -> EachImage:
    match name:
        case "dice":
            return _dice(weights)
        case "dice_ce":
            return _together([(options["dice"], _dice(weights)), (options["ce"], _cross_entropy(weights))])
        case "focal":
            return _focal(options["gamma"], weights)
        case "dice_focal":
            return _together([(options["dice"], _dice(weights)), (options["focal"], _focal(options["gamma"], weights))])
        case "tversky":
            return _tversky(options["alpha"], options["beta"], weights)
        case "generalized_dice":
            return _generalized(options["weight"])
    raise ValueError(f"no loss has the name {name}")


def mask_loss(name: str, options: Mapping[str, Any], class_weights: Sequence[float] = ()) -> Callable[[torch.Tensor, Truth], torch.Tensor]:
    """The loss ``name`` with all its ``options`` (``fedml.study.mask_losses.options_of``).

    Args:
        class_weights: one for each class, the background first; none: all 1.
    """
    each_image: list[EachImage] = []

    def loss(output: torch.Tensor, truth: Truth) -> torch.Tensor:
        if not each_image:  # MONAI's import takes seconds
            each_image.append(_each_image(name, options, tuple(class_weights)))
        if isinstance(truth.mask, Several):
            raise ValueError("a loss is of images of one size: patches")
        output, mask = output.float(), truth.mask.to(output.device).long()
        each = each_image[0](output, mask)
        images = torch.bincount(truth.person)
        weight = (1 / images[truth.person].to(each.dtype)).to(each.device)
        total: torch.Tensor = (each * weight).sum() / max(int((images > 0).sum()), 1)
        return total

    return loss


def deeply_supervised(loss: Callable[[torch.Tensor, Truth], torch.Tensor], classes: int) -> Callable[[torch.Tensor, Truth], torch.Tensor]:
    """``loss`` of the logits, and of those of coarser levels that follow in the channels: a weighted mean, each level with half the weight
    of the one before, as in nnU-Net (Isensee et al. 2021). Of logits alone, as in evaluation, it is ``loss``."""

    def of_all(output: torch.Tensor, truth: Truth) -> torch.Tensor:
        levels = torch.split(output, classes, 1)
        total = loss(levels[0], truth)
        for level, logits in enumerate(levels[1:], start=1):
            total = total + loss(logits, truth) / 2**level
        return total / (2 - 0.5 ** (len(levels) - 1))

    return of_all
