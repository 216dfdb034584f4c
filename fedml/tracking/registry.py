"""Models in MLflow: the model of a run with its signature, and the registry with the model in use for each study.

model = log_model(run, study, parent)                   # one model for each run; an existing one is returned
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

from fedml.errors import InputError
from fedml.modalities.modality import require
from fedml.modalities.registry import modalities_of
from fedml.runs.log import LAYOUT, MODEL, PANEL, STUDY
from fedml.study.sources import write_files
from fedml.study.study import Study
from fedml.tracking.store import store, versions

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CHAMPION, CHALLENGER = "champion", "challenger"
RUN_TAG, STUDY_TAG, WEIGHTS_TAG = "fedml.run_id", "fedml.study_sha256", "fedml.weights_sha256"


@dataclass(frozen=True)
class Version:
    """A version of a registered model: the run it is from (``run_id``) and the id of that run in MLflow (``mlflow_run``)."""

    name: str
    number: int
    run_id: str
    mlflow_run: str


def holder(client: Any, name: str, alias: str) -> Version | None:
    """The version with an alias; None if the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    if not client.search_registered_models(f"name = '{name}'"):  # a server with accounts refuses requests for a model that does not exist
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
    """Gives ``alias`` to the version of a run's model; creates the version if missing. A new champion loses the alias challenger.

    Args:
        parent: MLflow's id of the run. model: of its logged model. tags: of the version; ``RUN_TAG`` identifies the run.
        about: description of a new model.
    """
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=about)
    versions_of_run = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get(RUN_TAG) == tags[RUN_TAG]]
    found = (
        versions_of_run[0]
        if versions_of_run
        else client.create_model_version(name, f"models:/{model}", run_id=parent, tags=dict(tags), model_id=model, await_creation_for=0)
    )
    version = _version(found)
    client.set_registered_model_alias(name, alias, str(version.number))
    other = holder(client, name, CHALLENGER)
    if alias == CHAMPION and other is not None and other.number == version.number:
        client.delete_registered_model_alias(name, CHALLENGER)
    return version


def logged_model(client: Any, parent: str) -> str | None:
    """The id of the completely logged model of a run; None if there is none."""
    outputs = client.get_run(parent).outputs
    for output in outputs.model_outputs if outputs else ():
        if str(client.get_logged_model(output.model_id).status) == "READY":
            return str(output.model_id)
    return None


def log_model(run: Path, study: Study, parent: str) -> str:
    """Logs the run's model with its signature. A model from ``mlflow.pyfunc.load_model`` predicts from raw inputs, with preprocessing.

    Returns the model's id; an existing model of the run is kept.
    """
    import mlflow
    from mlflow import MlflowClient

    from fedml.tracking import scoring

    if (logged := logged_model(MlflowClient(store()), parent)) is not None:
        return logged
    signature, requirements = signature_of(study, scoring.read_layout(run)), requirements_of(study)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        copy.mkdir()
        for name in (STUDY, MODEL, PANEL, LAYOUT):
            (copy / name).write_bytes((run / name).read_bytes())
        write_files(study.code, copy)
        mlflow.set_tracking_uri(store())
        # MLflow warns about missing type hints and input example; the signature replaces them.
        with warnings.catch_warnings(), mlflow.start_run(run_id=parent):
            warnings.simplefilter("ignore")
            model = mlflow.pyfunc.log_model(
                name="model",
                python_model=scoring.__file__,
                artifacts={"run": str(copy)},
                signature=signature,
                pip_requirements=requirements,
                code_paths=[str(_package_copy(Path(folder)))],
            )
    return str(model.model_id)


def fetch_model(uri: str, into: Path) -> Path:
    """Downloads a logged model and returns the run's folder in it: study, arrays, panel, layout. Nothing of it is run.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/ID/model``.

    Raises:
        InputError: there is no such model, or it is not one of this software.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(store())
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into)))
    except (MlflowException, OSError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"{uri}: MLflow has no such model ({why}); see fedml ui, or give a run's folder.") from error
    found = sorted(path.parent for path in folder.rglob(STUDY))
    if not found:
        raise InputError(f"{uri}: is not a model that fedml logged, it has no {STUDY}; give a run's folder.")
    return found[0]


def signature_of(study: Study, layout: dict[str, Any]) -> ModelSignature:
    """The schema of inputs and outputs of the saved model. ``layout``: ``layout.json`` of the run.

    Raises:
        InputError: an input does not define the form of its raw values.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    from fedml.tracking import scoring

    example, output = scoring.input_example(study, layout), scoring.output_example(study)
    forms = [require(modality.form, modality, "form")(study) for modality in modalities_of(study)]
    kinds = [form.kind for form in forms]
    if kinds == ["columns"]:
        # Any type, because MLflow refuses integers if the schema has floats, and a CSV column may be read as either. The model checks the
        # values and names a column that it cannot read.
        columns = [ColSpec(AnyType(), c, required=False) for c in forms[0].columns]
        return ModelSignature(Schema(columns), infer_signature(output).inputs)  # outputs: the schema of the example
    if "any" in kinds:
        # Arrays of any size or paths cannot be expressed in MLflow's schema. The model checks them.
        return ModelSignature(outputs=infer_signature(output).inputs)
    signature = infer_signature(example, output)
    if "bag" in kinds:  # persons differ in how many arrays they have
        shaped = [(s, (-1, -1, *s.shape[2:]) if len(s.shape) == 5 else s.shape) for s in signature.inputs]
        signature = ModelSignature(Schema([TensorSpec(s.type, shape, s.name) for s, shape in shaped]), signature.outputs)
    return signature


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


def _package_copy(folder: Path) -> Path:
    """A copy of ``fedml`` in ``folder`` for a saved model, without clients, strategies and experiments."""
    package = Path(__file__).parents[1]
    return Path(
        shutil.copytree(package, folder / "fedml", ignore=shutil.ignore_patterns("clients", "strategies", "experiments", "__pycache__"))
    )
