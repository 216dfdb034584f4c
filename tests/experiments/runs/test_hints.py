"""A run that did not learn enough, or too long, says so in its last lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fedml.experiments.runs.hints import hints
from fedml.runs.events import Round
from tests.command import quick
from tests.conftest import clinical_site, make_plan, make_study, to_toml


def rounds_of(auroc: Sequence[float | None], loss: Sequence[float]) -> list[Round]:
    out = []
    for number, (value, lost) in enumerate(zip(auroc, loss, strict=True), 1):
        scores = {} if value is None else {"val": {"all": {"auroc": value, "persons": 50.0}, "sites": {}, "worst": None}}
        rows = {
            s: {"bytes_out": 1, "bytes_in": 1, "journal": None, "train_loss": lost, "seen": 50.0, "seconds": 1.0, "update_norm": 1.0}
            for s in "ab"
        }
        out.append(Round(round=number, seconds=1.0, metrics=scores, sites=rows, refused={}))  # type: ignore[arg-type]
    return out


FLAT = [0.5] * 20


@pytest.mark.parametrize(
    ("auroc", "loss", "words"),
    [
        ([0.8] * 20, FLAT, ""),
        ([min(0.5 + 0.1 * k, 0.85) for k in range(20)], FLAT, ""),  # it has settled
        ([0.5 + 0.015 * k for k in range(20)], FLAT, "still improving: validation auroc went from"),
        ([0.85 - 0.01 * abs(k - 5) for k in range(20)], FLAT, "past its best: validation auroc was 0.8"),
        ([0.8, 0.95, *[0.8] * 18], FLAT, "past its best"),
        ([0.8, 0.82, *[0.8] * 18], FLAT, ""),  # one lucky round
        ([None] * 20, [1 / (k + 1) for k in range(20)], "still learning: the training loss fell from"),
        ([None] * 20, FLAT, ""),
        ([0.8] * 20, [1 / (k + 1) for k in range(20)], ""),  # the training loss falls in any case
        ([0.5, 0.6, 0.7], [3, 2, 1], ""),  # no curve yet
    ],
)  # fmt: skip
def test_a_curve_that_has_not_settled(auroc: Sequence[float | None], loss: Sequence[float], words: str) -> None:
    found = hints(make_study(), rounds_of(auroc, loss))
    assert [text.startswith(words) for text in found] == ([True] if words else [])


def test_past_its_best_says_what_became_of_the_best_round() -> None:
    curve = rounds_of([0.85 - 0.01 * abs(k - 5) for k in range(20)], FLAT)
    assert hints(make_study(), curve)[0].endswith('; [training] keep = "best" takes it')
    kept = make_study(training__keep="best", federation__rounds=20)
    assert hints(kept, curve)[0].endswith('; keep = "best" made the best round\'s model the result')


def test_a_best_round_of_noised_figures_is_not_believed() -> None:
    private = {"unit": "patient", "epsilon": 8.0, "delta": 1e-3, "persons": {"a": 50}, "metrics": "private"}
    private["ranges"] = {f"x{k}": [-9, 9] for k in (1, 2, 3)}
    assert hints(make_study(sites=("a",), privacy=private), rounds_of([0.5 + 0.015 * k for k in range(20)], FLAT)) == []


@pytest.mark.parametrize("change", [{"federation__rounds": 0}, {"training__local_epochs": 0}])
def test_a_model_that_was_not_trained_is_said_to_be_so(tmp_path: Path, change: dict[str, int]) -> None:
    clinical_site(tmp_path / "sites" / "a", "a", 60, 0)
    (tmp_path / "study.toml").write_text(to_toml(make_plan(sites=("a",), **{"federation__rounds": 1, **change})))
    done = quick("fedml", "run", "study.toml", "--sites", "sites", "--no-track", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Hint: the model was not trained" in done.stdout + done.stderr
