"""A run that goes on after it stopped, at the gate: held to what it was, answered again only what it asked before, and not another run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedml.clients.gate.journal import verify
from tests.clients.gate.centre import Arrays, Centre, real_site
from tests.clients.gate.test_training_plan import plan

ORIGIN = {"resumes": "1"}


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    """A centre whose site answers one run of the study, and runs of no other."""
    return Centre(plan({}), real_site(tmp_path / "a", 'centre = "curious"\nmax_runs = 1'))


def trained(centre: Centre) -> Arrays:
    """The model of the last answer."""
    return {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_run_goes_on_as_the_run_that_it_continues(centre: Centre, restarted: bool) -> None:
    agreed = centre.agree(1)
    first = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, first) == ""
    second = trained(centre)
    assert centre.ask("round", 2, 1, agreed, second) == ""
    before = trained(centre)
    if restarted:
        centre.restart()
    assert centre.ask("round", 2, 7, agreed, second) == "replayed", "max_runs: without a word it is another run"
    assert centre.ask("describe", 0, 7, config=ORIGIN) == ""
    assert centre.ask("round", 2, 7, agreed, second, ORIGIN) == ""
    assert all(np.array_equal(value, before[name]) for name, value in trained(centre).items())
    if restarted:
        centre.restart()
    assert centre.ask("round", 3, 7, agreed, before, ORIGIN) == ""
    rows = centre.journal()
    assert {row["run"] for row in rows if row["verdict"] == "accepted"} == {"1"}
    assert {row["reason"] for row in rows if row["direction"] == "site" and row["verdict"] == "noted"} >= {"resumed as run 7"}
    assert verify(centre.state / "journal.jsonl") == []


@pytest.mark.parametrize("restarted", [False, True])
def test_what_goes_on_is_held_to_its_run(centre: Centre, restarted: bool) -> None:
    agreed = centre.agree(1)
    first = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, first) == ""
    second = trained(centre)
    assert centre.ask("round", 3, 1, agreed, second) == "", "round 2 did not come here"
    if restarted:
        centre.restart()
    name = next(iter(first))
    other = {**second, name: second[name] + np.float32(1e-3)}
    assert centre.ask("round", 3, 7, agreed, other, ORIGIN) == "replayed", "not the same bytes"
    assert centre.ask("round", 2, 7, agreed, second, ORIGIN) == "not-of-the-plan", "a round that was passed over is no way back"
    agreed.constants["preprocess.clinical.mean"] = agreed.constants["preprocess.clinical.mean"] + 1
    assert centre.ask("round", 4, 7, agreed, second, ORIGIN) == "replayed", "another agreement"
    assert centre.ask("round", 3, 7, config={"resumes": "x"}) == "bad-message"
    assert centre.ask("round", 1, 8, agreed, first, {"resumes": "9"}) == "replayed", "a run that this site does not know is another run"
