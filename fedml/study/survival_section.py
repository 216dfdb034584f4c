"""Time to an event: the columns of ``[cohort] target``, and ``[survival]``, the grid of times that every site rounds to.

Times are rounded up to the grid at the site, when the persons table is read, so no exact time is counted, trained on or sent. Everything
that the sites compute together is exact for the rounded times.
"""

from __future__ import annotations

import bisect
import re
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study.outcomes_section import CoxModel, Curves
from fedml.study.section import COLUMN, Code, Section, normal, without_unused

INTERVALS = 500  # of a grid
TimeUnit = Literal["days", "weeks", "months", "years"]
Column = Annotated[str, Field(max_length=200)]
_STEP = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([a-z]+)")


class TimeToEvent(Section):
    """``[cohort] target = { time = "time_days", event = "event" }``."""

    time: Column = Field(description="column with the time from a person's start to the event or to the last contact, above 0")
    event: Column = Field(description="column with the code of what happened at that time")
    events: dict[Annotated[str, Field(pattern=COLUMN)], Code] = Field(
        default={"event": 1}, description="codes of the events by name, such as { death = 1, relapse = 2 }", min_length=1, max_length=20
    )
    censored: Code = Field(default=0, description="code of a person without an event until the last contact")
    event_of_interest: str = Field(
        default="", description="name of the event that is studied, where several compete; default: the only one of events"
    )
    entry: Column | None = Field(
        default=None, description="column with the time at which observation begins (left truncation); default: all begin at 0"
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("time", "event", "events", "censored", "event_of_interest"))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the persons table: time, event and, if there is one, entry."""
        return tuple(filter(None, (self.time, self.event, self.entry)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the events in the order of their numbers: 1 is the event of interest, the others follow by name."""
        first = self.event_of_interest
        return (first, *sorted(name for name in self.events if name != first))

    @property
    def codes(self) -> tuple[int | float | str, ...]:
        """What the cells of the event column hold, by number: 0 is censored, then ``names``."""
        return (self.censored, *(self.events[name] for name in self.names))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("two of time, event and entry are the same column")
        if len({normal(code) for code in (self.censored, *self.events.values())}) < len(self.events) + 1:
            raise ValueError("two of the events, or an event and censored, have the same code")
        if not self.event_of_interest:  # set explicitly, so that the study's hash covers it
            if len(self.events) > 1:
                raise ValueError(f'events lists {len(self.events)} events; add event_of_interest = "{min(self.events)}", or another')
            object.__setattr__(self, "event_of_interest", next(iter(self.events)))
        if self.event_of_interest not in self.events:
            raise ValueError(f'event_of_interest = "{self.event_of_interest}" is none of events ({", ".join(sorted(self.events))})')
        return self


class Survival(Section):
    """``[survival]``: the unit and the grid of times, and the horizons at which a prediction is answered and tested."""

    time_unit: TimeUnit = Field(description="unit of the times in every site's table, of the grid and of horizons")
    grid: str | Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=INTERVALS)] = Field(
        description='times to which sites round up: a step such as "30 days", with until; or the ends of the intervals, such as [90, 365]'
    )
    until: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="end of follow-up: who is observed for longer is censored then; with grid as a list, its last number"
    )
    horizons: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=20)] = Field(
        default=(), description="times on the grid at which survival is predicted and tested; default: until"
    )
    curves: Curves | None = Field(default=None, description="survival curves and their comparison (fedml survival); default: none")
    cox: CoxModel | None = Field(default=None, description="Cox regression (fedml survival); default: none")

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("time_unit", "grid", "until", "horizons"))

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """(intervals,) ascending ends of the intervals, the last is ``until``; interval k holds times above end k - 1 up to end k."""
        if not isinstance(self.grid, str):
            return self.grid
        step, until = self._step(), Decimal(repr(self.until))
        if until / step > INTERVALS:
            raise ValueError(f'grid = "{self.grid}" until {self.until:g} gives more than {INTERVALS} intervals; take a longer step')
        if until % step:
            raise ValueError(f'until is {self.until:g}, which is no multiple of the grid\'s step "{self.grid}"; the next is '
                             f"{float(step * (until // step + 1)):g}")  # fmt: skip
        return tuple(float(step * k) for k in range(1, int(until // step) + 1))

    def _step(self) -> Decimal:
        match = _STEP.fullmatch(str(self.grid))
        if match is None or not Decimal(match[1]):
            raise ValueError(f'grid is "{self.grid}"; write a number and the unit, such as "30 {self.time_unit}", or a list of times')
        if match[2] not in (self.time_unit, self.time_unit[:-1]):
            raise ValueError(f'grid is "{self.grid}" and time_unit "{self.time_unit}"; write the grid in {self.time_unit}')
        if self.until is None:
            raise ValueError(
                f"until is missing, the time in {self.time_unit} at which follow-up ends; add it, or write grid as a list of times"
            )
        return Decimal(match[1])

    @property
    def places(self) -> tuple[int, ...]:
        """The place of each horizon among ``edges``."""
        return tuple(self.edges.index(h) for h in self.horizons)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not isinstance(self.grid, str) and list(self.grid) != sorted(set(self.grid)):
            raise ValueError("grid is not ascending; write each time once, from the first to the last")
        edges = self.edges
        if self.until is None:  # set explicitly, so that the study's hash covers it
            object.__setattr__(self, "until", edges[-1])
        if self.until != edges[-1]:
            raise ValueError(f"until is {self.until:g} and the grid's last time {edges[-1]:g}; remove until")
        if not self.horizons:
            object.__setattr__(self, "horizons", (edges[-1],))
        if list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError("horizons is not ascending; write each time once, from the first to the last")
        for horizon in self.horizons:
            if horizon not in edges:
                at = bisect.bisect_left(edges, horizon)
                near = min(edges[max(at - 1, 0) : at + 1], key=lambda edge: abs(edge - horizon))
                raise ValueError(f"horizons lists {horizon:g}, which is not on the grid; the nearest time is {near:g}")
        return self
