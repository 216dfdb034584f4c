"""A site whose column is missing, or in another unit, is named in the run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedml.runs.events import Checks
from fedml.runs.log import read_log
from tests.command import quick
from tests.conftest import clinical_site, federate, make_plan, make_study, to_toml


def found(work: Path, change: dict[str, object], **plan: object) -> dict[tuple[str, str], str]:
    """(site, column) -> text of each warning of a run of three sites, of which c's table has these columns."""
    places = [clinical_site(work / name, name, 120, seed) for seed, name in enumerate("abc")]
    table = pd.read_csv(work / "c" / "clinical.csv")
    table.assign(**{name: value(table[name]) for name, value in change.items()}).to_csv(work / "c" / "clinical.csv", index=False)  # type: ignore[operator]
    federate(make_study(sites="abc", **{"federation__rounds": 1, **plan}), places, work / "run")
    checks = [row for event in read_log(work / "run")[0] if isinstance(event, Checks) for row in event.checks]
    return {(row["site"], row["check"]): row["value"] for row in checks if row["verdict"] != "ok"}


def test_honest_sites_are_not_named(tmp_path: Path) -> None:
    assert found(tmp_path, {}) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x * float("nan"), "no value"),
        (lambda x: x * 88.4, "mean"),  # creatinine in mg/dl, in micromol/l
        (lambda x: x / 1000, "mean"),
        (lambda x: x * 0 + 100, "SD 0"),
        (lambda x: x + 273.15, "mean"),
    ],
)
def test_a_site_with_another_column_is_named(tmp_path: Path, change: object, words: str) -> None:
    warned = found(tmp_path, {"x3": change})
    assert set(warned) == {("c", "x3")}
    assert words in warned["c", "x3"]


def test_nothing_is_said_of_noised_sums(tmp_path: Path) -> None:
    private = {"unit": "patient", "epsilon": 8.0, "delta": 1e-3, "statistics": "private", "persons": dict.fromkeys("abc", 72)}
    private |= {"ranges": {f"x{k}": [-1000, 1000] for k in (1, 2, 3)}}
    assert found(tmp_path, {"x3": lambda x: x * float("nan")}, privacy=private, federation__rounds=1) == {}


def test_the_run_shows_it(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        clinical_site(tmp_path / "sites" / name, name, 120, seed)
    table = pd.read_csv(tmp_path / "sites" / "b" / "clinical.csv")
    table.assign(x2="").to_csv(tmp_path / "sites" / "b" / "clinical.csv", index=False)
    (tmp_path / "study.toml").write_text(to_toml(make_plan(sites=("a", "b"), federation__rounds=1)))
    done = quick("fedml", "run", "study.toml", "--sites", "sites", "--no-track", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert "no value (!)" in shown
    assert "x2 at b: look at the column in b's table" in shown


def test_a_rare_finding_of_0_and_1_that_one_site_does_not_have_is_no_other_unit(tmp_path: Path) -> None:
    rare = {name: tmp_path / name for name in "abc"}
    for seed, (name, folder) in enumerate(rare.items()):
        clinical_site(folder, name, 120, seed)
        table = pd.read_csv(folder / "clinical.csv")
        table["x3"] = 0 if name == "c" else (table.index % 40 == 0).astype(int)
        table.to_csv(folder / "clinical.csv", index=False)
    federate(make_study(sites="abc", federation__rounds=1), [folder / "site.toml" for folder in rare.values()], tmp_path / "run")
    checks = [row for event in read_log(tmp_path / "run")[0] if isinstance(event, Checks) for row in event.checks]
    assert [row for row in checks if row["verdict"] != "ok"] == []
