"""Comparison: what was trained is not trained again, differences are of the same persons, and existing runs compare with each other."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from fedml.clients.site.manifest import Site, read_site
from fedml.errors import InputError
from fedml.experiments.compare.tables import main_table, notes, summarise, where_table
from fedml.experiments.compare.train import compare, compare_runs
from fedml.experiments.runs.record import read_record
from fedml.runs.log import EVENTS
from fedml.study.study import Study
from tests.command import quick as command
from tests.conftest import clinical_site, make_plan, make_study, to_toml
from tests.experiments.studies.test_segmentation_run import disc_site

QUIET = Console(quiet=True)
PLAN = {"federation__rounds": 2, "cohort__split": {"train": 0.5, "val": 0.0, "test": 0.5}, "training__lr": 0.05}


def studies(count: int, **changes: object) -> list[Study]:
    return [make_study(study__name="toy", study__seed=seed, **{**PLAN, **changes}) for seed in range(count)]


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Site]:
    for at, name in enumerate("ab"):
        clinical_site(tmp_path / "sites" / name, name, 120, at)
    return {name: read_site(tmp_path / "sites" / name) for name in "ab"}


def test_only_missing_runs_are_trained_and_all_are_reported(tmp_path: Path, sites: dict[str, Site]) -> None:
    first = compare(studies(2), sites, ["pooled"], None, tmp_path / "runs", QUIET)
    assert [(r.who, r.seed) for r in first] == [("federated", 0), ("pooled", 0), ("federated", 1), ("pooled", 1)]
    assert all(r.seconds is not None for r in first)
    again = compare(studies(3), sites, ["pooled", "local"], None, tmp_path / "runs", QUIET)
    old = [r for r in again if r.seconds is None]
    assert {(r.who, r.seed) for r in old} == {(r.who, r.seed) for r in first}
    assert [r.metrics for r in old] == [r.metrics for r in first]
    reported = summarise(studies(1)[0], again)
    assert [t["who"] for t in reported] == ["federated", "pooled", "a alone", "b alone"]
    assert reported[0]["difference"] is None
    for row in reported[1:]:
        gap = row["difference"]
        assert gap["low"] <= gap["value"] <= gap["high"]
        assert gap["value"] == pytest.approx(row["watched"]["mean"] - reported[0]["watched"]["mean"], abs=1e-12)
        assert set(row["sites"]) == {"a", "b"}
        # Each seed splits the persons anew.
        assert row["over_seeds"]["method"] == "paired t over 3 seeds, corrected for overlapping training persons (Nadeau and Bengio)"
        gaps = [row["difference"]["p"] for row in reported[1:]]
        assert row["difference"]["p_adjusted"] >= row["difference"]["p"]
        assert row["difference"]["comparisons"] == len(gaps)
    text = Console(width=140, record=True, quiet=False, file=(tmp_path / "out.txt").open("w"))
    text.print(main_table(studies(1)[0], reported))
    text.print(where_table(studies(1)[0], reported))
    printed = text.export_text()
    assert "b alone" in printed
    assert "worst site" in printed


def test_changed_data_are_trained_again(tmp_path: Path, sites: dict[str, Site]) -> None:
    compare(studies(1), sites, [], None, tmp_path / "runs", QUIET)
    clinical_site(tmp_path / "more" / "b", "b", 121, 1)
    other = {"a": sites["a"], "b": read_site(tmp_path / "more" / "b")}
    assert compare(studies(1), other, [], None, tmp_path / "runs", QUIET)[0].seconds is not None


def test_outputs_are_those_of_the_counted_persons(tmp_path: Path, sites: dict[str, Site]) -> None:
    row = compare(studies(1), sites, [], None, tmp_path / "runs", QUIET)[0]
    assert row.outputs is not None
    assert len(row.outputs.person) == row.metrics["persons"]
    assert roc_auc_score(row.outputs.truth, row.outputs.output[:, 1]) == pytest.approx(row.metrics["auroc"], abs=1e-12)
    own = row.outputs.site == "b"
    assert roc_auc_score(row.outputs.truth[own], row.outputs.output[own, 1]) == pytest.approx(row.sites["b"]["auroc"], abs=1e-12)
    sent = read_record(row.run).final.metrics["test"]["all"]
    assert sent == pytest.approx(row.metrics, abs=1e-3), "public data: the sites sent exact counts, AUROC as a histogram"


def test_persons_of_several_seeds_are_drawn_once(tmp_path: Path, sites: dict[str, Site]) -> None:
    """The same runs under three seeds' names are no more evidence than one."""
    one = compare(studies(1), sites, ["pooled"], None, tmp_path / "runs", QUIET)
    thrice = [replace(r, seed=seed) for seed in range(3) for r in one]
    alone, many = (summarise(studies(1)[0], rows)[1]["difference"] for rows in (one, thrice))
    assert [alone[k] for k in ("value", "low", "high", "p")] == pytest.approx([many[k] for k in ("value", "low", "high", "p")], abs=1e-12)


def test_a_way_without_a_value_of_a_figure_is_shown_without_it(tmp_path: Path, sites: dict[str, Site]) -> None:
    """Noised counts may have no AUROC and no accuracy: whichever row it is, the tables are printed, and the mean is of the others."""
    rows = compare(studies(2), sites, ["pooled"], None, tmp_path / "runs", QUIET)
    for hidden in range(len(rows)):
        some = [replace(r, metrics={}) if n == hidden else r for n, r in enumerate(rows)]
        reported = summarise(studies(1)[0], some)
        who = rows[hidden].who
        (other,) = (r for n, r in enumerate(rows) if r.who == who and n != hidden)
        entry = next(e for e in reported if e["who"] == who)
        assert entry["watched"]["mean"] == pytest.approx(other.metrics["auroc"])
        assert entry["metrics"]["accuracy"]["mean"] is None
        for table in (main_table, where_table):
            Console(file=io.StringIO()).print(table(studies(1)[0], reported))
    none = summarise(studies(1)[0], [replace(r, metrics={}) for r in rows])
    assert none[0]["watched"]["mean"] is None


def test_beside_a_difference_of_exact_outputs_no_noised_figure_stands(tmp_path: Path, sites: dict[str, Site]) -> None:
    """The run's record has noised counts; the comparison, which stays on this machine, is of the outputs throughout."""
    private = {
        "unit": "patient", "noise_multiplier": 4.0, "delta": 1e-4, "persons": {"a": 60, "b": 60}, "metrics": "private",
        "ranges": {"x1": [-5, 10], "x2": [-10, 10], "x3": [0, 250]},
    }  # fmt: skip
    study = studies(1, privacy=private, training__optimizer="sgd", training__batch_size=0)
    rows = compare(study, sites, ["pooled"], None, tmp_path / "runs", QUIET)
    reported = summarise(study[0], rows)
    for row, entry in zip(rows, reported, strict=True):
        assert row.outputs is not None
        area = roc_auc_score(row.outputs.truth, row.outputs.output[:, 1])
        assert entry["watched"]["mean"] == pytest.approx(area, abs=1e-12)
        assert entry["watched"]["low"] < area < entry["watched"]["high"]
        assert entry["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(row.outputs.output.argmax(1) == row.outputs.truth), abs=1e-12)
        for name, at_site in entry["sites"].items():
            own = row.outputs.site == name
            assert at_site["persons"] == own.sum(), "not the noised number"
            assert at_site["mean"] == pytest.approx(roc_auc_score(row.outputs.truth[own], row.outputs.output[own, 1]), abs=1e-12)
    means = [entry["watched"]["mean"] for entry in reported]
    assert reported[1]["difference"]["value"] == pytest.approx(means[1] - means[0], abs=1e-12)


def test_of_few_persons_no_certainty_is_claimed(tmp_path: Path) -> None:
    for at, name in enumerate("ab"):
        clinical_site(tmp_path / "sites" / name, name, 60, at, labels=[int(k in (3, 30)) for k in range(60)])
    sites = {name: read_site(tmp_path / "sites" / name) for name in "ab"}
    reported = summarise(studies(1)[0], compare(studies(2), sites, ["pooled"], None, tmp_path / "runs", QUIET))
    assert reported[1]["difference"]["p"] is None
    assert reported[1]["difference"]["method"].startswith("none: ")
    assert reported[0]["watched"]["low"] is None


def test_no_baseline_of_privacy_of_a_site(tmp_path: Path, sites: dict[str, Site]) -> None:
    private = studies(1, privacy={"unit": "site", "noise_multiplier": 1.0, "ranges": {f"x{k}": [-10, 200] for k in (1, 2, 3)}})
    with pytest.raises(InputError, match="undefined for pooled data"):
        compare(private, sites, ["pooled"], None, tmp_path / "runs", QUIET)


def test_regression_compares_by_rmse(tmp_path: Path) -> None:
    for at, name in enumerate("ab"):
        folder = tmp_path / "sites" / name
        clinical_site(folder, name, 80, at, labels=np.random.default_rng(at).normal(size=80).round(3))
    sites = {name: read_site(tmp_path / "sites" / name) for name in "ab"}
    study = studies(1, model__task="regression")
    reported = summarise(study[0], compare(study, sites, ["pooled"], None, tmp_path / "runs", QUIET))
    assert reported[1]["watched"]["metric"] == "rmse"
    assert reported[1]["difference"]["p"] is not None


def test_segmentation_compares_by_the_mean_dice_of_a_person(tmp_path: Path) -> None:
    for name, persons, seed in (("a", 16, 1), ("b", 12, 2)):
        disc_site(tmp_path / "sites" / name, name, persons, seed)
    sites = {name: read_site(tmp_path / "sites" / name) for name in "ab"}
    plan = {"cohort__classes": [0, 1, 2], "model__task": "segmentation", "model__segmentation": {"channels": [8, 16]}}
    study = [make_study(("image",), study__name="toy", **plan, training__lr=0.02, federation__rounds=2)]
    rows = compare(study, sites, ["pooled"], None, tmp_path / "runs", QUIET)
    reported = summarise(study[0], rows)
    assert reported[1]["watched"]["metric"] == "dice_mean_person"
    assert reported[1]["difference"]["p"] is None
    assert reported[1]["difference"]["method"] == "none: fewer than 15 persons"
    own = rows[0].outputs
    assert own is not None
    assert float(np.nanmean(own.output, axis=0).mean()) == pytest.approx(rows[0].metrics["dice_mean_person"], abs=1e-12)
    assert reported[1]["difference"]["value"] == pytest.approx(rows[1].metrics["dice_mean_person"] - rows[0].metrics["dice_mean_person"])


def test_existing_runs_with_and_without_their_data(tmp_path: Path, sites: dict[str, Site]) -> None:
    rows = compare(studies(2), sites, [], None, tmp_path / "runs", QUIET)
    runs = [r.run for r in rows]
    study, counted = compare_runs(runs, None, QUIET)
    unpaired = summarise(study, counted)[1]["difference"]
    assert unpaired["method"].startswith("unpaired")
    study, paired = compare_runs(runs, tmp_path / "sites", QUIET)
    assert summarise(study, paired)[1]["difference"]["method"].endswith("persons are in both tests")  # two seeds give two splits
    assert [r.metrics for r in paired] == [r.metrics for r in rows]
    for by_counts, exact in zip(counted, rows, strict=True):
        assert by_counts.metrics == pytest.approx(exact.metrics, abs=1e-3)
    means = [entry["watched"]["mean"] for entry in summarise(study, counted)]
    assert unpaired["value"] == pytest.approx(means[1] - means[0], abs=1e-12)
    events = runs[1] / EVENTS
    events.write_text("".join(line for line in events.read_text().splitlines(keepends=True) if '"event": "end"' not in line))
    with pytest.raises(InputError, match=r"is not a finished run with stored counts \(status unfinished\)"):
        compare_runs(runs, None, QUIET)


def recorded_comparisons(folder: Path) -> list[Any]:
    """The comparisons that MLflow has."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    every = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(every, "tags.`fedml.role` = 'comparison'"))


def test_the_command_takes_a_study_or_runs(tmp_path: Path, sites: dict[str, Site]) -> None:
    (tmp_path / "toy.toml").write_text(to_toml(make_plan(study__name="toy", **PLAN)))
    done = command("fedml", "compare", "toy.toml", "--sites", "sites", "--baselines", "pooled", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.splitlines()[-1])
    runs = [row["runs"][0] for row in reported["summary"]]
    again = command("fedml", "compare", *runs, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "federation.sites = ['pooled']" in again.stdout
    shown = recorded_comparisons(tmp_path)
    assert len(shown) == 2, "the comparison of the study and that of its runs"
    first = next(r for r in shown if "minus federated" in r.data.tags["mlflow.note.content"])
    federated, pooled = reported["summary"]
    assert first.data.metrics["test/auroc"] == first.data.metrics["test/auroc/federated"] == federated["watched"]["mean"]
    assert first.data.metrics["versus_first/auroc/pooled"] == pooled["difference"]["value"]
    assert f"{pooled['watched']['mean']:.3f}" in first.data.tags["fedml.result"]
    wrong = command("fedml", "compare", "toy.toml", runs[0], cwd=tmp_path)
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_runs_without_a_common_person_have_no_difference(tmp_path: Path, sites: dict[str, Site]) -> None:
    """Each site alone is another run of the same question; with and without the data no difference and no p is invented."""
    base = {**PLAN, "federation__rounds": 1}
    runs = []
    for name in ("a", "b"):
        study = make_study(sites=(name,), study__name=f"of-{name}", **base)
        runs.append(compare([study], {name: sites[name]}, [], None, tmp_path / "runs", QUIET)[0].run)
    for folder in (None, tmp_path / "sites"):
        study, rows = compare_runs(runs, folder, QUIET)
        summary = summarise(study, rows)
        difference = summary[1]["difference"]
        assert (difference["value"], difference["low"], difference["p"]) == (None, None, None)
        assert difference["method"].startswith("none: ")
        assert notes(study, summary) == [f"{summary[1]['who']}: difference from {summary[0]['who']}: {difference['method']}"]
        assert summary[1]["watched"]["low"] is not None


def test_the_title_names_the_seeds(tmp_path: Path, sites: dict[str, Site]) -> None:
    rows = compare(studies(2), sites, [], None, tmp_path / "runs", QUIET)
    assert main_table(studies(1)[0], summarise(studies(1)[0], rows)).title == "toy: all sites' test persons, seeds 0, 1"
    study, apart = compare_runs([r.run for r in rows], None, QUIET)
    assert main_table(study, summarise(study, apart)).title == "toy: all sites' test persons, runs of seeds 0, 1"
