"""Omics from a site's file to the report: two sites whose matrices hold a planted signal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import find_sites, read_site
from fedml.clients.site.read import load_cohort, read_cohort
from fedml.cohort import omics
from fedml.cohort.inputs import Table
from fedml.cohort.omics import read_omics
from fedml.cohort.persons import Cohort
from fedml.cohort.wide.matrix import Matrix
from fedml.errors import InputError
from fedml.experiments.checklists.facts import facts_of
from fedml.experiments.checklists.fill import checklists_markdown
from fedml.experiments.models.predictions import predictions
from fedml.experiments.report.page import render
from fedml.experiments.runs.record import read_record
from fedml.experiments.runs.run import new_run, run
from fedml.runs.restore import restore
from fedml.strategies.describe import describe
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study
from fedml.synthetic.placeholder import make_placeholder
from fedml.synthetic.write_site import write_site
from fedml.tracking.scoring import score
from fedml.tracking.signature import signature_of
from tests.command import quick as command
from tests.conftest import Run, federate, make_plan, make_study, pooled, to_toml, write_csv, write_manifest

FEATURES = tuple(f"ENSG{k:03d}" for k in range(12))
PLANTED = {"ENSG003": 2.0, "ENSG007": -1.5}
SIZES = {"a": 260, "b": 180}


def omics_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """A matrix of ``FEATURES`` (on different scales, some cells missing, columns in another order, a feature more) and a label drawn
    from the log-odds of ``PLANTED``; ten persons have no row."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    ids = [f"{name}{k:04d}" for k in range(persons)]
    z = rng.normal(size=(persons, len(FEATURES)))
    odds = sum(beta * z[:, FEATURES.index(feature)] for feature, beta in PLANTED.items())
    y = (rng.random(persons) < 1 / (1 + np.exp(-odds))).astype(int)
    values = z * np.linspace(0.1, 50, len(FEATURES)) + np.linspace(-3, 900, len(FEATURES))
    values[rng.random(values.shape) < 0.03] = np.nan
    write_csv(folder / "persons.csv", ids, {"y": y})
    columns = {feature: values[:, FEATURES.index(feature)] for feature in reversed(FEATURES)} | {"unused": rng.normal(size=persons)}
    order = rng.permutation(persons)[10:]
    write_csv(folder / "expression.csv", [ids[k] for k in order], {feature: column[order] for feature, column in columns.items()})
    return write_manifest(folder, name, omics='{ path = "expression.csv" }')


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, the study as a file with its features in another, and a run of it."""
    folder = tmp_path_factory.mktemp("omics")
    for seed, (name, persons) in enumerate(SIZES.items()):
        omics_site(folder / "sites" / name, name, persons, seed)
    (folder / "genes.txt").write_text("\n".join(FEATURES) + "\n")
    changes = {"federation__rounds": 12, "training": {"lr": 0.05, "local_epochs": 2, "batch_size": 16}}
    plan = make_plan(("omics",), tuple(SIZES), **changes)
    plan["cohort"]["omics"] = {"features": "genes.txt"}
    (folder / "study.toml").write_text(to_toml(plan))
    study = read_study(folder / "study.toml")
    made = new_run(study, folder / "runs", folder / "study.toml", engine="local", job="train")
    sites = find_sites(folder / "sites", study.federation.sites)[0]
    assert run(study, sites, made).status == "finished"
    return folder


@pytest.fixture(scope="module")
def study(work: Path) -> Study:
    return read_study(work / "study.toml")


def run_of(work: Path) -> Path:
    return next((work / "runs").iterdir())


def cohort_of(work: Path, name: str, study: Study) -> Cohort:
    return load_cohort((str(work / "sites" / name / "site.toml"),), study)


def test_the_study_holds_its_features_and_survives_the_wire(study: Study) -> None:
    assert study.cohort.omics is not None
    assert study.cohort.omics.columns == FEATURES
    assert study.model.omics is not None, "the network that is meant is written out"
    assert parse_study(study.canonical).sha256 == study.sha256
    assert make_study().canonical.count("omics") == 0, "a study without omics has no key of it"


def test_the_planted_signal_is_recovered(work: Path) -> None:
    found = Run(run_of(work))
    assert found.final["metrics"]["test"]["all"]["auroc"] > 0.8
    weight = found.arrays["encoder.omics.weight"]
    effect = dict(zip(FEATURES, (weight[1] - weight[0]).tolist(), strict=True))
    by_size = sorted(FEATURES, key=lambda feature: -abs(effect[feature]))
    assert set(by_size[:2]) == set(PLANTED)
    assert all(np.sign(effect[feature]) == np.sign(beta) for feature, beta in PLANTED.items())


def test_it_is_standardised_by_the_moments_of_all_sites(work: Path, study: Study, tmp_path: Path) -> None:
    tables = [pd.read_csv(work / "sites" / name / "expression.csv", dtype={"id": str}).set_index("id") for name in SIZES]
    cohorts = [cohort_of(work, name, study) for name in SIZES]
    train = [t.loc[[c.ids[r] for r in c.rows("train")], list(FEATURES)] for t, c in zip(tables, cohorts, strict=True)]
    values = pd.concat(train)
    constants = Run(run_of(work)).constants()
    np.testing.assert_allclose(constants["preprocess.omics.mean"], values.mean(), rtol=1e-6)
    np.testing.assert_allclose(constants["preprocess.omics.std"], values.std(ddof=0), rtol=1e-6)
    together = pooled(study, [work / "sites" / name / "site.toml" for name in SIZES], tmp_path / "pooled").constants()
    assert all(torch.allclose(constants[key], value, rtol=1e-6) for key, value in together.items())


def test_the_site_is_shown_what_is_read(work: Path) -> None:
    seen = command("fedml-site", "check", "study.toml", "--site", "sites/a", cwd=work)
    assert seen.returncode == 0, seen.stderr
    assert "would use 250 persons" in seen.stdout
    assert "excluded 10 persons: no input" in seen.stdout
    matrix = pd.read_csv(work / "sites" / "a" / "expression.csv").set_index("id")[list(FEATURES)]
    assert f"omics: 12 features of 250 persons, {matrix.isna().to_numpy().mean():.1%} missing" in seen.stdout
    looked = command("fedml-site", "doctor", "--site", "sites/a", cwd=work)
    assert "persons and omics" in looked.stdout
    assert "omics: 250 persons" in looked.stdout


def test_the_saved_model_takes_raw_values(work: Path, study: Study) -> None:
    table = pd.read_csv(work / "sites" / "b" / "expression.csv", dtype={"id": str}).set_index("id")
    cohort, (_, model) = cohort_of(work, "b", study), restore(run_of(work))
    with torch.inference_mode():
        expected = torch.softmax(model(cohort.batch(range(len(cohort)))).double(), 1).numpy()
    said = score(study, model, table.loc[list(cohort.ids)])
    np.testing.assert_allclose(said[["probability_0", "probability_1"]], expected, atol=1e-6)
    assert [column["name"] for column in json.loads(signature_of(study, {"image_shape": [], "variants": 0})["inputs"] or "")] == list(
        FEATURES
    )
    with pytest.raises(InputError, match='column "ENSG003" has no finite number for 1 person'):
        score(study, model, table.astype({"ENSG003": object}).replace({"ENSG003": {table["ENSG003"].dropna().iloc[0]: "high"}}))
    with pytest.raises(InputError, match='has no column "ENSG011"'):
        score(study, model, table.drop(columns="ENSG011"))


def test_a_rehearsal_plays_persons_who_do_not_exist(work: Path, study: Study) -> None:
    real = cohort_of(work, "a", study).input("omics", Table)
    made = make_placeholder(cohort_of(work, "a", study), study).input("omics", Table)
    assert real is not None
    assert made is not None
    np.testing.assert_array_equal(np.isnan(made.values), np.isnan(real.values))
    assert not np.isin(made.values[np.isfinite(made.values)], real.values).any(), "no value of a real person is taken"
    played = rehearse(read_site(work / "sites" / "a"), study)
    assert played.persons == 250
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


def test_the_digest_follows_every_value(work: Path, study: Study, tmp_path: Path) -> None:
    manifest = omics_site(tmp_path / "a", "a", SIZES["a"], 0)
    before = cohort_of(work, "a", study)
    assert read_cohort(read_site(manifest), study).digest == before.digest
    table = pd.read_csv(tmp_path / "a" / "expression.csv", dtype={"id": str})
    row, column = int(np.flatnonzero(table["id"] == before.ids[5])[0]), "ENSG004"
    table.loc[row, column] = float(table.loc[row, column]) + 1e-9
    table.to_csv(tmp_path / "a" / "expression.csv", index=False)
    assert read_cohort(read_site(manifest), study).digest != before.digest


def test_plan_report_and_checklists_say_what_it_is(work: Path, study: Study) -> None:
    plan = describe(study)
    assert "Reads       12 omics features (ENSG000, ENSG001," in plan
    assert "count, sum and sum of squares of each omics feature over training persons" in " ".join(plan.split())
    record = read_record(run_of(work))
    facts = facts_of(record)
    assert facts["columns"].text.startswith("Omics features: 12 (ENSG000,")
    assert facts["columns"].pointers == ("study.json#/cohort/omics/columns",)
    assert facts["preprocessing"].text.endswith("all sites: omics features.")
    assert facts["missing"].text == "A missing omics value is replaced by the mean."
    assert "omics: linear" in facts["model"].text
    page, lists = render(record), checklists_markdown(record)
    for text in ("Omics features: 12", "omics: linear", "A missing omics value is replaced by the mean."):
        assert text in page
        assert text in lists


# --- a matrix that is too large for memory: the limit is lowered for it


def single_sites(folder: Path, *, public: bool = True) -> dict[str, Path]:
    """The sites with numbers that are exact in single precision."""
    found = {}
    for seed, (name, persons) in enumerate(SIZES.items()):
        found[name] = omics_site(folder / name, name, persons, seed)
        path = folder / name / "expression.csv"
        table = pd.read_csv(path, dtype={"id": str}).set_index("id")
        table.astype(np.float32).astype(np.float64).to_csv(path)
        if not public:
            found[name].write_text(found[name].read_text().replace("public = true\n", ""))
    return found


@pytest.mark.parametrize("public", [True, False])
def test_a_run_from_disk_gives_the_weights_of_one_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public: bool) -> None:
    """Bit for bit, but for medians of few persons' gaps, which are between two numbers: they may differ in the last bit."""
    study = make_study(("omics",), tuple(SIZES), cohort__omics={"columns": list(FEATURES)}, training={"lr": 0.05, "batch_size": 16})
    there = single_sites(tmp_path / "memory", public=public)
    here = single_sites(tmp_path / "disk", public=public)
    memory = federate(study, there.values(), tmp_path / "run-memory")
    together = pooled(study, there.values(), tmp_path / "pooled-memory")
    monkeypatch.setattr(omics, "LARGEST", 0)
    disk = federate(study, here.values(), tmp_path / "run-disk")
    assert isinstance(load_cohort((str(here["a"]),), study).inputs["omics"], Matrix)
    assert isinstance(load_cohort((str(there["a"]),), study).inputs["omics"], Table)
    for found, expected in ((disk, memory), (pooled(study, here.values(), tmp_path / "pooled-disk"), together)):
        if public:
            assert found.sha256 == expected.sha256
            assert found.final["metrics"] == expected.final["metrics"]
        for key, value in expected.arrays.items():
            torch.testing.assert_close(found.arrays[key], value, rtol=1e-5, atol=1e-6)


def test_predictions_of_a_run_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    sites = {name: read_site(path) for name, path in single_sites(tmp_path / "memory").items()}
    expected = predictions(run_of(work), sites)
    monkeypatch.setattr(omics, "LARGEST", 0)
    found = predictions(run_of(work), {name: read_site(path) for name, path in single_sites(tmp_path / "disk").items()})
    pd.testing.assert_frame_equal(found, expected)
    assert len(found) == sum(SIZES.values()) - 20


def test_what_a_matrix_on_disk_cannot_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: Study) -> None:
    monkeypatch.setattr(omics, "LARGEST", 0)
    cohort = load_cohort((str(single_sites(tmp_path / "disk")["a"]),), study)
    with pytest.raises(InputError, match=r"a matrix of more than 256 MB .* cannot be rehearsed; rehearse the study with fewer features"):
        make_placeholder(cohort, study)
    with pytest.raises(InputError, match="cannot be written for canaries; audit the study with fewer features"):
        write_site(tmp_path / "canaries", cohort, study)


# --- files


def write_matrix(path: Path, table: pd.DataFrame) -> Path:
    match path.suffix:
        case ".parquet":
            table.to_parquet(path)
        case ".tsv":
            table.to_csv(path, sep="\t", index=False)
        case _:
            table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_a_matrix_reads_alike_from_each_kind_of_file(tmp_path: Path, ending: str) -> None:
    table = pd.DataFrame({"id": ["p2", "007", "p3"], "g2": [1.5, np.nan, 3], "g1": [7, 8, 9], "g3": [np.nan] * 3})
    found = read_omics(write_matrix(tmp_path / f"matrix{ending}", table), ["g1", "g2"], ["007", "p3", "absent"])
    np.testing.assert_array_equal(found.values, [[8, np.nan], [9, 3], [np.nan, np.nan]])
    assert found.present.tolist() == [True, True, False]
    empty = read_omics(tmp_path / f"matrix{ending}", ["g3"], ["007", "p3"])
    assert empty.present.tolist() == [False, False], "a row without a number is no input"


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("id,g1\np,high\n", ["g1"], 'column "g1" has no finite number for 1 person'),
        ("id,g1\np,inf\nq,1\n", ["g1"], 'column "g1" has no finite number for 1 person'),
        ("id,g1\np,True\nq,False\n", ["g1"], 'column "g1" has no finite number for 2 person'),
        ("id,g1,g1\np,1,2\n", ["g1"], 'has the column "g1" 2 times; keep one'),
        ("id,g1\np,1\n", ["g1", "G2"], 'has no column "G2"'),
        ("name,g1\np,1\n", ["g1"], 'has no column "id"'),
        ("id,g1\np,1\np,2\n", ["g1"], "keep one row a person"),
    ],
)
def test_a_matrix_that_cannot_be_used_is_refused_by_name(tmp_path: Path, text: str, columns: list[str], expected: str) -> None:
    (tmp_path / "matrix.csv").write_text(text)
    with pytest.raises(InputError, match=expected) as refused:
        read_omics(tmp_path / "matrix.csv", columns, ["p"])
    assert str(refused.value).startswith(str(tmp_path / "matrix.csv"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cohort__omics": None}, r'inputs lists "omics", so a section \[cohort.omics\]'),
        ({"cohort__omics": {"columns": ["g", "g"]}}, 'columns lists "g" twice'),
        ({"cohort__omics": {"columns": []}}, "at least 1"),
        ({"cohort__omics": {"columns": ["y"]}}, "which would reveal it to the model"),
        ({"cohort__omics": {"columns": ["id"]}}, 'columns lists "id"'),
        ({"cohort__omics": {"columns": ["g"], "range": [4, -4]}}, "the first must be smaller"),
        ({"cohort__omics": {"columns": ["g"], "range": [4, 4]}}, "the first must be smaller"),
        ({"cohort__inputs": ["clinical"], "cohort__clinical": {"columns": ["x"]}, "cohort__omics": {"columns": ["g"]}}, "does not list"),
        (
            {"cohort__inputs": ["clinical"], "cohort__clinical": {"columns": ["x"]}, "cohort__omics": None, "model__omics": {}},
            r"\[model\] omics is given",
        ),
        (
            {"privacy": {"unit": "patient", "epsilon": 4.0, "persons": {"a": 90, "b": 90}}},
            r"\[cohort.omics\] range is missing, a private study needs it",
        ),
    ],
)
def test_a_study_that_cannot_work_is_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make_study(("omics",), **{"cohort__omics": {"columns": ["g"]}, **changes})


@pytest.mark.parametrize(
    ("files", "expected"),
    [({}, "cannot be read"), ({"genes.txt": b"\n\n"}, "has no feature"), ({"genes.txt": b"\xff"}, "is not UTF-8 text")],
)
def test_a_list_of_features_that_cannot_be_used_is_refused(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    plan = make_plan(("omics",))
    plan["cohort"]["omics"] = {"features": "genes.txt"}
    (tmp_path / "study.toml").write_text(to_toml(plan))
    with pytest.raises(InputError, match=expected):
        read_study(tmp_path / "study.toml")


def test_columns_and_a_list_of_features_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("g\n")
    plan = make_plan(("omics",))
    plan["cohort"]["omics"] = {"features": "genes.txt", "columns": ["g"]}
    (tmp_path / "study.toml").write_text(to_toml(plan))
    with pytest.raises(InputError, match="has columns and features; give one of them"):
        read_study(tmp_path / "study.toml")
