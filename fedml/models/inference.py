"""Inference over windows of a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fedml.models.device import autocast
from fedml.study.section import Precision


def infer(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    *,
    window: Sequence[int] = (),
    overlap: float = 0.5,
    windows: int = 4,
    device: torch.device | None = None,
    precision: Precision = "float32",
) -> torch.Tensor:
    """(images, classes, *size) float32 logits where ``images`` (images, channels, *size) is; no gradient, one image at a time.

    An image that is no larger than ``window`` goes through as a whole. A larger one goes window by window, ``windows`` at a time,
    neighbours sharing ``overlap`` of their length, blended by a Gaussian (Isensee et al. 2021); an axis shorter than the window is whole.

    Args:
        window: voxels an axis; none given: whole images. device: where the model is; None: where the images are.
    """
    place, size = device or images.device, images.shape[2:]
    roi = [min(w, n) for w, n in zip(window, size, strict=True)] if window else list(size)

    def predict(part: torch.Tensor) -> torch.Tensor:
        with autocast(place, precision):
            return model(part).float()

    with torch.inference_mode():
        if not len(images):
            return predict(images.to(place)).to(images.device)
        one_by_one = (images[k : k + 1] for k in range(len(images)))
        if roi == list(size):
            return torch.cat([predict(one.to(place)).to(images.device) for one in one_by_one])
        from monai.inferers import sliding_window_inference

        blend: dict[str, Any] = {"overlap": overlap, "mode": "gaussian", "sw_device": place, "device": images.device}
        return torch.cat([sliding_window_inference(one, roi, windows, predict, **blend) for one in one_by_one])
