"""The folder and the schema of a saved model are those that MLflow itself writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.models import Model, ModelSignature, infer_signature

from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tracking import saved
from fedml.tracking.known import Interface
from fedml.tracking.model_files import CODE, RUN, write_model
from fedml.tracking.registry import package_archive
from fedml.tracking.signature import input_example, interface_of, signature_of
from tests.conftest import make_study
from tests.tracked import finished

LAYOUT = {"image_shape": [1, 8, 8], "variants": 5}
IMAGE = {"cohort__image": {"channels": 1, "size": [8, 8]}, "model__image": {"net": "cnn"}}
VARIANTS = {"cohort__variants": {"regions": ["1:1-1000"]}, "model__variants": {"net": "linear"}}
STUDIES = {
    "an image": lambda: make_study(("image",), **IMAGE),
    "variants": lambda: make_study(("variants",), **VARIANTS),
    "both": lambda: make_study(("image", "variants"), **IMAGE, **VARIANTS),
    "a number": lambda: make_study(("variants",), **VARIANTS, model__task="regression"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_schema_is_that_which_mlflow_infers(name: str) -> None:
    study: Study = STUDIES[name]()
    output = pd.DataFrame(dict(make_task(study).answer.example))
    assert signature_of(study, LAYOUT) == infer_signature(input_example(study, LAYOUT), output).to_dict()


@pytest.mark.parametrize("cells", [{"predicted": [[0]], "size": [[1]]}, {"a": ["x"], "b": [True], "c": [1], "d": [0.5]}])
def test_the_types_of_answers_are_those_of_mlflow(cells: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    answer = make_task(study).answer
    monkeypatch.setattr(type(answer), "example", property(lambda _: cells), raising=False)
    monkeypatch.setattr("fedml.tracking.signature.make_task", lambda _: type("T", (), {"answer": type("A", (), {"example": cells})}))
    found = ModelSignature.from_dict(signature_of(study, LAYOUT))
    assert found.outputs == infer_signature(pd.DataFrame(cells)).inputs
    assert [column.name for column in found.inputs] == ["x1", "x2", "x3"]


def test_the_folder_is_that_of_save_model(tmp_path: Path) -> None:
    run, study = finished(tmp_path)
    interface = interface_of(run, study)
    write_model(tmp_path / "ours", run, study, interface, ("m-1", "2"), package_archive())
    reference(tmp_path, run, interface)
    ours, theirs = (everything(tmp_path / name) for name in ("ours", "theirs"))
    flavor = theirs["MLmodel"]["flavors"]["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name  # which names the folder, as the two uris do
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    for found in (ours, theirs):
        found["MLmodel"].pop("utc_time_created")
        found["MLmodel"].pop("model_size_bytes")
    assert ours == theirs
    row = pd.DataFrame({f"x{k}": [1.0] for k in (1, 2, 3)})
    ends = [mlflow.pyfunc.load_model(str(tmp_path / name)).predict(row) for name in ("ours", "theirs")]
    pd.testing.assert_frame_equal(*ends)
    assert np.isfinite(ends[0]["probability_1"]).all()


def reference(folder: Path, run: Path, interface: Interface) -> None:
    """The same model by ``save_model``."""
    (folder / "fedml.zip").write_bytes(package_archive())
    (folder / "run").mkdir()
    for name in ("study.json", "model.safetensors", "panel.tsv", "layout.json"):
        (folder / "run" / name).write_bytes((run / name).read_bytes())
    mlflow.pyfunc.save_model(
        str(folder / "theirs"),
        python_model=saved.__file__,
        artifacts={saved.RUN: str(folder / "run"), saved.CODE: str(folder / "fedml.zip")},
        signature=ModelSignature.from_dict(dict(interface.signature)),
        pip_requirements=list(interface.requirements),
        mlflow_model=Model(model_id="m-1", model_uuid="m-1", run_id="2"),
    )
    assert (saved.RUN, saved.CODE) == (RUN, CODE)


def everything(folder: Path) -> dict[str, Any]:
    """Each file by its path, YAML as its value."""
    out = dict[str, Any]()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            data = path.read_bytes()
            out[path.relative_to(folder).as_posix()] = yaml.safe_load(data) if path.suffix in ("", ".yaml") else data
    return out
