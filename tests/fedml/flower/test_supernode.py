"""How often a SuperNode asks for messages."""

from __future__ import annotations

import pytest

from fedml.flower.supernode import ask_nap


@pytest.mark.parametrize(("quiet", "seconds"), [(0, 0.2), (4, 0.2), (20, 1.0), (60, 3.0), (86_400, 3.0)])
def test_a_site_without_messages_asks_less_often(quiet: float, seconds: float) -> None:
    assert ask_nap(quiet) == pytest.approx(seconds)
