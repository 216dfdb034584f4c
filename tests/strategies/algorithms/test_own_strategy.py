"""A strategy of the study's author, by its import path: found where Python looks, and it computes the server's part."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedml.errors import InputError
from fedml.strategies.algorithms.registry import make_strategy
from tests.conftest import clinical_site, federate, make_study

MINE = """
from flwr.serverapp.strategy import FedAvg


class Same(FedAvg):
    pass


class Halved(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)
"""


def test_an_own_strategy_is_run_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"No module named 'mine_of_this_test'\); write .* in PYTHONPATH"):
        make_strategy(make_study(strategy__name="mine_of_this_test:Same"))
    (tmp_path / "mine_of_this_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sites = [clinical_site(tmp_path / name, name, 60, seed) for seed, name in enumerate("ab")]

    def weights(name: str, **changes: float) -> str:
        run = "-".join([name.partition(":")[2], *map(str, changes.values())])
        return federate(make_study(strategy__name=name, federation__rounds=1, **changes), sites, tmp_path / run).sha256

    flower, lr = "flwr.serverapp.strategy:FedAvg", make_study().training.lr
    assert weights("mine_of_this_test:Same") == weights(flower)
    assert weights("mine_of_this_test:Halved") == weights(flower, training__lr=lr / 2) != weights(flower, training__lr=lr)
