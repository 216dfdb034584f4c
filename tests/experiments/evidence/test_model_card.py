"""The model card: the headings of Mitchell et al. 2019, each line from the run's record with its place, or the author's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fedml.experiments.checklists.facts import Fact, resolve
from fedml.experiments.checklists.fill import AUTHOR
from fedml.experiments.evidence.model_card import SECTIONS, model_card
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.runs.run import new_run, run_nodes
from fedml.runs.log import EVENTS, MODEL
from tests.conftest import clinical_site, make_study

HEADINGS = [
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data", "Quantitative analyses",
    "Ethical considerations", "Caveats and recommendations",
]  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("card")
    study = make_study(study__question="Is y there?", evaluation__bands={"x1": [3]})
    made = [clinical_site(folder / name, name, 70, seed) for seed, name in enumerate(("a", "b"))]
    run = new_run(study, folder, None, engine="local", job="train")
    run_nodes(study, [{"manifest": str(manifest)} for manifest in made], run)
    return read_record(run)


def lines(text: str) -> dict[str, str]:
    """What each line is about -> its answer."""
    return dict(re.findall(r"^- ([^:]+): (.*)$", text, flags=re.MULTILINE))


def test_the_headings_are_those_of_a_model_card(record: Record) -> None:
    assert re.findall("^## (.*)$", model_card(record), flags=re.MULTILINE) == HEADINGS


def test_each_line_has_places_in_the_folder_or_is_the_authors(record: Record) -> None:
    answers = lines(model_card(record))
    assert len(answers) == len({about for section in SECTIONS.values() for about in section})
    for about, answer in answers.items():
        places = re.findall(r"`([^`]+)`", answer)
        assert bool(places) != (answer == f"**{AUTHOR}**"), about
        for place in places:
            resolve(record.run, place)
    for about in ("Developers", "Licence, citation, contact", "Out-of-scope uses", "Approval and consent", "Uncertainty"):
        assert answers[about] == f"**{AUTHOR}**"
    assert '"Is y there?"' in answers["Question"]


def test_the_table_is_the_last_evaluation(record: Record) -> None:
    text = model_card(record)
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|")}
    names, scores = [name.replace("\\", "") for name in rows["test"]], record.final.metrics["test"]
    expected = {"all sites": scores["all"], **scores["sites"], **{k: v["all"] for k, v in record.final.groups.items()}}
    assert len(expected) > 3, "no subgroup was reported"
    for who, own in expected.items():
        reported = dict(zip(names, rows[who], strict=True))
        assert reported == {n: "not defined" if v is None else f"{v:.0f}" if n == "persons" else f"{v:.3f}" for n, v in own.items()}


def test_a_run_without_a_model_says_so(record: Record, tmp_path: Path) -> None:
    run = tmp_path / "failed"
    shutil.copytree(record.run, run)
    (run / MODEL).unlink()
    events = [json.loads(line) for line in (run / EVENTS).read_text().splitlines()]
    kept = [e for e in events if e["event"] in ("start", "checks", "agreed")]
    kept.append({"event": "end", "time": kept[-1]["time"], "status": "failed", "reason": "the quorum was missed"})
    (run / EVENTS).write_text("".join(json.dumps(e) + "\n" for e in kept))
    text = model_card(read_record(run))
    assert "has no finished model: its status is failed" in text
    assert f"Performance: **{AUTHOR}**" in text
    assert "has no finished model" not in model_card(record)


def test_facts_of_a_report_take_the_authors_place(record: Record) -> None:
    more = {"intervals": Fact("AUROC 0.80 to 0.90.", ("report.html#intervals",))}
    assert lines(model_card(record, more))["Uncertainty"] == "AUROC 0.80 to 0.90. (`report.html#intervals`)"
