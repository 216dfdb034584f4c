"""The studies on real data reach what was asked of them. Skipped where ../shared/data is not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import ROOT, STUDIES
from tests.command import quick as command
from tests.command import quick_json as run_json

DATA = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no public data at {DATA}")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the data sets are prepared and runs are kept."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("heart", "pneumonia", "ancestry"):
        done = command("fedml", "prepare", name, "--out", name, "--data", DATA, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "licence" in done.stdout
    return folder


@pytest.mark.long
def test_heart_is_near_pooled_over_five_seeds(work: Path) -> None:
    words = ("--sites", "heart", "--baselines", "pooled", "--seeds", "0-4", "--json")
    done = command("fedml", "compare", STUDIES / "heart.toml", *words, cwd=work)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    mean = {
        (who, metric): float(np.mean([r["metrics"][metric] for r in rows if r["who"] == who]))
        for who in ("federated", "pooled")
        for metric in ("auroc", "accuracy")
    }
    assert len(rows) == 10
    assert abs(mean["federated", "auroc"] - mean["pooled", "auroc"]) <= 0.02
    assert mean["federated", "accuracy"] >= 0.79


@pytest.mark.long
def test_pneumonia_under_label_skew(work: Path) -> None:
    reported = run_json(STUDIES / "pneumonia.toml", "--sites", "pneumonia", "--no-track", cwd=work)
    assert reported["rounds"] <= 15
    assert reported["metrics"]["test"]["persons"] == 624  # the official test images, all of them
    assert reported["metrics"]["test"]["auroc"] >= 0.955


def test_ancestry_by_rsid(work: Path) -> None:
    reported = run_json(STUDIES / "ancestry.toml", "--sites", "ancestry", "--no-track", cwd=work)
    assert reported["metrics"]["test"]["accuracy"] >= 0.97
    panel = (work / reported["folder"] / "panel.tsv").read_text().splitlines()
    assert len(panel) == 14_079


def test_no_person_is_trained_on_at_one_site_and_tested_at_the_other(work: Path) -> None:
    from fedml.clients.site.manifest import find_sites
    from fedml.clients.site.read import read_cohort
    from fedml.study.read import read_study

    study = read_study(STUDIES / "ancestry.toml")
    sites, _ = find_sites(work / "ancestry", study.federation.sites)
    parts = [dict(zip(c.ids, c.parts.tolist(), strict=True)) for c in (read_cohort(s, study) for s in sites.values())]
    both = parts[0].keys() & parts[1].keys()
    assert len(both) == 546  # 564 are genotyped at both; 18 of them have no population at one
    assert all(parts[0][i] == parts[1][i] for i in both)
    assert {parts[0][i] for i in both} == {0, 1, 2}
