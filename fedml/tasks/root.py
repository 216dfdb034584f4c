"""The root of a function by Brent's method (1973, chapter 4), step for step as ``scipy.optimize.brentq``, which takes 0.3 s and 40 MB to
import."""

from __future__ import annotations

import math
from collections.abc import Callable

_WIDTH, _SHARE, _MOST = 2e-12, 4 * 2.0**-52, 100  # absolute and relative tolerance, and steps, of scipy


def root(of: Callable[[float], float], low: float, high: float) -> float:
    """A place between ``low`` and ``high`` where ``of`` is 0.

    Raises:
        ValueError: the values at both ends have the same sign, or 100 steps are not enough.
    """
    before, here = low, high
    at_before, at_here = of(before), of(here)
    if at_before == 0:
        return before
    if at_here == 0:
        return here
    if math.copysign(1, at_before) == math.copysign(1, at_here):
        raise ValueError(f"the function has the same sign at {low} and {high}")
    other = at_other = step_before = step = 0.0
    for _ in range(_MOST):
        if at_before != 0 and at_here != 0 and math.copysign(1, at_before) != math.copysign(1, at_here):
            other, at_other = before, at_before
            step_before = step = here - before
        if abs(at_other) < abs(at_here):
            before, here, other = here, other, here
            at_before, at_here, at_other = at_here, at_other, at_here
        width, half = (_WIDTH + _SHARE * abs(here)) / 2, (other - here) / 2
        if at_here == 0 or abs(half) < width:
            return here
        attempt = math.inf
        if abs(step_before) > width and abs(at_here) < abs(at_before):
            if before == other:  # a line through two points
                attempt = -at_here * (here - before) / (at_here - at_before)
            else:  # a parabola through three
                slope, other_slope = (at_before - at_here) / (before - here), (at_other - at_here) / (other - here)
                attempt = -at_here * (at_other * other_slope - at_before * slope) / (other_slope * slope * (at_other - at_before))
        step_before, step = (step, attempt) if 2 * abs(attempt) < min(abs(step_before), 3 * abs(half) - width) else (half, half)
        before, at_before = here, at_here
        here += step if abs(step) > width else math.copysign(width, half)
        at_here = of(here)
    raise ValueError(f"no root is found between {low} and {high} in {_MOST} steps")
