"""What a sweep varies: keys of a study with lists or ranges of values; combinations of a grid, and random draws.

space = read_space(["lr=1e-4..1e-1", "strategy.name=fedavg,fedprox"])
grid(space), drawn(space, 30, seed=0)               # lists of {"training.lr": 0.001, "strategy.name": "fedprox"}
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedml.errors import InputError
from fedml.experiments.keys.overrides import full_key, study_keys
from fedml.seeds import derive_seed

MOST_TRIES = 10_000
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*")
_WHOLE = re.compile(r"[+-]?\d+")
_LOG_RATIO = 10  # of the ends of a range, from which it is drawn on the log scale
_DIGITS = 4  # of a number that is drawn
_DRAWS = 50  # for each combination, until enough different ones are found

# Keys that no sweep varies, and why: runs that differ in them cannot be compared by their validation persons.
_FIXED = {
    "study.name": "all runs have the study's",
    "study.seed": "give --seeds",
    "study.question": "no model depends on it",
    "study.purpose": "no model depends on it",
    "cohort.split": "runs would have other validation persons",
    "cohort.split_key": "runs would have other validation persons",
    "cohort.target": "runs would predict another outcome",
    "cohort.classes": "runs would predict another outcome",
    "survival.grid": "runs would have another metric",
    "survival.until": "runs would have another metric",
    "survival.horizons": "runs would have another metric",
    "model.task": "runs would have another metric",
    "federation.sites": "runs would have other validation persons",
    "privacy.unit": "runs with and without privacy have no epsilon together",
}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included. ``whole``: integers. ``log``: drawn on the log scale."""

    low: float
    high: float
    whole: bool
    log: bool

    def at(self, share: float) -> int | float:
        """The number at ``share`` (0 to 1) of the range, rounded to four digits."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return self.rounded(value)

    def rounded(self, value: float) -> int | float:
        """``value`` as a number of this range, with four digits."""
        value = min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)
        return round(value) if self.whole else value

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


Values = tuple[Any, ...] | Range
Space = Mapping[str, Values]  # full key -> what it is varied over
Point = dict[str, Any]  # full key -> value


def read_space(options: Iterable[str]) -> dict[str, Values]:
    """``KEY=A,B`` and ``KEY=LOW..HIGH``, as given to ``--grid``.

    Raises:
        InputError: no ``=``, an unknown, ambiguous or repeated key, or no value.
    """
    pairs = []
    for option in options:
        name, sign, text = option.partition("=")
        if not sign:
            raise InputError(f"--grid {option}: write KEY=VALUE,VALUE, such as --grid training.lr=0.001,0.01.")
        pairs.append((name.strip(), text))
    return space_of(pairs)


def space_of(pairs: Iterable[tuple[str, Any]]) -> dict[str, Values]:
    """Names of keys with their values, a text as in ``--grid`` or a sequence, by full key. Raises ``InputError`` as ``read_space``."""
    out: dict[str, Values] = {}
    for name, given in pairs:
        key = varied_key(name)
        if key in out:
            raise InputError(f"--grid {name}: {key} is given twice; list all of its values in one --grid.")
        out[key] = _values(name, given) if isinstance(given, str) else tuple(given)
        if out[key] == ():
            raise InputError(f"--grid {name}: lists no value; write {name}=VALUE,VALUE.")
    if not out:
        raise InputError("a sweep needs what it varies: give --grid KEY=VALUE,VALUE, such as --grid training.lr=0.001,0.01.")
    return out


def _values(name: str, text: str) -> Values:
    if found := _RANGE.fullmatch(text):
        ends = found.groups()
        low, high = map(float, ends)
        if not low < high or not math.isfinite(high - low):
            raise InputError(f"--grid {name}={text}: a range goes from a smaller to a larger number, such as {name}=1e-4..1e-1.")
        return Range(low, high, all(_WHOLE.fullmatch(end) for end in ends), low > 0 and high / low >= _LOG_RATIO)
    try:
        return tuple(tomllib.loads(f"value = [{text}]")["value"])
    except tomllib.TOMLDecodeError:  # words without quotation marks
        return tuple(_value(word.strip()) for word in text.split(",") if word.strip())


def _value(word: str) -> Any:
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def varied_key(name: str) -> str:
    """``full_key``, of a key that a sweep may vary. Raises ``InputError`` as it, or if no sweep varies the key."""
    key = full_key(name, f"--grid {name}")
    for fixed, why in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise InputError(f"--grid {name}: a sweep does not vary {fixed}: {why}.")
    return key


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Full key -> the shortest end of it by which ``full_key`` finds it."""
    known = study_keys()
    out = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1))
        out[key] = next((end for end in ends if [k for k in known if k == end or k.endswith(f".{end}")] == [key]), key)
    return out


def shown(point: Mapping[str, Any]) -> str:
    """A combination as text: ``lr = 0.001, strategy.name = fedprox``."""
    names = short_names(point)
    return ", ".join(f"{names[key]} = {as_text(value)}" for key, value in point.items())


def as_text(value: Any) -> str:
    """One value as text for tables and for MLflow."""
    return value if isinstance(value, str) else json.dumps(value)


def grid(space: Space) -> list[Point]:
    """Every combination, the last key fastest.

    Raises:
        InputError: a key has a range, or there are too many combinations.
    """
    for key, values in space.items():
        if isinstance(values, Range):
            raise InputError(f"--grid {key}={values}: a range is drawn from; add --random N or --optuna N, or list values.")
    lists = [values for values in space.values() if not isinstance(values, Range)]
    if (count := math.prod(map(len, lists))) > MOST_TRIES:
        raise InputError(f"--grid gives {count:,} combinations, up to {MOST_TRIES:,} are possible; list fewer values, or add --random N.")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def drawn(space: Space, count: int, seed: int) -> list[Point]:
    """``count`` different combinations, drawn from lists and ranges; fewer if there are not so many. More of them begin with the same.

    Args:
        seed: the study's.
    """
    if count > MOST_TRIES:
        raise InputError(f"--random {count:,}: up to {MOST_TRIES:,} are possible.")
    source, out = random.Random(derive_seed("sweep", seed)), dict[str, Point]()  # noqa: S311 - a search, not a secret
    for _ in range(count * _DRAWS):
        point = {
            key: values.at(source.random()) if isinstance(values, Range) else values[source.randrange(len(values))]
            for key, values in space.items()
        }
        out.setdefault(json.dumps(point, sort_keys=True), point)
        if len(out) == count:
            break
    return list(out.values())


def plain(space: Space) -> dict[str, Any]:
    """The space for JSON: a list of values, or ``low..high``."""
    return {key: str(values) if isinstance(values, Range) else list(values) for key, values in space.items()}


def corners(space: Space) -> Sequence[Point]:
    """Combinations in which one key at a time takes each of its values, or the ends of its range; the others have their first."""
    lists = {key: (values.at(0), values.at(1)) if isinstance(values, Range) else values for key, values in space.items()}
    first = {key: values[0] for key, values in lists.items()}
    return [first, *({**first, key: value} for key, values in lists.items() for value in values[1:])]
