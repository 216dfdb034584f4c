"""A cache of results whose sizes differ much: bounded by their total size, not by their number.

@remembered(most=32_000_000, size=lambda text: len(text))
def parsed(text: bytes) -> Keys: ...
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class Remembered(Protocol[P, R]):
    """A function whose results are kept."""

    __wrapped__: Callable[P, R]

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R: ...

    def cache_clear(self) -> None: ...


def remembered(
    most: int, size: Callable[..., int] | None = None, *, weigh: Callable[[Any], int] = lambda _: 0, least: int = 1
) -> Callable[[Callable[P, R]], Remembered[P, R]]:
    """A decorator: the function's results by its arguments, the least recently used forgotten where their sizes together exceed ``most``.
    ``cache_clear`` forgets all.

    Args:
        size: of the arguments. weigh: of the result. least: so many results are kept whatever their sizes.
    """

    def decorate(function: Callable[P, R]) -> Remembered[P, R]:
        found: OrderedDict[tuple[Hashable, ...], R] = OrderedDict()
        sizes: dict[tuple[Hashable, ...], int] = {}
        held = 0
        lock = threading.Lock()

        @wraps(function)
        def wrapper(*arguments: P.args, **named: P.kwargs) -> R:
            nonlocal held
            key = (*arguments, *sorted(named.items()))
            with lock:
                if key in found:
                    found.move_to_end(key)
                    return found[key]
            result = function(*arguments, **named)
            with lock:
                held -= sizes.get(key, 0)
                found[key], sizes[key] = result, (0 if size is None else size(*arguments, **named)) + weigh(result)
                held += sizes[key]
                while len(found) > least and held > most:
                    old, _ = found.popitem(last=False)
                    held -= sizes.pop(old)
            return result

        def cache_clear() -> None:
            nonlocal held
            with lock:
                found.clear()
                sizes.clear()
                held = 0

        wrapper.cache_clear = cache_clear  # type: ignore[attr-defined]
        return cast(Remembered[P, R], wrapper)

    return decorate
