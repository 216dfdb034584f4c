"""Items are prepared in order, by several threads, within the budget; an error ends the preparation at its item."""

from __future__ import annotations

import threading
import time

import pytest

from fedml.cohort.images.parallel import in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def prepare(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_order(range(40), prepare, lambda item: 1, threads=threads)) == [k * k for k in range(40)]


def test_no_more_is_begun_than_the_budget_holds() -> None:
    lock, held, most = threading.Lock(), 0, 0

    def prepare(item: int) -> int:
        nonlocal held, most
        with lock:
            held += item
            most = max(most, held)
        time.sleep(0.003)
        with lock:
            held -= item
        return item

    items = [3, 4, 5, 1, 2, 6, 9, 4, 20, 1, 1, 1, 8, 3]  # one is larger than the budget
    assert list(in_order(items, prepare, lambda item: item, threads=4, budget=10)) == items
    assert 6 < most <= 20
    most = 0
    assert list(in_order([4, 4, 4, 4], prepare, lambda item: item, threads=4, budget=10)) == [4, 4, 4, 4]
    assert most <= 8


def test_an_error_is_raised_at_its_item() -> None:
    def prepare(item: int) -> int:
        if item == 3:
            raise ValueError("third")
        return item

    found = in_order(range(100), prepare, lambda item: 1, threads=3)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        next(found)
