"""How often a SuperNode asks for messages."""

from __future__ import annotations

import pytest

from fedml.flower.supernode import KEPT_BACK, WAIT_BUSY, ask_nap


@pytest.mark.parametrize(("quiet", "seconds"), [(0, 0.2), (4, 0.2), (20, 1.0), (60, 3.0), (86_400, 3.0)])
def test_a_site_without_messages_asks_less_often(quiet: float, seconds: float) -> None:
    assert ask_nap(quiet) == pytest.approx(seconds)


@pytest.mark.parametrize("quiet", [0, 60, 86_400])
def test_a_site_whose_request_was_kept_back_asks_again_at_once(quiet: float) -> None:
    assert ask_nap(quiet, took=float(WAIT_BUSY)) == 0
    assert ask_nap(quiet, took=0.01) == ask_nap(quiet) > 0, "of a centre that answers at once it asks less often"
    assert WAIT_BUSY > KEPT_BACK
