"""The reporting checklists: each answer is the run's, with a place where it stands, and nothing is said that the run does not hold."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.errors import InputError
from fedml.experiments.checklists.facts import Fact, facts_of, resolve
from fedml.experiments.checklists.fill import (
    AUTHOR,
    CONDITIONS,
    NAMES,
    Filled,
    checklists_json,
    checklists_markdown,
    counted,
    fill,
    fill_all,
    markdown,
    read_checklist,
)
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.runs.run import new_run, run_nodes
from fedml.runs.log import EVENTS, MODEL, STUDY
from fedml.study.study import Study
from tests.conftest import clinical_site, make_study

ANSWERED = ("filled", "partly")


def a_run(folder: Path, study: Study) -> Record:
    """A real run of ``study`` over sites with clinical columns."""
    made = [clinical_site(folder / name, name, 70, seed) for seed, name in enumerate(study.federation.sites)]
    run = new_run(study, folder, None, engine="local", job="train")
    run_nodes(study, [{"manifest": str(manifest)} for manifest in made], run)
    return read_record(run)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    about = {"name": "toy", "question": "Is y there?", "purpose": "DUO:0000042", "seed": 7}
    return a_run(tmp_path_factory.mktemp("plain"), make_study(study=about, evaluation__bands={"x1": [3]}))


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Record:
    ranges = {"x1": [-5, 10], "x2": [-8, 6], "x3": [0, 200]}
    plan = {"unit": "patient", "noise_multiplier": 1.5, "ranges": ranges, "persons": {"a": 50, "b": 50}}
    return a_run(tmp_path_factory.mktemp("private"), make_study(privacy=plan, training__batch_size=25))


def changed(record: Record, folder: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> Record:
    """A copy of the run in which the last event of ``kind`` is another."""
    run = folder / "copy"
    shutil.copytree(record.run, run)
    events = [json.loads(line) for line in (run / EVENTS).read_text().splitlines()]
    change(next(e for e in reversed(events) if e["event"] == kind))
    (run / EVENTS).write_text("".join(json.dumps(e) + "\n" for e in events))
    return read_record(run)


def by_id(rows: list[Filled]) -> dict[str, Filled]:
    return {row.id: row for row in rows}


def test_each_list_has_the_numbers_of_its_guideline() -> None:
    parts = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"}
    tripod = [f"{n}{letter}" for n in range(1, 28) for letter in parts.get(n, [""])]
    sizes = {"Fairness": 3, "Universality": 4, "Traceability": 6, "Usability": 5, "Robustness": 3, "Explainability": 2, "General": 7}
    future = [f"{principle} {n + 1}" for principle, size in sizes.items() for n in range(size)]
    expected = {"tripod_ai": tripod, "claim": [str(n) for n in range(1, 45)], "future_ai": future}
    assert {name: [item.id for item in read_checklist(name).item] for name in NAMES} == expected
    assert (len(tripod), len(future)) == (52, 30)


def test_every_fact_that_an_item_asks_for_is_one_that_some_run_has(record: Record, private: Record) -> None:
    known = {*facts_of(record), *facts_of(private)}
    of_other_studies = {"quarantined", "deidentification", "augmentation", "checks"}  # of images and variants
    of_real_sites = {"journals"}
    told_by_the_report = {"intervals", "calibration", "diagram", "characteristics", "sample_size", "utility"}
    named = {name for one in map(read_checklist, NAMES) for item in one.item for name in (*item.source, *item.also)}
    assert named - known <= of_other_studies | of_real_sites | told_by_the_report | {"code"}


@pytest.mark.parametrize("which", ["record", "private"])
def test_each_answer_has_places_that_are_in_the_folder(which: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(which)
    for rows in fill_all(run).values():
        for row in rows:
            assert bool(row.pointers) or row.state not in ANSWERED
            assert (row.author == AUTHOR and not row.text and not row.pointers) == (row.state == "author")
            assert bool(row.author) == (row.state in ("partly", "author"))
            assert row.text or row.state == "author"
            for pointer in row.pointers:
                resolve(run.run, pointer)
    assert counted(fill_all(run)["tripod_ai"])["filled"]
    assert counted(fill_all(run)["future_ai"])["author"]


def test_what_the_run_says_is_in_the_answer(record: Record) -> None:
    rows = fill_all(record)
    tripod = by_id(rows["tripod_ai"])
    scores = record.final.metrics["test"]
    assert f"auroc {scores['all']['auroc']:.3f}" in tripod["23a"].text
    assert all(f"{site} accuracy {own['accuracy']:.3f}" in tripod["23b"].text for site, own in scores["sites"].items())
    assert all(f"{label} accuracy {own['all']['accuracy']:.3f}" in tripod["23a"].text for label, own in record.final.groups.items())
    assert record.final.groups, "no subgroup was reported"
    assert '"Is y there?"' in tripod["4"].text
    assert tripod["4"].pointers == ("study.json#/study/question",)
    train = {s.name: s.count("train") for s in record.sites}
    assert f"a train {train['a']}," in tripod["21"].text
    assert f"All sites: train {sum(n or 0 for n in train.values())}," in tripod["21"].text
    assert tripod["17"].author == AUTHOR
    assert tripod["24"].state == "not applicable"
    assert re.search(r"Versions: .*torch \d", tripod["18f"].text)
    assert "No differential privacy" in by_id(rows["future_ai"])["General 2"].text


def test_another_number_in_the_record_is_another_number_in_the_answer(record: Record, tmp_path: Path) -> None:
    def other(event: dict[str, Any]) -> None:
        event["metrics"]["test"]["all"]["auroc"] = 0.12345

    before, after = (by_id(fill_all(r)["tripod_ai"]) for r in (record, changed(record, tmp_path, "final", other)))
    assert "auroc 0.123" in after["23a"].text
    assert {i for i in before if before[i].text != after[i].text} == {"23a"}


def test_a_site_that_missed_a_round_is_reported_with_the_reason(record: Record, tmp_path: Path) -> None:
    def missed(event: dict[str, Any]) -> None:
        del event["sites"]["b"]
        event["refused"] = {"b": "no-answer"}

    after = by_id(fill_all(changed(record, tmp_path, "round", missed))["tripod_ai"])
    assert "a in 2; b in 1, missed 1 (no-answer)" in after["20a"].text


def test_training_persons_who_are_protected_are_not_counted(private: Record) -> None:
    text = by_id(fill_all(private)["tripod_ai"])["21"].text
    assert "a about 50; b about 50" in text
    assert not re.search(r"train \d", text)
    assert by_id(fill_all(private)["tripod_ai"])["21"].state == "partly"
    privacy = by_id(fill_all(private)["future_ai"])["General 2"].text
    assert str(private.privacy.sentence) in privacy
    assert "Epsilon by site: a " in privacy


def test_a_run_that_failed_has_no_results(record: Record, tmp_path: Path) -> None:
    run = tmp_path / "failed"
    shutil.copytree(record.run, run)
    lines = (run / EVENTS).read_text().splitlines(keepends=True)
    (run / EVENTS).write_text("".join(line for line in lines if json.loads(line)["event"] in ("start", "checks", "agreed")))
    (run / MODEL).unlink()
    rows = by_id(fill_all(read_record(run))["tripod_ai"])
    assert all(rows[i].state == "author" for i in ("12g", "23a", "23b"))
    assert rows["21"].state == "filled"
    assert "unfinished" in checklists_markdown(read_record(run))


def test_a_missing_model_is_not_reported(record: Record, tmp_path: Path) -> None:
    shutil.copytree(record.run, tmp_path / "run")
    (tmp_path / "run" / MODEL).unlink()
    before, after = (by_id(fill_all(r)["tripod_ai"])["12g"] for r in (record, read_record(tmp_path / "run")))
    assert (before.state, after.state) == ("filled", "author")


@pytest.mark.parametrize(
    ("study", "condition", "concerned"),
    [
        (make_study(), "images", {"claim": range(1, 45)}),
        (make_study(("image",), model__task="segmentation"), "prediction", {"tripod_ai": None, "claim": [38]}),
        (make_study(model__task="regression"), "classes", {"tripod_ai": ["13"]}),
        (make_study(sites=("a",)), "clusters", {"tripod_ai": ["12d", "23b"]}),
        (make_study(), "updating", {"tripod_ai": ["12f", "24"]}),
    ],
)
def test_items_that_do_not_apply_have_the_reason(study: Study, condition: str, concerned: dict[str, Any]) -> None:
    why, pointer = CONDITIONS[condition]
    reason = why(study)
    assert reason
    for name in NAMES:
        one = read_checklist(name)
        rows = fill(one.item, {}, study, one.when)
        apart = {row.id for row in rows if row.text == reason}
        asked = concerned.get(name, ())
        assert apart == ({row.id for row in rows} if asked is None else {str(i) for i in asked})
        assert all(row.state == "not applicable" and row.pointers == (pointer,) for row in rows if row.id in apart)
    place = json.loads(study.canonical)
    for key in pointer.partition("#/")[2].split("/"):
        place = place[key]


def test_an_imaging_study_has_to_answer_claim() -> None:
    one = read_checklist("claim")
    states = {row.state for row in fill(one.item, {}, make_study(("image",)), one.when) if row.id != "27"}
    assert states == {"author"}


FACTS = sorted({name for one in map(read_checklist, NAMES) for item in one.item for name in (*item.source, *item.also)})


@given(st.sets(st.sampled_from(FACTS)), st.sampled_from([("image",), ("clinical",), ("image", "clinical")]))
def test_nothing_is_said_but_facts_and_the_lists_own_words(known: set[str], inputs: tuple[str, ...]) -> None:
    facts = {name: Fact(f"<{name}>", (f"there#{name}",)) for name in known}
    study = make_study(inputs)
    for one in map(read_checklist, NAMES):
        for item, row in zip(one.item, fill(one.item, facts, study, one.when), strict=True):
            assert (row.id, row.subject, row.needs) == (item.id, item.subject, item.needs)
            if row.state == "not applicable":
                assert row.text in {item.never, *(CONDITIONS[name][0](study) for name in (*one.when, *item.when))}
                continue
            used = [name for name in (*item.source, *item.also) if name in known]
            if not set(item.source) & known:
                assert (row.state, row.text, row.author, row.pointers) == ("author", "", AUTHOR, ())
                continue
            assert row.text == " ".join(f"<{name}>" for name in used)
            assert row.pointers == tuple(f"there#{name}" for name in used)
            lacking = [text for name, text in item.also.items() if name not in known] + [item.rest] * bool(item.rest)
            assert row.state == ("partly" if lacking else "filled")
            assert row.author == (f"The author must write: {'; '.join(lacking)}." if lacking else "")


def test_facts_of_a_report_close_what_was_open(record: Record) -> None:
    (record.run / "report.html").write_text('<h2 id="calibration">x</h2>', encoding="utf-8")
    more = {name: Fact(f"{name} reported.", ("report.html#calibration",)) for name in ("intervals", "calibration")}
    before, after = by_id(fill_all(record)["tripod_ai"])["23a"], by_id(fill_all(record, more)["tripod_ai"])["23a"]
    assert before.author == "The author must write: confidence intervals; calibration."
    assert (after.state, after.author) == ("filled", "")
    assert resolve(record.run, after.pointers[-2]) == "calibration"
    with pytest.raises(LookupError, match="no element with this id"):
        resolve(record.run, "report.html#roc")


def test_markdown_and_json_hold_every_item(record: Record) -> None:
    text, data = checklists_markdown(record), json.loads(checklists_json(record))["checklists"]
    table = [line for line in text.splitlines() if re.match(r"\| (?!Item|---)", line)]
    assert len(table) == sum(len(one["items"]) for one in data) == 52 + 44 + 30
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in table)
    for one, rows in zip(data, fill_all(record).values(), strict=True):
        assert [item["state"] for item in one["items"]] == [row.state for row in rows]
        assert one["counts"] == counted(rows)
    assert text == checklists_markdown(record)


@given(st.text(max_size=60))
def test_no_word_of_a_study_is_markup(words: str) -> None:
    text = markdown(words)
    assert "\n" not in text
    assert "\r" not in text
    assert not set("<>") & set(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_~\[\]]", text)


def test_a_question_with_markup_stays_in_its_cell(tmp_path: Path, record: Record) -> None:
    run = tmp_path / "marked"
    shutil.copytree(record.run, run)
    study = json.loads((run / STUDY).read_text())
    study["study"]["question"] = "a | b\n\n| 99 | <script>alert(1)</script> `x` |"
    (run / STUDY).write_text(json.dumps(study))
    text = checklists_markdown(read_record(run))
    assert "<script" not in text
    assert not any(line.startswith("| 99") for line in text.splitlines())


@pytest.mark.parametrize(
    "pointer", ["../study.json#/study", "/etc/passwd", "none.json", "study.json#/study/none", "events.jsonl#none", ".."]
)
def test_a_pointer_to_nothing_or_out_of_the_folder_is_refused(record: Record, pointer: str) -> None:
    with pytest.raises(LookupError):
        resolve(record.run, pointer)


def test_a_log_that_was_meddled_with_is_one_sentence(record: Record, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"events\.jsonl: is not in the format of a run"):
        facts_of(changed(record, tmp_path, "start", lambda event: event.pop("engine")))
