"""Items prepared by several threads, in order, within a budget of memory.

    for result in in_order(items, prepare, cost):      # prepare(items[0]), prepare(items[1]), ...
        ...

Decoders and transforms release Python's lock while they compute. An item whose cost alone exceeds the budget is prepared by itself.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
BUDGET = 2**30  # bytes of all items that are prepared, or wait for their turn, at one time
_MOST = 8  # threads
_EXPANDS = 16  # bytes in memory for a byte of a file: compressed voxels, as float32, before and after resampling


def workers() -> int:
    """Threads for preparing items: the processors that this process may use, at most 8."""
    return max(1, min(_MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def cost_of(files: Iterable[Path]) -> int:
    """The bytes of memory that reading an item from these files may take."""
    total = 0
    for file in files:
        with suppress(OSError):  # its reader tells that it is missing
            total += file.stat().st_size
    return total * _EXPANDS


def in_order(
    items: Sequence[Item],
    prepare: Callable[[Item], Result],
    cost: Callable[[Item], int],
    *,
    threads: int | None = None,
    budget: int = BUDGET,
) -> Iterator[Result]:
    """``prepare`` of each item, in the order of the items. An exception is raised at its item's turn; later items are not begun.

    Args:
        cost: bytes of memory that an item needs; no item is begun while the sum of those that were begun would exceed ``budget``.
        threads: default: ``workers()``; with one, everything happens in the caller's thread.
    """
    count = workers() if threads is None else threads
    if count == 1 or len(items) < 2:
        yield from map(prepare, items)
        return
    waiting: deque[tuple[Future[Result], int]] = deque()
    taken, at = 0, 0
    pool = ThreadPoolExecutor(count, thread_name_prefix="images")
    try:
        while at < len(items) or waiting:
            while at < len(items) and len(waiting) < 2 * count:
                needs = cost(items[at])
                if waiting and taken + needs > budget:
                    break
                waiting.append((pool.submit(prepare, items[at]), needs))
                taken, at = taken + needs, at + 1
            first, needs = waiting.popleft()
            result = first.result()
            taken -= needs
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
