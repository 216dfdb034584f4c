"""The reports of analyses of outcomes in headless Chromium: quiet, no wider than the screen, readable, with curves and who is at risk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import STUDIES, command
from tests.conftest import public_data
from tests.experiments.report.test_report_page import BROKEN, CONTRAST, CROWDED, SCREENS, browser, opened  # noqa: F401 - a fixture
from tests.outcomes import Drawn, study_of
from tests.strategies.outcomes.test_outcomes_deployed import toml_of
from tests.strategies.outcomes.test_treatment import confounded


def reported(folder: Path, job: str, study: Path) -> Path:
    """The report of a run of ``study`` over ``folder``/sites."""
    done = command("fedml", job, str(study), "--sites", "sites", "--no-track", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout.strip().splitlines()[-1])["folder"]
    made = command("fedml", "report", run, "--out", "report.html", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder / "report.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    brca, arms = tmp_path_factory.mktemp("brca"), tmp_path_factory.mktemp("arms")
    data = public_data("fed_tcga_brca")
    made = command("fedml", "prepare", "brca", "--out", "sites", "--data", str(data), cwd=brca)
    assert made.returncode == 0, made.stderr
    confounded(arms, Drawn(), np.random.default_rng(5))
    plan = study_of(treatment={"column": "arm", "covariates": ["age", "sex", "stage"]})
    (arms / "trial.toml").write_text(toml_of(json.loads(plan.canonical)))
    return {"brca": reported(brca, "survival", STUDIES / "brca.toml"), "treatment": reported(arms, "survival", arms / "trial.toml")}


@pytest.mark.parametrize("size", SCREENS, ids=["screen", "phone"])
@pytest.mark.parametrize("kind", ["brca", "treatment"])
def test_a_report_of_survival_is_quiet_and_fits(browser, pages: dict[str, Path], kind: str, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    page, trouble = opened(browser, pages[kind], size)
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    ratio, text, seen = page.evaluate(CONTRAST)
    assert seen > 50
    assert ratio >= 4.5, text
    assert page.evaluate(CROWDED) == []
    assert page.evaluate(BROKEN) == []
    plots = page.locator("svg")
    assert plots.count() >= (5 if kind == "brca" else 1)  # curves, and a forest plot of each coefficient
    assert "At risk" in plots.first.text_content()
    words = page.locator("main").inner_text()
    for expected in ("hazard ratio", "Survival") if kind == "brca" else ("Balance", "Propensity model", "log-rank"):
        assert expected in words
    page.context.close()
