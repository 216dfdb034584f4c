"""Columns by pattern in a study file: which columns they mean, and that the study is the one that names each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedml.errors import InputError
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study
from tests.conftest import make_plan, to_toml

NAMES = ["id", "age", "TP53_rnaseq", "y", "EGFR_rnaseq", "A*02:01", "bmi", "KRAS_mut"]


def read(folder: Path, columns: Any, names: list[str] | str | None = None, section: str = "clinical", **changes: Any) -> Study:
    spec = {"columns": columns, **({"names": "columns.txt"} if names is not None else {})}
    if names is not None:
        (folder / "columns.txt").write_text(names if isinstance(names, str) else "\n".join(names) + "\n")
    plan = make_plan((section,), **{f"cohort__{section}": spec, **changes})
    (folder / "study.toml").write_text(to_toml(plan))
    return read_study(folder / "study.toml")


@pytest.mark.parametrize(
    ("asked", "columns"),
    [
        (["age", "*_rnaseq"], ["age", "TP53_rnaseq", "EGFR_rnaseq"]),
        (["*_rnaseq", "TP53_rnaseq", "b*"], ["TP53_rnaseq", "EGFR_rnaseq", "bmi"]),
        ("*_mut", ["KRAS_mut"]),
        (["*3_rna*"], ["TP53_rnaseq"]),
        (["A*02:01"], ["A*02:01"]),
        ("all", ["age", "TP53_rnaseq", "EGFR_rnaseq", "A*02:01", "bmi", "KRAS_mut"]),
    ],
)
@pytest.mark.parametrize("section", ["clinical", "omics"])
def test_the_study_is_the_one_that_names_each_column(tmp_path: Path, asked: Any, columns: list[str], section: str) -> None:
    by_pattern = read(tmp_path, asked, NAMES, section)
    plain = make_plan((section,), **{f"cohort__{section}": {"columns": columns}})
    assert by_pattern.canonical == parse_study(json.dumps(plain)).canonical
    assert "names" not in json.loads(by_pattern.canonical)["cohort"][section]


def test_a_study_of_listed_columns_is_the_same_with_and_without_names(tmp_path: Path) -> None:
    assert read(tmp_path, ["age", "bmi"]).sha256 == read(tmp_path, ["age", "bmi"], NAMES).sha256


def test_what_all_means_leaves_out_the_exposure(tmp_path: Path) -> None:
    from fedml.study.columns import select

    assert select("all", ["years", "age", "y"], {"target": "y", "exposure": "years"}, "", 10) == ["age"]
    assert select("all", ["age", "family", "y"], {"target": "y", "cluster": "family"}, "", 10) == ["age"]
    assert select("all", ["a", "b", "age"], {"target": ["a", "b"]}, "", 10) == ["age"]


@pytest.mark.parametrize(
    ("asked", "names", "words"),
    [
        (["*_rnaseq"], None, '[cohort.clinical] columns is by pattern and needs names = "columns.txt"'),
        ("all", None, "fedml check STUDY --sites DIR --resolve writes it"),
        (["*_cnv"], NAMES, '"*_cnv" matches none of the names (id, age, TP53_rnaseq, y, EGFR_rnaseq and 3 more)'),
        (["*"], NAMES, 'matches the target "y", which would reveal it'),
        (["ages", "*_rnaseq"], NAMES, 'lists "ages", which is not among the names (did you mean "age"?)'),
        ("all", ["id", "y"], "have no column besides the id and the target"),
        (["g*"], [f"g{k}" for k in range(5001)], "means 5,001 columns by pattern, the limit is 5,000; narrow the pattern"),
        (["age"], '# columns = "all"\nage\n', "was written for other columns than the study has"),
        (["age"], '# columns = ["age"]\n', "has no name"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_a_sentence(tmp_path: Path, asked: Any, names: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, asked, names)
    assert words in str(caught.value)
    assert "study.toml" in str(caught.value) or "columns.txt" in str(caught.value)


def test_more_than_60_000_features_by_pattern_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="means 60,001 columns by pattern, the limit is 60,000"):
        read(tmp_path, "all", [f"g{k}" for k in range(60_001)], "omics")


def test_a_private_study_states_a_range_of_every_column_also_by_pattern(tmp_path: Path) -> None:
    private = {"unit": "patient", "epsilon": 5.0, "persons": {"a": 100, "b": 100}}
    names = [f"g{k}" for k in range(12)]
    with pytest.raises(InputError, match=r"\[privacy\] ranges lacks g0, .* and 2 more: .*is for each column by pattern"):
        read(tmp_path, ["g*"], names, privacy=private)
    ranges = {"g*": [-4.0, 4.0], "g3": [0.0, 9.0]}
    found = read(tmp_path, ["g*"], names, privacy={**private, "ranges": ranges}, cohort__split_key="k")
    assert found.privacy.ranges == {name: (0.0, 9.0) if name == "g3" else (-4.0, 4.0) for name in names}


def test_codes_of_missing_values_by_pattern(tmp_path: Path) -> None:
    spec = {"columns": ["age", "g*"], "names": "columns.txt", "missing": {"g*": [-999], "g1": [0]}}
    (tmp_path / "columns.txt").write_text("g1\nage\ng2\n")
    (tmp_path / "study.toml").write_text(to_toml(make_plan(cohort__clinical=spec)))
    clinical = read_study(tmp_path / "study.toml").cohort.clinical
    assert clinical is not None
    assert clinical.missing == {"g1": (0,), "g2": (-999,)}
