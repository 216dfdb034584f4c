"""Subgroups of test persons: members, reportable groups, and that merged counts are those of the pooled persons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort, read_cohort
from fedml.clients.work.request import read_site_once
from fedml.cohort.groups import reportable_groups, reportable_indices
from fedml.contract.replies import check_form
from fedml.errors import InputError, SiteError
from fedml.runs.log import load_counts
from fedml.study.sections import Evaluation
from fedml.study.study import Study
from fedml.tasks.classification_counts import coarse
from fedml.tasks.registry import make_task
from fedml.wire.records import COUNTS, Phase, pack
from tests.conftest import federate, make_study, write_csv

GROUPS = {"subgroups": {"sex": [0, 1]}, "bands": {"age": [50, 60]}}


def sites(folder: Path, *, persons: int = 120, policy: str = "min_persons = 1\nmin_count = 5") -> dict[str, Path]:
    out = {}
    for at, name in enumerate(("a", "b")):
        place = folder / name
        place.mkdir(parents=True)
        random = np.random.default_rng(at)
        ids = [f"{name}{n:04d}" for n in range(persons)]
        x = random.normal(size=(3, persons))
        age = random.normal(55, 8, persons).round(1)
        sex = [None if n == 0 else int(v) for n, v in enumerate(random.random(persons) < 0.4)]
        y = (x[0] + random.normal(size=persons) > 0).astype(int)
        write_csv(place / "persons.csv", ids, {"y": y, "sex": sex})
        write_csv(place / "clinical.csv", ids, {"x1": x[0], "x2": x[1], "x3": x[2], "age": age})
        data = 'persons = "persons.csv"\npublic = true\nclinical = { path = "clinical.csv" }'
        site = f'[site]\nname = "{name}"\n[data]\n{data}\n[policy]\n{policy}\n'
        (place / "site.toml").write_text(site)
        out[name] = place / "site.toml"
    return out


def study_of(names: tuple[str, ...] = ("a", "b"), **evaluation: object) -> Study:
    return make_study(sites=names, evaluation=evaluation or GROUPS, cohort__split={"train": 0.5, "val": 0.1, "test": 0.4})


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 12), st.integers(1, 10))
def test_no_small_group_can_be_computed_by_subtraction(sizes: list[int], in_none: int, min_count: int) -> None:
    shown = reportable_indices(np.array(sizes), sum(sizes) + in_none, min_count)
    assert all(sizes[k] >= min_count for k in shown)
    rest = sum(sizes) + in_none - sum(sizes[k] for k in shown)
    assert not shown or rest == 0 or rest >= min_count
    if in_none == 0 and all(size >= min_count for size in sizes):
        assert len(shown) == len(sizes)


def test_a_group_within_another_does_not_tell_of_the_rest() -> None:
    """Fifty women of whom one is pregnant, unknown for fifty men: the not pregnant would tell of her."""
    plan = Evaluation(subgroups={"sex": (0, 1), "pregnant": (0, 1)})
    sex = np.repeat([0, 1], 50).astype(np.int16)
    pregnant = np.where(sex == 0, -1, 0).astype(np.int16)
    pregnant[99] = 1
    labels = [label for label, _ in reportable_groups({"sex": sex, "pregnant": pregnant}, plan, np.arange(100), 10)]
    assert labels == ["sex:0", "sex:1"]
    pregnant[80:] = 1
    assert len(list(reportable_groups({"sex": sex, "pregnant": pregnant}, plan, np.arange(100), 10))) == 4


Persons = list[set[int]]


def hidden_well(shown_groups: dict[str, Persons], everyone: set[int], min_count: int) -> bool:
    """No shown group, nor those in none of a variable's shown groups, nor the difference of two nested groups is a few persons."""
    for groups in shown_groups.values():
        rest = everyone - set().union(*groups)
        if groups and 0 < len(rest) < min_count:
            return False
    flat = [group for groups in shown_groups.values() for group in groups]
    small = any(len(group) < min_count for group in flat)
    return not small and not any(one < other and len(other - one) < min_count for one in flat for other in flat)


@given(st.data(), st.integers(2, 4))
def test_no_few_persons_follow_from_the_groups_that_are_shown(data: st.DataObject, min_count: int) -> None:
    """By subtraction from all persons, or of nested groups of two variables: looked for with sets, in whichever order variables stand."""
    persons = data.draw(st.integers(min_count, 14))
    first = data.draw(st.lists(st.integers(-1, 1), min_size=persons, max_size=persons))
    second = [data.draw(st.sampled_from([value, value, value, -1, 0, 1])) for value in first]  # mostly nested in the first variable's
    codes = {"one": np.array(first, np.int16), "two": np.array(second, np.int16)}
    names = data.draw(st.permutations(list(codes)))
    plan = Evaluation(subgroups=dict.fromkeys(names, (0, 1)))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, persons - 1), min_size=1))))
    found: dict[str, Persons] = {"one": [], "two": []}
    for label, own in reportable_groups(codes, plan, rows, min_count):
        name, value = label.split(":")
        assert set(own.tolist()) == {row for row in rows.tolist() if codes[name][row] == int(value)}
        found[name].append(set(own.tolist()))
    assert hidden_well(found, set(rows.tolist()), min_count)


@pytest.mark.parametrize("names", [("sex", "pregnant"), ("pregnant", "sex")])
def test_of_two_nested_groups_one_is_hidden_in_whichever_order_they_stand(names: tuple[str, str]) -> None:
    sex = np.repeat([0, 1], 50).astype(np.int16)
    pregnant = np.where(sex == 0, -1, 0).astype(np.int16)
    pregnant[99] = 1  # alone among fifty women
    plan = Evaluation(subgroups=dict.fromkeys(names, (0, 1)))
    labels = {label for label, _ in reportable_groups({"sex": sex, "pregnant": pregnant}, plan, np.arange(100), 10)}
    assert len({"sex:1", "pregnant:0"} & labels) == 1


def test_a_group_is_hidden_if_too_few_persons_are_in_no_group() -> None:
    sex = np.repeat([0, 1, -1], [60, 35, 5]).astype(np.int16)  # five persons whose sex is not known
    plan = Evaluation(subgroups={"sex": (0, 1)})
    assert [label for label, _ in reportable_groups({"sex": sex}, plan, np.arange(100), 10)] == ["sex:0"]
    assert [label for label, _ in reportable_groups({"sex": sex}, plan, np.arange(95), 10)] == ["sex:0", "sex:1"]


def test_groups_are_read_from_both_tables_and_merged_exactly(tmp_path: Path) -> None:
    study, there = study_of(), sites(tmp_path)
    final = federate(study, there.values(), tmp_path / "run").final
    assert set(final["groups"]) == {"sex:0", "sex:1", "age:under-50", "age:50-to-60", "age:60-plus"}
    cohorts = [load_cohort((str(p),), study) for p in there.values()]
    old = sum(int((c.groups["age"][c.rows("test")] == 2).sum()) for c in cohorts)
    assert final["groups"]["age:60-plus"]["all"]["persons"] == old
    bands = sum(final["groups"][f"age:{k}"]["all"]["persons"] for k in ("under-50", "50-to-60", "60-plus"))
    assert bands == final["metrics"]["test"]["all"]["persons"]
    counts = load_counts(tmp_path / "run")
    total = sum(counts[f"test@age:{g}"][s]["histogram"] for s in "ab" for g in ("under-50", "50-to-60", "60-plus"))
    whole = sum(counts["test"][s]["histogram"] for s in "ab")
    assert (total == coarse({"histogram": whole})["histogram"]).all()
    assert np.count_nonzero(total) < np.count_nonzero(whole), "single persons cannot be distinguished"
    again = make_task(study).metrics(counts["test@sex:1"]["a"])
    assert again == final["groups"]["sex:1"]["sites"]["a"]


def test_a_finer_histogram_of_a_group_is_refused(tmp_path: Path) -> None:
    study = study_of()
    federate(study, sites(tmp_path).values(), tmp_path / "run")
    disclosures_of = load_counts(tmp_path / "run")
    counts = {f"test/{k}": v for k, v in disclosures_of["test"]["a"].items()} | {
        f"test@sex:1/{k}": v for k, v in disclosures_of["test@sex:1"]["a"].items()
    }
    check_form(study, Phase.EVALUATE, "a", RecordDict({COUNTS: pack(counts)}), None)
    fine = counts["test@sex:1/histogram"].copy()
    fine[..., 5] = 1
    with pytest.raises(SiteError, match="has more bins than are allowed"):
        check_form(study, Phase.EVALUATE, "a", RecordDict({COUNTS: pack({**counts, "test@sex:1/histogram": fine})}), None)


def test_a_small_group_and_the_one_that_would_tell_it_are_hidden(tmp_path: Path) -> None:
    there = sites(tmp_path, policy="min_persons = 1\nmin_count = 12")
    study = study_of(("a",), bands={"age": [42, 60]})
    cohort = read_cohort(read_site(there["a"]), study)
    sizes = np.bincount(cohort.groups["age"][cohort.rows("test")], minlength=3)
    assert 0 < sizes[0] < 12 <= sizes[2]
    final = federate(study, [there["a"]], tmp_path / "run").final
    assert "age:under-42" not in final["groups"]
    disclosures_of = sum(g["all"]["persons"] for g in final["groups"].values())
    assert final["metrics"]["test"]["all"]["persons"] - disclosures_of >= 12


def test_a_missing_column_is_reported(tmp_path: Path) -> None:
    site = read_site(sites(tmp_path)["a"])
    with pytest.raises(InputError, match=r'persons.csv: has no column "scanner".*\[evaluation\]'):
        read_cohort(site, study_of(subgroups={"scanner": ["x", "y"]}))


@pytest.mark.parametrize(
    ("evaluation", "told_so"),
    [
        ({"bands": {"age": [60, 50]}}, "must be ascending"),
        ({"subgroups": {"sex": [0, 0.0]}}, "a label occurs twice"),
        ({"subgroups": {"sex": [0]}, "bands": {"sex": [1]}}, "in subgroups and in bands"),
        ({"subgroups": {"town": ["São Paulo"]}}, "has other characters"),
    ],
)
def test_impossible_groups_are_refused(evaluation: dict[str, object], told_so: str) -> None:
    with pytest.raises(InputError, match=told_so):
        make_study(evaluation=evaluation)


def test_what_a_site_says_of_itself(tmp_path: Path) -> None:
    there = sites(tmp_path)

    def disclosures_of(folder: str) -> dict[str, dict[str, object]]:
        load_cohort.cache_clear()
        read_site_once.cache_clear()
        events = federate(study_of(), there.values(), tmp_path / folder).events
        return next(e["disclosed"] for e in events if e["event"] == "agreed")

    first = disclosures_of("run")
    assert first["a"]["policy"]["min_count"] == 5
    assert first["a"]["quarantined"] == {}
    assert len(str(first["a"]["dataset"])) == 64
    assert first["a"]["dataset"] != first["b"]["dataset"]
    there["b"].write_text(there["b"].read_text() + "disclose = false\n")
    again = disclosures_of("again")
    assert again["a"] == first["a"]
    assert again["b"] == {**first["b"], "policy": None}
    table = there["a"].parent / "persons.csv"
    table.write_text(table.read_text().replace(",1,", ",0,", 1))
    assert disclosures_of("changed")["a"]["dataset"] != first["a"]["dataset"]
