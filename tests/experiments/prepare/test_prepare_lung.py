"""TCGA lung cancer as site folders: persons once, sites by centre with both cancers, no feature that tells the target."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedml.errors import InputError
from fedml.experiments.prepare import prepare
from fedml.study.read import read_study
from tests.command import ROOT, STUDIES

DATA = ROOT.parent / "shared" / "data" / "tcga_lung_genomics"
FILES = {"LUAD": "tcga_luad_all_clean.csv.zip", "LUSC": "tcga_lusc_all_clean.csv.zip"}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, pd.DataFrame]]:
    """Site -> file -> its table, cells as text."""
    if not DATA.is_dir():
        pytest.skip(f"the real data are not at {DATA}")
    folders = prepare("lung", tmp_path_factory.mktemp("lung") / "sites", data=DATA, say=lambda _: None)
    names = ("persons", "clinical", "omics")
    return {
        folder.name: {name: pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False, index_col="id") for name in names}
        for folder in folders
    }


def original(cancer: str) -> pd.DataFrame:
    with zipfile.ZipFile(DATA / FILES[cancer]) as packed, packed.open(packed.namelist()[0]) as file:
        return pd.read_csv(file, dtype={"case_id": str, "site": str}, low_memory=False)


def test_each_person_is_at_one_site_once_and_a_site_has_both_cancers(sites: dict[str, dict[str, pd.DataFrame]]) -> None:
    ids = [person for tables in sites.values() for person in tables["persons"].index]
    assert len(ids) == len(set(ids)) == 903
    counts = {site: len(tables["persons"]) for site, tables in sites.items()}
    assert {site: counts[site] for site in ("igc", "asterand", "prince-charles", "indivumed", "christiana")} == {
        "igc": 89 + 37, "asterand": 32 + 50, "prince-charles": 31 + 42, "indivumed": 30 + 35, "christiana": 43 + 20,
    }  # fmt: skip
    assert len(counts) == 9
    assert min(counts.values()) >= 60
    assert {person[5:7] for person in sites["indivumed"]["persons"].index} == {"05", "66"}  # a leading zero is kept
    for tables in sites.values():
        assert list(tables["persons"].index) == list(tables["clinical"].index) == list(tables["omics"].index)
        assert 0.25 < (tables["persons"]["subtype"] == "LUSC").mean() < 0.75


def test_cells_are_those_of_the_files(sites: dict[str, dict[str, pd.DataFrame]]) -> None:
    omics = pd.concat([tables["omics"] for tables in sites.values()])
    persons = pd.concat([tables["persons"] for tables in sites.values()])
    for cancer in FILES:
        table = original(cancer).drop_duplicates("case_id").set_index("case_id")
        assert set(persons.index[persons["subtype"] == cancer]) == set(table.index)
        genes = [name for name in omics if name in table]
        found = omics.loc[table.index, genes].astype(float)
        given = table[genes].astype(float)
        np.testing.assert_array_equal(found, given.clip(-10, 10))
        assert (omics.loc[table.index, [name for name in omics if name not in table]] == "").all(axis=None)
        deaths = persons.loc[table.index, "died"].astype(int)
        np.testing.assert_array_equal(deaths, 1 - table["censorship"])
    luad = original("LUAD").drop_duplicates("case_id").set_index("case_id")
    np.testing.assert_array_equal(persons.loc[luad.index, "egfr"].astype(int), luad["EGFR_mut"])
    assert (persons.loc[persons["subtype"] == "LUSC", "egfr"] == "").all()


def test_no_feature_of_a_study_tells_its_target(sites: dict[str, dict[str, pd.DataFrame]]) -> None:
    omics = pd.concat([tables["omics"] for tables in sites.values()])
    persons = pd.concat([tables["persons"] for tables in sites.values()])
    both, egfr = (read_study(STUDIES / f"{name}.toml").cohort.omics for name in ("lung", "lung_egfr"))
    assert both is not None
    assert egfr is not None
    assert (omics[list(both.columns)] != "").all(axis=None)  # an empty cell would be one of the other cancer
    assert not [name for name in egfr.columns if name.startswith("EGFR")]
    assert {name.rsplit("_", 1)[1] for name in egfr.columns} == {"rnaseq", "mut", "cnv"}
    assert (omics.loc[persons.index[persons["egfr"] != ""], list(egfr.columns)] != "").all(axis=None)


def _without_age(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="age")


def _two_ages(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.iloc[:1].assign(age="9")])


def _unknown_centre(table: pd.DataFrame) -> pd.DataFrame:
    return table.replace({"case_id": {"TCGA-05-4249": "TCGA-ZZ-4249"}})


def _word(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(AAK1_rnaseq="high")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without_age, 'has no column "age"'),
        (_two_ages, "the rows of case TCGA-05-4249 differ"),
        (_unknown_centre, "'TCGA-ZZ-4249' is of no known tissue source site"),
        (_word, "AAK1_rnaseq is 'high', not a number"),
    ],
)
def test_another_table_is_refused(change: Callable[[pd.DataFrame], pd.DataFrame], sentence: str, tmp_path: Path) -> None:
    table = pd.DataFrame({
        "case_id": ["TCGA-05-4249"], "age": ["67.0"], "survival_months": ["1"], "censorship": ["1.0"], "is_female": ["0.0"],
        "AAK1_rnaseq": ["0.1"], "EGFR_mut": ["1"],
    })  # fmt: skip
    for name in FILES.values():
        with zipfile.ZipFile(tmp_path / name, "w") as packed:
            packed.writestr("table.csv", change(table).to_csv())
    with pytest.raises(InputError, match=sentence):
        prepare("lung", tmp_path / "sites", data=tmp_path, say=lambda _: None)
