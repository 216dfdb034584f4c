"""The kinds of ``[cohort] target``: a column, several columns, or the columns of a time to an event."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from fedml.study import limits
from fedml.study.survival_section import TimeToEvent
from fedml.study.task_traits import Label

TARGETS: dict[Label, tuple[type, str]] = {  # label -> the target's type, and what to write; others: one column
    "several": (tuple, 'a list of columns, such as ["a", "b"],'),
    "time": (TimeToEvent, '{ time = "COLUMN", event = "COLUMN" }'),
}


def _kind_of_target(value: Any) -> str:
    return "[columns]" if isinstance(value, list | tuple) else "[time to event]" if isinstance(value, dict | TimeToEvent) else "str"


Target = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[tuple[str, ...], Field(min_length=2, max_length=limits.CLASSES), Tag("[columns]")]
    | Annotated[TimeToEvent, Tag("[time to event]")],
    Discriminator(_kind_of_target),
]
