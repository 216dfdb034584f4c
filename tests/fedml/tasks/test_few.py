"""A reader of a run is told which numbers are approximate: against the same run with exact counts, on sites of few persons."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pytest
import torch

from fedml.tasks.classification_counts import class_counts, grouped, spread
from fedml.tasks.few import few_notes, may_be_rounded, withheld
from tests.command import quick, quick_json
from tests.conftest import clinical_site


def counts_of(negative: int, positive: int, smallest: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    label = torch.tensor([0] * negative + [1] * positive)
    score = torch.tensor(random.normal(size=len(label)) + label.numpy())
    return spread(grouped(class_counts(torch.stack([torch.zeros_like(score), score], 1), label), smallest))


@pytest.mark.parametrize("seed", range(20))
def test_cells_that_were_changed_are_said_to_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    negative, positive = random.integers(0, 60, 2)
    exact, sent = counts_of(negative, positive, 1, seed), counts_of(negative, positive, 5, seed)
    if not np.array_equal(exact["confusion"], sent["confusion"]):
        assert may_be_rounded(sent)
    assert not may_be_rounded(exact) or exact["histogram"].max() > 1 or not exact["persons"].sum()
    assert withheld(sent) == (0 < min(negative, positive) < 5 or bool(negative + positive and (0 < negative < 5 or 0 < positive < 5)))
    assert not withheld(exact)


def test_large_cells_and_noised_counts_have_no_note() -> None:
    assert few_notes({"a": counts_of(400, 400, 5), "b": counts_of(30, 30, 1)}) == []
    assert few_notes({"a": {k: v for k, v in counts_of(3, 30, 5).items() if k != "log_loss_sum"}}) == []


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
    assert "are exact" not in page.replace("all other values that left the sites are exact", "")
    assert "of them with y = 1" not in page, "the number of persons of a class is rounded"
