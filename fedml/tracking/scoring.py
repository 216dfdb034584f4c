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
import pandas as pd
from mlflow.pyfunc import PythonModel

from fedml.errors import InputError
from fedml.modalities.layout import Layout
from fedml.modalities.modality import Raw, require
from fedml.modalities.registry import MODALITIES, modalities_of
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
    """Raw inputs as the model takes them; see the module's text.

    Raises:
        InputError: values of an input that the model does not have, or that cannot be used.
    """
    inputs = study.cohort.inputs
    # A dictionary is by name even where there is one input: an image may have its affine beside it.
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
    sizes = Layout(tuple(layout["image_shape"]), layout["variants"])
    made = {m.name: require(m.example, m, "example")(study, sizes) for m in modalities_of(study)}
    return made if len(made) > 1 else next(iter(made.values()))


def read_layout(run: Path) -> dict[str, Any]:
    """``layout.json`` of a run."""
    layout: dict[str, Any] = json.loads((run / "layout.json").read_text())
    return layout


if __name__ != "fedml.tracking.scoring":  # run by MLflow, which gives the file a name of its own
    mlflow.models.set_model(Scorer())
