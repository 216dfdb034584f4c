"""The interface of a saved model: the schema of its inputs and outputs in MLflow's format, and the packages that it needs.

The schema is written as ``mlflow.models.ModelSignature.to_dict`` does, without MLflow and pandas, which take a second to import.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedml.modalities.layout import Layout
from fedml.modalities.modality import require
from fedml.modalities.registry import modalities_of
from fedml.runs.log import LAYOUT
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tracking.known import Interface
from fedml.tracking.store import versions

_TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}


def interface_of(run: Path, study: Study) -> Interface:
    """The interface of the model of a run.

    Raises:
        InputError: as ``signature_of`` and ``requirements_of``.
    """
    return Interface(signature_of(study, read_layout(run)), tuple(requirements_of(study)))


def read_layout(run: Path) -> dict[str, Any]:
    """``layout.json`` of a run."""
    layout: dict[str, Any] = json.loads((run / LAYOUT).read_text(encoding="utf-8"))
    return layout


def signature_of(study: Study, layout: Mapping[str, Any]) -> dict[str, str | None]:
    """The schema of inputs and outputs of the saved model. ``layout``: ``layout.json`` of the run.

    Raises:
        InputError: an input does not define the form of its raw values.
    """
    forms = [require(modality.form, modality, "form")(study) for modality in modalities_of(study)]
    kinds = [form.kind for form in forms]
    outputs = [{**_type(cells[0]), "name": name, "required": True} for name, cells in make_task(study).answer.example.items()]
    if kinds == ["columns"]:
        # Any type, because MLflow refuses integers if the schema has floats, and a CSV column may be read as either. The model checks the
        # values and names a column that it cannot read. A column may be empty, and none may be absent.
        inputs: list[dict[str, Any]] | None = [{"type": "any", "name": c, "required": True} for c in forms[0].columns]
    elif "any" in kinds:  # arrays of any size or paths cannot be expressed in MLflow's schema; the model checks them
        inputs = None
    else:
        inputs = [_tensor(name, value, bag="bag" in kinds) for name, value in _examples(study, layout).items()]
        inputs = inputs if len(inputs) > 1 else [{k: v for k, v in inputs[0].items() if k != "name"}]
    return {"inputs": None if inputs is None else json.dumps(inputs), "outputs": json.dumps(outputs), "params": None}


def _type(value: Any) -> dict[str, Any]:
    """The type of a cell."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {"type": "array", "items": _type(value[0])}
    return {"type": next(name for kind, name in _TYPES.items() if isinstance(value, kind))}


def _tensor(name: str, value: Any, *, bag: bool) -> dict[str, Any]:
    """The array of one person, for any number of persons. ``bag``: persons differ in how many arrays they have."""
    shape = [-1, -1, *value.shape[2:]] if bag and value.ndim == 5 else [-1, *value.shape[1:]]
    return {"name": name, "type": "tensor", "tensor-spec": {"dtype": value.dtype.name, "shape": shape}}


def _examples(study: Study, layout: Mapping[str, Any]) -> dict[str, Any]:
    sizes = Layout(tuple(layout["image_shape"]), layout["variants"])
    return {m.name: require(m.example, m, "example")(study, sizes) for m in modalities_of(study)}


def input_example(study: Study, layout: Mapping[str, Any]) -> Any:
    """The input of ``predict`` for one person; of several inputs by name."""
    values = _examples(study, layout)
    return values if len(values) > 1 else next(iter(values.values()))


def requirements_of(study: Study) -> list[str]:
    """The packages that a saved model needs, with the installed versions.

    Raises:
        InputError: an input does not define its packages.
    """
    wanted = {package for modality in modalities_of(study) for package in require(modality.packages, modality, "packages")(study)}
    known = versions()
    found = [f"{name}=={number}" for name, number in known.items() if name in {"torch", "numpy", "pandas", "mlflow"} | wanted]
    found += [f"{package.name}=={package.version}" for package in (study.code.packages if study.code is not None else ())]
    return found + [f"{name}=={importlib.metadata.version(name)}" for name in ("pydantic", "safetensors", *sorted(wanted - known.keys()))]
