"""Dates of clinical columns as numbers by the study's rules: right values against pandas, and sentences that quote no cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.dates import as_dates, with_dates
from fedml.errors import InputError
from fedml.modalities.clinical import CLINICAL
from fedml.study.cohort_section import ClinicalColumns
from fedml.study.study import Study
from tests.command import quick
from tests.conftest import make_study, to_toml, write_manifest
from tests.inputs import clinical_of

RULES = {"birth": "age_at:visit", "relapse": "days_since:birth", "scan": "days_since:2020-02-28"}
PERSONS = 40
random = np.random.default_rng(5)
BIRTH = pd.Series(pd.Timestamp("1940-01-01") + pd.to_timedelta(random.integers(0, 20_000, PERSONS), unit="D"))
BIRTH[0], BIRTH[1] = pd.Timestamp("2000-02-29"), pd.Timestamp("1904-02-29")
VISIT = pd.Series(pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 900, PERSONS), unit="D"))
VISIT[0], VISIT[1] = pd.Timestamp("2020-02-29"), pd.Timestamp("2020-03-01")
SCAN = pd.Series(["2020-02-28", "2020-02-29", "2020-03-01", "2021-02-28", *["2019-12-31"] * (PERSONS - 4)])


def spec(**changes: Any) -> dict[str, Any]:
    return {"columns": ["birth", "x", "relapse", "scan"], "dates": RULES, **changes}


def study(**changes: Any) -> Study:
    return make_study(sites=("a",), cohort__clinical=spec(**changes.pop("clinical", {})), **changes)


def table() -> pd.DataFrame:
    """The dates as text, one of each missing."""
    days = {"birth": BIRTH, "visit": VISIT, "relapse": VISIT - pd.Timedelta(days=100)}
    texts = {name: values.dt.strftime("%Y-%m-%d") for name, values in days.items()}
    found = pd.DataFrame({"id": [f"p{k:02d}" for k in range(PERSONS)], "x": np.arange(PERSONS) % 7, **texts, "scan": SCAN})
    found.loc[5, "birth"] = found.loc[6, "visit"] = found.loc[7, "relapse"] = ""
    return found


def expected() -> np.ndarray[Any, Any]:
    """(persons, 3): age, days of relapse and of the scan, by pandas."""
    age = (VISIT - BIRTH).dt.days / 365.25
    relapse = (VISIT - pd.Timedelta(days=100) - BIRTH).dt.days.astype(float)
    scan = (pd.to_datetime(SCAN) - pd.Timestamp("2020-02-28")).dt.days.astype(float)
    age[[5, 6]], relapse[[5, 7]] = np.nan, np.nan
    return np.stack([age, relapse, scan], axis=1)


def written(folder: Path, values: pd.DataFrame, *, name: str = "clinical.csv", header: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith("parquet"):
        values.to_parquet(folder / name)
    else:
        (folder / name).write_text(header + values.to_csv(index=False))
    pd.DataFrame({"id": table()["id"], "y": np.arange(PERSONS) % 2}).to_csv(folder / "persons.csv", index=False)
    return write_manifest(folder, "a", clinical=f'{{ path = "{name}" }}')


def read(folder: Path, values: pd.DataFrame, plan: Study | None = None, **how: Any) -> np.ndarray[Any, Any]:
    cohort = read_cohort(read_site(written(folder, values, **how)), plan or study())
    return np.asarray(clinical_of(cohort).values)[:, [0, 2, 3]]


def timestamps(zone: str | None = None) -> Callable[[], pd.DataFrame]:
    def make() -> pd.DataFrame:
        found = table()
        for name in ("birth", "visit", "relapse", "scan"):
            late = pd.to_datetime(found[name].replace("", None)) + pd.Timedelta(hours=23, minutes=30)
            found[name] = late.dt.tz_localize(zone)
        return found

    return make


def dates() -> pd.DataFrame:
    found = table()
    for name in ("birth", "visit", "relapse", "scan"):
        found[name] = pd.to_datetime(found[name].replace("", None)).dt.date
    return found


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (table, "clinical.csv"),
        (lambda: table().assign(birth=table()["birth"].where(table()["birth"] == "", table()["birth"] + "T23:59:59Z")), "clinical.csv"),
        (lambda: table().sample(frac=1, random_state=1), "clinical.csv"),
        (table, "clinical.parquet"),
        (dates, "clinical.parquet"),
        (timestamps(), "clinical.parquet"),
        (timestamps("America/New_York"), "clinical.parquet"),
    ],
)
def test_ages_and_days_are_those_of_pandas(tmp_path: Path, make: Callable[[], pd.DataFrame], name: str) -> None:
    found = read(tmp_path, make(), name=name)
    np.testing.assert_allclose(found, expected(), rtol=1e-12)
    assert found[0, 0] == pytest.approx(7305 / 365.25) == 20.0  # from 29 February to 29 February
    assert found[1, 0] == pytest.approx(42370 / 365.25)  # 116 years and a day, 29 leap days
    assert found[:4, 2].tolist() == [0, 1, 2, 366]  # over the leap day


def test_codes_of_missing_dates(tmp_path: Path) -> None:
    values = table()
    values.loc[9, "birth"], values.loc[10, "birth"] = "1900-01-01", "unknown"
    plan = study(clinical={"missing": {"birth": ["1900-01-01", "unknown"]}})
    assert np.flatnonzero(np.isnan(read(tmp_path, values, plan)[:, 0])).tolist() == [5, 6, 9, 10]
    as_typed = timestamps()()
    as_typed.loc[9, "birth"] = pd.Timestamp("1900-01-01")
    found = read(tmp_path / "parquet", as_typed, plan, name="clinical.parquet")
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [5, 6, 9]


def put(name: str, row: int, cell: str) -> pd.DataFrame:
    values = table()
    values.loc[row, name] = cell
    return values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (put("birth", 20, "31/12/1950"), ['line 22: column "birth" is no date as YYYY-MM-DD (1 person(s))']),
        (put("birth", 20, "1950-02-30"), ['line 22: column "birth" is no date']),
        (put("birth", 20, "1950"), ['line 22: column "birth" is no date']),
        (put("visit", 3, "1950-13-01"), ['line 5: column "visit" is no date']),
        (put("birth", 30, "2031-05-06"), ['line 32: column "birth" is after the date at which the age is asked (visit)']),
        (table().drop(columns="visit"), ['has no column "visit"', "[cohort.clinical] dates needs it"]),
    ],
)
def test_what_is_no_date_is_told_by_its_line_and_not_by_its_value(tmp_path: Path, values: pd.DataFrame, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, values)
    for word in words:
        assert word in str(caught.value)
    for cell in ("31/12", "1950", "2031", "p20", "p30"):
        assert cell not in str(caught.value).replace(str(tmp_path), "")


def test_the_line_is_that_of_the_file_also_after_empty_lines_and_quoted_line_ends(tmp_path: Path) -> None:
    values = put("birth", 20, "no").assign(note="one")
    values.loc[2, "note"] = "two\nlines"
    text = values.to_csv(index=False).replace("p10,", "\n\np10,", 1)
    written(tmp_path, values)
    (tmp_path / "clinical.csv").write_text(text)
    with pytest.raises(InputError, match="line 25: "):
        read_cohort(read_site(tmp_path), study())
    assert text.splitlines()[24].startswith("p20,")


def test_numbers_in_parquet_are_no_dates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'column "birth" has numbers, and .* dates names it'):
        read(tmp_path, table().assign(birth=np.arange(PERSONS)), name="clinical.parquet")
    with pytest.raises(InputError, match='row 21: column "birth" is no date'):
        read(tmp_path / "text", put("birth", 20, "no"), name="clinical.parquet")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dates": {"birth": "age_years"}}, '"age_years" is no rule of a date; write "age_at:COLUMN"'),
        ({"dates": {"birht": "age_at:visit"}}, 'dates names "birht", which is not in columns (did you mean "birth"?)'),
        ({"dates": {"birth": "age_at:birth"}}, "refers to itself"),
        ({"dates": {"birth": "age_at:x"}}, 'refers to "x", which is in columns as a number'),
        ({"dates": {"birth": "age_at:relapse", "relapse": "days_since:birth"}}, "the same number twice"),
        ({"dates": {"birth": "age_at:visit"}, "categories": {"birth": ["a", "b"]}}, "is in categories and in dates"),
        ({"dates": {"birth": "age_at:2020-02-30"}}, "day is out of range"),
        ({"dates": {"birth": "age_at:y"}}, 'the target "y" is also among the clinical columns'),
    ],
)
def test_a_rule_that_cannot_be_meant_is_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        study(clinical=changes)
    assert words in str(caught.value)


def test_a_study_without_dates_keeps_its_identity_and_one_with_them_has_another() -> None:
    plain = study(clinical={"dates": {}})
    assert "dates" not in plain.canonical
    assert len({plain.sha256, study().sha256, study(clinical={"dates": {**RULES, "birth": "age_at:scan"}}).sha256}) == 3


def test_bands_of_an_age_group_persons_by_it(tmp_path: Path) -> None:
    cohort = read_cohort(read_site(written(tmp_path, table())), study(evaluation={"bands": {"birth": [40, 60]}}))
    age = expected()[:, 0]
    right = np.where(np.isnan(age), -1, (age >= 40).astype(int) + (age >= 60))
    assert cohort.groups["birth"].tolist() == right.tolist()


def test_artificial_persons_are_written_as_dates_that_are_read_back(tmp_path: Path) -> None:
    plan = study()
    cohort = read_cohort(read_site(written(tmp_path, table())), plan)
    before = clinical_of(cohort)
    (tmp_path / "again").mkdir()
    write = CLINICAL.write
    assert callable(write)
    write(before, plan, cohort.ids, tmp_path / "again")
    again = pd.read_csv(tmp_path / "again" / "clinical.csv", dtype=str, keep_default_na=False).set_index("id")
    values = clinical_of(read_cohort(read_site(written(tmp_path / "third", again.reset_index())), plan)).values
    np.testing.assert_allclose(values[:, 0], before.values[:, 0], atol=0.5 / 365.25)
    both = ~np.isnan(before.values[:, 0]) & ~np.isnan(before.values[:, 2])
    np.testing.assert_array_equal(values[both], np.column_stack([values[:, 0], before.values[:, 1:]])[both])


def test_as_dates_inverts_with_dates() -> None:
    rules = ClinicalColumns(columns=("birth", "relapse"), dates={"birth": "age_at:visit", "relapse": "days_since:birth"})
    numbers = {"birth": np.array([20.0, 47.5, np.nan]), "relapse": np.array([3650.0, np.nan, 12.0])}
    texts = pd.DataFrame(as_dates(numbers, rules))
    back = with_dates(texts, rules, Path("table.csv"), "id")
    np.testing.assert_allclose(back["birth"], numbers["birth"], atol=0.5 / 365.25)
    assert back["relapse"][0] == 3650


def test_the_site_and_the_plan_say_what_becomes_of_a_date(tmp_path: Path) -> None:
    written(tmp_path / "a", table())
    plan = {"study": {"name": "toy"}, "federation": {"sites": ["a"]}, "cohort": {"inputs": ["clinical"], "target": "y", "clinical": spec()}}
    (tmp_path / "study.toml").write_text(to_toml(plan))
    told = quick("fedml-site", "check", "study.toml", "--site", "a", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "birth (age in years at visit): " in told.stdout
    assert "scan (days since 2020-02-28): -59 to 366, median -59; 0% missing" in told.stdout
    shown = quick("fedml", "check", "study.toml", cwd=tmp_path)
    assert "birth (age in years at visit), x, relapse (days since birth)" in shown.stdout
