"""The folder of a saved model, as ``mlflow.pyfunc.save_model`` writes it for a model from code ("models from code"): without importing
``mlflow.pyfunc`` and the model's own code, and without inferring what is known. It has no place and no name of this machine.

    MLmodel, requirements.txt, conda.yaml, python_env.yaml, saved.py, artifacts/fedml.zip, artifacts/run/

https://mlflow.org/docs/latest/ml/model/#model-format
"""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedml.runs.log import LAYOUT, MODEL, PANEL, STUDY
from fedml.study.sources import write_files
from fedml.study.study import Study
from fedml.tracking.known import Interface

RUN, CODE, ARCHIVE = "run", "code", "fedml.zip"  # names of the artifacts, as in ``fedml.tracking.saved``; the file of the second
_SCRIPT = "saved.py"
_BUILD = ("pip", "setuptools", "wheel")  # of which MLflow states the version of the first two, where they are installed


def write_model(out: Path, run: Path, study: Study, interface: Interface, ids: tuple[str, str], archive: bytes) -> None:
    """Writes the model of a run to the new folder ``out``. ``ids``: of the model and of the run in MLflow. ``archive``: the software."""
    copy = out / "artifacts" / RUN
    copy.mkdir(parents=True)
    for name in (STUDY, MODEL, PANEL, LAYOUT):
        (copy / name).write_bytes((run / name).read_bytes())
    write_files(study.code, copy)
    (out / "artifacts" / ARCHIVE).write_bytes(archive)
    (out / _SCRIPT).write_bytes(Path(__file__).with_name(_SCRIPT).read_bytes())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    _write_environment(out, interface.requirements)
    _write_yaml(out, "MLmodel", _description(interface, ids, size))


def _description(interface: Interface, ids: tuple[str, str], size: int) -> dict[str, Any]:
    from mlflow.version import VERSION

    places = {CODE: f"artifacts/{ARCHIVE}", RUN: f"artifacts/{RUN}"}
    flavor = {
        "artifacts": {name: {"path": place, "uri": place} for name, place in places.items()},
        "cloudpickle_version": importlib.metadata.version("cloudpickle"),
        "code": None,
        "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        "loader_module": "mlflow.pyfunc.loaders.code_model",
        "model_code_path": _SCRIPT,
        "python_version": platform.python_version(),
        "streamable": False,
    }
    return {
        "flavors": {"python_function": flavor},
        "is_signature_from_type_hint": False,
        "mlflow_version": VERSION,
        "model_id": ids[0],
        "model_size_bytes": size,
        "model_uuid": ids[0],
        "prompts": None,
        "run_id": ids[1],
        "signature": dict(interface.signature),
        "type_hint_from_example": False,
        "utc_time_created": str(datetime.now(UTC).replace(tzinfo=None)),
    }


def _write_environment(out: Path, requirements: tuple[str, ...]) -> None:
    """How MLflow makes an environment for the model: with conda, or with virtualenv and pip."""
    build = [f"{name}=={number}" if (number := _version(name)) and name != "wheel" else name for name in _BUILD]
    pip = f"pip<={number}" if (number := _version("pip")) else "pip"
    conda = [f"python={platform.python_version()}", pip, {"pip": list(requirements)}]
    (out / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")
    _write_yaml(out, "conda.yaml", {"channels": ["conda-forge"], "dependencies": conda, "name": "mlflow-env"}, in_order=True)
    environment = {"python": platform.python_version(), "build_dependencies": build, "dependencies": ["-r requirements.txt"]}
    _write_yaml(out, "python_env.yaml", environment, in_order=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _write_yaml(out: Path, name: str, value: dict[str, Any], *, in_order: bool = False) -> None:
    from mlflow.utils.yaml_utils import write_yaml

    write_yaml(str(out), name, value, sort_keys=not in_order, ensure_yaml_extension=False)
