"""Masks by a saved model, on the voxels of each image as it is given: the inverse of the preprocessing, as ``fedml-site predict`` has it.

masks_of(study, model, ["scan.nii.gz", None], affine=None, window=None)      # columns predicted, size; one row a person
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedml.cohort.images.masks import as_values
from fedml.cohort.one_image import Opened, to_prepared
from fedml.modalities.image import opened_images
from fedml.study.study import Study
from fedml.tasks.original import labels_at

if TYPE_CHECKING:
    from fedml.models.fusion import CohortModel


def masks_of(study: Study, model: CohortModel, given: Any, affine: Any, window: tuple[float, float] | None) -> pd.DataFrame:
    """``predicted``: the class value of each voxel of the given file or array, in C order of ``size``, its shape without channels; what
    preprocessing cuts away is the first class. None for a person without an image.

    Raises:
        InputError: as ``fedml.modalities.image.opened_images``.
    """
    opened = opened_images(study, given, affine, window)
    each = [None if one is None else _mask(study, model, one) for one in opened]
    return pd.DataFrame(
        {
            "predicted": pd.Series([None if mask is None else mask.flatten().tolist() for mask in each], dtype=object),
            "size": pd.Series([None if mask is None else list(mask.shape) for mask in each], dtype=object),
        }
    )


def _mask(study: Study, model: CohortModel, one: Opened) -> Any:
    import torch

    with torch.inference_mode():
        logits = model({"image": torch.from_numpy(np.ascontiguousarray(one.prepared))[None]})[0]
    matrix = to_prepared(one.raw, study.cohort.image)
    labels = logits.argmax(0).numpy().astype(np.uint8) if matrix is None else labels_at(logits, matrix, one.raw.image.shape[1:])
    return as_values(labels, study.cohort.classes)
