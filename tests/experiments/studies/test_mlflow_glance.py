"""What MLflow shows first: figures of the trained model, names and tags that tell runs apart, filters, files; nothing of this machine."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from fedml.experiments.report.page import embedded
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.tracked.confusion import confusion
from fedml.experiments.tracked.files import write_files
from fedml.tracking.deliver import deliver
from tests.command import quick as command
from tests.tracked import SITES, finished

PRIVATE: dict[str, Any] = {
    "privacy__unit": "patient", "privacy__epsilon": 5.0, "privacy__delta": 1e-3, "privacy__persons": {"bergen": 40, "lund": 40},
    "privacy__ranges": {"x1": [0, 6], "x2": [-7, 5], "x3": [0, 200]}, "federation__rounds": 1,
}  # fmt: skip
ACCOUNT = "anna-of-the-centre"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Record], dict[str, str]]:
    """A store with three runs: by fedavg, by fedprox with another seed, private; their records, and MLflow's ids."""
    folder = tmp_path_factory.mktemp("glance")
    changes = {"fedavg": {}, "fedprox": {"strategy__name": "fedprox", "strategy__mu": 0.1, "study__seed": 3}, "private": PRIVATE}
    made = {name: finished(folder, **change) for name, change in changes.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.chdir(folder)
        patch.setenv("LOGNAME", ACCOUNT)  # what Python takes for the name of the account
        ids = {name: deliver(run, study, write=write_files) for name, (run, study) in made.items()}
    return folder, {name: read_record(run) for name, (run, _) in made.items()}, ids


@pytest.fixture(scope="module")
def client(store: tuple[Path, dict[str, Record], dict[str, str]]) -> Any:
    """MLflow's client of the store."""
    import mlflow

    uri = f"sqlite:///{store[0] / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def test_the_models_page_has_test_figures_of_the_trained_model_with_their_data(store: Any, client: Any) -> None:
    _, records, ids = store
    record, final = records["fedavg"], records["fedavg"].final
    parent = client.get_run(ids["fedavg"])
    (output,) = parent.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert output.step == final.round == 2
    assert str(model.status) == "READY"
    assert model.source_run_id == ids["fedavg"]
    assert model.tags["fedml.weights_sha256"] == final.weights_sha256
    figures = {(m.dataset_name, m.key): m for m in model.metrics}
    assert len(figures) == len(model.metrics)
    assert {m.step for m in model.metrics} == {2}, "no figure of the untrained model"
    assert all(key.startswith("test/") for _, key in figures)
    assert figures["all sites", "test/auroc"].value == final.metrics["test"]["all"]["auroc"]
    assert figures["all sites", "test/auroc_low"].value == parent.data.metrics["test/auroc_low"]
    known = {d.dataset.name: d.dataset.digest for d in parent.inputs.dataset_inputs}
    for site in SITES:
        assert figures[site, "test/auroc"].value == final.metrics["test"]["sites"][site]["auroc"]
        assert figures[site, "test/auroc"].dataset_digest == known[site] == str(record.site(site).dataset)[:36]
    assert {name for name, _ in figures} == {*SITES, "all sites"}


def test_names_parameters_and_description_tell_runs_apart(store: Any, client: Any) -> None:
    _, records, ids = store
    runs = {name: client.get_run(mlflow_run) for name, mlflow_run in ids.items()}
    ends = {name: records[name].run_id[-6:] for name in records}
    assert runs["fedavg"].info.run_name == f"fedavg, seed 0 ({ends['fedavg']})"
    assert runs["fedprox"].info.run_name == f"fedprox, seed 3 ({ends['fedprox']})"
    assert runs["private"].info.run_name == f"fedavg, epsilon 5, seed 0 ({ends['private']})"
    different = {key for key in runs["fedprox"].data.params if runs["fedavg"].data.params.get(key) != runs["fedprox"].data.params[key]}
    assert different == {"study.seed", "strategy.name", "strategy.mu"}
    assert len(runs["fedavg"].data.params) < 30, "what was chosen, not every key of a study"
    for name, run in runs.items():
        scores = records[name].final.metrics["test"]["all"]
        assert run.data.tags["fedml.result"].startswith(f"auroc {scores['auroc']:.3f} [")
        assert f"auroc {scores['auroc']:.3f}" in run.data.tags["mlflow.note.content"]
        assert run.data.tags["fedml.engine"] == "local"
    assert runs["private"].data.tags["fedml.epsilon"] not in ("none", "not counted yet")


def test_twenty_filters_of_mlflows_documentation_find_the_right_runs(store: Any, client: Any) -> None:
    _, records, ids = store
    experiment = client.get_experiment_by_name("toy")
    first, second, private = (records[name] for name in ("fedavg", "fedprox", "private"))
    value = {name: record.final.metrics["test"]["all"]["auroc"] for name, record in records.items()}
    between, started = sorted(value.values())[1], int(second.start.time * 1000)
    parents, every = set(ids), {name: {*(f"{name}/{site}" for site in SITES)} for name in ids}
    sites = set().union(*every.values())
    data = {name: str(record.site("lund").dataset)[:36] for name, record in records.items()}
    lund = data["fedavg"]
    queries: dict[str, set[str]] = {
        f"metrics.`test/auroc` >= {between} and tags.`fedml.role` = 'run'": {name for name, v in value.items() if v >= between},
        f"metrics.`test/auroc` < {between} and tags.`fedml.role` = 'run'": {name for name, v in value.items() if v < between},
        "metrics.`privacy/epsilon` > 0 and tags.`fedml.role` = 'run'": {"private"},
        "metrics.`test/auroc_low` > 0 and metrics.`test/auroc_high` <= 1 and tags.`fedml.role` = 'run'": parents,
        "params.`strategy.name` = 'fedprox'": {"fedprox"},
        "params.`strategy.name` != 'fedprox'": {"fedavg", "private"},
        "params.`privacy.unit` LIKE 'pat%'": {"private"},
        "params.`study.seed` = '3'": {"fedprox"},
        "tags.`fedml.strategy` LIKE 'fed%' and tags.`fedml.role` = 'run'": parents,
        "tags.`fedml.study.study` ILIKE 'TOY' and tags.`fedml.role` = 'site'": sites,
        "tags.`fedml.epsilon` = 'none' and tags.`fedml.role` = 'run'": {"fedavg", "fedprox"},
        "tags.`fedml.site` = 'lund' and tags.`fedml.strategy` = 'fedprox'": {"fedprox/lund"},
        f"tags.`mlflow.parentRunId` = '{ids['private']}'": every["private"],
        f"tags.`fedml.run_id` = '{first.run_id}'": {"fedavg", *every["fedavg"]},
        f"tags.`fedml.weights_sha256` = '{private.final.weights_sha256}'": {"private"},
        "attributes.status = 'FINISHED' and tags.`fedml.role` = 'run'": parents,
        "attributes.status != 'FINISHED'": set(),
        "attributes.run_name ILIKE 'FedProx,%'": {"fedprox"},
        "run_name LIKE 'lund:%seed 0%'": {"fedavg/lund", "private/lund"},
        f"attributes.start_time >= {started} and tags.`fedml.role` = 'run'": {"fedprox", "private"},
        "datasets.name = 'lund' and tags.`fedml.role` = 'site'": {"fedavg/lund", "fedprox/lund"},  # a private study tells of no data
        f"dataset.digest IN ('{lund}') and tags.`fedml.role` = 'run'": {n for n, digest in data.items() if digest == lund},
        f"attributes.run_id IN ('{ids['fedavg']}', '{ids['private']}')": {"fedavg", "private"},
        "tags.`fedml.worst_site` != 'oslo' and params.`federation.rounds` = '1'": {"private"},
    }  # fmt: skip
    assert len(queries) >= 20
    for query, wanted in queries.items():
        found = client.search_runs([experiment.experiment_id], query)
        names = {record.run_id: name for name, record in records.items()}
        told = {"/".join(filter(None, (names[r.data.tags["fedml.run_id"]], r.data.tags.get("fedml.site")))) for r in found}
        assert told == wanted, query
        assert len(found) == len(told), query


def test_the_artifacts_are_the_report_plots_card_and_results(store: Any, client: Any, tmp_path: Path) -> None:
    import mlflow
    from mlflow.models import EvaluationResult

    _, records, ids = store
    record = records["fedavg"]
    assert {a.path for a in client.list_artifacts(ids["fedavg"])} == {
        "report.html", "model_card.md", "results.csv", "plots", "evaluation", "record"
    }  # fmt: skip
    folder = Path(mlflow.artifacts.download_artifacts(run_id=ids["fedavg"], dst_path=str(tmp_path), tracking_uri=mlflow.get_tracking_uri()))
    found = embedded((folder / "report.html").read_text())
    results = pd.read_csv(folder / "results.csv")
    row = results[(results.name == "all sites") & (results.metric == "auroc")].iloc[0]
    assert row.value == found["scores"]["all"]["metrics"]["auroc"]["value"]
    assert row.low < row.value < row.high
    assert (folder / "model_card.md").read_text().startswith("# Model card: toy")
    vectors, pixels = ({p.stem for p in (folder / "plots").glob(f"*.{end}")} for end in ("svg", "png"))
    assert vectors == pixels
    assert {"confusion-matrix", "roc-curve", "auroc-by-site"} <= vectors
    assert any(name.startswith("reliability") for name in vectors), "the calibration curve"
    for path in (folder / "plots").glob("*.png"):
        with Image.open(path) as image:
            assert image.width == 840
            assert len(image.convert("L").getcolors()) > 10, f"{path.name} is blank"
    table = confusion(record)
    assert table is not None
    told = EvaluationResult.load(str(folder / "evaluation"))
    assert told.metrics["roc_auc"] == record.final.metrics["test"]["all"]["auroc"]
    assert told.metrics["example_count"] == table.sum() == record.final.metrics["test"]["all"]["persons"]
    assert told.metrics["accuracy_score"] == pytest.approx(table.trace() / table.sum(), abs=0.1)  # cells are rounded
    assert told.artifacts["confusion_matrix"].content == table.tolist()


def test_mlflows_record_is_enough_for_report_bundle_and_verify(store: Any, client: Any, tmp_path: Path) -> None:
    import mlflow

    _, records, ids = store
    place = mlflow.artifacts.download_artifacts(
        run_id=ids["fedprox"], artifact_path="record", dst_path=str(tmp_path), tracking_uri=mlflow.get_tracking_uri()
    )
    done = command("fedml", "report", place, "-o", "again.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    write_files(records["fedprox"].run, tmp_path)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()
    for words in (("bundle", place, "-o", "run.zip"), ("verify", "run.zip")):
        done = command("fedml", *words, cwd=tmp_path, HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr[-1500:]


def test_nothing_in_the_store_names_this_machine_its_user_or_folders(store: Any, tmp_path: Path) -> None:
    """But for the places of artifacts of a store that is a file, by which MLflow finds them; a server has none."""
    folder = store[0]
    words = {str(folder), str(Path.cwd()), str(Path.home()), os.environ.get("TMPDIR", "/tmp/")}  # noqa: S108 - what must not be there
    words |= {ACCOUNT, socket.gethostname()}
    wanted = re.compile("|".join(rf"(?<![\w-]){re.escape(word)}(?![\w-])" for word in sorted(words)))
    found = []
    with sqlite3.connect(folder / "mlflow.db") as database:
        for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
            rows = database.execute(f"select * from {table}")  # noqa: S608 - a name of the schema
            names = [column[0] for column in rows.description]
            found += [
                f"{table}.{name}: {value[:200]}"
                for row in rows
                for name, value in zip(names, row, strict=True)
                if isinstance(value, str) and wanted.search(value) and name not in ("artifact_uri", "artifact_location", "storage_location")
            ]
    files = [path for path in (folder / "mlruns").rglob("*") if path.is_file()]
    assert any(path.name == "MLmodel" for path in files)
    for path in files:
        data = path.read_bytes().decode("latin-1")
        found += [f"{path.name}: {match[0]}" for match in wanted.finditer(data) if path.suffix not in (".png", ".zip", ".safetensors")]
    assert found == []


TWO = """
import sys, mlflow, pandas as pd
import fedml
table = pd.DataFrame({"x1": [3.0], "x2": [-1.0], "x3": [100.0]})
models = [mlflow.pyfunc.load_model(uri) for uri in sys.argv[1:]]
print([float(model.predict(table)["probability_1"].iloc[0]) for model in models])
print(sorted({name.partition(".")[0] for name in sys.modules if name.startswith("fedml_")}))
"""


def test_two_saved_models_in_one_process_run_each_their_own_code(store: Any, client: Any, tmp_path: Path) -> None:
    """The second model's software gives half of every probability; the process has this software installed too."""
    import zipfile

    import mlflow

    ids = store[2]
    (output,) = client.get_run(ids["fedavg"]).outputs.model_outputs
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        mlflow.artifacts.download_artifacts(f"models:/{output.model_id}", dst_path=str(place), tracking_uri=mlflow.get_tracking_uri())
    archive = other / "artifacts" / "fedml.zip"
    with zipfile.ZipFile(archive) as file:
        sources = {name: file.read(name) for name in file.namelist()}
    place = "fedml/tracking/scoring.py"
    changed = sources[place].decode().replace(
        "return pd.DataFrame(make_task(study).answer.columns(out, batch))",
        "found = pd.DataFrame(make_task(study).answer.columns(out, batch)); found['probability_1'] /= 2; return found",
    )  # fmt: skip
    assert changed != sources[place].decode()
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in (sources | {place: changed.encode()}).items():
            file.writestr(name, data)
    words = [sys.executable, "-c", TWO, str(one), str(other), str(one)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    values, names = done.stdout.strip().splitlines()[-2:]
    whole, half, again = json.loads(values)
    assert half == pytest.approx(whole / 2, rel=1e-12)
    assert again == whole
    assert len(json.loads(names.replace("'", '"'))) == 2


def test_a_column_that_the_signature_requires_may_be_empty_and_not_absent(store: Any, client: Any) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    (output,) = client.get_run(store[2]["fedavg"]).outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    assert [(c.name, c.required) for c in model.metadata.signature.inputs] == [("x1", True), ("x2", True), ("x3", True)]
    table = pd.DataFrame({"x1": [3.0, 2.0], "x2": [-1.0, float("nan")], "x3": [100, 90]})
    assert model.predict(table)["probability_1"].between(0, 1).all()
    with pytest.raises(MlflowException, match=r"missing inputs.*x3"):
        model.predict(table[["x1", "x2"]])


TRACK = """
import sys
from fedml.experiments.cli import main
sys.argv = ["fedml", "track", sys.argv[1]]
main()
"""


@pytest.mark.long
def test_three_trackers_at_once_make_a_new_store(store: Any, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    _, records, _ = store
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    words = [[sys.executable, "-c", TRACK, str(record.run)] for record in records.values()]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    started = [subprocess.Popen(w, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True) for w in words]
    ended = [(process.communicate(timeout=400), process.returncode) for process in started]
    assert [code for _, code in ended] == [0, 0, 0], ended
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert len(found) == 3 * (1 + len(SITES))
    assert {r.info.status for r in found} == {"FINISHED"}
