"""A cache of results whose sizes differ much: bounded by their total size, not by their number.

@remembered(most=32_000_000, size=lambda text: len(text))
def parsed(text: bytes) -> Keys: ...
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any


def remembered(most: int, size: Callable[..., int]) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function's results by its positional arguments, the least recently used forgotten where their ``size`` (of the
    arguments) together exceeds ``most``; the last result is kept whatever its size. ``cache_clear`` forgets all."""

    def decorate(function: Callable[..., Any]) -> Any:
        found: OrderedDict[tuple[Hashable, ...], Any] = OrderedDict()
        sizes: dict[tuple[Hashable, ...], int] = {}
        lock = threading.Lock()

        @wraps(function)
        def wrapper(*arguments: Hashable) -> Any:
            with lock:
                if arguments in found:
                    found.move_to_end(arguments)
                    return found[arguments]
            result = function(*arguments)
            with lock:
                found[arguments], sizes[arguments] = result, size(*arguments)
                while len(found) > 1 and sum(sizes.values()) > most:
                    old, _ = found.popitem(last=False)
                    del sizes[old]
            return result

        def cache_clear() -> None:
            with lock:
                found.clear()
                sizes.clear()

        wrapper.cache_clear = cache_clear  # type: ignore[attr-defined]
        return wrapper

    return decorate
