"""Preprocessing of raw inputs for a network: imputation, missing indicators, standardisation. Part of the saved model.

The constants are buffers, filled from federated sums (``fedml.learning.statistics``); training never changes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from fedml.study.cohort_section import ClinicalColumns

_WIDE = 1 << 20  # values of a batch, 4 MiB: more are standardised about ``_PART`` at a time
_PART = 1 << 16


class _Standard(nn.Module):
    """Base: buffers ``mean`` and ``std``, and 1 / std, which is 0 for a constant column, because it has no information."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))
        self._kept: tuple[tuple[int, int], torch.Tensor] | None = None

    def inverse(self) -> torch.Tensor:
        """1 / std, recomputed when the buffer has changed."""
        version = self.std._version, id(self.std)  # changes if the tensor is written in place or replaced
        if self._kept is None or self._kept[0] != version:
            smallest = torch.finfo(self.std.dtype).tiny
            self._kept = version, torch.where(self.std > 0, 1 / self.std.clamp_min(smallest), torch.zeros_like(self.std))
        return self._kept[1]


class ClinicalPreprocess(_Standard):
    """(persons, columns) raw, NaN where missing -> (persons, ``width``) finite.

    A numeric column becomes (x - mean) / std with the mean where it is missing, followed by all missing indicators when the study
    asks for them; a categorical one becomes one column a category, all 0 where missing.
    """

    def __init__(self, spec: ClinicalColumns) -> None:
        super().__init__(len(spec.columns))
        self.numeric = [i for i, c in enumerate(spec.columns) if c not in spec.categories]
        self.categorical = [(i, len(spec.categories[c])) for i, c in enumerate(spec.columns) if c in spec.categories]
        self.indicate = spec.indicate
        self.width = len(self.numeric) * (2 if self.indicate else 1) + sum(n for _, n in self.categorical)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numeric = x[:, self.numeric] if self.categorical else x
        scale = self.inverse()
        mean, scale = (self.mean[self.numeric], scale[self.numeric]) if self.categorical else (self.mean, scale)
        absent = torch.isnan(numeric)
        parts = [((numeric - mean) * scale).masked_fill(absent, 0.0)]
        if self.indicate:
            parts.append(absent.to(x.dtype))
        for column, categories in self.categorical:
            parts.append((x[:, column, None] == torch.arange(categories, dtype=x.dtype, device=x.device)).to(x.dtype))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class TablePreprocess(_Standard):
    """(persons, columns) raw, NaN where missing -> (persons, columns) (x - mean) / std, 0 where missing: the mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.inverse()
        if x.numel() <= _WIDE or x.requires_grad or x.device.type != "cpu" or not torch.isfinite(self.mean).all():
            return ((x - self.mean) * scale).masked_fill(torch.isnan(x), 0.0)
        # The same bits, a few persons at a time: what is between is in the processor's cache, and not four times in memory.
        out, step = torch.empty_like(x), max(1, _PART // x.shape[1])
        for part, into in zip(torch.split(x, step), torch.split(out, step), strict=True):
            torch.sub(part, self.mean, out=into).mul_(scale).nan_to_num_(0.0, math.inf, -math.inf)
        return out


class VariantPreprocess(_Standard):
    """(persons, variants) int8 ALT dosage, -1 where missing -> float32 (dosage - mean) / std, missing imputed by the mean (0)."""

    def __init__(self, variants: int) -> None:
        super().__init__(variants)
        self.width = variants

    def forward(self, dosage: torch.Tensor) -> torch.Tensor:
        return ((dosage.to(self.mean.dtype) - self.mean) * self.inverse()).masked_fill_(dosage < 0, 0.0)


class ImagePreprocess(_Standard):
    """(images, channels, *size) raw or prepared intensities -> (x - mean) / std, one mean and std for each channel.

    With ``windowed`` it has the buffer ``window`` (2,): the raw intensities that were mapped to 0 and 1 when the images were prepared, from
    the percentiles of all sites. The window is stored for the record only.
    """

    def __init__(self, shape: Sequence[int], *, windowed: bool = False) -> None:
        super().__init__(shape[0])
        if windowed:
            self.register_buffer("window", torch.zeros(2))
        self.axes = (1, -1, *(1 for _ in shape[1:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean.view(self.axes)) * self.inverse().view(self.axes)


class TargetScale(nn.Module):
    """Regression only: the network predicts a standardised target; this layer converts it to the target's unit."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z * self.std + self.mean
