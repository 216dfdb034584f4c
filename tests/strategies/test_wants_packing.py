"""A grid says whether the arrays of a record travel as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from fedml.clients.work.client import answer
from fedml.flower.grid import InProcessGrid
from fedml.strategies.rounds import run_study
from fedml.wire.packing import is_bundled
from tests.conftest import clinical_site, make_study


@pytest.mark.parametrize("packing", [False, True])
def test_a_grid_is_asked_whether_it_wants_packing(tmp_path: Path, packing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessGrid, "wants_packing", packing)
    packed: list[bool] = []

    def app(message: Message, context: Context) -> Message:
        if len(message.content.array_records):
            packed.append(is_bundled(message.content))
        return answer(message, context)

    sites = [clinical_site(tmp_path / name, name, 60, seed) for seed, name in enumerate("ab")]
    run_study(make_study(), InProcessGrid(app, [{"manifest": str(site)} for site in sites]), tmp_path)
    assert packed == [packing] * 8  # statistics, two rounds and the evaluation of two sites


def test_a_grid_that_says_nothing_wants_packing() -> None:
    from fedml.flower.grid import wants_packing

    class Distant:
        """A grid of Flower's has no such attribute."""

    distant: Any = Distant()
    assert wants_packing(distant)
