"""Predictions of a saved model: from raw inputs to probabilities (or the target in its unit). ``fedml.tracking.saved`` calls it.

With one input, ``predict`` takes its values in the form below; with several inputs, a dictionary of these values by name.

    clinical    a table, or an array (persons, columns)
    variants    an array (persons, variants) of ALT dosages
    image       an array (persons, channels, *size); or for each person a path (PNG, JPEG, NPY, NIfTI, DICOM file or series' folder) or
                an array (channels, *any size), as a list or as the column ``image`` of a table
    slides      tiles as the study cuts them, (persons, tiles, channels, size, size); a missing tile is all NaN

Images are raw; the preprocessing of ``[cohort.image]`` is applied here. Orientation and spacing are read from the file; for arrays, give
``affine`` in addition, (4, 4) for all or for each person, voxel to mm in RAS+: {"image": arrays, "affine": affines}. An input
is missing for a person if all values are NaN (variants: -1), or if the image is None or "".

A predicted mask is on the voxels of the file or array that was given: column ``predicted`` has their class values in C order, ``size`` the
shape.

If the study's sites standardise their own tables (``[cohort] standardise = "site"``), the persons of one call are those of one site, at
least five, and their mean and SD standardise them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from fedml.errors import InputError
from fedml.modalities.modality import Raw, require
from fedml.modalities.registry import MODALITIES
from fedml.runs.log import saved_window
from fedml.runs.restore import restore as restore
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tracking.scoring_masks import masks_of

if TYPE_CHECKING:
    import torch

    from fedml.models.fusion import CohortModel


def to_batch(study: Study, given: Any, window: tuple[float, float] | None = None) -> dict[str, torch.Tensor]:
    """Raw inputs as a batch of the model; forms as in the module's docstring.

    Raises:
        InputError: an input that the model does not have, or values that cannot be used.
    """
    inputs = study.cohort.inputs
    # With one input a dictionary is also allowed, because an image may come with its affine.
    named = {inputs[0]: given} if len(inputs) == 1 and not isinstance(given, dict) else dict(given)
    also = Raw(named.pop("affine", None), window)
    if unknown := sorted(named.keys() - set(inputs)):
        raise InputError(f'the model has no input "{unknown[0]}"; its inputs are {", ".join(inputs)}.')
    batch: dict[str, torch.Tensor] = {}
    for name, values in named.items():
        modality = MODALITIES[name]
        batch |= require(modality.raw, modality, "raw")(values, study, also)
    return batch


def score(study: Study, model: CohortModel, given: Any) -> pd.DataFrame:
    """Predictions of ``model`` for raw inputs. A predicted mask has the voxels of the given file or array (``masks_of``)."""
    import torch

    window = saved_window(model.state_dict())
    if study.traits.label == "mask":
        named = dict(given) if isinstance(given, dict) else {"image": given}
        if unknown := sorted(named.keys() - {"image", "affine"}):
            raise InputError(f'the model has no input "{unknown[0]}"; its input is image.')
        return masks_of(study, model, named.get("image", ()), named.get("affine"), window)
    batch = to_batch(study, given, window)
    with torch.inference_mode():
        out = model(batch)
    return pd.DataFrame(make_task(study).answer.columns(out, batch))
