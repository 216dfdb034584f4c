"""A reply of which parts are missing is not awaited beyond the round's time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from fedml.flower.grid import _pull_parts, pull_by


def missing(object_id: str) -> bytes:
    raise ObjectUnavailableError(object_id)


class Replies:
    """A grid with one reply whose parts never come."""

    def pull_messages(self, message_ids: Any) -> Any:
        with pytest.raises(ObjectPullError):
            _pull_parts(["part"], missing)
        return ["error"]


def test_missing_parts_are_awaited_until_the_time_is_over() -> None:
    grid: Any = Replies()
    for until in (0.0, time.monotonic() + 0.2):
        assert list(pull_by(grid, ["asked"], until)) == ["error"], "Flower's own patience is minutes"
        assert time.monotonic() >= until


def test_parts_that_are_there_are_taken_however_late_it_is() -> None:
    class Whole:
        def pull_messages(self, message_ids: Any) -> Any:
            return [_pull_parts(["part"], lambda _: b"bytes")]

    grid: Any = Whole()
    assert list(pull_by(grid, ["asked"], 0.0)) == [{"part": b"bytes"}]
