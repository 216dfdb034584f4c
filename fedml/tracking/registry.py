"""Models in MLflow: the model of a run with its signature, and the registry with the model in use for each study.

model = log_model(run, study, parent)                   # one model for each run; an existing one is returned
register(client, "heart", parent, model, tags, "challenger")
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.runs.log import STUDY
from fedml.study.study import Study
from fedml.tracking.known import Interface
from fedml.tracking.model_files import write_model
from fedml.tracking.store import connect, store

CHAMPION, CHALLENGER = "champion", "challenger"
RUN_TAG, STUDY_TAG, WEIGHTS_TAG = "fedml.run_id", "fedml.study_sha256", "fedml.weights_sha256"
_ABOVE = ("clients", "strategies", "experiments")  # what a saved model does not need


@dataclass(frozen=True)
class About:
    """What MLflow's page of a model says besides its metrics. ``step``: the round it is of."""

    tags: Mapping[str, str]
    params: Mapping[str, str]
    step: int


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


def logged_model(client: Any, parent: str) -> tuple[str, bool] | None:
    """The id of the model of a run, and whether all of it is logged; None if there is none."""
    outputs = client.get_run(parent).outputs
    known = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else ())]
    best = sorted(known, key=lambda model: str(model.status) != "READY")
    return (str(best[0].model_id), str(best[0].status) == "READY") if best else None


def begin_model(client: Any, study: Study, parent: str, about: About) -> tuple[str, bool]:
    """The id of the run's model, which is created if there is none, and whether all of it is logged: metrics may name it before."""
    from mlflow.entities import LoggedModelOutput

    if (found := logged_model(client, parent)) is not None:
        return found
    experiment = client.get_run(parent).info.experiment_id
    model = client.create_logged_model(experiment, "model", parent, dict(about.tags), dict(about.params), study.model.task)
    client.log_outputs(parent, [LoggedModelOutput(model.model_id, about.step)])
    return str(model.model_id), False


def log_model(run: Path, study: Study, parent: str, about: About | None = None, interface: Interface | None = None) -> str:
    """Logs the run's model with its signature. A model from ``mlflow.pyfunc.load_model`` predicts from raw inputs, with preprocessing.

    Returns the model's id; an existing model of the run is kept. ``interface``: None: it is made here, which loads PyTorch.
    """
    client = connect()
    model, whole = begin_model(client, study, parent, about or About({}, {}, 0))
    if whole:
        return model
    if interface is None:
        from fedml.tracking.signature import interface_of

        interface = interface_of(run, study)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", run, study, interface, (model, parent), package_archive())
        client.log_model_artifacts(model, str(Path(folder) / "model"))
    client.finalize_logged_model(model, "READY")
    return model


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


@cache
def package_archive() -> bytes:
    """``fedml`` without clients, strategies and experiments as a zip file, for saved models; the same code gives the same bytes."""
    package, out = Path(__file__).parents[1], io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(package.rglob("*.py")):
            place = path.relative_to(package)
            if place.parts[0] not in _ABOVE:
                entry = zipfile.ZipInfo(f"fedml/{place.as_posix()}")
                entry.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(entry, path.read_bytes())
    return out.getvalue()
