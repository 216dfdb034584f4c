"""Losses by name are MONAI's of each image, add up over persons, and take their stated arguments only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai import losses

from fedml.study.mask_losses import MASK_LOSSES, options_of, options_problem
from fedml.tasks.mask_losses import mask_loss
from fedml.tasks.segmentation_counts import Truth

WEIGHTS = (0.5, 2.0, 4.0)
ONE = {"to_onehot_y": True, "softmax": True}
REFERENCE: list[tuple[str, dict[str, Any], tuple[float, ...], Any]] = [
    ("dice_ce", {}, (), losses.DiceCELoss(include_background=False, **ONE)),
    ("dice_ce", {"dice": 0.3, "ce": 2.0}, (), losses.DiceCELoss(include_background=False, lambda_dice=0.3, lambda_ce=2.0, **ONE)),
    ("dice", {}, (), losses.DiceLoss(include_background=False, **ONE)),
    ("dice", {}, WEIGHTS, losses.DiceLoss(include_background=False, weight=torch.tensor(WEIGHTS[1:]), **ONE)),
    ("focal", {"gamma": 1.5}, (), losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.5)),
    ("focal", {}, WEIGHTS, losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0, weight=torch.tensor(WEIGHTS))),
    ("tversky", {"alpha": 0.3, "beta": 0.7}, (), losses.TverskyLoss(include_background=False, alpha=0.3, beta=0.7, **ONE)),
    ("generalized_dice", {}, (), losses.GeneralizedDiceLoss(**ONE)),
    ("generalized_dice", {"weight": "simple"}, (), losses.GeneralizedDiceLoss(w_type="simple", **ONE)),
]


def images(count: int, size: tuple[int, ...] = (6, 7, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, *size, generator=generator), torch.randint(0, 3, (count, *size), generator=generator)


@pytest.mark.parametrize(("name", "options", "weights", "reference"), REFERENCE)
@pytest.mark.parametrize("size", [(6, 7, 5), (8, 9)])
def test_the_loss_of_an_image_is_monais(name: str, options: Any, weights: Any, reference: Any, size: tuple[int, ...]) -> None:
    logits, mask = images(1, size)
    own = mask_loss(name, options_of(name, options), weights)(logits, Truth(mask, torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(own, reference(logits, mask[:, None]), rtol=1e-5, atol=1e-6)


def test_cross_entropy_with_class_weights_is_torchs() -> None:
    logits, mask = images(1)
    own = mask_loss("dice_ce", {"dice": 0, "ce": 1}, WEIGHTS)(logits, Truth(mask, torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(own, torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS))(logits, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_losses_of_persons_add_up_and_have_gradients(name: str) -> None:
    logits, mask = images(5)
    logits.requires_grad_(True)
    loss, person = mask_loss(name, options_of(name, {})), torch.tensor([0, 0, 1, 2, 2])
    whole = loss(logits, Truth(mask, person))
    each = [loss(logits[person == p], Truth(mask[person == p], torch.zeros(int((person == p).sum()), dtype=torch.long))) for p in range(3)]
    torch.testing.assert_close(whole, torch.stack(each).mean())
    whole.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("dice", {"gamma": 1.0}, "it takes no arguments"),
        ("focal", {"gama": 1.0}, 'did you mean "gamma"'),
        ("focal", {"gamma": 11}, "focal takes a number from 0 to 10"),
        ("focal", {"gamma": True}, "focal takes a number from 0 to 10"),
        ("tversky", {"alpha": 0, "beta": 0}, "both 0"),
        ("generalized_dice", {"weight": "cubic"}, '"square" or "simple" or "uniform"'),
        ("dice_ce", {"dice": 0, "ce": 0}, "every part"),
    ],
)
def test_arguments_are_checked(name: str, given: dict[str, Any], says: str) -> None:
    assert says in options_problem(name, given)
    assert not options_problem(name, {})
