"""Through a whole run: a site whose counts its persons cannot have is named, and real persons' counts leave a site only in groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedml.errors import Reason
from fedml.runs.events import Final, Round
from tests.clients.gate.centre import Centre, small_cells
from tests.conftest import make_study
from tests.experiments.tasks import test_count, test_multilabel, test_ordinal, test_survival
from tests.strategies.test_lying_site import LIAR, counted, run_with

Make = Callable[[Path, str, int, int], Path]
TASKS: dict[str, tuple[Make, dict[str, Any]]] = {
    "ordinal": (test_ordinal.ordered_site, {"cohort__classes": test_ordinal.CLASSES}),
    "count": (test_count.event_site, {"cohort__target": "events", "cohort__exposure": "years"}),
    "survival": (test_survival.timed_site, {key: value for key, value in test_survival.TIMED.items() if key != "model__task"}),
    "multilabel": (test_multilabel.labelled_site, {"cohort__target": test_multilabel.NAMES, "cohort__classes": ["no", "yes"]}),
}
LIES: dict[str, tuple[str, Callable[[RecordDict], None]]] = {
    "more persons in the confusion": ("ordinal", counted("confusion", lambda value: value + 1)),
    "a negative confusion": ("ordinal", counted("confusion", lambda value: -value - 1)),
    "more persons than described": ("count", counted("persons", lambda value: value + 1000)),
    "a negative deviance": ("count", counted("deviance_sum", lambda value: -value - 1)),
    "errors without squares": ("count", counted("e2_sum", lambda value: value * 0)),
    "half an event": ("count", counted("y_sum", lambda value: value + 0.5)),
    "more persons of a label": ("multilabel", counted("tables", lambda value: value + 1000)),
    "more events": ("survival", counted("times", lambda value: value + 1000)),
    "more than certain": ("survival", counted("alive_sum", lambda value: value * 30)),
    "a negative table": ("multilabel", counted("tables", lambda value: -value - 1)),
}


@pytest.mark.parametrize("name", LIES)
def test_a_site_that_lies_about_its_counts_is_named_and_the_run_goes_on(name: str, tmp_path: Path) -> None:
    task, lie = LIES[name]
    make, changes = TASKS[task]
    manifests = {site: make(tmp_path / site, site, 60, seed) for seed, site in enumerate(("s0", "s1", LIAR))}
    events = run_with(manifests, tmp_path / "run", "evaluate", lie, model__task=task, **changes)
    refused = {site: reason for event in events if isinstance(event, Round | Final) for site, reason in event.refused.items()}
    assert refused == {LIAR: Reason.IMPLAUSIBLE}
    final = next(event for event in events if isinstance(event, Final))
    assert set(final.metrics["test"]["sites"]) == {"s0", "s1"}


def real(make: Make, folder: Path, centre: str) -> Path:
    """A site of persons who are not public."""
    manifest = make(folder, "a", 240, 1)
    text = manifest.read_text(encoding="utf-8").replace("public = true\n", "")
    manifest.write_text(f'{text}\n[policy]\nmin_count = 5\ncentre = "{centre}"\n', encoding="utf-8")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_of_real_persons_counts_leave_in_groups_and_to_a_centre_that_is_not_trusted_none_do(task: str, tmp_path: Path) -> None:
    make, changes = TASKS[task]
    study = make_study(sites=("a",), model__task=task, federation__rounds=1, **changes)
    centre = Centre(study, real(make, tmp_path / "curious", "curious"))
    agreed = centre.agree()
    assert centre.ask("round", 1, 1, agreed, centre.first(agreed)) == ""
    trained = {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}
    assert centre.ask("evaluate", 1, 1, agreed, trained) == ""
    counts = centre.answered[-1][1]
    assert float(counts["counts/test/persons"][0]) > 30
    assert small_cells(counts, 5) == []
    for name in ("ranks", "times"):
        table = counts.get(f"counts/test/{name}", np.zeros(1))
        assert not ((table > 0) & (table < 5)).any()
    if "counts/test/tables" in counts:
        tables = counts["counts/test/tables"]
        assert not ((tables > 0) & (tables < 5)).any()
        assert tables.sum() > 60
    refusing = Centre(study, real(make, tmp_path / "distrusted", "distrusted"))
    assert refusing.ask("describe", 0, 1) == "centre-distrusted"
