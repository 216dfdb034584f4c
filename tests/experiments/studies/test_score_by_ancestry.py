"""A polygenic score evaluated by ancestry and adjusted for it, over two hospitals as processes: each number is that of all persons in one
table, and nothing of a small group can be computed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit
from sklearn.metrics import r2_score, roc_auc_score

from fedml.cohort.scores.ancestry import Adjustment, Line, adjusted, read_adjustment
from fedml.cohort.scores.scoring_file import LinearModel, write_scoring
from fedml.cohort.variants.keys import Variant
from fedml.errors import InputError
from fedml.runs.log import load_counts, read_events
from tests.command import quick, run_json
from tests.conftest import make_plan, to_toml, write_bed, write_csv, write_manifest

VARIANTS, PERSONS = 60, 500
PCS = ["pc1", "pc2"]
LINEAR = {"local_steps": 1, "batch_size": 0, "optimizer": "sgd"}


def hospital(folder: Path, name: str, seed: int, *, private: bool = False) -> None:
    """Persons of three ancestries, whose alleles are of other frequencies: the score has another mean and spread in each. At a private
    hospital three persons are of the third."""
    random, drift = np.random.default_rng(seed), np.random.default_rng(99)
    folder.mkdir(parents=True)
    base = drift.uniform(0.2, 0.8, VARIANTS)
    frequency = np.stack([base, np.clip(base + drift.normal(0.04, 0.1, VARIANTS), 0.02, 0.98), np.clip(base**2, 0.02, 0.98)])
    group = random.choice(3, PERSONS, p=[0.6, 0.25, 0.15])
    if private:
        group[group == 2] = 0
        group[:3] = 2
    dosage = random.binomial(2, frequency[group]).astype(np.int8)
    ids = [f"{name}{k:04d}" for k in range(PERSONS)]
    keys = [("1", 1000 + 100 * v, f"rs{v}", "A", "G") for v in range(VARIANTS)]
    write_bed(folder / "g.bed", ids, keys, dosage)
    centres = np.array([[0.0, 0.0], [2.0, 0.5], [0.5, 3.0]])
    pcs = centres[group] + random.normal(0, 0.4, (PERSONS, 2))
    genetic = (dosage - 2 * base) @ effects()
    signal = np.where(group == 0, 1.0, 0.5) * (genetic - genetic.mean()) / genetic.std()
    y, ill = signal + random.normal(size=PERSONS), (random.random(PERSONS) < expit(1.2 * signal - 0.5)).astype(int)
    ancestry = np.array(["eur", "eas", "afr"])[group]
    table = {"y": y, "ill": ill, "ancestry": ancestry, "pc1": pcs[:, 0], "pc2": pcs[:, 1]}
    for file in ("table.csv", "persons.csv"):
        write_csv(folder / file, ids, table)
    public = "false" if private else "true"
    clinical = '{ path = "persons.csv" }'
    write_manifest(folder, name, variants='{ path = "g.bed", build = "GRCh38" }', clinical=clinical, public=public)


def effects() -> Any:
    return np.random.default_rng(7).normal(0, 0.3, VARIANTS)


def scored(folder: Path, names: tuple[str, ...], adjustment: str = "") -> pd.DataFrame:
    """``fedml-site score --join`` at each site; all persons in one table."""
    tables = []
    for name in names:
        line = ["score", "score.txt", "--site", f"sites/{name}", "--join", f"sites/{name}/table.csv", "pgs"]
        done = quick("fedml-site", *line, "--out", f"sites/{name}/persons.csv", cwd=folder)
        assert done.returncode == 0, done.stderr
        if adjustment:
            path = f"sites/{name}/persons.csv"
            done = quick("fedml-site", "adjust", adjustment, "--site", f"sites/{name}", "--table", path, "pgs", "--out", path, cwd=folder)
            assert done.returncode == 0, done.stderr
        tables.append(pd.read_csv(folder / "sites" / name / "persons.csv", index_col="id"))
    return pd.concat(tables)


def prepare(folder: Path, *, private: bool = False) -> pd.DataFrame:
    keys = [Variant("1", 1000 + 100 * v, f"rs{v}", "A", "G") for v in range(VARIANTS)]
    zero, one = np.zeros(VARIANTS), np.ones(VARIANTS)
    write_scoring(folder / "score.txt", LinearModel(keys, effects(), zero, one), name="pgs", build="GRCh38")
    for at, name in enumerate(("a", "b")):
        hospital(folder / "sites" / name, name, at, private=private and name == "b")
    return scored(folder, ("a", "b"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("ancestry")
    return folder, prepare(folder)


def run(folder: Path, name: str, target: str, columns: list[str], lr: float = 0.2, **changes: Any) -> tuple[Path, dict[str, Any]]:
    training = LINEAR | {"lr": lr}  # the loss is in the square of the target's unit, so a wide target needs a smaller step
    plan = make_plan(cohort__clinical={"columns": columns}, cohort__target=target, training=training, federation__rounds=40, **changes)
    plan["study"]["name"] = name
    (folder / f"{name}.toml").write_text(to_toml(plan))
    ran = run_json(f"{name}.toml", "--sites", "sites", "--no-track", cwd=folder, by=quick)
    return Path(ran["folder"]), ran


def held_out(folder: Path, persons: pd.DataFrame, run_folder: Path) -> pd.DataFrame:
    """The model's outputs for the test persons, with their rows of the table."""
    done = quick("fedml", "predict", run_folder, "--sites", "sites", "--out", "predicted.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(folder / "predicted.csv", index_col="id")
    return found[found["part"] == "test"].join(persons, rsuffix="_own")


GROUPS = {"evaluation__subgroups": {"ancestry": ["eur", "eas", "afr"]}, "cohort__split": {"train": 0.5, "val": 0.1, "test": 0.4}}


def test_r2_by_ancestry_is_that_of_all_persons_in_one_table(cohort: tuple[Path, pd.DataFrame]) -> None:
    folder, persons = cohort
    place, _ = run(folder, "r2", "y", ["pgs"], model__task="regression", **GROUPS)
    groups = next(e for e in read_events(folder / place)[0] if e["event"] == "final")["groups"]
    held = held_out(folder, persons, place)
    assert len(held) > 300
    for name, some in held.groupby("ancestry"):
        assert groups[f"ancestry:{name}"]["all"]["r2"] == pytest.approx(r2_score(some["y"], some["predicted"]), abs=2e-6)
    assert groups["ancestry:eur"]["all"]["r2"] > groups["ancestry:afr"]["all"]["r2"]  # as planted


@pytest.mark.long
def test_auroc_and_calibration_by_ancestry(cohort: tuple[Path, pd.DataFrame]) -> None:
    folder, persons = cohort
    place, _ = run(folder, "auroc", "ill", ["pgs"], **GROUPS)
    groups = next(e for e in read_events(folder / place)[0] if e["event"] == "final")["groups"]
    held = held_out(folder, persons, place)
    done = quick("fedml", "report", place, cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / place / "report.html").read_text()
    for name, some in held.groupby("ancestry"):
        risk = some["probability_1"].to_numpy()
        assert groups[f"ancestry:{name}"]["all"]["auroc"] == pytest.approx(roc_auc_score(some["ill"], risk), abs=0.01)
        odds = np.log(risk / (1 - risk))
        fit = sm.Logit(some["ill"].to_numpy(), sm.add_constant(odds)).fit(disp=0)
        found = calibrated(folder / place, f"ancestry:{name}")
        assert found["slope"] == pytest.approx(fit.params[1], abs=0.05)
        assert found["intercept"] == pytest.approx(fit.params[0], abs=0.05)
        assert found["low"] < found["slope"] < found["high"]
        assert f"ancestry:{name}" in page


def calibrated(run_folder: Path, label: str) -> dict[str, float]:
    from fedml.experiments.report.numbers import figures
    from fedml.experiments.runs.record import read_record

    found = figures(read_record(run_folder))["by_class"]["1"]["subgroups"][label]
    return {
        "slope": found["slope"]["value"],
        "low": found["slope"]["low"],
        "high": found["slope"]["high"],
        "intercept": found["intercept"]["value"],
    }


@pytest.mark.long
def test_ancestry_is_adjusted_for_by_pooled_coefficients(cohort: tuple[Path, pd.DataFrame]) -> None:
    """Mean and variance by two studies; the coefficients are those of ordinary least squares on all training persons in one table."""
    folder, before = cohort
    everyone = {"cohort__split": {"train": 0.98, "val": 0.01, "test": 0.01}, "model__task": "regression"}
    mean, _ = run(folder, "mean", "pgs", PCS, **everyone)
    done = quick("fedml", "export-adjustment", mean, "--out", "mean.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    persons = scored(folder, ("a", "b"), "mean.json")
    np.testing.assert_allclose(persons["pgs"], before["pgs"])
    np.testing.assert_allclose(persons["pgs_squared"], persons["pgs_adjusted"] ** 2)
    variance, _ = run(folder, "variance", "pgs_squared", PCS, lr=0.03, **everyone)
    done = quick("fedml", "export-adjustment", mean, "--variance", variance, "--out", "both.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = read_adjustment(folder / "both.json")
    whole = scored(folder, ("a", "b"), "both.json")
    trained = whole.loc[[i for i, part in parts(folder, mean).items() if part == "train"]]
    assert found.variance is not None
    for line, target in ((found.mean, trained["pgs"]), (found.variance, trained["pgs_squared"])):
        fit = sm.OLS(target.to_numpy(), sm.add_constant(trained[PCS].to_numpy())).fit()
        np.testing.assert_allclose([line.intercept, *line.weights], fit.params, rtol=1e-4, atol=1e-4)
    x = whole[PCS].to_numpy()
    residual = whole["pgs"] - (found.mean.intercept + x @ found.mean.weights)
    spread = np.sqrt(found.variance.intercept + x @ found.variance.weights)
    np.testing.assert_allclose(whole["pgs_adjusted"], residual / spread, rtol=1e-9)
    raw, own = (whole.groupby("ancestry")[name].agg(["mean", "std"]) for name in ("pgs", "pgs_adjusted"))
    assert np.ptp(raw["mean"]) > 1
    assert np.abs(own["mean"]).max() < 0.25
    assert np.abs(np.log(own["std"])).max() < 0.25


def parts(folder: Path, run_folder: Path) -> dict[str, str]:
    done = quick("fedml", "predict", run_folder, "--sites", "sites", "--out", "parts.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "parts.csv").open() as file:
        return {row["id"]: row["part"] for row in csv.DictReader(file)}


def test_a_small_group_leaves_no_site_and_follows_from_no_difference(tmp_path: Path) -> None:
    """Three persons of hospital b are of the third ancestry: their counts, and those from which they follow, are not sent."""
    prepare(tmp_path, private=True)
    split = {"train": 0.5, "val": 0.1, "test": 0.4}
    for at in range(3):  # all three are tested
        table = pd.read_csv(tmp_path / "sites/b/persons.csv")
        assert table["ancestry"].iloc[at] == "afr"
    ids = pd.read_csv(tmp_path / "sites/b/persons.csv")["id"]
    part = np.where(np.arange(len(ids)) < 200, "test", np.where(np.arange(len(ids)) < 250, "val", "train"))
    pd.DataFrame({"id": ids, "part": part}).to_csv(tmp_path / "sites/b/split.csv", index=False)
    manifest = tmp_path / "sites/b/site.toml"
    manifest.write_text(manifest.read_text() + 'split = "split.csv"\n')
    changes = {"evaluation__subgroups": {"ancestry": ["eur", "eas", "afr"]}, "cohort__split": split, "model__task": "regression"}
    place, _ = run(tmp_path, "small", "y", ["pgs"], **changes)
    sent = load_counts(tmp_path / place)
    by_group = {key: set(rows) for key, rows in sent.items() if key.startswith("test@")}
    assert "b" not in by_group.get("test@ancestry:afr", set())
    told = [float(rows["b"]["persons"][0]) for key, rows in sent.items() if key.startswith("test@") and "b" in rows]
    rest = float(sent["test"]["b"]["persons"][0]) - sum(told)
    assert told
    assert rest == 0 or rest >= 5  # the next smallest group is hidden too


def test_an_adjustment_far_from_its_persons_is_empty_and_bad_files_are_sentences(tmp_path: Path) -> None:
    line = Line(intercept=1.0, weights=(0.5, -1.0))
    both = Adjustment(columns=("pc1", "pc2"), mean=line, variance=line)
    found = adjusted(np.array([2.0, 3.0, 4.0]), np.array([[0.0, 0.0], [0.0, 5.0], [np.nan, 0.0]]), both)
    np.testing.assert_array_equal(found.value, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(found.residual, [1.0, 7.0, np.nan])
    path = tmp_path / "x.json"
    text = json.loads(both.model_dump_json())
    for bad, said in (
        ("no json", "the file"),
        (json.dumps(text | {"mean": {"intercept": 1, "weights": [1.0]}}), "one weight for each"),
        (json.dumps(text | {"columns": []}), "columns"),
        (json.dumps(text).replace("1.0", "NaN", 1), "mean.intercept"),
    ):
        path.write_text(bad)
        with pytest.raises(InputError, match=said):
            read_adjustment(path)
    path.write_text(both.model_dump_json())
    assert read_adjustment(path) == both
