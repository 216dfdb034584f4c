"""Models in MLflow: a run's model with its signature, and the registry that says which of a study's models is in use.

model = log_model(run, study, parent)                   # once a run; found again if it is there
register(client, "heart", parent, model, tags, "challenger")
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.modalities.modality import require
from fedml.modalities.registry import modalities_of
from fedml.runs.log import LAYOUT, MODEL, PANEL, STUDY
from fedml.study.study import Study
from fedml.tracking.store import store, versions

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CHAMPION, CHALLENGER = "champion", "challenger"
RUN_TAG, STUDY_TAG, WEIGHTS_TAG = "fedml.run_id", "fedml.study_sha256", "fedml.weights_sha256"


@dataclass(frozen=True)
class Version:
    """A version of a registered model: the run it came from, here and in MLflow."""

    name: str
    number: int
    run_id: str
    mlflow_run: str


def holder(client: Any, name: str, alias: str) -> Version | None:
    """The version that an alias points to; None where there is no such model or alias."""
    from mlflow.exceptions import MlflowException

    if not client.search_registered_models(f"name = '{name}'"):  # a server with accounts forbids to ask of what is not there
        return None
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        return _version(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in {ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)}:
            return None
        raise


def _version(found: Any) -> Version:
    return Version(found.name, int(found.version), found.tags.get(RUN_TAG, ""), found.run_id)


def register(client: Any, name: str, parent: str, model: str, tags: Mapping[str, str], alias: str, about: str = "") -> Version:
    """Gives ``alias`` to the version of a run's model, made if it is not there. A challenger that becomes champion is none any more.

    Args:
        parent: MLflow's id of the run. model: of its logged model. tags: of the version; ``RUN_TAG`` tells the run.
        about: description of the model, where it is new.
    """
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=about)
    there = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get(RUN_TAG) == tags[RUN_TAG]]
    found = (
        there[0]
        if there
        else client.create_model_version(name, f"models:/{model}", run_id=parent, tags=dict(tags), model_id=model, await_creation_for=0)
    )
    made = _version(found)
    client.set_registered_model_alias(name, alias, str(made.number))
    other = holder(client, name, CHALLENGER)
    if alias == CHAMPION and other is not None and other.number == made.number:
        client.delete_registered_model_alias(name, CHALLENGER)
    return made


def logged_model(client: Any, parent: str) -> str | None:
    """The id of the model that a run has logged whole; None if there is none."""
    outputs = client.get_run(parent).outputs
    for output in outputs.model_outputs if outputs else ():
        if str(client.get_logged_model(output.model_id).status) == "READY":
            return str(output.model_id)
    return None


def log_model(run: Path, study: Study, parent: str) -> str:
    """Logs the run's model with its signature: ``mlflow.pyfunc.load_model`` scores raw inputs with it, preprocessing included.

    Returns the model's id; a run that has one already keeps it.
    """
    import mlflow
    from mlflow import MlflowClient

    from fedml.tracking import scoring

    if (there := logged_model(MlflowClient(store()), parent)) is not None:
        return there
    signature, requirements = signature_of(study, scoring.read_layout(run)), requirements_of(study)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "run"
        kept.mkdir()
        for name in (STUDY, MODEL, PANEL, LAYOUT):
            (kept / name).write_bytes((run / name).read_bytes())
        mlflow.set_tracking_uri(store())
        # MLflow would have type hints on predict and an input example; the signature is given instead.
        with warnings.catch_warnings(), mlflow.start_run(run_id=parent):
            warnings.simplefilter("ignore")
            made = mlflow.pyfunc.log_model(
                name="model",
                python_model=scoring.__file__,
                artifacts={"run": str(kept)},
                signature=signature,
                pip_requirements=requirements,
                code_paths=[str(_ground_floor(Path(folder)))],
            )
    return str(made.model_id)


def signature_of(study: Study, layout: dict[str, Any]) -> ModelSignature:
    """The schema of what the saved model takes and gives. ``layout``: ``layout.json`` of the run.

    Raises:
        InputError: an input has no form of its raw values.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    from fedml.tracking import scoring

    example, output = scoring.input_example(study, layout), scoring.output_example(study)
    forms = [require(modality.form, modality, "form")(study) for modality in modalities_of(study)]
    kinds = [form.kind for form in forms]
    if kinds == ["columns"]:
        # Any type: MLflow turns whole numbers away where it was told of floats, and a CSV's columns are sometimes the one, sometimes
        # the other. The model checks the values itself and says which column it cannot read.
        columns = [ColSpec(AnyType(), c, required=False) for c in forms[0].columns]
        return ModelSignature(Schema(columns), infer_signature(output).inputs)  # outputs: the schema of what came out
    if "any" in kinds:
        # Of any size, as arrays or as paths, which no schema of MLflow's says. The model checks them itself.
        return ModelSignature(outputs=infer_signature(output).inputs)
    signature = infer_signature(example, output)
    if "bag" in kinds:  # persons differ in how many arrays they have
        shaped = [(s, (-1, -1, *s.shape[2:]) if len(s.shape) == 5 else s.shape) for s in signature.inputs]
        signature = ModelSignature(Schema([TensorSpec(s.type, shape, s.name) for s, shape in shaped]), signature.outputs)
    return signature


def requirements_of(study: Study) -> list[str]:
    """The packages that a saved model needs, each at the version that is here.

    Raises:
        InputError: an input does not say what it needs.
    """
    wanted = {package for modality in modalities_of(study) for package in require(modality.packages, modality, "packages")(study)}
    known = versions()
    found = [f"{name}=={number}" for name, number in known.items() if name in {"torch", "numpy", "pandas", "mlflow"} | wanted]
    return found + [f"{name}=={importlib.metadata.version(name)}" for name in ("pydantic", "safetensors", *sorted(wanted - known.keys()))]


def _ground_floor(folder: Path) -> Path:
    """A copy of ``fedml`` in ``folder`` that a saved model carries: without clients, strategies and experiments."""
    package = Path(__file__).parents[1]
    return Path(
        shutil.copytree(package, folder / "fedml", ignore=shutil.ignore_patterns("clients", "strategies", "experiments", "__pycache__"))
    )
