"""A run at a site of few persons says which of its numbers are approximate, in the terminal, in ``--json`` and in the report."""

from __future__ import annotations

import html
from pathlib import Path

from tests.command import quick, quick_json
from tests.conftest import clinical_site


def test_the_command_and_its_report_say_it(tmp_path: Path) -> None:
    """One site has a class of fewer persons than min_count in its test part."""
    labels = {"oslo": [0, 1] * 30, "cork": [0] * 54 + [1] * 6}
    for seed, (name, own) in enumerate(labels.items()):
        manifest = clinical_site(tmp_path / "sites" / name, name, 60, seed, labels=own)
        manifest.write_text(manifest.read_text().replace("public = true", "public = false"))
    (tmp_path / "study.toml").write_text(
        '[study]\nname = "few"\n[cohort]\ninputs = ["clinical"]\ntarget = "y"\nclinical = { columns = ["x1", "x2", "x3"] }\n'
        '[federation]\nsites = ["oslo", "cork"]\nrounds = 2\n'
    )
    told = quick_json("study.toml", "--sites", "sites", "--no-track", cwd=tmp_path)
    counted = {site: row["test"]["persons"] for site, row in told["sites"].items()}
    assert any("Approximate: " in note and "cork" in note for note in told["notes"])
    assert any(f"Scores of {counted['oslo']:.0f} of {sum(counted.values()):.0f} persons: cork sent none" in note for note in told["notes"])
    assert quick("fedml", "report", told["folder"], "--out", "page.html", cwd=tmp_path).returncode == 0
    page = html.unescape((tmp_path / "page.html").read_text())
    for note in told["notes"]:
        assert note in page
    assert "are exact" not in page.replace("updates and other sums that left the sites are exact", "")
    assert "of them with y = 1" not in page, "the number of persons of a class is rounded"
