"""What a server remembers between rounds goes on with the run, whatever it is: the bits are those of a run that nothing stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedml.clients.gate.local import app
from fedml.errors import RunError
from fedml.flower.grid import InProcessGrid
from fedml.runs.checkpoints import CHECKPOINTS
from fedml.runs.events import NO_FINAL, Final, Start
from fedml.runs.log import emit, last, read_log
from fedml.strategies import rounds
from fedml.study.study import Study
from tests.conftest import clinical_site, make_study

SPLIT = {"train": 0.6, "val": 0.2, "test": 0.2}
FLOWER = "flwr.serverapp.strategy:"
PLANS: dict[str, dict[str, Any]] = {
    "fedadam": {"strategy": {"name": "fedadam", "server_lr": 0.1}},
    "fedavgm": {"strategy": {"name": "fedavgm", "momentum": 0.9}},
    "optimiser": {"training": {"optimizer": "adam", "lr": 0.05, "keep_optimizer": True}},
    "int8": {"federation__wire": "int8", "training": {"optimizer": "adam", "lr": 0.05}},
    "best": {"training": {"optimizer": "sgd", "lr": 2.0, "keep": "best", "patience": 3}},
    "average": {"training": {"optimizer": "sgd", "lr": 0.5, "ema": 0.5}},
    "flower FedYogi": {"strategy": {"name": f"{FLOWER}FedYogi"}},
    "flower FedAvgM": {"strategy": {"name": f"{FLOWER}FedAvgM", "server_momentum": 0.9}},
}


def run(study: Study, manifests: list[Path], folder: Path, stop: int = 0, *, resumed: bool = False) -> Final:
    """The last event of a run; with ``stop`` it ends in that round, before the round is complete."""
    folder.mkdir(exist_ok=True)
    if not resumed:
        emit(folder, Start(run_id=folder.name, study="toy", study_sha256=study.sha256, git_commit="none", seed=0, versions={},
                           engine="local", job="train", code=None))  # fmt: skip
    one = rounds.one_round

    def stopped(*given: Any) -> Any:
        done = one(*given)
        if given[5].round + 1 == stop:
            raise RunError("stopped")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "one_round", stopped)
        grid = InProcessGrid(app, [{"manifest": str(path)} for path in manifests], {"run": str(folder)})
        rounds.run_study(study, grid, folder, resumed=resumed)
    return last(read_log(folder)[0], NO_FINAL)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sites."""
    folder = tmp_path_factory.mktemp("sites")
    return [clinical_site(folder / name, name, 90, seed) for seed, name in enumerate("ab")]


@pytest.mark.parametrize("name", PLANS)
def test_what_a_strategy_remembers_goes_on(name: str, manifests: list[Path], tmp_path: Path) -> None:
    study = make_study(federation__rounds=7, cohort__split=SPLIT, **PLANS[name])
    whole = run(study, manifests, tmp_path / "whole")
    with pytest.raises(RunError, match="stopped"):
        run(study, manifests, tmp_path / "run", 4)
    again = run(study, manifests, tmp_path / "run", resumed=True)
    assert (again.weights_sha256, again.round, again.kept) == (whole.weights_sha256, whole.round, whole.kept)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


def test_a_strategy_that_cannot_be_kept_says_so_and_runs(
    manifests: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(federation__rounds=2, cohort__split=SPLIT, strategy={"name": f"{FLOWER}FedAvg"})
    made = rounds.make_strategy

    def odd(study: Study) -> Any:
        strategy: Any = made(study)
        strategy.inner.odd = object()
        return strategy

    monkeypatch.setattr(rounds, "make_strategy", odd)
    with pytest.raises(RunError, match="stopped"):
        run(study, manifests, tmp_path / "run", 2)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    assert "no checkpoint is written" in caplog.text


def test_a_checkpoint_of_another_study_is_not_used(manifests: list[Path], tmp_path: Path) -> None:
    study = make_study(federation__rounds=3, cohort__split=SPLIT)
    with pytest.raises(RunError, match="stopped"):
        run(study, manifests, tmp_path / "run", 2)
    other = make_study(federation__rounds=3, cohort__split=SPLIT, training={"lr": 0.123})
    with pytest.raises(RunError, match="the checkpoint is of another study"):
        run(other, manifests, tmp_path / "run", resumed=True)
