"""What a Flower strategy has remembered after a round, as arrays and plain JSON, so that a run can go on with it; never a pickle.

    note = taken(strategy.inner, "strategy", arrays)      # adds to ``arrays``
    put_back(strategy.inner, note, arrays)                # into a strategy that was made anew from the study

Numbers, texts, NumPy arrays, lists, tuples, dictionaries, records of Flower and strategies within strategies are kept. Functions are those
of the new strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedml.wire.records import pack, unpack

_RECORDS = {"config": ConfigRecord, "metrics": MetricRecord}


def taken(value: Any, place: str, arrays: dict[str, Any]) -> Any:
    """``value`` as JSON; its arrays are added to ``arrays`` under names that begin with ``place``.

    Raises:
        ValueError: it holds something that cannot be kept.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        arrays[place] = np.asarray(value)
        return {"is": "array", "at": place}
    if isinstance(value, list | tuple):
        rows = [taken(inner, f"{place}/{at}", arrays) for at, inner in enumerate(value)]
        return {"is": "tuple" if isinstance(value, tuple) else "list", "of": rows}
    if isinstance(value, ArrayRecord):
        return {"is": "arrays", "of": taken(dict(unpack(value)), place, arrays)["of"]}
    for name, kind in _RECORDS.items():
        if isinstance(value, kind):
            return {"is": name, "of": [[key, taken(list(v) if isinstance(v, list) else v, "", {})] for key, v in value.items()]}
    if isinstance(value, Strategy):
        return {"is": "strategy", "of": [[key, taken(inner, f"{place}/{key}", arrays)] for key, inner in vars(value).items()]}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {"is": "dict", "of": [[key, taken(inner, f"{place}/{key}", arrays)] for key, inner in value.items()]}
    if callable(value):
        return {"is": "same"}
    raise ValueError(f"{type(value).__name__} at {place}")


def put_back(strategy: Strategy, note: Any, arrays: Mapping[str, Any]) -> None:
    """Gives ``strategy`` what ``taken`` took of another of its kind."""
    for key, inner in note["of"]:
        now = vars(strategy).get(key)
        if isinstance(inner, dict) and inner["is"] == "strategy" and isinstance(now, Strategy):
            put_back(now, inner, arrays)
        elif not (isinstance(inner, dict) and inner["is"] == "same"):
            setattr(strategy, key, _value(inner, arrays, now))


def _value(note: Any, arrays: Mapping[str, Any], now: Any) -> Any:
    if not isinstance(note, dict):
        return note
    match note["is"]:
        case "array":
            return arrays[note["at"]]
        case "list":
            return [_value(inner, arrays, None) for inner in note["of"]]
        case "tuple":
            return tuple(_value(inner, arrays, None) for inner in note["of"])
        case "arrays":
            return pack({key: _value(inner, arrays, None) for key, inner in note["of"]})
        case "dict":
            return {key: _value(inner, arrays, None) for key, inner in note["of"]}
        case "same":
            return now
        case kind:
            return _RECORDS[kind]({key: _value(inner, arrays, None) for key, inner in note["of"]})
