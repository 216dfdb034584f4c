"""Leave one site out, cross-validation by person, a finished model at other sites: against runs and predictions made in another way."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from fedml.clients.site.manifest import Site, read_site
from fedml.clients.site.read import load_cohort
from fedml.clients.work.known import forget_data
from fedml.cohort.table import part_of
from fedml.errors import InputError, RunError
from fedml.experiments.compare.folds import cross_validate, fold_study, untested
from fedml.experiments.compare.left_out import left_out, left_out_notes, left_out_table, without
from fedml.experiments.compare.tables import main_table, notes, summarise, where_table
from fedml.experiments.compare.train import Trained, compare, compare_runs
from fedml.experiments.runs.record import read_record
from fedml.study.study import Study
from tests.command import quick as command
from tests.conftest import Run, clinical_site, federate, make_plan, make_study, to_toml
from tests.experiments.studies.test_external import recorded, risks, same_as_pooled

QUIET = Console(quiet=True)
PLAN = {"federation__rounds": 2, "cohort__split": {"train": 0.5, "val": 0.1, "test": 0.4}, "training__lr": 0.05}


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Site]:
    for at, name in enumerate("abc"):
        clinical_site(tmp_path / "sites" / name, name, 120, at)
    return {name: read_site(tmp_path / "sites" / name) for name in "abc"}


def study_of(*names: str, **changes: Any) -> Study:
    return make_study(sites=names or ("a", "b", "c"), **{**PLAN, **changes})


def in_part(site: Site, study: Study, part: Any = "test") -> set[str]:
    cohort = load_cohort((str(site.file),), study)
    return {cohort.ids[row] for row in cohort.rows(part)}


# --- leave one site out


def test_the_model_without_a_site_is_that_of_a_roster_without_it(tmp_path: Path, sites: dict[str, Site]) -> None:
    study = study_of()
    trained, rows = left_out([study], sites, tmp_path / "runs", QUIET)
    assert [row["site"] for row in rows[:-1]] == ["a", "b", "c"]
    federated = federate(study, [site.file for site in sites.values()], tmp_path / "federated")
    unseen: list[list[Any]] = [[], []]
    for name, row in zip(sites, rows, strict=False):
        others = [other for other in sites if other != name]
        run = federate(study_of(*others), [sites[other].file for other in others], tmp_path / f"without-{name}")
        (mine,) = [r for r in trained if r.who == without(name)]
        assert Run(mine.run).sha256 == run.sha256
        assert all((Run(mine.run).arrays[key] == value).all() for key, value in run.arrays.items())
        tested = in_part(sites[name], study)
        truth, risk = risks(run, sites[name].folder, tested)
        _, seen = risks(federated, sites[name].folder, tested)
        assert row["persons"] == len(tested)
        assert row["without"]["mean"] == pytest.approx(roc_auc_score(truth, risk), abs=1e-3)
        assert row["federated"]["mean"] == pytest.approx(roc_auc_score(truth, seen), abs=1e-3)
        exact = roc_auc_score(truth, risk) - roc_auc_score(truth, seen)
        assert row["difference"]["value"] == pytest.approx(exact, abs=1e-6), "paired, on the same persons"
        assert row["difference"]["low"] <= exact <= row["difference"]["high"]
        unseen[0].append(truth)
        unseen[1].append(risk)
    everyone = rows[-1]
    assert everyone["persons"] == sum(row["persons"] for row in rows[:-1])
    assert everyone["without"]["mean"] == pytest.approx(roc_auc_score(*(np.concatenate(part) for part in unseen)), abs=1e-3)


def test_a_site_that_only_tests_has_no_part_in_leaving_out(tmp_path: Path, sites: dict[str, Site]) -> None:
    _, with_c = left_out([study_of(federation__evaluate_only=["c"])], sites, tmp_path / "runs", QUIET)
    two = {name: sites[name] for name in "ab"}
    _, without_c = left_out([study_of("a", "b")], two, tmp_path / "other", QUIET)
    assert [{k: v for k, v in row.items() if k != "runs"} for row in with_c] == [
        {k: v for k, v in row.items() if k != "runs"} for row in without_c
    ]
    with pytest.raises(InputError, match="at least two sites that train"):
        left_out([study_of("a", "b", federation__evaluate_only=["b"])], two, tmp_path / "runs", QUIET)


def test_over_seeds_each_site_has_its_mean(tmp_path: Path, sites: dict[str, Site]) -> None:
    studies = [study_of("a", "b", study__seed=seed) for seed in (0, 1)]
    two = {name: sites[name] for name in "ab"}
    trained, rows = left_out(studies, two, tmp_path / "runs", QUIET)
    mine = [r.sites["a"]["auroc"] for r in trained if r.who == without("a")]
    assert rows[0]["without"]["mean"] == pytest.approx(np.mean(mine))
    again, same = left_out(studies, two, tmp_path / "runs", QUIET)
    assert all(row.seconds is None for row in again), "trained once"
    assert same == rows


# --- folds


@given(
    st.lists(st.text(min_size=1, max_size=20), unique=True, min_size=1, max_size=60), st.integers(2, 12), st.text(min_size=1, max_size=8)
)
def test_each_person_is_tested_in_exactly_one_fold(ids: list[str], folds: int, key: str) -> None:
    study = study_of("a")
    splits = [fold_study(study, folds, k).cohort.split for k in range(1, folds + 1)]
    for person in ids:
        parts = [part_of(person, key, split) for split in splits]
        assert parts.count(2) == 1
        assert len({part for part in parts if part != 2}) == 1, "train or val alike in all other folds"


def test_folds_are_of_equal_size_and_keep_the_share_of_val() -> None:
    split = fold_study(study_of("a"), 5, 3).cohort.split
    parts = np.bincount([part_of(f"person{k}", "key", split) for k in range(20_000)], minlength=3) / 20_000
    assert parts == pytest.approx([0.8 * 5 / 6, 0.8 / 6, 0.2], abs=0.015)


def test_pooled_figures_are_those_of_all_predictions(tmp_path: Path, sites: dict[str, Site]) -> None:
    study = study_of("a", "b")
    two = {name: sites[name] for name in "ab"}
    result = cross_validate(study, 4, two, tmp_path / "runs", QUIET)
    truths: dict[str, list[Any]] = {"a": [], "b": []}
    found: dict[str, list[Any]] = {"a": [], "b": []}
    by_fold = []
    for k, row in enumerate(result.folds, start=1):
        fold, own = fold_study(study, 4, k), []
        assert read_record(row.run).study.sha256 == fold.sha256
        for name, site in two.items():
            own.append(risks(Run(row.run), site.folder, in_part(site, fold)))
            truths[name].append(own[-1][0])
            found[name].append(own[-1][1])
        by_fold.append(roc_auc_score(*(np.concatenate(part) for part in zip(*own, strict=True))))
    for row in result.rows:
        names = "ab" if row["site"] not in two else row["site"]
        truth, risk = (np.concatenate([p for name in names for p in parts[name]]) for parts in (truths, found))
        assert row["persons"] == 120 * len(names) == len(truth)
        metrics = {name: entry["value"] for name, entry in row["metrics"].items()}
        assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, risk > 0.5), abs=1e-6)
        assert metrics["brier"] == pytest.approx(brier_score_loss(truth, risk), abs=1e-6)
        assert metrics["log_loss"] == pytest.approx(log_loss(truth, risk), abs=1e-6)
        assert metrics["auroc"] == pytest.approx(roc_auc_score(truth, risk), abs=1e-3)
        assert row["metrics"]["auroc"]["low"] < metrics["auroc"] < row["metrics"]["auroc"]["high"]
    spread = result.rows[-1]["folds"]["auroc"]
    assert spread["mean"] == pytest.approx(np.mean(by_fold), abs=1e-3)
    assert spread["sd"] == pytest.approx(np.std(by_fold, ddof=1), abs=1e-3)
    assert untested(result) == []


def test_persons_whom_no_fold_tested_are_told(tmp_path: Path, sites: dict[str, Site]) -> None:
    """Real persons: a fold with fewer than min_count test persons at a site sends nothing."""
    text = sites["a"].file.read_text().replace("public = true", "public = false")
    for fewest, told in ((14, ["a"]), (40, ["a"])):
        sites["a"].file.write_text(f"{text}[policy]\nmin_count = {fewest}\nmin_persons = 1\n")
        two = {name: read_site(sites[name].folder) for name in "ab"}
        forget_data()
        result = cross_validate(study_of("a", "b"), 8, two, tmp_path / f"runs-{fewest}", QUIET)
        assert [line.partition(":")[0] for line in untested(result)] == told
        assert all("of 120 persons were tested" in line for line in untested(result))
        sizes = [len(in_part(two["a"], fold_study(study_of("a", "b"), 8, k))) for k in range(1, 9)]
        assert sum(row["persons"] for row in result.rows if row["site"] == "a") == sum(size for size in sizes if size >= fewest)
    text = sites["b"].file.read_text().replace("public = true", "public = false")
    sites["b"].file.write_text(f"{text}[policy]\nmin_count = 60\n")
    forget_data()
    two = {name: read_site(sites[name].folder) for name in "ab"}
    with pytest.raises(RunError, match="fold 1 of 8: no site has as many test persons"):
        cross_validate(study_of("a", "b"), 8, two, tmp_path / "other", QUIET)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--folds", "1"], "--folds 1: give 2 or more"),
        (["--folds", "3", "--leave-one-site-out"], "give one of them"),
        (["--folds", "3", "--seeds", "0-1"], "--folds takes one seed"),
        (
            ["--folds", "3", "--set", "privacy.unit=site", "--set", "privacy.noise_multiplier=1", "--set", "privacy.ranges={}"],
            "ranges lacks",
        ),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, sites: dict[str, Site], words: list[str], text: str) -> None:
    (tmp_path / "study.toml").write_text(to_toml(make_plan(sites=("a", "b"), **PLAN)))
    done = command("fedml", "compare", "study.toml", "--sites", "sites", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr


def test_a_split_file_fixes_who_is_tested(tmp_path: Path, sites: dict[str, Site]) -> None:
    (sites["b"].folder / "split.csv").write_text("id,part\n" + "".join(f"b{k:04d},train\n" for k in range(120)))
    sites["b"].file.write_text(sites["b"].file.read_text() + 'split = "split.csv"\n')
    two = {name: read_site(sites[name].folder) for name in "ab"}
    with pytest.raises(InputError, match=r"b.site\.toml: \[data\] split fixes who is tested"):
        cross_validate(study_of("a", "b"), 3, two, tmp_path / "runs", QUIET)


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ({"train": 0.6, "val": 0.2, "test": 0.2, "folds": 5}, "folds is 5 and fold is 0"),
        ({"train": 0.6, "val": 0.2, "test": 0.2, "folds": 5, "fold": 6}, "fold from 1 to folds"),
        ({"train": 0.5, "val": 0.2, "test": 0.3, "folds": 5, "fold": 1}, "test must be 1 / folds = 0.2, not 0.3"),
        ({"train": 0.6, "val": 0.2, "test": 0.2, "fold": 1}, "folds is 0 and fold is 1"),
    ],
)
def test_folds_that_cannot_be_are_refused(split: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text.replace("/", r"\/")):
        study_of("a", cohort__split=split)


# --- sites whose persons are real


@pytest.fixture
def real(tmp_path: Path) -> dict[str, Site]:
    """``a``: rounded counts; ``b``: fewer than min_count test persons of a class, so no histogram; ``c``: fewer test persons than that."""
    for at, (name, persons) in enumerate({"a": 70, "b": 40, "c": 14}.items()):
        labels = [int(k % 6 == 0) for k in range(persons)] if name == "b" else None
        file = clinical_site(tmp_path / "real" / name, name, persons, at, missing=0.0, labels=labels)
        text = file.read_text().replace("public = true", "public = false")
        if name == "c":
            parts = "".join(f"c{k:04d},{'train' if k < 10 else 'test'}\n" for k in range(persons))
            (file.parent / "split.csv").write_text(f"id,part\n{parts}")
            text += 'split = "split.csv"\n'
        file.write_text(f"{text}[policy]\nmin_persons = 1\n")
    return {name: read_site(tmp_path / "real" / name) for name in "abc"}


def by_hand(row: Trained, sites: dict[str, Site], study: Study, names: str) -> tuple[Any, Any]:
    """Labels and risks of the test persons of some sites, from their tables and the run's arrays."""
    each = [risks(Run(row.run), sites[name].folder, in_part(sites[name], study)) for name in names]
    truth, risk = (np.concatenate(part) for part in zip(*each, strict=True))
    return truth, risk


def printed(*tables: Any) -> str:
    console = Console(width=200, record=True, quiet=False, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_leaving_out_sites_of_real_persons_has_columns_and_differences_of_one_source(tmp_path: Path, real: dict[str, Site]) -> None:
    study = study_of()
    trained, rows = left_out([study], real, tmp_path / "runs", QUIET)
    by_who = {row.who: row for row in trained}
    sent = read_record(by_who["federated"].run).final.metrics["test"]["sites"]
    assert sorted(sent) == ["a", "b"]
    assert sent["b"].get("auroc") is None, "what the sites send gives no figure of b"
    parts: list[list[Any]] = [[], [], []]
    for name, row in zip("ab", rows, strict=False):
        truth, seen = by_hand(by_who["federated"], real, study, name)
        _, unseen = by_hand(by_who[without(name)], real, study, name)
        assert row["persons"] == len(truth)
        assert row["federated"]["mean"] == pytest.approx(roc_auc_score(truth, seen), abs=1e-9)
        assert row["without"]["mean"] == pytest.approx(roc_auc_score(truth, unseen), abs=1e-9)
        for part, values in zip(parts, (truth, seen, unseen), strict=True):
            part.append(values)
    truth, seen, unseen = (np.concatenate(part) for part in parts)
    assert rows[-1]["federated"]["mean"] == pytest.approx(roc_auc_score(truth, seen), abs=1e-9)
    assert rows[-1]["without"]["mean"] == pytest.approx(roc_auc_score(truth, unseen), abs=1e-9)
    for row in (rows[0], rows[1], rows[3]):
        assert row["difference"]["value"] == pytest.approx(row["without"]["mean"] - row["federated"]["mean"], abs=1e-12), row["site"]
    assert (rows[2]["federated"]["mean"], rows[2]["without"]["mean"], rows[2]["difference"]["value"]) == (None, None, None)
    assert "too few" in next(line for line in printed(left_out_table(study, rows)).splitlines() if " c " in line)
    assert [text.partition(",")[0] for text in left_out_notes(rows)] == [
        "c: no figures: each site needs at least min_count test persons ([policy] of the study and of the site)"
    ]


def test_over_seeds_too_a_difference_is_that_of_the_columns(tmp_path: Path, real: dict[str, Site]) -> None:
    trained, rows = left_out([study_of(study__seed=seed) for seed in (0, 1)], real, tmp_path / "runs", QUIET)
    for row in (rows[0], rows[1], rows[3]):
        assert row["difference"]["value"] == pytest.approx(row["without"]["mean"] - row["federated"]["mean"], abs=1e-12), row["site"]
    each = [by_hand(row, real, study_of(study__seed=row.seed), "a") for row in trained if row.who == "federated"]
    assert rows[0]["federated"]["mean"] == pytest.approx(np.mean([roc_auc_score(*one) for one in each]), abs=1e-9)


def test_baselines_of_real_persons_have_columns_and_differences_of_one_source(tmp_path: Path, real: dict[str, Site]) -> None:
    study = study_of()
    trained = compare([study], real, ["pooled", "local"], None, tmp_path / "runs", QUIET)
    summary = summarise(study, trained)
    assert [entry["who"] for entry in summary] == ["federated", "pooled", "a alone", "b alone", "c alone"]
    for row, entry in zip(trained, summary, strict=True):
        assert entry["watched"]["mean"] == pytest.approx(roc_auc_score(*by_hand(row, real, study, "ab")), abs=1e-9), row.who
        assert sorted(entry["sites"]) == ["a", "b"]
        for name, found in entry["sites"].items():
            truth, risk = by_hand(row, real, study, name)
            assert found["mean"] == pytest.approx(roc_auc_score(truth, risk), abs=1e-9), (row.who, name)
            assert row.sites[name]["accuracy"] == pytest.approx(accuracy_score(truth, risk > 0.5), abs=1e-9), "not of rounded counts"
        if entry["difference"] is not None:
            exact = entry["watched"]["mean"] - summary[0]["watched"]["mean"]
            assert entry["difference"]["value"] == pytest.approx(exact, abs=1e-12), row.who
    assert notes(study, summary)[0].startswith("c: no figures: each site needs at least min_count test persons")
    shown = printed(main_table(study, summary), where_table(study, summary)).splitlines()
    assert [name for name in "abc" if any(line.startswith(f"│ {name} ") and "alone" not in line for line in shown)] == ["a", "b"]
    counted = summarise(*compare_runs([trained[0].run, trained[2].run], None, QUIET))
    assert counted[0]["sites"]["b"]["mean"] is None, "from the records alone"
    value = counted[1]["watched"]["mean"] - counted[0]["watched"]["mean"]
    assert counted[1]["difference"]["value"] == pytest.approx(value, abs=1e-12)


def test_folds_of_real_persons_are_of_the_predictions(tmp_path: Path, real: dict[str, Site]) -> None:
    study = study_of("a", "b")
    two = {name: real[name] for name in "ab"}
    result = cross_validate(study, 2, two, tmp_path / "runs", QUIET)
    for row in result.rows:
        names = row["site"] if row["site"] in two else "ab"
        each = [by_hand(fold, two, fold_study(study, 2, k), names) for k, fold in enumerate(result.folds, start=1)]
        truth, risk = (np.concatenate(part) for part in zip(*each, strict=True))
        assert row["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, risk), abs=1e-9)
        assert row["metrics"]["accuracy"]["value"] == pytest.approx(accuracy_score(truth, risk > 0.5), abs=1e-9)
        assert row["folds"]["auroc"]["mean"] == pytest.approx(np.mean([roc_auc_score(*one) for one in each]), abs=1e-9)


# --- a finished model at other sites


def evaluated(tmp_path: Path, model: object, plan: dict[str, Any], *words: str) -> Any:
    (tmp_path / "other.toml").write_text(to_toml(plan))
    return command("fedml", "evaluate", model, "other.toml", "--sites", "sites", "--runs", "runs", *words, cwd=tmp_path)


def test_a_finished_model_is_tested_on_all_persons_of_new_sites(tmp_path: Path, sites: dict[str, Site]) -> None:
    study = study_of("a", "b")
    run, record = recorded(study, [sites["a"].file, sites["b"].file], tmp_path / "runs")
    plan = make_plan(sites=("c", "a"), study__name="later", study__seed=9)
    done = evaluated(tmp_path, record.run, plan, "--json", "--no-track")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout.splitlines()[-1])
    assert [(row["site"], row["part"]) for row in body["results"]] == [("a", "test"), ("c", "external")]
    assert body["weights_sha256"] == run.sha256
    values = {row["site"]: {k: v["value"] for k, v in row["metrics"].items()} | {"persons": row["persons"]} for row in body["results"]}
    same_as_pooled(values["c"], *risks(run, sites["c"].folder))
    same_as_pooled(values["a"], *risks(run, sites["a"].folder, in_part(sites["a"], study)))
    assert values["a"] == {k: v for k, v in run.final["metrics"]["test"]["sites"]["a"].items() if k in values["a"]}
    again = read_record(Path(body["folder"]) if Path(body["folder"]).is_absolute() else tmp_path / body["folder"])
    assert again.status == "finished"
    assert json.loads((again.run / "evaluated.json").read_text())["study_sha256"] == study.sha256
    page = command("fedml", "report", again.run, cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    text = (again.run / "report.html").read_text()
    assert "Nothing was trained: a finished model was tested." in text
    assert "external validation: c" in text
    only = evaluated(tmp_path, record.run / "model.safetensors", make_plan(sites=("c",), study__name="later"), "--json", "--no-track")
    (row,) = json.loads(only.stdout.splitlines()[-1])["results"]
    assert (row["site"], row["part"], row["persons"]) == ("c", "test", 120)
    assert row["metrics"]["auroc"]["value"] == values["c"]["auroc"]


def test_a_model_of_the_registry(tmp_path: Path, sites: dict[str, Site]) -> None:
    (tmp_path / "study.toml").write_text(to_toml(make_plan(sites=("a", "b"), **PLAN)))
    first = command("fedml", "run", "study.toml", "--sites", "sites", "--runs", "runs", "--json", cwd=tmp_path)
    folder = json.loads(first.stdout.splitlines()[-1])["folder"]
    assert command("fedml", "promote", folder, "--as", "champion", cwd=tmp_path).returncode == 0
    done = evaluated(tmp_path, "models:/toy@champion", make_plan(sites=("a", "c")), "--json")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout.splitlines()[-1])
    assert body["weights_sha256"] == json.loads(first.stdout.splitlines()[-1])["weights_sha256"]
    query = "SELECT t.value, m.value FROM latest_metrics m JOIN tags t USING (run_uuid) WHERE m.key = ? AND t.key = ?"
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        recorded_there = dict(store.execute(query, ("external/auroc", "fedml.role")).fetchall())
        parent = dict(store.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", (body["mlflow_run_id"],)).fetchall())
    values = {row["part"]: row["metrics"]["auroc"] for row in body["results"]}
    assert recorded_there == dict.fromkeys(("run", "external validation"), pytest.approx(values["external"]["value"]))
    for part in ("test", "external"):
        for key, name in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert parent[f"{part}/auroc{key}"] == pytest.approx(values[part][name])
    promoted = command("fedml", "promote", body["folder"], cwd=tmp_path)
    assert promoted.returncode == 2
    assert "tested a finished model and trained none" in promoted.stderr
    absent = evaluated(tmp_path, "models:/toy@nobody", make_plan(sites=("c",)))
    assert absent.returncode == 2
    assert "MLflow has no such model" in absent.stderr


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, sites: dict[str, Site]) -> None:
    _, record = recorded(study_of("a", "b"), [sites["a"].file, sites["b"].file], tmp_path / "runs")
    wrong = [
        (record.run, make_plan(sites=("c",), cohort__clinical={"columns": ["x1", "x2"]}), "[cohort.clinical] columns is"),
        (record.run, make_plan(sites=("c",), model__clinical={"net": "mlp", "hidden": [4]}), "[model.clinical] hidden is [4]"),
        (tmp_path / "sites", make_plan(sites=("c",)), "has no study.json"),
        (record.run, make_plan(sites=("d",)), 'has no site "d"'),
    ]
    for model, plan, text in wrong:
        done = evaluated(tmp_path, model, plan, "--no-track")
        assert done.returncode == 2, done.stdout + done.stderr
        assert text in done.stderr
    arrays = (record.run / "model.safetensors").read_bytes()
    (record.run / "model.safetensors").write_bytes(arrays[:-4] + b"\0\0\0\1")
    done = evaluated(tmp_path, record.run, make_plan(sites=("c",)), "--no-track")
    assert done.returncode == 2
    assert "is not the model whose SHA-256 is in events.jsonl" in done.stderr


def test_an_evaluation_with_noise_is_charged(tmp_path: Path, sites: dict[str, Site]) -> None:
    _, record = recorded(study_of("a", "b"), [sites["a"].file, sites["b"].file], tmp_path / "runs")
    text = sites["c"].file.read_text().replace("public = true", "public = false")
    sites["c"].file.write_text(f"{text}[policy]\nmax_epsilon = 1.6\n")
    private = {
        "unit": "patient",
        "epsilon": 1.0,
        "metrics": "private",
        "persons": {"c": 100},
        "ranges": {f"x{k}": [-9, 300] for k in (1, 2, 3)},
    }
    plan = make_plan(sites=("c",), privacy=private)
    for number in (1, 2):
        done = evaluated(tmp_path, record.run, plan, "--json", "--no-track")
        assert done.returncode == 0, done.stderr
        assert "Privacy: " in done.stderr, number
    done = evaluated(tmp_path, record.run, plan, "--no-track")
    assert done.returncode == 2
    assert "the privacy budget does not suffice" in done.stderr
    exact = evaluated(tmp_path, record.run, make_plan(sites=("c",)), "--no-track")
    assert exact.returncode == 2
    assert "has no privacy of a patient" in exact.stderr
