"""Losses of a segmentation by name, and the arguments of each, for ``[training] loss``.

options_problem("tversky", {"alpha": 2.0})     # 'loss_options alpha is 2; tversky takes a number from 0 to 1'
options_of("tversky", {"alpha": 0.3})          # {"alpha": 0.3, "beta": 0.5}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedml.errors import nearest


class Argument(NamedTuple):
    """An argument: its default, and the numbers that it may be, or the words."""

    default: float | str
    least: float = 0.0
    most: float = 0.0
    words: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return " or ".join(f'"{w}"' for w in self.words) if self.words else f"a number from {self.least:g} to {self.most:g}"

    def holds(self, value: Any) -> bool:
        """Whether it may be ``value``."""
        if self.words:
            return value in self.words
        return isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most


_SHARE = {"dice": Argument(1.0, 0, 100)}
_GAMMA = {"gamma": Argument(2.0, 0, 10)}
MASK_LOSSES: dict[str, dict[str, Argument]] = {
    "dice_ce": {**_SHARE, "ce": Argument(1.0, 0, 100)},
    "dice": {},
    "dice_focal": {**_SHARE, "focal": Argument(1.0, 0, 100), **_GAMMA},
    "focal": _GAMMA,
    "tversky": {"alpha": Argument(0.5, 0, 1), "beta": Argument(0.5, 0, 1)},
    "generalized_dice": {"weight": Argument("square", words=("square", "simple", "uniform"))},
}
UNWEIGHTED = ("generalized_dice",)  # weighs classes by their size itself


def options_problem(name: str, given: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of loss ``name``; "" if nothing is."""
    known = MASK_LOSSES[name]
    for key, value in given.items():
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no arguments"
            return f'loss_options {key} is not an argument of loss = "{name}"{nearest(key, known)}; {takes}'
        if not known[key].holds(value):
            return f"loss_options {key} is {value!r}; {name} takes {known[key].allowed}"
    if all(options_of(name, given).get(key) == 0 for key in ("dice", "ce", "focal") if key in known) and "dice" in known:
        return f'loss_options give every part of loss = "{name}" the weight 0; give one of them another'
    if name == "tversky" and not any(options_of(name, given).values()):
        return "loss_options alpha and beta are both 0; give one of them another"
    return ""


def options_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of loss ``name``, those not ``given`` by their defaults."""
    return {key: given.get(key, argument.default) for key, argument in MASK_LOSSES[name].items()}
