"""What few training persons have is not learned: from an update, or from sums, it would be read of them alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.site.few import changes, without_few
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.packed import Packed
from fedml.cohort.wide import matrix
from fedml.cohort.wide.matrix import Matrix
from fedml.study.study import Study
from tests.clients.gate.centre import WEIGHT, Centre
from tests.command import quick
from tests.conftest import make_plan, make_study, to_toml, write_csv, write_manifest

PERSONS, TRAIN = 60, 40  # the first are training persons
SMALLEST = 5


def study(**clinical: Any) -> Study:
    columns = {"columns": ["x1", "kind"], "categories": {"kind": ["p", "q", "r"]}, **clinical}
    return make_study(sites=("a",), cohort__clinical=columns)


def cohort(x: Any, kind: Any, present: Any = None, **inputs: Any) -> Cohort:
    there = np.ones(PERSONS, bool) if present is None else present
    values = np.stack([np.asarray(x, float), np.asarray(kind, float)], 1)
    parts = np.where(np.arange(PERSONS) < TRAIN, 0, 2).astype(np.int8)
    tables = {"clinical": Table("clinical", values, there), **inputs}
    return Cohort("a", tuple(map(str, range(PERSONS))), np.zeros(PERSONS), parts, tables)


def values(found: Cohort) -> Any:
    table = found.inputs["clinical"]
    assert isinstance(table, Table)
    return table.values


def kinds(few: int, where: int = 0) -> Any:
    """Code 2 for ``few`` training persons from ``where`` on and for one test person; codes 0 and 1 for the others, 0 more often."""
    kind = np.where(np.arange(PERSONS) % 3 == 0, 1, 0)
    kind[where : where + few] = 2
    kind[TRAIN + 3] = 2
    return kind


AGES = np.arange(PERSONS) + 30.0


@pytest.mark.parametrize("few", [1, 2, 4])
@pytest.mark.parametrize("where", [0, 20])
def test_a_category_of_few_counts_as_the_most_common_one(few: int, where: int) -> None:
    found = values(without_few(cohort(AGES, kinds(few, where)), study(), SMALLEST))
    assert set(found[:, 1]) == {0.0, 1.0}, "of test persons too: a weight that is not learned is not used"
    assert (found[where : where + few, 1] == 0).all()
    assert np.array_equal(found[:, 0], AGES)


def test_a_category_of_enough_is_kept() -> None:
    whole = cohort(AGES, kinds(SMALLEST))
    assert without_few(whole, study(), SMALLEST) is whole


@pytest.mark.parametrize("few", [1, 4])
def test_gaps_of_few_are_filled_with_what_the_others_have(few: int) -> None:
    x, kind = AGES.copy(), kinds(SMALLEST).astype(float)
    x[:few] = kind[10 : 10 + few] = np.nan
    found = values(without_few(cohort(x, kind), study(), SMALLEST))
    assert (found[:few, 0] == np.median(AGES[few:TRAIN])).all()
    assert (found[10 : 10 + few, 1] == 0).all()


@pytest.mark.parametrize("few", [1, 4])
def test_a_row_that_few_do_not_have_is_filled(few: int) -> None:
    """The model sees which inputs a person has."""
    x, kind, there = AGES.copy(), kinds(SMALLEST, 10).astype(float), np.ones(PERSONS, bool)
    there[:few] = False
    x[:few] = kind[:few] = np.nan
    dosage = np.zeros((PERSONS, 1), np.int8)
    dosage[::2] = 1
    dosage[:few] = -1
    own = Dosages((Variant("1", 1, "rs1", "A", "G"),), dosage, there)
    found = without_few(cohort(x, kind, there, variants=own), study(), SMALLEST)
    assert found.inputs["clinical"].has(PERSONS).all()
    assert found.inputs["variants"].has(PERSONS).all()
    assert (values(found)[:few, 0] == np.median(AGES[few:TRAIN])).all()
    assert (values(found)[:few, 1] == 0).all()


def test_gaps_of_enough_and_of_persons_without_a_row_stay() -> None:
    x, there = AGES.copy(), np.ones(PERSONS, bool)
    x[:SMALLEST] = np.nan
    there[30:35] = False
    kind = kinds(SMALLEST, 10).astype(float)
    x[30:35] = kind[30:35] = np.nan
    whole = cohort(x, kind, there)
    assert without_few(whole, study(), SMALLEST) is whole


@pytest.mark.parametrize("few", [1, 4])
def test_a_column_in_which_few_differ_is_left_out(few: int) -> None:
    smokers = np.zeros(PERSONS)
    smokers[:few] = 1
    found = values(without_few(cohort(smokers, kinds(SMALLEST)), study(), SMALLEST))
    assert np.isnan(found[:, 0]).all()
    smokers[:SMALLEST] = 1
    found = values(without_few(cohort(smokers, kinds(SMALLEST)), study(), SMALLEST))
    assert np.array_equal(found[:, 0], smokers)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("carriers", "kept"), [(1, False), (4, False), (5, True), (0, True), (36, False)])
def test_a_variant_that_few_carry_is_left_out(packed: bool, carriers: int, kept: bool) -> None:
    dosage = np.zeros((PERSONS, 3), np.int8)
    dosage[:carriers, 1] = 1
    dosage[::2, 0], dosage[1::3, 2] = 1, 2
    keys = tuple(Variant("1", at, f"rs{at}", "A", "G") for at in (1, 2, 3))
    own = Dosages(keys, Packed.of(dosage) if packed else dosage, np.ones(PERSONS, bool))
    found = without_few(cohort(AGES, kinds(SMALLEST), variants=own), study(), SMALLEST).inputs["variants"]
    assert isinstance(found, Dosages)
    read = np.asarray(found.dosage[np.arange(PERSONS)])
    assert np.array_equal(read[:, [0, 2]], dosage[:, [0, 2]])
    assert np.array_equal(read[:, 1], dosage[:, 1] if kept else np.full(PERSONS, -1))


@pytest.mark.parametrize("few", [1, 3])
@pytest.mark.parametrize("what", ["category", "gap"])
def test_the_centre_reads_neither_from_an_update(tmp_path: Path, what: str, few: int) -> None:
    """A weight that only these persons would change stays as it was, or is that of a column that everybody has."""
    ids = [f"a{k:04d}" for k in range(240)]
    rng = np.random.default_rng(1)
    x, kind, y = rng.normal(50, 10, 240), rng.choice(["p", "q"], 240), rng.integers(0, 2, 240)
    spec = {"columns": ["x1", "kind"], "categories": {"kind": ["p", "q", "r"]}, "indicate": True}
    plan = make_study(sites=("a",), cohort__clinical=spec, cohort__split={"train": 0.6, "val": 0.2, "test": 0.2}, training__optimizer="sgd")

    def site(folder: Path) -> Path:
        manifest = write_manifest(folder, "a", clinical='{ path = "clinical.csv" }')
        write_csv(folder / "persons.csv", ids, {"y": y})
        write_csv(folder / "clinical.csv", ids, {"x1": x, "kind": kind})
        manifest.write_text(manifest.read_text().replace("public = true\n", "") + '\n[policy]\ncentre = "curious"\n')
        return folder

    known = Centre(plan, site(tmp_path / "before")).cohort()
    persons = [ids.index(known.ids[row]) for row in known.rows("train")[:few]]
    if what == "category":
        kind[persons] = "r"
    else:
        x[persons] = np.nan
    centre = Centre(plan, site(tmp_path / "after"))
    agreed = centre.agree(1)
    weights = centre.first(agreed)
    assert centre.ask("round", 1, 1, replace(agreed), weights) == ""
    change = (centre.answered[-1][1]["arrays/" + WEIGHT] - weights[WEIGHT]).any(0)
    # columns of the layer: x1, its indicator, kind = p, q, r
    assert change[[0, 2, 3]].all()
    assert not change[[1, 4]].any()


def test_check_says_what_is_left_out(tmp_path: Path) -> None:
    ids = [f"a{k:04d}" for k in range(240)]
    x, kind = np.arange(240) / 10, np.array(["p", "q"] * 120)
    kind[:3] = "r"
    write_csv(tmp_path / "persons.csv", ids, {"y": np.arange(240) % 2})
    write_csv(tmp_path / "clinical.csv", ids, {"x1": x, "kind": kind, "sex": np.zeros(240)})
    manifest = write_manifest(tmp_path, "a", clinical='{ path = "clinical.csv" }')
    manifest.write_text(manifest.read_text().replace("public = true\n", ""))
    plan = make_plan(sites=("a",), cohort__clinical={"columns": ["x1", "kind"], "categories": {"kind": ["p", "q", "r"]}})
    (tmp_path / "study.toml").write_text(to_toml(plan))
    found = quick("fedml-site", "check", "study.toml", "--site", manifest, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "column kind gets the most common category" in found.stdout
    assert "column x1" not in found.stdout


def wide(values: Any, there: Any) -> Cohort:
    """A cohort whose omics are a matrix on disk's kind, of these numbers."""
    rows = np.arange(PERSONS)
    found = Matrix("omics", (np.asarray(values, np.float32),), np.where(there, 0, -1), rows, np.asarray(there))
    parts = np.where(rows < TRAIN, 0, 2).astype(np.int8)
    return Cohort("a", tuple(map(str, range(PERSONS))), np.zeros(PERSONS), parts, {"omics": found})


def omics_study(columns: int) -> Study:
    return make_study(("omics",), sites=("a",), cohort__omics={"columns": [f"g{k}" for k in range(columns)]})


@pytest.mark.parametrize("block", [1, 90, 1 << 20])
def test_columns_of_a_matrix_on_disk_are_judged_as_those_of_a_table(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_COLUMNS", block)
    random = np.random.default_rng(4)
    plain = random.normal(size=(PERSONS, 13)).astype(np.float32).astype(np.float64)
    there = np.ones(PERSONS, bool)
    there[[2, 50]] = False
    x = plain.copy()
    x[:, 0] = 1.0  # constant: tells of nobody
    x[:, 1] = np.where(np.arange(PERSONS) == 3, 2.0, 1.0)  # one person differs
    x[:, 2] = np.where(np.arange(PERSONS) < 5, 2.0, 1.0)  # four training persons with a row
    x[:, 3] = np.where(np.arange(PERSONS) < 6, 2.0, 1.0)  # five
    x[4:, 4] = np.nan  # three known
    x[6:TRAIN, 5] = np.nan  # five known, all different: four differ from any one
    x[6:TRAIN, 6], x[:6, 6] = np.nan, [1, 1, 1, 1, 1, 2]  # five known, one of them differs
    x[[3, 45], 7] = np.nan  # the gap of one training person, and of a test person
    x[10:15, 8] = np.nan  # gaps of five
    x[10:14, 9] = np.nan  # gaps of four: an even number of persons is left, with 39 in training
    x[:TRAIN, 10] = np.nan  # no training person
    x[:, 11] = np.nan
    x[np.arange(PERSONS) % 4 == 0, 12] = 7.0
    x[~there] = np.nan
    found = without_few(wide(x, there), omics_study(13), SMALLEST).inputs["omics"]
    table = without_few(replace(wide(x, there), inputs={"omics": Table("omics", x, there)}), omics_study(13), SMALLEST).inputs["omics"]
    assert isinstance(found, Matrix)
    assert isinstance(table, Table)
    np.testing.assert_array_equal(found.floats(np.arange(PERSONS)), table.values.astype(np.float32))
    assert found.present.tolist() == table.present.tolist() == [person != 50 for person in range(PERSONS)]
    hidden = np.isnan(found.floats(np.arange(PERSONS))).all(0)
    assert np.flatnonzero(hidden).tolist() == [1, 2, 4, 5, 6, 11]
    median = np.median(x[:TRAIN, 7][~np.isnan(x[:TRAIN, 7])]).astype(np.float32)
    assert found.floats(np.array([3, 45]), 7, 8).ravel().tolist() == [median, median]
    assert np.isnan(found.floats(np.arange(10, 15), 8, 9)).all(), "gaps of five persons stay"
    said = list(changes(wide(x, there), omics_study(13), SMALLEST))
    why = "it would tell about fewer than 5 training persons"
    assert said[0] == f"omics: column 1 gets the most common category, or the median, for a category or gap of few persons: {why}"
    assert said[1] == f"omics: column 2 is left out: {why}"


def test_a_matrix_of_which_nothing_tells_of_few_stays_as_it_is() -> None:
    before = wide(np.random.default_rng(1).normal(size=(PERSONS, 6)), np.ones(PERSONS, bool))
    assert without_few(before, omics_study(6), SMALLEST) is before
    assert list(changes(before, omics_study(6), SMALLEST)) == []
