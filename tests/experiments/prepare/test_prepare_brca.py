"""TCGA breast cancer as site folders: FLamby's persons and split, cells as in its table, other files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedml.clients.site.manifest import find_sites
from fedml.clients.site.read import read_cohort
from fedml.errors import InputError
from fedml.experiments.prepare import prepare
from fedml.study.read import read_study
from fedml.tasks.survival_labels import times_of
from tests.command import STUDIES
from tests.conftest import public_data

SIZES = {"northeast": 311, "south": 196, "west": 206, "midwest": 162, "europe": 153, "canada": 48}


def test_sites_have_flambys_persons_and_the_study_reads_their_times(tmp_path: Path) -> None:
    data = public_data("fed_tcga_brca")
    said: list[str] = []
    prepare("brca", tmp_path / "sites", data=data, say=said.append)
    assert "1096 persons; left out: 8 who are not in the split, 12 whose time is 0" in said
    original = pd.read_csv(data / "brca.csv", index_col="pid")
    split = pd.read_csv(data / "train_test_split.csv", index_col="pid")
    study = read_study(STUDIES / "brca.toml")
    sites, events = find_sites(tmp_path / "sites", study.federation.sites)[0], 0
    assert {name: len(pd.read_csv(tmp_path / "sites" / name / "persons.csv")) for name in sites} == SIZES
    for number, (name, site) in enumerate(sites.items()):
        cohort = read_cohort(site, study)
        truth = original.loc[list(cohort.ids)]
        assert {split.loc[i, "fold2"] for i in cohort.ids} == {f"train_{number}", f"test_{number}"}
        times = times_of(cohort.labels)
        np.testing.assert_array_equal(times.time, np.ceil(truth["T"] / 30) - 1)
        np.testing.assert_array_equal(times.event, truth["E"])
        events += int(times.event.sum())
        assert cohort.count("test") == (split.loc[list(cohort.ids), "fold"] == "test").sum()
        given = pd.read_csv(tmp_path / "sites" / name / "clinical.csv", index_col="id")
        pd.testing.assert_frame_equal(given, truth[given.columns], check_names=False)
        assert tuple(given.columns) == study.cohort.clinical.columns if study.cohort.clinical else False
    assert events == original.loc[split.index, "E"].sum() == 151


@pytest.mark.parametrize(
    ("table", "split", "sentence"),
    [
        ("pid,age,E\na,1,0\n", "pid,fold2\na,train_0\n", 'has no column "T"'),
        ("pid,E,T\na,0,5\n", "pid,fold2\na,train_0\n", "has 0 features, not 39"),
        ("pid," + ",".join(f"x{k}" for k in range(39)) + ",E,T\na," + "0," * 39 + "0,soon\n", "pid,fold2\na,train_0\n", "T is 'soon'"),
        ("pid," + ",".join(f"x{k}" for k in range(39)) + ",E,T\na," + "0," * 39 + "0,5\n", "pid,fold2\na,train_9\n", "no part of a region"),
        ("pid," + ",".join(f"x{k}" for k in range(39)) + ",E,T\na,0\n", "pid,fold2\na,train_0\n", "another number of cells"),
    ],
)
def test_another_table_is_refused(table: str, split: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "brca.csv").write_text(table)
    (tmp_path / "train_test_split.csv").write_text(split)
    with pytest.raises(InputError, match=sentence):
        prepare("brca", tmp_path / "sites", data=tmp_path, say=lambda _: None)
