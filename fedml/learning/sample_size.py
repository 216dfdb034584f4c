"""How many persons a prediction model of a binary outcome needs: Riley et al. 2020 (BMJ 368:m441), the criteria for development.

    found = smallest(parameters=30, share=0.05)
    found.persons, found.because          # 5249, "shrinkage"

The formula is for regression with ``parameters`` candidate parameters; a network with more weights than that needs more persons.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SHRINKAGE = 0.9  # of the fitted effects
NAGELKERKE = 0.15  # the share of explained variation that is expected, of the largest possible, if nothing better is known
MARGIN = 0.05  # of the share with the outcome, and of the optimism in explained variation
_NORMAL = 1.96


class Needed(NamedTuple):
    """``persons``: the least number by all criteria. ``because``: the criterion that gives it. ``cases``: of them with the outcome."""

    persons: int
    because: str
    cases: int


def smallest(parameters: int, share: float, nagelkerke: float = NAGELKERKE) -> Needed:
    """The least number of persons to develop a model of a binary outcome.

    Args:
        parameters: candidate parameters, without the intercept.
        share: of persons with the outcome. nagelkerke: the expected Nagelkerke R2, above 0 and at most 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if parameters < 1 or not 0 < share < 1 or not 0 < nagelkerke <= 1:
        raise ValueError("the number of persons needs at least one parameter, a share between 0 and 1, and an R2 from 0 to 1")
    likelihood = share * math.log(share) + (1 - share) * math.log(1 - share)
    most = 1 - math.exp(2 * likelihood)  # the largest possible Cox-Snell R2
    expected = nagelkerke * most

    def for_shrinkage(shrinkage: float) -> float:
        return parameters / ((shrinkage - 1) * math.log(1 - expected / shrinkage))

    needed = {
        "shrinkage": for_shrinkage(SHRINKAGE),
        "optimism": for_shrinkage(expected / (expected + MARGIN * most)),
        "share": (_NORMAL / MARGIN) ** 2 * share * (1 - share),
    }
    because = max(needed, key=needed.__getitem__)
    persons = math.ceil(round(needed[because], 6))
    return Needed(persons, because, math.ceil(round(persons * share, 6)))
