"""The persons table, the split, labels, and clinical columns."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort, read_cohort
from fedml.cohort.clinical import code_columns
from fedml.cohort.sheet import read_table
from fedml.cohort.table import part_of, read_labels, read_parts
from fedml.errors import InputError
from fedml.study.cohort_section import ClinicalColumns
from fedml.study.split import Split
from fedml.tasks.registry import make_task
from tests.conftest import clinical_site, make_study, write_csv
from tests.inputs import clinical_of

SPLIT = Split(train=0.6, val=0.15, test=0.25)


def table_of(tmp_path: Path, text: str | bytes, name: str = "persons.csv") -> pd.DataFrame:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path)


def labels_of(tmp_path: Path, text: str, classes: tuple[Any, ...] = (0, 1), task: str = "classification") -> list[float]:
    made = make_task(make_study(("image",), cohort__classes=list(classes), model__task=task))
    return read_labels(table_of(tmp_path, text), tmp_path / "persons.csv", made).tolist()


# --- split


@given(st.lists(st.text(max_size=12), unique=True, max_size=40), st.text(max_size=8), st.randoms())
def test_part_depends_on_id_and_key_alone(ids: list[str], key: str, random: Any) -> None:
    parts = {i: part_of(i, key, SPLIT) for i in ids}
    random.shuffle(ids)
    assert {i: part_of(i, key, SPLIT) for i in [*ids, "one more"] if i != "one more"} == {i: p for i, p in parts.items() if i != "one more"}
    assert set(parts.values()) <= {0, 1, 2}


PARTS_OF_24 = "021200020102002002000200"  # of person-00 to person-23 under the key "seed-0", computed once with hashlib alone


@pytest.mark.parametrize("key", ["", "seed-0", "a shared key"])
def test_a_person_s_part_is_a_keyed_blake2b_read_as_a_big_endian_fraction(key: str) -> None:
    """RFC 7693 with SHA-256 of the key as its key, 8 bytes, most significant first; against the cumulated fractions in whole numbers."""
    for person in ["", "P1", "person 2", "Å", *(f"id{n}" for n in range(300))]:
        digest = hashlib.blake2b(person.encode(), digest_size=8, key=hashlib.sha256(key.encode()).digest()).hexdigest()
        place = int(digest, 16) * 100  # hexadecimal text is big-endian
        part = 0 if place < 60 << 64 else 1 if place < 75 << 64 else 2
        assert part_of(person, key, Split(train=0.60, val=0.15, test=0.25)) == part, person


def test_the_parts_of_known_persons_never_change() -> None:
    found = [part_of(f"person-{k:02d}", "seed-0", Split(train=0.6, val=0.15, test=0.25)) for k in range(24)]
    assert "".join(map(str, found)) == PARTS_OF_24


def test_split_is_stable_as_a_cohort_grows_and_alike_at_two_sites(tmp_path: Path) -> None:
    study = make_study()
    small = read_cohort(read_site(clinical_site(tmp_path / "a", "a", 40, 1)), study)
    large = read_cohort(read_site(clinical_site(tmp_path / "b", "a", 90, 2)), study)
    parts = dict(zip(large.ids, large.parts, strict=True))
    assert len(small) == 40
    assert {i: parts[i] for i in small.ids} == dict(zip(small.ids, small.parts, strict=True))


@pytest.mark.parametrize("split", [SPLIT, Split(), Split(train=1, val=0, test=0), Split(train=0.8, val=0.0, test=0.2)])
def test_split_is_close_to_its_fractions(split: Split) -> None:
    persons = 20_000
    parts = np.array([part_of(f"P{k:06d}", "key", split) for k in range(persons)])
    for part, fraction in enumerate((split.train, split.val, split.test)):
        expected, sd = persons * fraction, np.sqrt(persons * fraction * (1 - fraction))
        assert abs((parts == part).sum() - expected) <= 4 * sd  # one in 16,000 by chance, and the ids are fixed


def test_another_key_is_another_independent_split() -> None:
    one, two = (np.array([part_of(str(k), key, SPLIT) for k in range(5000)]) for key in ("one", "two"))
    both = ((one == 0) & (two == 0)).mean()
    assert abs(both - 0.36) < 4 * np.sqrt(0.36 * 0.64 / 5000)


def test_the_studys_seed_is_the_key_unless_one_is_given() -> None:
    assert make_study(study__seed=4).split_key == "seed-4"
    assert make_study(study__seed=4, cohort__split_key="k").split_key == make_study(study__seed=5, cohort__split_key="k").split_key


def test_a_file_fixes_the_parts(tmp_path: Path) -> None:
    split = write_csv(tmp_path / "split.csv", ["c", "a", "b", "stranger"], {"part": ["test", "train", "val", "train"]})
    assert read_parts(split, pd.Index(["a", "b", "c"])).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,part\na,train\nb,traim\n", ['column "part"', '"traim"', "train, val, test"]),
        ("id,part\na,train\n", ["1 person(s)", "no part"]),
        ("id,prt\na,train\nb,val\n", ['no column "part"', 'did you mean "prt"?']),
        pytest.param("id,part\na,train\nb,\n", ["part"]),
    ],
)
def test_a_split_file_that_leaves_somebody_out_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_parts(tmp_path / "split.csv", pd.Index(["a", "b"]))
    for word in ["split.csv", *words]:
        assert word in str(caught.value)


# --- table


def test_ids_are_text_and_keep_leading_zeros(tmp_path: Path) -> None:
    assert list(table_of(tmp_path, "y,id\n1,007\n0,7\n1, 12 \n").index) == ["007", "7", "12"]


def test_a_byte_order_mark_as_excel_writes_it_does_not_hide_the_id(tmp_path: Path) -> None:
    assert list(table_of(tmp_path, "\ufeffid,y\n1,0\n").index) == ["1"]


def test_a_comma_at_the_end_of_each_row_shifts_nothing(tmp_path: Path) -> None:
    table = table_of(tmp_path, "id,y\na,1,\nb,0,\n")
    assert (list(table.index), list(table["y"])) == (["a", "b"], ["1", "0"])


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    plain = table_of(tmp_path, "id,y,x\n01,1,0.5\n02,,\n")
    pd.DataFrame({"id": ["01", "02"], "y": pd.array([1, None], "Int64"), "x": [0.5, np.nan]}).to_parquet(tmp_path / "p.parquet")
    other = read_table(tmp_path / "p.parquet")
    assert list(other.index) == list(plain.index)
    for task in ("classification", "regression"):
        one, two = (read_labels(t, tmp_path, make_task(make_study(model__task=task))) for t in (plain, other))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, [1, np.nan])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,y\n7,1\n8,0\n7,1\n", ['person "7" has 2 rows']),
        ("id,y\n7,1\n 7,1\n", ['person "7" has 2 rows']),
        ("idd,y\n7,1\n", ['no column "id"', 'did you mean "idd"?']),
        pytest.param("ID,y\n7,1\n", ['no column "id"', 'did you mean "ID"?']),
        ("patient;y\n7;1\n", ['no column "id"']),
        ("id,y\n7,1\n,0\n", ["row 3 has no id"]),
        ("", ["cannot be read as a table"]),
        ("id,y\n1,2\n3,4,5\n", ["cannot be read as a table"]),
        (b"id,y\n\xff\xfe\xfa,1\n", ["cannot be read as a table"]),
        (bytes(range(256)) * 9, ["persons.csv"]),
        pytest.param("id,y\na,1,5\nb,0,6\n", ["persons.csv"]),
        pytest.param('id,y\n"  ",1\n', ["row 2 has no id"]),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        table_of(tmp_path, text)
    for word in [str(tmp_path / "persons.csv"), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_missing_or_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; correct the path in site\.toml"):
        read_table(tmp_path / "persons.csv")
    with pytest.raises(InputError, match=r"persons\.parquet: cannot be read as a table"):
        table_of(tmp_path, "id,y\n1,0\n", "persons.parquet")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_table(tmp_path)


# --- labels


@pytest.mark.parametrize("cells", ["1\n0", "1.0\n0.0", '"1"\n"0"', " 1\n0 ", "1e0\n0"])
@pytest.mark.parametrize("classes", [(0, 1), (0.0, 1.0), ("0", "1")])
def test_a_label_is_the_same_however_it_is_written(tmp_path: Path, cells: str, classes: tuple[Any, ...]) -> None:
    one, two = cells.split("\n")
    assert labels_of(tmp_path, f"id,y\na,{one}\nb,{two}\n", classes) == [1, 0]


def test_labels_follow_the_order_of_the_classes(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "id,y\na,mild\nb,severe\nc,none\n", ("severe", "mild", "none")) == [1, 0, 2]


def test_labels_of_true_and_false_as_zero_and_one(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "id,y\na,True\nb,False\n") == [1, 0]


def test_labels_of_true_and_false_by_name(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "id,y\na,True\nb,False\n", ("False", "True")) == [1, 0]


@pytest.mark.parametrize("word", ["", "NA", "nan", "NULL", "?", "."])
def test_missing_labels_are_excluded_and_counted(tmp_path: Path, word: str) -> None:
    manifest = clinical_site(tmp_path, "a", 30, 1, labels=[word, 0, 1] * 10)
    cohort = read_cohort(read_site(manifest), make_study())
    assert len(cohort) == 20
    assert cohort.excluded == {"no label": 10}
    assert cohort.labels.tolist() == [0, 1] * 10


@pytest.mark.parametrize(("label", "reported"), [("2", '"2" for 1 person(s)'), ("1.5", '"1.5"'), ("yes", '"yes"')])
def test_a_label_outside_the_classes_is_refused(tmp_path: Path, label: str, reported: str) -> None:
    with pytest.raises(InputError) as caught:
        labels_of(tmp_path, f"id,y\na,1\nb,{label}\n")
    for word in ("persons.csv", 'column "y"', reported, "not one of: 0, 1"):
        assert word in str(caught.value)


def test_regression_labels_are_numbers(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "id,y\na,1.5\nb,-3e2\n", task="regression") == [1.5, -300]
    for cell in ("tall", "inf", "1e400"):
        with pytest.raises(InputError, match=r'column "y" has no finite number for 1 person'):
            labels_of(tmp_path, f"id,y\na,1\nb,{cell}\n", task="regression")


def test_an_absent_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'no column "y" \(did you mean "yy"\?\); \[cohort\] target needs it'):
        labels_of(tmp_path, "id,yy\na,1\n")


# --- clinical


def coded(tmp_path: Path, text: str, **spec: Any) -> np.ndarray[Any, Any]:
    table = table_of(tmp_path, text, "clinical.csv")
    return code_columns(table, ClinicalColumns(**spec), tmp_path / "clinical.csv")


def test_columns_in_the_studys_order_with_sentinels_and_categories(tmp_path: Path) -> None:
    text = "id,sex,dose,age,junk\na,m,-9,40,x\nb,f,2.5,,x\nc,,0,unknown,x\nd,9,-9.0,61,x\n"
    out = coded(
        tmp_path,
        text,
        columns=("age", "sex", "dose"),
        categories={"sex": ("f", "m")},
        missing={"dose": (-9,), "age": ("unknown",), "sex": (9,)},
    )
    np.testing.assert_array_equal(out, [[40, 1, np.nan], [np.nan, 0, 2.5], [np.nan, np.nan, 0], [61, np.nan, np.nan]])


def test_numeric_categories_in_any_spelling(tmp_path: Path) -> None:
    out = coded(tmp_path, "id,cp\na,1.0\nb,4\nc,\n", columns=("cp",), categories={"cp": (1, 2, 3, 4)})
    np.testing.assert_array_equal(out, [[0], [3], [np.nan]])


@pytest.mark.parametrize(
    ("text", "spec", "words"),
    [
        ("id,x\na,3\nb,high\n", {"columns": ("x",)}, ['column "x"', "no finite number for 1 person(s)"]),
        ("id,x\na,3\nb,inf\n", {"columns": ("x",)}, ['column "x"', "no finite number for 1 person(s)"]),
        ("id,x\na,3\nb,-Infinity\n", {"columns": ("x",)}, ['column "x"']),
        ("id,x\na,f\nb,d\n", {"columns": ("x",), "categories": {"x": ("f", "m")}}, ['column "x"', '"d"', "not one of: f, m"]),
        ("id,xx\na,3\n", {"columns": ("x",)}, ['no column "x"', "[cohort.clinical] columns needs it"]),
        ("id,age\na,3\n", {"columns": ("Age",)}, ['no column "Age"', 'did you mean "age"?']),
    ],
)
def test_a_column_that_cannot_be_used_is_refused(tmp_path: Path, text: str, spec: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        coded(tmp_path, text, **spec)
    for word in [str(tmp_path / "clinical.csv"), *words]:
        assert word in str(caught.value)


def test_rows_of_two_tables_are_joined_by_id(tmp_path: Path) -> None:
    manifest = clinical_site(tmp_path, "a", 30, 1, missing=0)
    table = pd.read_csv(tmp_path / "clinical.csv", dtype={"id": str})
    before = read_cohort(read_site(manifest), make_study())
    table = pd.concat([table.iloc[3:].sample(frac=1, random_state=0), table.iloc[:1].assign(id="stranger")])
    table.to_csv(tmp_path / "clinical.csv", index=False)
    after = read_cohort(read_site(manifest), make_study())
    assert after.ids == before.ids[3:]
    assert after.excluded == {"no input": 3}
    np.testing.assert_array_equal(clinical_of(after).values, clinical_of(before).values[3:])
    np.testing.assert_array_equal(after.parts, before.parts[3:])


def test_a_site_whose_training_persons_lack_labels_or_inputs_is_told_so_and_not_to_look_at_the_split(tmp_path: Path) -> None:
    study = make_study()
    all_missing = clinical_site(tmp_path / "all", "a", 30, 1, labels=[""] * 30)
    with pytest.raises(
        InputError, match=r'persons\.csv: no person has a label: column "y" is empty; fill it, or correct \[cohort\] target'
    ) as no:
        load_cohort((str(all_missing),), study)
    assert "split" not in str(no.value)
    ids = [str(i) for i in pd.read_csv(tmp_path / "all" / "persons.csv", dtype=str)["id"]]
    train = [part_of(i, study.split_key, study.cohort.split) == 0 for i in ids]
    assert 5 < sum(train) < 30
    some = clinical_site(tmp_path / "some", "a", 30, 1, labels=["" if t else 1 for t in train])
    with pytest.raises(InputError, match=r'persons\.csv: no person in the train part has a label: column "y" is empty'):
        load_cohort((str(some),), study)
    mixed = clinical_site(tmp_path / "mixed", "a", 30, 1, missing=0)
    table = pd.read_csv(tmp_path / "mixed" / "clinical.csv", dtype={"id": str})
    table[[not t for t in train]].to_csv(tmp_path / "mixed" / "clinical.csv", index=False)
    with pytest.raises(InputError, match=rf"none of the {sum(train)} persons in the train part can be used: {sum(train)} have none of the"):
        load_cohort((str(mixed),), study)


def test_a_site_without_training_persons_or_inputs_is_refused(tmp_path: Path) -> None:
    manifest = clinical_site(tmp_path, "a", 12, 1)
    with pytest.raises(InputError, match=r"none of its 12 usable persons is in the train part"):
        load_cohort((str(manifest),), make_study(cohort__split={"train": 0, "val": 0.5, "test": 0.5}))
    with pytest.raises(InputError, match=r"none of the study's inputs \(image\)"):
        load_cohort((str(manifest),), make_study(("image",)))
