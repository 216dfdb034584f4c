"""The saved model as MLflow loads it: raw inputs in, probabilities (or the target's own unit) out. MLflow runs this file.

Inputs by the study's list: clinical alone, a table with the raw columns; one of the others alone, an array (persons, channels, *size)
or (persons, variants); several, a dictionary of arrays by name, where a person lacks an input whose values are all NaN (variants: -1).
Of slides: their tiles as the study cuts them, (persons, tiles, channels, size, size), a tile that is all NaN standing for none.
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
from fedml.runlog import STUDY, load_model
from fedml.study import Study, normal, parse_study

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
        """A table, one row a person: ``probability_<class>`` and ``predicted``, or ``predicted`` alone for regression."""
        return score(self.study, self.model, model_input)


def restore(run: Path) -> tuple[Study, CohortModel]:
    """The study and its trained model from a run's folder."""
    from fedml.models.fusion import build_model, load, make_layout

    study = parse_study((run / STUDY).read_text())
    arrays, image_shape, panel = load_model(run)
    model = build_model(study, make_layout(study, image_shape, panel))
    load({k: v for k, v in model.state_dict().items() if v.is_floating_point()}, arrays)
    return study, model.eval()


def to_batch(study: Study, given: Any) -> dict[str, torch.Tensor]:
    """Raw inputs as the model takes them; see the module's text."""
    import torch

    inputs = study.cohort.inputs
    named = {inputs[0]: given} if len(inputs) == 1 else dict(given)
    batch: dict[str, torch.Tensor] = {}
    for name, values in named.items():
        if name == "clinical":
            spec = study.cohort.clinical
            assert spec is not None  # noqa: S101 - the study was validated
            table = values if isinstance(values, pd.DataFrame) else pd.DataFrame(np.asarray(values), columns=list(spec.columns))
            x = torch.from_numpy(code_columns(table, spec, Path("input")).astype(np.float32))
            present = ~torch.isnan(x).all(1)
        else:
            x = torch.from_numpy(np.asarray(values).astype(np.int8 if name == "variants" else np.float32))
            present = ~(x < 0).flatten(1).all(1)
        if name == "image":
            bags = x if _tiled(study) else x[:, None]
            there = ~torch.isnan(bags.flatten(2)).all(2)
            present, batch["image_person"], x = there.any(1), torch.nonzero(there)[:, 0], bags[there]
        batch[f"{name}_present"] = present.float()
        batch[name] = x
    return batch


def _tiled(study: Study) -> bool:
    return study.cohort.image is not None and study.cohort.image.tiles is not None


def score(study: Study, model: CohortModel, given: Any) -> pd.DataFrame:
    """Predictions of ``model`` for raw inputs."""
    import torch

    with torch.inference_mode():
        out = model(to_batch(study, given))
    if study.model.task == "segmentation":
        return pd.DataFrame({"predicted": [one.argmax(0).flatten().tolist() for one in out]})
    if study.model.task == "regression":
        return pd.DataFrame({"predicted": out[:, 0].double().numpy()})
    p = torch.softmax(out.double(), 1).numpy()
    return _table(study, p)


def _table(study: Study, p: np.ndarray[Any, np.dtype[np.float64]]) -> pd.DataFrame:
    names = [normal(c) for c in study.cohort.classes]
    table = pd.DataFrame({f"probability_{c}": p[:, i] for i, c in enumerate(names)})
    table["predicted"] = [names[i] for i in p.argmax(1)]
    return table


def output_example(study: Study) -> pd.DataFrame:
    """One person's answer in the form that ``predict`` gives, for the signature."""
    if study.model.task == "segmentation":
        return pd.DataFrame({"predicted": [[0]]})
    if study.model.task == "regression":
        return pd.DataFrame({"predicted": [0.0]})
    return _table(study, np.full((1, len(study.cohort.classes)), 1 / len(study.cohort.classes)))


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


if __name__ != "fedml.scoring":  # run by MLflow, which gives the file a name of its own
    mlflow.models.set_model(Scorer())
