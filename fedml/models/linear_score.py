"""A trained linear model as one weight per variant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import nn

from fedml.errors import InputError

if TYPE_CHECKING:
    from fedml.models.fusion import CohortModel


def linear_score(model: CohortModel) -> tuple[npt.NDArray[np.float64], float]:
    """((variants,) weights on standardised dosages, intercept) of a linear model on variants alone, as input of ``write_scoring``.

    They give a regression's output in the target's unit, and of two classes the log-odds of the second.

    Raises:
        InputError: the model has other inputs, hidden layers, or more than two classes.
    """
    layer = model.encoder["variants"] if tuple(model.inputs) == ("variants",) else None
    if not isinstance(layer, nn.Linear) or layer.out_features > 2:
        raise InputError(
            "the study's model is no score: a scoring file holds one weight a variant, so it needs [cohort] inputs = "
            '["variants"], [model.variants] net = "linear", and a number or two classes to predict.'
        )
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    if model.target is not None:
        std, mean = float(model.target.std), float(model.target.mean)
        return weight[0] * std, float(bias[0]) * std + mean
    return weight[1] - weight[0], float(bias[1] - bias[0])
