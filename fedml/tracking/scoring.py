"""The saved model as MLflow loads it: raw inputs in, probabilities (or the target's own unit) out. MLflow runs this file.

Inputs by the study's list: clinical alone, a table with the raw columns; images or variants alone, what stands below; several, a
dictionary of them by name.

    clinical    a table, or an array (persons, columns)
    variants    an array (persons, variants) of ALT dosages
    image       an array (persons, channels, *size); or one entry a person: a path (PNG, JPEG, NPY, NIfTI, DICOM file or series' folder) or
                an array (channels, *any size), as a list or as the column ``image`` of a table
    slides      their tiles as the study cuts them, (persons, tiles, channels, size, size), a tile that is all NaN standing for none

Images are raw: what ``[cohort.image]`` says is done here. Where it needs to know where voxels are (orientation, spacing), a file says so;
beside arrays goes ``affine``, (4, 4) for all or one a person, voxel to mm in RAS+: {"image": arrays, "affine": affines}. A person lacks an
input whose values are all NaN (variants: -1), and an image that is None or "".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from fedml.cohort.clinical import code_columns
from fedml.errors import InputError
from fedml.runs.log import saved_window
from fedml.runs.restore import restore
from fedml.study.study import Study
from fedml.tasks.registry import make_task

if TYPE_CHECKING:
    import torch

    from fedml.models.fusion import CohortModel


class Scorer(PythonModel):  # type: ignore[misc]
    """Loads a run's folder (artifact ``run``) and scores."""

    def load_context(self, context: Any) -> None:
        """Builds the network and fills it; nothing is unpickled."""
        self.study, self.model = restore(Path(context.artifacts["run"]))

    # MLflow reads the annotation: of a table it asks nothing more, the signature says what it is (an array or a dictionary too).
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A table, one row a person, with the columns of the task's answer: ``predicted``, of classes ``probability_<class>`` too."""
        return score(self.study, self.model, model_input)


def to_batch(study: Study, given: Any, window: tuple[float, float] | None = None) -> dict[str, torch.Tensor]:
    """Raw inputs as the model takes them; see the module's text."""
    import torch

    inputs = study.cohort.inputs
    # A dictionary is by name even where there is one input: an image may have its affine beside it.
    named = {inputs[0]: given} if len(inputs) == 1 and not isinstance(given, dict) else dict(given)
    affine = named.pop("affine", None)
    batch: dict[str, torch.Tensor] = {}
    for name, values in named.items():
        if name == "clinical":
            spec = study.cohort.clinical
            assert spec is not None  # noqa: S101 - the study was validated
            table = values if isinstance(values, pd.DataFrame) else pd.DataFrame(np.asarray(values), columns=list(spec.columns))
            x = torch.from_numpy(code_columns(table, spec, Path("input")).astype(np.float32))
            present = ~torch.isnan(x).all(1)
        elif name == "variants":
            x = torch.from_numpy(np.asarray(values).astype(np.int8))
            present = ~(x < 0).all(1)
        else:
            bags = torch.from_numpy(np.asarray(values).astype(np.float32)) if _tiled(study) else None
            if bags is not None:
                there = ~torch.isnan(bags.flatten(2)).all(2)
                present, batch["image_person"], x = there.any(1), torch.nonzero(there)[:, 0], bags[there]
            else:
                made = images(study, values, affine, window)
                present = torch.tensor([one is not None for one in made])
                batch["image_person"] = torch.nonzero(present)[:, 0]
                whole = [one for one in made if one is not None]
                x = torch.from_numpy(np.stack(whole)) if whole else torch.zeros(0, *_image_shape(study))
        batch[f"{name}_present"] = present.float()
        batch[name] = x
    return batch


def images(study: Study, given: Any, affine: Any = None, window: tuple[float, float] | None = None) -> list[np.ndarray[Any, Any] | None]:
    """Each person's image as the network takes it, (channels, *size), None where there is none; see the module's text.

    Raises:
        InputError: an image cannot be read, or is not one that the study can use; the sentence names the file or the person's place.
    """
    from fedml.cohort.images.reasons import ItemError
    from fedml.cohort.one_image import prepare_one, read_one

    shape = study.cohort.image
    entries = list(given["image"]) if isinstance(given, pd.DataFrame) else list(given)
    places = [None] * len(entries) if affine is None else np.broadcast_to(np.asarray(affine, np.float64), (len(entries), 4, 4))
    out: list[np.ndarray[Any, Any] | None] = []
    for number, (entry, place) in enumerate(zip(entries, places, strict=True), start=1):
        if entry is None or isinstance(entry, float) or (isinstance(entry, str) and not entry):  # a table's empty cell is NaN
            out.append(None)
        elif isinstance(entry, str | Path):
            out.append(read_one(Path(entry), shape, window))
        else:
            voxels = np.asarray(entry)
            if voxels.dtype.kind not in "buif":
                raise InputError(f"image {number} of {len(entries)}: holds {voxels.dtype}; give numbers, or a path.")
            try:
                out.append(None if np.isnan(voxels).all() else prepare_one(voxels, place, shape, window))
            except ItemError as error:
                raise InputError(f"image {number} of {len(entries)}: {str(error).rstrip('.')}.") from error
    return out


def _image_shape(study: Study) -> tuple[int, ...]:
    """What a batch without an image has for its shape: nothing is made of it."""
    return (1, 1, 1) if study.cohort.image is None else (study.cohort.image.channels, *study.cohort.image.size)


def _tiled(study: Study) -> bool:
    return study.cohort.image is not None and study.cohort.image.tiles is not None


def score(study: Study, model: CohortModel, given: Any) -> pd.DataFrame:
    """Predictions of ``model`` for raw inputs. A predicted mask is on the voxels that the network gets, in C order."""
    import torch

    batch = to_batch(study, given, saved_window(model.state_dict()))
    with torch.inference_mode():
        out = model(batch)
    return pd.DataFrame(make_task(study).answer.columns(out, batch))


def output_example(study: Study) -> pd.DataFrame:
    """One person's answer in the form that ``predict`` gives, for the signature."""
    return pd.DataFrame(dict(make_task(study).answer.example))


def input_example(study: Study, layout: dict[str, Any]) -> Any:
    """One person in the form that ``predict`` takes, for the signature."""
    columns = list(study.cohort.clinical.columns) if study.cohort.clinical else []
    made: dict[str, Any] = {}
    for name in study.cohort.inputs:
        if name == "image":
            made[name] = np.zeros((1, 1, *layout["image_shape"]) if _tiled(study) else (1, *layout["image_shape"]), np.float32)
        elif name == "variants":
            made[name] = np.zeros((1, layout["variants"]), np.int8)
        else:
            made[name] = np.full((1, len(columns)), np.nan)
    return made if len(made) > 1 else next(iter(made.values()))


def read_layout(run: Path) -> dict[str, Any]:
    """``layout.json`` of a run."""
    layout: dict[str, Any] = json.loads((run / "layout.json").read_text())
    return layout


if __name__ != "fedml.tracking.scoring":  # run by MLflow, which gives the file a name of its own
    mlflow.models.set_model(Scorer())
