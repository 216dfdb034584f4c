"""MLflow's own pages of our runs, as `fedml ui` opens them, in headless Chromium: each has the test figure on its first screen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedml.experiments.models.promote import promote
from fedml.experiments.tracked.files import write_files
from fedml.tracking.deliver import deliver
from tests.tracked import finished, free_port, process

CHROMIUM = Path("/usr/bin/chromium")
PRIVATE: dict[str, Any] = {
    "privacy__unit": "patient", "privacy__epsilon": 5.0, "privacy__delta": 1e-3, "privacy__persons": {"bergen": 40, "lund": 40},
    "privacy__ranges": {"x1": [0, 6], "x2": [-7, 5], "x3": [0, 200]},
}  # fmt: skip
# MLflow's pages ask who is logged in, which a server without accounts does not know, and grumble of their own layout.
MLFLOWS_OWN = ("users/current", "ResizeObserver loop")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, list[str]]]:
    """The address of `fedml ui` over two runs, the link that it printed, MLflow's ids of the runs."""
    pytest.importorskip("playwright")
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not on this machine")
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        made = [finished(folder, **changes) for changes in ({}, PRIVATE)]
        ids = [deliver(run, study, write=write_files) for run, study in made]
        promote(made[0][0], "champion", 0.02)
    port = free_port()
    words = [str(Path(sys.executable).parent / "fedml"), "ui", "--port", str(port)]
    with process(words, port, folder):
        printed = (folder / f"server-{port}.log").read_text()
        link = next(line.split()[-1] for line in printed.splitlines() if line.startswith("toy: "))
        yield f"http://127.0.0.1:{port}", link, ids


@pytest.fixture
def page(shown: tuple[str, str, list[str]]) -> Iterator[tuple[Any, list[str]]]:
    """A page, and what it complains of: errors of scripts, requests that leave this machine."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []

    def complain(message: Any) -> None:
        reported = f"{message.text} {message.location}"
        if message.type == "error" and not any(known in reported for known in MLFLOWS_OWN):
            wrong.append(reported)

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1700, "height": 900})
        view.set_default_timeout(120_000)
        # MLflow opens a panel for its assistant on the first visit, and keeps in the browser that it has.
        view.add_init_script(
            "for (const k of ['panelOpen_v1', 'fab.autoOpenedOnFirstLoad_v1']) localStorage.setItem('mlflow.assistant.' + k, k[0] === 'f')"
        )
        view.on("console", complain)
        view.on("pageerror", lambda error: wrong.append(str(error)))
        view.on("request", lambda r: None if r.url.startswith((shown[0], "data:", "blob:")) else wrong.append(f"asks {r.url}"))
        yield view, wrong
        if keep := os.environ.get("FEDML_SCREENSHOTS"):  # to look at them
            view.screenshot(path=f"{keep}/{len(list(Path(keep).iterdir()))}.png")
        browser.close()


@pytest.mark.long
def test_the_table_of_runs_has_study_metric_worst_site_and_epsilon(shown: tuple[str, str, list[str]], page: tuple[Any, list[str]]) -> None:
    view, wrong = page
    view.goto(shown[1])
    view.get_by_text("fedml.epsilon").first.wait_for()
    view.get_by_text("not counted").first.wait_for(state="hidden")
    heads = {h.strip() for h in view.locator("[role=columnheader]").all_inner_texts()}
    assert {"test/auroc", "test/auroc_low", "test/auroc_high", "test/auroc_worst_site"} <= heads
    assert {"fedml.study.study", "fedml.worst_site", "fedml.epsilon", "fedml.strategy", "fedml.seed", "fedml.engine"} <= heads
    rows = [row for row in view.locator("[role=row]").all_inner_texts() if "toy" in row]
    cells = " ".join(rows)
    assert "none" in cells  # one run has no privacy
    assert "bergen" in cells or "lund" in cells
    assert wrong == []


@pytest.mark.long
def test_two_runs_compared(shown: tuple[str, str, list[str]], page: tuple[Any, list[str]]) -> None:
    view, wrong = page
    view.goto(f"{shown[0]}/#/compare-runs?runs={json.dumps(shown[2], separators=(',', ':'))}&experiments=[%221%22]")
    view.get_by_text("Comparing 2 Runs").wait_for()
    view.get_by_text("privacy.unit").first.wait_for()
    view.get_by_text("test/auroc_worst_site").first.wait_for()
    view.locator(".js-plotly-plot").first.wait_for()
    on_screen(view, "test/auroc")  # the curve with which the page opens
    assert wrong == []


def on_screen(view: Any, text: str) -> None:
    """Waits for a text, which must be within the window without scrolling."""
    found = view.get_by_text(text).first
    found.wait_for()
    box = found.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 900, f"{text} is below the first screen"
    assert box["x"] + box["width"] <= 1700


@pytest.mark.long
@pytest.mark.parametrize("place", ["experiments/1/runs/{run}", "experiments/1/models/{model}", "models/toy/versions/1", "models/toy"])
def test_the_test_figure_is_on_the_first_screen(place: str, shown: tuple[str, str, list[str]], page: tuple[Any, list[str]]) -> None:
    from mlflow import MlflowClient

    view, wrong = page
    client = MlflowClient(shown[0])
    run = client.get_run(shown[2][0])
    figure = f"auroc {run.data.metrics['test/auroc']:.3f}"
    view.goto(f"{shown[0]}/#/{place.format(run=shown[2][0], model=run.outputs.model_outputs[0].model_id)}")
    on_screen(view, figure)
    assert wrong == []
