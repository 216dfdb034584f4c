"""`fedml describe`: the table of the persons is that of the pooled table, and small cells are hidden with what would tell of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedml.clients.work.describe import hide, histogram
from tests.outcomes import Drawn, gates_of, run_job, study_of, write_sites

REAL = '[policy]\ncentre = "curious"\nmin_persons = 20\nmin_count = 5\n'


def test_the_table_is_that_of_the_pooled_persons(tmp_path: Path) -> None:
    drawn = Drawn()
    pooled = write_sites(tmp_path, drawn)
    study = study_of(drawn, task="regression", target="y", describe={"groups": "arm"})
    found = run_job(study, tmp_path, tmp_path / "run", "describe")
    heads = found["heads"]
    assert heads == ["", "arm=A", "arm=B", "all", "s0", "s1", "s2", "SMD"]
    age = found["values"]["age"][heads.index("all") - 1]
    assert age["mean"] == pytest.approx(pooled.age.mean(), rel=1e-12)
    assert age["sd"] == pytest.approx(pooled.age.std(), rel=1e-10)
    assert abs(age["median"] - pooled.age.median()) < 0.1 * pooled.age.std()
    assert found["values"]["stage=III"][heads.index("arm=B") - 1] == ((pooled.arm == "B") & (pooled.stage == "III")).sum()
    rows = {row[0]: row for row in found["rows"]}
    a, b = (pooled.age[pooled.arm == arm] for arm in "AB")
    assert float(rows["age, mean (SD)"][-1]) == pytest.approx(abs(a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2), abs=6e-4)
    text = (tmp_path / "run" / "table1.csv").read_text().splitlines()
    assert text[1].split(",")[:4] == ["persons", *map(str, (len(a), len(b), len(pooled)))]
    assert "| persons |" in (tmp_path / "run" / "table1.md").read_text()


def test_small_cells_are_hidden_at_a_site_and_in_the_sum(tmp_path: Path) -> None:
    drawn = Drawn(policy=REAL)
    write_sites(tmp_path, drawn)
    path = tmp_path / "sites" / "s1" / "clinical.csv"
    table = pd.read_csv(path)
    table["stage"] = "I"
    table.loc[:1, "stage"] = "III"  # two persons
    table.loc[:2, "age"] = np.nan  # three
    table.to_csv(path, index=False)
    study = study_of(drawn, task="regression", target="y", describe={})
    found = run_job(study, tmp_path, tmp_path / "run", "describe", gates_of(study, tmp_path))
    rows = {row[0]: dict(zip(found["heads"], row, strict=True)) for row in found["rows"]}
    assert rows["stage=III"]["s1"] == rows["stage=III"]["all"] == "…"
    assert rows["stage=I"]["s1"] == "…"  # the total less this would be the two
    assert rows["age, mean (SD)"]["s1"] == "…"
    assert rows["stage=III"]["s0"] != "…"


def test_hidden_cells_hide_each_other() -> None:
    np.testing.assert_array_equal(hide(np.array([3.0, 20.0, 40.0, 0.0]), 5), [-1, -1, 40, 0])
    np.testing.assert_array_equal(hide(np.array([3.0, 2.0, 40.0, 0.0]), 5), [-1, -1, 40, 0])
    np.testing.assert_array_equal(hide(np.array([3.0, 1.0, 40.0, 0.0]), 5), [-1, -1, -1, 0])
    np.testing.assert_array_equal(hide(np.array([7.0, 6.0, 40.0, 0.0]), 5), [7, 6, 40, 0])
    counts = histogram(np.random.default_rng(0).normal(size=203), np.array([-4.0, 4.0]), 5)
    assert counts.sum() == 203
    assert counts[counts > 0].min() >= 5
