"""Tables as people have them: each is read as the clean one is, or refused with a sentence that says what to write.

The clean table: 60 persons with a label, a number, an age and a category. Each case writes the same cohort in another way.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.ids import check_ids
from fedml.cohort.persons import Cohort
from fedml.errors import InputError
from fedml.study.study import Study
from tests.conftest import make_study

PERSONS = 60
random = np.random.default_rng(8)
IDS = [f"{k:03d}" for k in range(1, PERSONS + 1)]
LABEL = random.integers(0, 2, PERSONS)
X = random.normal(5, 2, PERSONS).round(3)
AGE = random.integers(20, 80, PERSONS)
SEX = random.choice(["F", "M"], PERSONS)


def people() -> pd.DataFrame:
    return pd.DataFrame({"id": IDS, "y": LABEL})


def values() -> pd.DataFrame:
    return pd.DataFrame({"id": IDS, "age": AGE, "x": X, "sex": SEX})


def study(**changes: Any) -> Study:
    columns = {"columns": ["age", "x", "sex"], "categories": {"sex": changes.pop("levels", ["F", "M"])}}
    return make_study(sites=("a",), cohort__clinical=columns, **changes)


def read(folder: Path, plan: Study, *, persons: str = "persons.csv", clinical: str = "clinical.csv", more: str = "") -> Cohort:
    """The site's cohort from the files in ``folder``; clean ones are written where a case wrote none."""
    if not (folder / persons).exists():
        people().to_csv(folder / persons, index=False)
    if not (folder / clinical).exists():
        values().to_csv(folder / clinical, index=False)
    text = f'[site]\nname = "a"\n[data]\npersons = "{persons}"\nclinical = {{ path = "{clinical}" }}\n{more}'
    (folder / "site.toml").write_text(text)
    return read_cohort(read_site(folder), plan)


def coded(levels: list[str]) -> np.ndarray[Any, Any]:
    return np.stack([AGE, X, np.array([levels.index(s) for s in SEX])], axis=1).astype(np.float64)


def csv_text(table: pd.DataFrame, **how: Any) -> str:
    return table.to_csv(index=False, **how)


Write = Callable[[Path], object]


def text(name: str, make: Callable[[], str], encoding: str = "utf-8") -> Write:
    return lambda folder: (folder / name).write_bytes(make().encode(encoding))


def lines(change: Callable[[int, str], str]) -> Callable[[], str]:
    return lambda: "\n".join(change(n, line) for n, line in enumerate(csv_text(values()).splitlines())) + "\n"


SAME: dict[str, Write] = {
    "byte order mark": text("clinical.csv", lambda: csv_text(values()), "utf-8-sig"),
    "byte order mark, quoted header": text("clinical.csv", lambda: csv_text(values()).replace("id,", '"id",', 1), "utf-8-sig"),
    "UTF-16": text("clinical.csv", lambda: csv_text(values()), "utf-16"),
    "UTF-16 persons": text("persons.csv", lambda: csv_text(people()), "utf-16"),
    "semicolons": text("clinical.csv", lambda: csv_text(values(), sep=";")),
    "semicolons and decimal commas": text("clinical.csv", lambda: csv_text(values(), sep=";", decimal=",")),
    "tabs": text("clinical.csv", lambda: csv_text(values(), sep="\t")),
    "tabs and decimal commas": text("clinical.csv", lambda: csv_text(values(), sep="\t", decimal=",")),
    "bars": text("clinical.csv", lambda: csv_text(values(), sep="|")),
    "CRLF": text("clinical.csv", lambda: csv_text(values()).replace("\n", "\r\n")),
    "CR": text("clinical.csv", lambda: csv_text(values()).replace("\n", "\r")),
    "no end of line": text("clinical.csv", lambda: csv_text(values()).rstrip("\n")),
    "every cell quoted": text("clinical.csv", lambda: csv_text(values(), quoting=1)),
    "spaces around ids": text("clinical.csv", lambda: csv_text(values().assign(id=[f" {i}  " for i in IDS]))),
    "spaces around headers": text("clinical.csv", lambda: csv_text(values()).replace("id,age,x,sex", " id, age ,x , sex", 1)),
    "spaces around categories": text("clinical.csv", lambda: csv_text(values().assign(sex=[f"{s} " for s in SEX]))),
    "spaces around numbers": text("clinical.csv", lambda: csv_text(values().assign(x=[f" {v}" for v in X]))),
    "no-break spaces": text("clinical.csv", lambda: csv_text(values().assign(id=[f"{i}\u00a0" for i in IDS]))),
    "other columns first": text("clinical.csv", lambda: csv_text(values()[["sex", "x", "id", "age"]])),
    "rows in another order": text("clinical.csv", lambda: csv_text(values().sample(frac=1, random_state=3))),
    "an unnamed index": text("clinical.csv", lambda: values().to_csv()),
    "two columns of the same name that nobody asks for": text("clinical.csv", lambda: lines(lambda n, t: t + ",z,z")()),
    "a comma at the end of each line": text("clinical.csv", lines(lambda n, t: t + ",")),
    "a comma at the end of each row": text("clinical.csv", lines(lambda n, t: t + "," * (n > 0))),
    "empty rows at the end": text("clinical.csv", lambda: csv_text(values()) + ",,,\n,,,\n"),
    "empty lines": text("clinical.csv", lines(lambda n, t: t + "\n" * (n == 9))),
    "line ends in a cell": text("clinical.csv", lambda: csv_text(values().assign(note=["one\ntwo", 'a, "b"'] * (PERSONS // 2)))),
    "another language": text("clinical.csv", lambda: csv_text(values().assign(note="Žižkov, 東京"))),
    "numbers with exponents": text("clinical.csv", lambda: csv_text(values().assign(x=[f"{v:.6E}" for v in X]))),
    "numbers with a plus": text("clinical.csv", lambda: csv_text(values().assign(x=[f"{v:+}" for v in X]))),
    "labels as 0.0 and 1.0": text("persons.csv", lambda: csv_text(people().assign(y=LABEL.astype(float)))),
    "labels as TRUE and FALSE": text("persons.csv", lambda: csv_text(people().assign(y=["TRUE" if v else "FALSE" for v in LABEL]))),
    "labels as true and false": text("persons.csv", lambda: csv_text(people().assign(y=["true" if v else "false" for v in LABEL]))),
    "thousands of other columns": text(
        "clinical.csv", lambda: csv_text(values().join(pd.DataFrame(np.ones((PERSONS, 3000)), columns=[f"g{k}" for k in range(3000)])))
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    cohort = read(tmp_path_factory.mktemp("clean"), study())
    np.testing.assert_array_equal(cohort.inputs["clinical"].values, coded(["F", "M"]))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(cohort.labels, LABEL)
    return cohort


def same(found: Cohort, expected: Cohort) -> None:
    assert found.ids == expected.ids
    assert found.digest == expected.digest


@pytest.mark.parametrize("case", SAME)
def test_read_as_the_clean_table(tmp_path: Path, clean: Cohort, case: str) -> None:
    SAME[case](tmp_path)
    same(read(tmp_path, study()), clean)


PARQUET: dict[str, Callable[[], pd.DataFrame]] = {
    "as it is": values,
    "categories and nullable numbers": lambda: values().astype({"sex": "category", "age": "Int64", "x": "Float64"}),
    "ids as index": lambda: values().set_index("id"),
    "decimals": lambda: values().assign(x=[Decimal(str(v)) for v in X]),
    "strings of pyarrow": lambda: values().astype({"sex": "string", "id": "string"}),
    "small integers": lambda: values().astype({"age": "int8"}),
}


@pytest.mark.parametrize("case", PARQUET)
def test_parquet_is_read_as_the_clean_table(tmp_path: Path, clean: Cohort, case: str) -> None:
    PARQUET[case]().to_parquet(tmp_path / "clinical.parquet")
    same(read(tmp_path, study(), clinical="clinical.parquet"), clean)


def test_other_names_of_files(tmp_path: Path, clean: Cohort) -> None:
    (tmp_path / "clinical.csv.gz").write_bytes(gzip.compress(csv_text(values()).encode()))
    (tmp_path / "persons.tsv").write_text(csv_text(people(), sep="\t"))
    same(read(tmp_path, study(), persons="persons.tsv", clinical="clinical.csv.gz"), clean)


def test_ids_under_another_name(tmp_path: Path, clean: Cohort) -> None:
    people().rename(columns={"id": "patient_id"}).to_csv(tmp_path / "persons.csv", index=False)
    values().rename(columns={"id": "patient_id"}).to_csv(tmp_path / "clinical.csv", index=False)
    same(read(tmp_path, study(), more='id = "patient_id"\n'), clean)
    values().rename(columns={"id": "sample"}).to_csv(tmp_path / "clinical.csv", index=False)
    (tmp_path / "site.toml").write_text(
        '[site]\nname = "a"\n[data]\npersons = "persons.csv"\nid = "patient_id"\nclinical = { path = "clinical.csv", id = "sample" }\n'
    )
    same(read_cohort(read_site(tmp_path), study()), clean)


@pytest.mark.parametrize("levels", [["None", "M"], ["NA", "M"], ["?", "M"], ["01", "1"], ["1", "01"], ["1E1", "10"], ["true", "false"]])
@pytest.mark.parametrize("file", ["clinical.csv", "clinical.parquet"])
def test_declared_levels_win_over_numbers_and_words(tmp_path: Path, levels: list[str], file: str) -> None:
    table = values().assign(sex=[levels[0] if s == "F" else levels[1] for s in SEX])
    table.to_csv(tmp_path / file, index=False) if file.endswith("csv") else table.to_parquet(tmp_path / file)
    cohort = read(tmp_path, study(levels=levels), clinical=file)
    np.testing.assert_array_equal(cohort.inputs["clinical"].values, coded(["F", "M"]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("classes", [["None", "Disease"], ["NA", "AD"], ["no", "yes"]])
def test_declared_classes_win_over_numbers_and_words(tmp_path: Path, classes: list[str]) -> None:
    people().assign(y=[classes[v] for v in LABEL]).to_csv(tmp_path / "persons.csv", index=False)
    np.testing.assert_array_equal(read(tmp_path, study(cohort__classes=classes)).labels, LABEL)


def test_missing_cells_stay_missing(tmp_path: Path) -> None:
    words = ["", "NA", "NaN", "null", "?", "."]
    table = values().astype({"x": object, "sex": object})
    table.loc[:5, "x"], table.loc[6:11, "sex"] = words, words
    table.to_csv(tmp_path / "clinical.csv", index=False)
    found = np.isnan(read(tmp_path, study()).inputs["clinical"].values)  # type: ignore[attr-defined]
    assert found.sum() == 12
    assert found[:6, 1].all()
    assert found[6:12, 2].all()


def cell(column: str, place: int, value: Any) -> Write:
    def write(folder: Path) -> None:
        table = values().astype({column: object})
        table.loc[place, column] = value
        table.to_csv(folder / "clinical.csv", index=False)

    return write


def with_column(**columns: Any) -> Write:
    return lambda folder: values().assign(**columns).to_csv(folder / "clinical.csv", index=False)


def with_ids(ids: list[str]) -> Write:
    return with_column(id=ids)


def labels(values_of: list[Any]) -> Write:
    return lambda folder: people().assign(y=values_of).to_csv(folder / "persons.csv", index=False)


REFUSED: dict[str, tuple[Write, list[str]]] = {
    "zeros lost": (with_ids([i.lstrip("0") for i in IDS]), ['has "1" where the persons table has "001"', "write ids alike"]),
    "ids as floats": (with_ids([f"{int(i)}.0" for i in IDS]), ["60 of 60 persons", 'has "1.0"']),
    "ids with a hyphen": (with_ids([f"0-{i}" for i in IDS]), ["names none of the 60 persons", '"0-001"']),
    "one id in another spelling": (with_ids(["1", *IDS[1:]]), ["1 of 60 persons", 'has "1" where the persons table has "001"']),
    "ids of other persons": (with_ids([f"P{i}" for i in IDS]), ["names none of the 60 persons", '"P001"']),
    "a duplicated column": (
        text("clinical.csv", lambda: csv_text(values().assign(z=0.0)[["id", "age", "z", "x", "sex"]]).replace("z,x", "x,x", 1)),
        ['has the column "x" 2 times'],
    ),
    "a column twice but for spaces": (
        text("clinical.csv", lambda: csv_text(values().assign(z=0.0)).replace("sex,z", "sex, x", 1)),
        ['has the column "x" 2 times'],
    ),
    "ids twice": (text("clinical.csv", lambda: csv_text(values()) + "007,50,5,F\n"), ['person "007" has 2 rows']),
    "below a limit": (cell("x", 7, "<0.5"), ['"x" has no finite number for 1 person(s), such as "<0.5"', "[cohort.clinical] missing"]),
    "a decimal comma between commas": (with_column(x=[str(v).replace(".", ",") for v in X]), ["decimal point"]),
    "decimal commas without quotes": (
        text("clinical.csv", lambda: csv_text(values(), decimal=",").replace('"', "")), ["row 2 has 5 cells, the header has 4"]
    ),
    "thousands": (with_column(x=[f"{v * 1000:,.0f}" for v in X]), ["separators of thousands"]),
    "thousands between semicolons": (
        text("clinical.csv", lambda: csv_text(values().assign(x=[f"{v * 1e6:,.0f}" for v in X]), sep=";")), ["separators of thousands"]
    ),
    "thousands or decimals, nobody knows": (
        text("clinical.csv", lambda: csv_text(values().assign(x=[f"{1 + abs(v):.3f}".replace(".", ",") for v in X]), sep=";")),
        ["separators of thousands"],
    ),
    "percent": (with_column(x=[f"{v}%" for v in X]), ['such as "'.strip(), "%"]),
    "a unit": (with_column(x=[f"{v} mg" for v in X]), ["mg", "[cohort.clinical] missing"]),
    "dates": (with_column(age=pd.date_range("1950-01-01", periods=PERSONS).strftime("%Y-%m-%d")), ["a date", "age in years"]),
    "dates with points": (with_column(age=pd.date_range("1950-01-01", periods=PERSONS).strftime("%d.%m.%Y")), ["a date"]),
    "infinity": (cell("x", 5, "inf"), ['such as "inf"']),
    "too large for a float": (cell("x", 5, "1e400"), ['such as "1e400"']),
    "hexadecimal": (cell("x", 5, "0x10"), ['such as "0x10"']),
    "underscores": (cell("x", 5, "1_000"), ['such as "1_000"']),
    "digits of another script": (cell("x", 5, "\u0661\u0662"), ["no finite number for 1"]),
    "true among numbers": (cell("x", 5, "TRUE"), ['such as "TRUE"']),
    "a code for missing": (with_column(x=[v if k % 10 else -999 for k, v in enumerate(X)]), ["is -999 for 6 of 60", "extremes"]),
    "a small code for missing": (with_column(age=[-9 if k == 3 else v for k, v in enumerate(AGE)]), ["is -9 for 1 of 60"]),
    "a large code for missing": (cell("age", 3, 999), ["is 999 for 1 of 60"]),
    "a slip of the comma": (cell("x", 5, 1e12), ["is 1e+12 for 1 of 60", "far from the others"]),
    "an unknown level": (cell("sex", 5, "X"), ['"X" for 1 person(s), not one of: F, M']),
    "a level in another case": (cell("sex", 5, "f"), ['"f"', 'did you mean "F"?']),
    "labels as words": (labels(["yes" if v else "no" for v in LABEL]), ["not one of: 0, 1"]),
    "labels 1 and 2": (labels([v + 1 for v in LABEL]), ['"2"', "not one of: 0, 1"]),
    "labels of -9": (labels([-9, *LABEL[1:]]), ['"-9" for 1 person(s)']),
    "no column of ids": (
        lambda folder: people().rename(columns={"id": "patient"}).to_csv(folder / "persons.csv", index=False),
        ['no column "id", its columns are patient, y', 'id = "..." in [data] of site.toml'],
    ),
    "ids in capitals": (text("persons.csv", lambda: csv_text(people().rename(columns={"id": "ID"}))), ['did you mean "ID"?']),
    "a comment first": (text("clinical.csv", lambda: "# exported 2026\n" + csv_text(values())), ["its columns are # exported 2026"]),
    "a short row": (text("clinical.csv", lines(lambda n, t: t[:5] if n == 5 else t)), ["row 6 has 2 cells, the header has 4"]),
    "a long row": (text("clinical.csv", lines(lambda n, t: t + ",5" * (n == 5))), ["row 6 has 5 cells, the header has 4"]),
    "a cut file": (text("clinical.csv", lambda: csv_text(values())[:501]), ["the header has 4"]),
    "a quote that is not closed": (text("clinical.csv", lines(lambda n, t: t if n != 5 else t.replace(",", ',"', 1))), ["clinical.csv"]),
    "a row without an id": (text("clinical.csv", lambda: csv_text(values()) + ",40,5,F\n"), ["row 62 has no id"]),
    "not UTF-8": (text("clinical.csv", lambda: csv_text(values().assign(x=["Müller"] * PERSONS)), "latin-1"), ["clinical.csv"]),
    "UTF-16 without a mark": (text("clinical.csv", lambda: csv_text(values()), "utf-16-le"), ["neither UTF-8 nor UTF-16"]),
    "nothing": (text("clinical.csv", lambda: ""), ["it is empty"]),
    "a header alone": (text("clinical.csv", lambda: "id,age,x,sex\n"), ["has no row"]),
    "a column that is not there": (text("clinical.csv", lambda: csv_text(values().drop(columns="x"))), ['no column "x"']),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence(tmp_path: Path, case: str) -> None:
    write, words = REFUSED[case]
    write(tmp_path)
    with pytest.raises(InputError) as caught:
        read(tmp_path, study())
    for word in words:
        assert word in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (lambda: values().assign(age=pd.date_range("1950-01-01", periods=PERSONS)), ["dates or durations", "age in years"]),
        (lambda: values().assign(age=pd.date_range("1950-01-01", periods=PERSONS).date), ["dates or durations"]),
        (lambda: values().assign(age=pd.to_timedelta(AGE, unit="D")), ["dates or durations"]),
        (lambda: values().assign(x=np.where(X > 5, np.inf, X)), ["no finite number"]),
        (lambda: values().assign(x=[[v] for v in X]), ["no finite number for 60"]),
        (lambda: values().assign(id=range(1, PERSONS + 1)), ['has "1" where the persons table has "001"']),
        (lambda: values().assign(id=[None, *IDS[1:]]), ["row 2 has no id"]),
    ],
)
def test_parquet_that_is_refused(tmp_path: Path, table: Callable[[], pd.DataFrame], words: list[str]) -> None:
    table().to_parquet(tmp_path / "clinical.parquet")
    with pytest.raises(InputError) as caught:
        read(tmp_path, study(), clinical="clinical.parquet")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["clinical.xlsx", "clinical.ods"])
def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(InputError, match="is a spreadsheet; save the sheet as CSV"):
        read(tmp_path, study(), clinical=name)


def test_extreme_cells_that_were_checked_are_read(tmp_path: Path) -> None:
    cell("x", 5, 1e12)(tmp_path)
    assert read(tmp_path, study(), more='extremes = ["x"]\n').inputs["clinical"].values[5, 1] == 1e12  # type: ignore[attr-defined]


def test_a_number_that_is_predicted_is_judged_too(tmp_path: Path) -> None:
    people().assign(y=[-999.0, *X[1:]]).to_csv(tmp_path / "persons.csv", index=False)
    with pytest.raises(InputError, match=r'column "y" is -999 for 1 of 60 persons.*; leave the cell empty, or write NA, if it is a code'):
        read(tmp_path, study(model__task="regression"))
    people().assign(y=[-9.0, *np.linspace(-3.5, 3.4, 59)]).to_csv(tmp_path / "persons.csv", index=False)  # as a standardised phenotype
    with pytest.raises(InputError, match=r'column "y" is -9 for 1 of 60 persons.*; -9 is PLINK.s code for a missing phenotype: leave'):
        read(tmp_path, study(model__task="regression"))


@pytest.mark.parametrize(
    "column",
    [
        np.r_[-9.0, np.linspace(-7, 8, 59)],
        X,
        AGE,
        -X,
        np.full(60, 5.0),
        np.r_[np.zeros(50), np.arange(10) * 10.0],
        np.exp(random.normal(2, 2, 400)),
    ],
)
def test_honest_columns_are_not_wild(tmp_path: Path, column: Any) -> None:
    from fedml.cohort.wild import wild

    assert wild(np.asarray(column, dtype=np.float64)) is None


@pytest.mark.parametrize(
    ("person", "other", "same"),
    [
        ("007", "7", True), ("PT-007", "pt7", True), ("a 1", "A_01", True), ("12", "12.0", True),
        ("1-12", "11-2", False), ("\u00c51", "\u00d61", False), ("a1", "b1", False), ("10", "1", False),
    ],
)  # fmt: skip
def test_which_ids_are_one_in_two_spellings(person: str, other: str, same: bool) -> None:
    """A second person, whom both have, so that a file of nobody is not what is refused."""
    try:
        check_ids([person, "both"], [other, "both"], "clinical.csv")
        refused = False
    except InputError:
        refused = True
    assert refused is same
