"""Tables and figures for a manuscript, runs side by side, who was in a run: the numbers are those of the report and of the record."""

from __future__ import annotations

import csv
import io
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from fedml.errors import InputError
from fedml.experiments.report.export import ENDINGS, Sheet, sheets, write_tables
from fedml.experiments.report.page import embedded, figures, render
from fedml.experiments.report.side_by_side import render_side_by_side
from fedml.experiments.report.vector import pdf_of, write_figures
from fedml.experiments.runs.record import Record, read_record
from fedml.learning.decisions import at_risk, chosen
from fedml.tasks.counts import add_counts
from tests import report_runs
from tests.command import quick as command
from tests.report_runs import EVIL_CLASS, parsed


@pytest.fixture(scope="module")
def records(shared_folder: Path) -> dict[str, Record]:
    return report_runs.records(shared_folder)


def words(made: list[Sheet]) -> list[str]:
    return [" ".join(cell.split()) for sheet in made for row in (sheet.heads, *sheet.rows) for cell in row if cell.strip()]


def test_each_form_has_every_cell_of_the_tables(records: dict[str, Record], tmp_path: Path) -> None:
    record = records["two_classes"]
    made = sheets(record)
    assert [sheet.caption for sheet in made] == ["Participants by site", "Performance on test persons", "Performance by subgroup"]
    for form, ending in ENDINGS.items():
        path = tmp_path / f"tables.{ending}"
        if form == "docx":
            docx = pytest.importorskip("docx", reason="python-docx is not installed (pip install 'fedml-cohorts[docx]')")
            write_tables(record, form, path)
            document = docx.Document(str(path))
            found = [
                " ".join(cell.text.split()) for grid in document.tables for row in grid.rows for cell in row.cells if cell.text.strip()
            ]
            assert found == words(made)
            continue
        write_tables(record, form, path)
        text = path.read_text(encoding="utf-8")
        if form == "csv":
            read = [" ".join(cell.split()).removeprefix("'") for row in csv.reader(io.StringIO(text)) for cell in row]
            assert all(cell in read for cell in words(made))
        if form == "html":
            assert EVIL_CLASS not in text
            assert all(cell in unescape(re.sub(r"\s+", " ", text)) for cell in words(made))
        if form == "latex":
            assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
            rows = [line for line in text.splitlines() if line.endswith((r"\\", r"\\ \hline"))]
            assert len(rows) == sum(1 + len(sheet.rows) for sheet in made)
            assert all(len(re.findall(r"(?<!\\)&", row)) + 1 in {len(sheet.heads) for sheet in made} for row in rows)


def test_the_figures_of_the_tables_are_those_of_the_report(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    auroc = figures(record)["scores"]["all"]["metrics"]["auroc"]
    performance = sheets(record)[1]
    assert performance.heads[:3] == ["", "persons", "AUROC"]
    assert performance.rows[0][2] == f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
    train = sheets(record)[0].rows[0]
    assert train == [
        "Training persons",
        *(str(s.count("train")) for s in record.sites),
        str(sum(s.count("train") or 0 for s in record.sites)),
    ]


def test_a_run_without_persons_has_no_tables(records: dict[str, Record], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no persons and no measures"):
        write_tables(records["failed"], "csv", tmp_path / "t.csv")


def test_the_commands_write_and_refuse_in_a_sentence(records: dict[str, Record], tmp_path: Path) -> None:
    run = records["two_classes"].run
    done = command("fedml", "table", run, "--format", "latex", "-o", "t.tex", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "t.tex").exists()) == (0, True), done.stderr
    done = command("fedml", "table", run, "--format", "pdf", cwd=tmp_path)
    assert done.returncode == 2
    assert "--format pdf: is not known; give one of csv, docx, html, latex." in " ".join(done.stderr.split())
    done = command("fedml", "report", run, records["noised"].run, cwd=tmp_path)
    assert done.returncode == 2
    assert "takes one run; add --compare" in " ".join(done.stderr.split())
    done = command("fedml", "report", run, records["missing"].run, "--compare", "-o", "c.html", cwd=tmp_path)
    assert done.returncode == 2
    assert "compare runs that answer one question" in " ".join(done.stderr.split())


def test_runs_side_by_side_have_the_figures_of_their_own_reports(records: dict[str, Record], tmp_path: Path) -> None:
    both = [records["private"], records["noised"]]
    page = render_side_by_side(both)
    assert page == render_side_by_side(both)
    parsed(page)
    found = embedded(page)
    assert found["runs"] == {record.run_id: figures(record) for record in both}
    text = parsed(page).section("differences")
    assert "privacy.metrics: run 1 exact; run 2 private." in text
    assert "study.name" not in text, "the runs have one name"
    with pytest.raises(InputError, match="is given twice"):
        render_side_by_side([both[0], both[0]])
    with pytest.raises(InputError, match="takes 2 to 12 runs"):
        render_side_by_side(both[:1])
    with pytest.raises(InputError, match="compare runs that answer one question"):
        render_side_by_side([both[0], records["regression"]])
    with pytest.raises(InputError, match="has no result"):
        render_side_by_side([both[0], replace(records["private"], final=records["failed"].final, start=records["failed"].start)])


def test_every_plot_of_a_page_becomes_a_pdf_of_lines_and_text(records: dict[str, Record], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(records["two_classes"]), encoding="utf-8")
    made = write_figures(page, tmp_path / "figures")
    assert len(made) == page.read_text(encoding="utf-8").count("<svg ") >= 6
    data = [path.read_bytes() for path in made]
    assert all(one.startswith(b"%PDF") and b"/Subtype /Image" not in one and b"/Font" in one for one in data)
    assert write_figures(page, tmp_path / "again")
    assert data == [path.read_bytes() for path in sorted((tmp_path / "again").iterdir())]
    assert pdf_of(re.findall(r"<svg xmlns=.*?</svg>", page.read_text(encoding="utf-8"), re.DOTALL)[0]) == data[0]
    (tmp_path / "none.html").write_text("<p>nothing</p>", encoding="utf-8")
    with pytest.raises(InputError, match="has no plots"):
        write_figures(tmp_path / "none.html", tmp_path / "figures")


def test_who_was_in_the_run_is_counted_as_in_the_record(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    flow = figures(record)["participants"]
    test = [row["test"] for row in record.agreed.persons.values()]
    assert flow["persons"]["test"] == sum(map(sum, test))
    assert flow["with"]["test"] == sum(row[1] for row in test)
    assert flow["measured"] == record.final.metrics["test"]["all"]["persons"]
    assert figures(records["missing"])["participants"]["absent"].keys() == {"b"}
    private = figures(records["private"])["participants"]
    assert (private["persons"]["train"], private["stated"]) == (None, 100)
    picture = next(e for e in parsed(render(records["missing"])).all("svg") if "Flow of" in e.attributes["aria-label"])
    assert "2 sites on the study's roster; 1 sites took part" in picture.attributes["aria-label"].replace(
        "(did not take part: b: no-answer)", ""
    )[:200] or ("did not take part" in picture.attributes["aria-label"])


def test_table_one_is_of_the_training_persons(records: dict[str, Record]) -> None:
    """Means of the table are those in the record; of all sites together they are those of the model's constants."""
    from fedml.runs.log import load_model

    record = records["two_classes"]
    found = figures(record)["columns"]
    assert list(found) == ["a", "b-with-quite-a-long-name", "all sites"]
    assert all(row["known"] + row["missing"] == record.site(s).count("train") for s in list(found)[:2] for row in found[s].values())
    constants = load_model(record.run)[0]["preprocess.clinical.mean"].numpy()
    np.testing.assert_allclose([row["mean"] for row in found["all sites"].values()], constants, atol=2e-3)
    assert figures(records["private"])["columns"] == {}
    assert "no exact sum of a column leaves a site" in parsed(render(records["private"])).section("participants")


def test_the_threshold_is_chosen_on_validation_persons_and_measured_on_test_persons(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    found = figures(record)["utility"]
    validation = add_counts([record.counts["val"][s.name] for s in record.sites if s.name in record.counts["val"]])
    picked, text = chosen(validation), parsed(render(record)).section("thresholds")
    if np.isnan(picked):
        assert found["chosen"] is None
        assert "No threshold was chosen" in text
    else:
        assert found["chosen"] == picked
        assert "who had no part in the choice" in text
    merged = add_counts(record.counts["test"].values())
    for row in found["rows"]:
        table = at_risk(merged, row["threshold"])
        assert row["above"] == table.true_positive + table.false_positive
        assert row["sensitivity"]["value"] == pytest.approx(table.true_positive / table.cases, rel=1e-5)
    assert "utility" not in figures(records["noised"])
    assert "utility" not in figures(records["three_classes"])
    without = figures(replace(record, counts={k: v for k, v in record.counts.items() if k != "val"}))["utility"]
    assert without["chosen"] is None


def test_pictures_of_public_sites_are_shown_and_others_are_not(records: dict[str, Record], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records["segmentation"].run, run)
    assert not parsed(render(read_record(run))).all("img")
    (run / "examples").mkdir()
    (run / "examples" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n0123")
    (run / "examples" / "b.png").write_bytes(b"not a picture")
    (run / "examples" / "stranger.png").write_bytes(b"\x89PNG\r\n\x1a\n0123")
    page = parsed(render(read_record(run)))
    assert [e.attributes["alt"] for e in page.all("img")] == ["Predictions for public test images of a."]
    assert "Not shown, because too many or too large: b." in page.section("examples")
