"""The report: every number from the record and from nowhere else, nothing of a study is markup, and what is weak is said."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from flwr.app import Context, Message
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fedml.clients.work.client import answer
from fedml.experiments.checklists.facts import resolve as resolve_in_run
from fedml.experiments.checklists.fill import fill_all
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.report import words
from fedml.experiments.report.numbers import resolve
from fedml.experiments.report.page import NAME, embedded, figures, render, report_facts, write_report
from fedml.experiments.report.plots import Row, Series, curves, forest, ticks
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.runs.run import new_run
from fedml.flower.grid import InProcessGrid
from fedml.learning.calibration import calibration
from fedml.strategies.rounds import run_study
from fedml.tasks.counts import add_counts
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from fedml.wire.records import pack, unpack
from tests import report_runs
from tests.command import quick as command
from tests.conftest import clinical_site, make_study
from tests.report_runs import EVIL, EVIL_CLASS, KINDS, Page, parsed

NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@pytest.fixture(scope="module")
def records(shared_folder: Path) -> dict[str, Record]:
    return report_runs.records(shared_folder)


@pytest.fixture(scope="module")
def pages(records: dict[str, Record]) -> dict[str, Page]:
    return {kind: parsed(render(record)) for kind, record in records.items()}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read(text: str) -> list[float]:
    """The numbers in a cell, those of bytes and percents in their units."""
    found = [float(n.replace(",", "").replace("−", "-")) for n in NUMBER.findall(text)]
    scale = UNITS.get(text.split()[-1], 0.01 if text.endswith("%") else 1.0) if text.split() else 1.0
    return [n * scale for n in found]


def test_the_same_record_gives_the_same_page_wherever_it_lies(kind: str, records: dict[str, Record], tmp_path: Path) -> None:
    record = records[kind]
    shutil.copytree(record.run, tmp_path / "copy")
    page = render(record)
    assert render(read_record(tmp_path / "copy")) == page
    assert str(record.run.parent) not in page


def test_every_number_of_a_table_is_a_figure_of_the_record(kind: str, records: dict[str, Record], pages: dict[str, Page]) -> None:
    found = figures(records[kind])
    assert embedded(render(records[kind])) == found
    numbers = 0
    for cell in pages[kind].all("td"):
        at = cell.attributes.get("data-figure")
        if at is None:
            assert not re.search(r"\d", cell.text), cell.text  # a number would be from nowhere
            continue
        value, reported = resolve(found, at), read(cell.text)
        if isinstance(value, dict) and "missing" in value:
            wanted = [v for v in (value["mean"], value["sd"]) if v is not None] + [value["missing"]]
            np.testing.assert_allclose(reported, wanted, rtol=0.001)
            continue
        if isinstance(value, dict) and "value" not in value:  # reason -> how many, a few if below 0
            assert all(reason in cell.text for reason in value)
            assert reported == [n for n in value.values() if n >= 0]
            continue
        if value is None or isinstance(value, str):
            assert not reported
            continue
        wanted = [value] if not isinstance(value, dict) else [v for v in (value[k] for k in ("value", "low", "high")) if v is not None]
        wanted = [w for w in wanted if not isinstance(w, str)]
        np.testing.assert_allclose(reported, wanted, rtol=0.006, atol=0.00051)
        numbers += 1
    assert numbers > 20 or kind == "failed"


def test_measures_and_intervals_follow_from_the_counts(kind: str, records: dict[str, Record]) -> None:
    record = records[kind]
    scores = figures(record)["scores"]
    if kind == "failed":
        assert scores["all"] is None
        return
    reported = record.final.metrics["test"]
    own = record.counts["test"]
    task = make_task(record.study)
    for logged, found, parts in [(reported["all"], scores["all"], [own[s.name] for s in record.sites if s.name in own])] + [
        (reported["sites"][s], scores["sites"][s], [own[s]]) for s in reported["sites"]
    ]:
        expected = {n: v if v is None else pytest.approx(v, rel=1e-5) for n, v in logged.items() if n != "persons"}
        if found is None:  # noise made it a number of persons below 1
            assert not expected
            continue
        assert {n: e["value"] for n, e in found["metrics"].items()} == expected
        for name in set(found["metrics"]) & {"auroc", "brier", "sensitivity", "mae", "dice_mean_person", "dice_mean_person/1"}:
            direct = interval(parts, task, name, seed=record.study.study.seed)
            for end in ("low", "high"):
                limit = getattr(direct, end)
                assert found["metrics"][name][end] == (None if math.isnan(limit) else pytest.approx(limit, rel=1e-5))


def test_an_edited_count_or_log_is_seen(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    site = record.counts["test"]["a"]
    confusion = site["confusion"].copy()
    confusion[0, 0] -= 1
    confusion[0, 1] += 1
    counts = {**record.counts, "test": {**record.counts["test"], "a": {**site, "confusion": confusion}}}
    assert render(replace(record, counts=counts)) != render(record)


def test_nothing_of_a_study_is_markup(pages: dict[str, Page]) -> None:
    page = pages["two_classes"]
    assert [e.attributes for e in page.all("script")] == [{"type": "application/json", "id": "fedml-figures"}]
    assert not page.all("img", "b", "iframe", "object", "form", "base")
    assert page.all("h1")[0].text == EVIL
    assert any(e.text == f"true {EVIL_CLASS}" for e in page.all("th"))
    for element in page.elements:
        assert not any(name.startswith("on") for name in element.attributes)
        for name in ("href", "src", "action"):
            assert element.attributes.get(name, "#").startswith(("#", "data:,"))


def test_a_page_can_be_read_by_ear(kind: str, pages: dict[str, Page]) -> None:
    page = pages[kind]
    assert page.all("html")[0].attributes["lang"] == "en"
    levels = [int(e.tag[1]) for e in page.all("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    named = {e.attributes[k] for e in page.elements for k in ("aria-labelledby",) if k in e.attributes}
    linked = {e.attributes["href"][1:] for e in page.all("a")}
    assert named | linked <= set(ids)
    assert all(e.attributes.get("scope") in ("row", "col") for e in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for svg in page.all("svg"):
        assert svg.attributes["role"] == "img"
        assert len(svg.attributes["aria-label"]) > 20
    assert len(page.all("figcaption")) == len(page.all("svg"))


def test_the_answer_comes_first_with_its_interval(pages: dict[str, Page], records: dict[str, Record]) -> None:
    found = figures(records["two_classes"])
    score = found["scores"]["all"]
    auroc = score["metrics"]["auroc"]
    text = pages["two_classes"].section("answer")
    assert f"{score['persons']:.0f} test persons held out at 2 sites, {score['classes'][1]} of them with y = {EVIL_CLASS}" in text
    assert f"AUROC {auroc['value']:.3f} (95 % interval {auroc['low']:.3f} to {auroc['high']:.3f})" in text
    assert f"Weakest at {found['worst']}" in text
    assert "What it cost in privacyNone. There is no differential privacy" in text
    assert "Can y (one of well" in text
    assert text.index("What was asked") < text.index("What came out") < text.index("For whom it fails") < text.index("Whom one trusts")
    assert "Dice of 0." in pages["segmentation"].section("answer")
    assert "off by" in pages["regression"].section("answer")
    assert "mean over 3 classes" in pages["three_classes"].section("answer")
    guess = figures(records["three_classes"])["scores"]["all"]["metrics"]["auroc"]  # labels there are dealt by lot
    assert guess["low"] < 0.5 < guess["high"]
    assert "not shown to be better than a guess" in pages["three_classes"].section("answer")
    assert ("better than a guess" in text) == (auroc["low"] <= 0.5)
    assert "There is no answer: the run failed, after 0 of 2 planned rounds" in pages["failed"].section("answer")
    assert "the quorum is 2" in pages["failed"].section("answer")


def test_calibration_and_curves_are_of_the_merged_counts(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    own = figures(record)["by_class"]["1"]
    expected = calibration(add_counts(record.counts["test"].values()))
    for name in ("slope", "intercept", "in_the_large", "expected_observed"):
        assert own["all"][name]["value"] == pytest.approx(getattr(expected, name).value, rel=1e-5)
    assert sum(g["persons"] for g in own["groups"]) == expected.persons
    area = np.trapezoid(own["roc"]["y"], own["roc"]["x"])
    assert area == pytest.approx(record.final.metrics["test"]["all"]["auroc"], abs=0.011)
    assert "by_class" not in figures(records["regression"])
    assert set(figures(records["three_classes"])["by_class"]) == {"0", "1", "2"}


def test_privacy_is_in_plain_words(pages: dict[str, Page], records: dict[str, Record]) -> None:
    reported = figures(records["private"])["privacy"]
    text = pages["private"].section("privacy")
    assert reported["epsilon"] >= records["private"].privacy.epsilon
    assert f"epsilon {reported['epsilon']:.2f}, delta 0.0001" in text
    # Full batches, one step in each of two rounds: Gaussian releases without sampling, so Phi(sqrt(2) / 2z), rounded up to 0.1 %.
    z = [json.loads(claim["events_json"])[0]["event"]["noise_multiplier"] for claim in records["private"].privacy.claims.values()]
    assert reported["guess"] == math.ceil(1000 * norm.cdf(math.sqrt(2) / (2 * min(z)))) / 1000
    assert reported["guess"] < 1 / (1 + math.exp(-reported["epsilon"]))
    assert f"at most {100 * reported['guess']:.1f} %" in text
    for phrase in (*reported["covers"], *reported["not_covered"], "add or remove one", "one person of a site"):
        assert phrase in text
    assert "None. There is no differential privacy" in pages["two_classes"].section("privacy")
    assert "ε" not in pages["two_classes"].section("answer")


def test_what_is_weak_or_hidden_is_said(pages: dict[str, Page]) -> None:
    evil = pages["two_classes"]
    assert "sex:rare" in evil.section("limits")
    assert "hidden at every site, or no person" in evil.section("subgroups")
    assert "At b-with-quite-a-long-name a class has fewer than 10 persons" in evil.section("limits")
    assert "No external validation" in evil.section("limits")
    assert "names no subgroups" in pages["regression"].section("limits")
    assert "Counts were noised" in pages["noised"].section("limits")
    assert "would show mostly the noise" in pages["noised"].section("calibration")
    assert "Did not take part at all: b." in pages["missing"].section("limits")
    assert "The run did not finish" in pages["failed"].section("limits")
    assert "learning curves are of training persons" not in evil.section("limits")
    assert "the data of all sites were accessible there" in evil.section("limits")
    assert "excluded" in pages["segmentation"].section("sites")


def estimate(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "method": "Wald"}


@pytest.mark.parametrize(
    ("slope", "large", "said", "unsaid"),
    [
        (estimate(1.1, 0.8, 1.4), estimate(0.1, -0.2, 0.4), ["not shown to be wrong"], ["off", "extreme", "lower", "higher"]),
        (estimate(0.5, 0.2, 0.8), estimate(0.1, -0.2, 0.4), ["extreme"], ["lower", "higher", "middle"]),
        (estimate(1.9, 1.2, 2.6), estimate(0.1, -0.2, 0.4), ["close to the middle"], ["extreme", "on the whole"]),
        (estimate(1.1, 0.8, 1.4), estimate(0.5, 0.2, 0.8), ["on the whole they are lower"], ["extreme", "higher"]),
        (estimate(0.5, 0.2, 0.8), estimate(-0.5, -0.8, -0.2), ["on the whole they are higher", "extreme"], ["lower"]),
    ],
)
def test_what_calibration_means_is_said(slope: dict[str, Any], large: dict[str, Any], said: list[str], unsaid: list[str]) -> None:
    text = words.calibrated({"classes": ["0", "1"], "by_class": {"1": {"all": {"slope": slope, "in_the_large": large}}}})
    assert all(phrase in text for phrase in said)
    assert not any(phrase in text for phrase in unsaid)


def test_the_weakest_are_named(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    found = figures(record)
    auroc = {label: row["metrics"]["auroc"]["value"] for label, row in found["scores"]["groups"].items() if row}
    assert len(auroc) > 1
    reported = words.weak(record, found)
    assert reported[0].startswith(f"Weakest at {record.final.metrics['test']['worst']}:")
    assert reported[1].startswith(f"Weakest reported subgroup, {min(auroc, key=auroc.__getitem__)}:")
    errors = figures(records["regression"])
    rmse = {site: row["metrics"]["rmse"]["value"] for site, row in errors["scores"]["sites"].items()}
    assert errors["worst"] == max(rmse, key=rmse.__getitem__) == records["regression"].final.metrics["test"]["worst"]


def test_bytes_go_the_way_that_is_said(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    flow = figures(record)["flow"]
    rows = [e.sites["a"] for e in (*record.rounds, record.final)]
    # The log is the server's: what went out of it went to the site.
    assert flow["sites"]["a"]["to"]["total"] == sum(row["bytes_out"] for row in rows)
    assert flow["sites"]["a"]["from"]["last"] == record.final.sites["a"]["bytes_in"]
    assert flow["total"]["from"] > flow["total"]["to"], "replies carry counts in addition to the model"


def test_missed_rounds_are_counted_by_reason(records: dict[str, Record], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records["two_classes"].run, run)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for event in [e for e in events if e["event"] == "round"][1:]:
        del event["sites"]["a"]
        event["refused"] = {"a": "no-answer"}
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    record = read_record(run)
    page = parsed(render(record))
    assert figures(record)["sites"]["a"]["missed"] == {"no-answer": 2}
    assert "Missed exchanges: a (2)" in page.section("limits")
    grid = next(e for e in page.all("svg") if "Participation" in e.attributes["aria-label"])
    assert "a took part in 1 of 3 rounds" in grid.attributes["aria-label"]


def test_a_run_without_counts_has_its_logged_measures(records: dict[str, Record]) -> None:
    record = replace(records["two_classes"], counts={})
    found = figures(record)
    logged = record.final.metrics["test"]["all"]["auroc"]
    assert found["scores"]["all"]["metrics"]["auroc"]["value"] == pytest.approx(logged, rel=1e-5)
    assert found["scores"]["all"]["metrics"]["auroc"]["low"] is None
    page = parsed(render(record))
    assert "The run has no stored counts" in page.section("limits")
    assert page.section("calibration") == ""


def test_checklists_and_card_point_into_the_page(kind: str, records: dict[str, Record], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records[kind].run, run)
    record = read_record(run)
    write_report(record, run / NAME)
    facts = report_facts(record)
    places = [p for rows in fill_all(record, facts).values() for row in rows for p in row.pointers if p.startswith(NAME)]
    for place in places:
        resolve_in_run(run, place)
    assert ("intervals" in facts) == (kind not in ("failed", "noised"))
    assert ("calibration" in facts) == (kind in ("two_classes", "three_classes", "private", "missing", "survival"))
    assert bool(places) == bool(facts)
    card = model_card(record, facts)
    place = "over-time" if kind == "survival" else "calibration"
    assert (f"report.html#{place}" in card) == ("calibration" in facts)


def test_the_command_writes_the_page_or_says_why_not(records: dict[str, Record], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records["private"].run, run)
    done = command("fedml", "report", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (run / NAME).read_text(encoding="utf-8") == render(read_record(run))
    for line in ((tmp_path,), (run, "-o", tmp_path / "none" / "r.html")):
        bad = command("fedml", "report", *line, cwd=tmp_path)
        assert bad.returncode == 2
        assert len(bad.stderr.strip().splitlines()) == 1
        assert "Traceback" not in bad.stderr
    assert not list(tmp_path.glob("**/*.partial"))


finite = st.floats(-1e9, 1e9, allow_nan=False).map(lambda v: float(f"{v:.6g}"))


@given(st.lists(st.tuples(st.text(max_size=30), st.one_of(st.none(), finite)), min_size=1, max_size=8))
def test_plots_are_whole_and_keep_to_their_frame(rows: list[tuple[str, float | None]]) -> None:
    rows = [("".join(c for c in name if c.isprintable()), value) for name, value in rows]
    lines = [Series(name, [1, 2, 3], [value, None, value], "#000000") for name, value in rows]
    made = [forest([Row(name, 3, v, v, v) for name, v in rows], "x", "a plot of x")]
    made += [curves(lines, "round", "y", "a plot of y")] if any(v is not None for _, v in rows) else []
    for text in made:
        tree = ElementTree.fromstring(text)  # noqa: S314 - made here
        width, height = (float(v) for v in tree.attrib["viewBox"].split()[2:])
        for element in tree.iter():
            for name, limit in (("x1", width), ("x2", width), ("cx", width), ("y1", height), ("y2", height), ("cy", height)):
                if name in element.attrib:
                    assert -1 <= float(element.attrib[name]) <= limit + 1


@given(finite, st.floats(1e-6, 1e6))
def test_ticks_are_few_and_between(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    assert 1 <= len(marks) <= 8 or low + width == low or width < abs(low) * 1e-8
    assert all(low - width * 1e-6 <= m <= low + width * (1 + 1e-6) for m in marks) or width < abs(low) * 1e-8


def test_lengths_of_updates_and_a_site_that_was_left_out_are_shown(tmp_path: Path) -> None:
    """One site of five sends -50 times its update in the second of three rounds."""
    names = ("s0", "s1", "s2", "s3", "s4")
    made = {name: clinical_site(tmp_path / name, name, 60, seed) for seed, name in enumerate(names)}
    study = make_study(sites=names, federation__rounds=3, federation__quorum=2)
    run, places = new_run(study, tmp_path / "runs", None, engine="local", job="train"), dict(enumerate(names, start=1))

    def app(message: Message, context: Context) -> Message:
        reply, config = answer(message, context), message.content.config_records["config"]
        if (config["phase"], config["round"], places[context.node_id]) == ("round", 2, "s2"):
            weights = unpack(reply.content.array_records["arrays"])
            reply.content["arrays"] = pack({name: value * -50 for name, value in weights.items()})
        return reply

    run_study(study, InProcessGrid(app, [{"manifest": str(path)} for path in made.values()]), run)
    record = read_record(run)
    text = parsed(render(record)).section("sites")
    assert "Left out as implausible, because a reply cannot be that of its persons or stands out from the others: s2 in 1 round" in text
    rows = figures(record)["sites"]
    assert rows["s2"]["updates"]["implausible"] == [2]
    assert all(rows[name]["updates"]["implausible"] == [] for name in names if name != "s2")
    lengths = [event.sites["s0"]["update_norm"] for event in record.rounds]
    shown = [rows["s0"]["updates"][key] for key in ("first", "median", "longest", "last")]
    assert shown == pytest.approx([lengths[0], sorted(lengths)[1], max(lengths), lengths[-1]], rel=1e-5)
