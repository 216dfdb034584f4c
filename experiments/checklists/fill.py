"""Reporting checklists, filled from a run's record: TRIPOD+AI (prediction models), CLAIM 2024 (imaging), FUTURE-AI (trustworthy AI).

    filled = fill_all(record)              # for each checklist the items, each with its state
    checklists_markdown(record), checklists_json(record)

The TOML files in this folder list for each item the guideline's number and subject, a short paraphrase, and the facts that answer it:

    [[item]]
    id = "20a"
    subject = "Participants"
    needs = "how many persons went through the study, with and without the outcome"
    source = ["persons", "events"]          # facts (``facts.py``) that answer it
    also = { intervals = "..." }            # facts that answer the rest; if one is missing, the author must write its text
    rest = "a diagram of the flow"          # never in a record
    when = "images"                         # only for these studies (``CONDITIONS``)
    never = "..."                           # why it applies to no run

An item without ``source`` is left to the author. All text is from these files or from the run's values.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedml.experiments.checklists.facts import Fact, facts_of
from fedml.experiments.runs.record import Record
from fedml.study.study import Study
from fedml.tasks.registry import make_task

NAMES = ("tripod_ai", "claim", "future_ai")
AUTHOR = "The author must write this."
State = Literal["filled", "partly", "author", "not applicable"]
STATES: tuple[State, ...] = ("filled", "partly", "author", "not applicable")

# Name -> the reason why it does not apply to the study ("": it applies), and the pointer to that setting.
CONDITIONS: dict[str, tuple[Callable[[Study], str], str]] = {
    "prediction": (lambda s: make_task(s).words.no_prediction, "study.json#/model/task"),
    "images": (lambda s: "" if "image" in s.cohort.inputs else "The study reads no images.", "study.json#/cohort/inputs"),
    "classes": (lambda s: make_task(s).words.no_classes, "study.json#/model/task"),
    "updating": (
        lambda s: (
            "The model does not begin with weights of an earlier one ([model] start), so none is updated." if s.model.start is None else ""
        ),
        "study.json#/model",
    ),
    "clusters": (lambda s: "" if len(s.federation.sites) > 1 else "The roster has one site.", "study.json#/federation/sites"),
}
Condition = Literal["prediction", "images", "classes", "clusters", "updating"]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Item(_Part):
    """One item of a checklist; fields as in the module's docstring."""

    id: Text
    section: Text
    subject: Text
    needs: Text
    source: tuple[Text, ...] = ()
    also: dict[Text, Text] = {}
    rest: str = ""
    when: tuple[Condition, ...] = ()
    never: str = ""

    @model_validator(mode="after")
    def _answered(self) -> Self:
        if self.never and (self.source or self.also or self.rest or self.when):
            raise ValueError(f"item {self.id}: has never, so it cannot have source, also, rest or when")
        if (self.also or self.rest) and not self.source:
            raise ValueError(f"item {self.id}: has no source, so it cannot have also or rest")
        return self


class Checklist(_Part):
    """A guideline: its name, its publication, the source against which the item numbers were checked, and its items in order."""

    name: Text
    title: Text
    published: Text
    checked: Text
    when: tuple[Condition, ...] = ()
    item: Annotated[tuple[Item, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Filled:
    """An item with its answer. ``text``: from the run, or why the item does not apply; ``author``: what the author must write."""

    id: str
    section: str
    subject: str
    needs: str
    state: State
    text: str = ""
    author: str = ""
    pointers: tuple[str, ...] = ()


@lru_cache
def read_checklist(name: str) -> Checklist:
    """One of ``NAMES``, from the file in this package."""
    text = (files(__package__) / f"{name}.toml").read_text(encoding="utf-8")
    # Through JSON, because strict validation accepts a JSON array for a tuple, but not a Python list.
    return Checklist.model_validate_json(json.dumps(tomllib.loads(text)))


def fill(items: Iterable[Item], facts: Mapping[str, Fact], study: Study, when: Sequence[Condition] = ()) -> list[Filled]:
    """Each item filled from ``facts``. ``when``: conditions of the whole checklist."""
    return [_filled(item, facts, study, when) for item in items]


def _filled(item: Item, facts: Mapping[str, Fact], study: Study, when: Sequence[Condition]) -> Filled:
    about = (item.id, item.section, item.subject, item.needs)
    for name in (*when, *item.when):
        why, pointer = CONDITIONS[name]
        if reason := why(study):
            return Filled(*about, "not applicable", reason, pointers=(pointer,))
    if item.never:
        return Filled(*about, "not applicable", item.never)
    known = [facts[name] for name in item.source if name in facts]
    if not known:
        return Filled(*about, "author", author=AUTHOR)
    known += [facts[name] for name in item.also if name in facts]
    open_ = [text for name, text in item.also.items() if name not in facts] + ([item.rest] if item.rest else [])
    author = f"The author must write: {'; '.join(open_)}." if open_ else ""
    pointers = tuple(dict.fromkeys(pointer for fact in known for pointer in fact.pointers))
    return Filled(*about, "partly" if open_ else "filled", " ".join(fact.text for fact in known), author, pointers)


def fill_all(record: Record, more: Mapping[str, Fact] | None = None) -> dict[str, list[Filled]]:
    """Every checklist by name, filled from the run's record.

    Args:
        more: additional facts, such as ``intervals`` and ``calibration`` with pointers into a report.

    Raises:
        InputError: the run's log is incomplete.
    """
    facts = {**facts_of(record), **(more or {})}
    lists = {name: read_checklist(name) for name in NAMES}
    return {name: fill(checklist.item, facts, record.study, checklist.when) for name, checklist in lists.items()}


def counted(filled: Iterable[Filled]) -> dict[State, int]:
    """The number of items in each state."""
    rows = list(filled)
    return {state: sum(row.state == state for row in rows) for state in STATES}


def checklists_json(record: Record, more: Mapping[str, Fact] | None = None) -> str:
    """The checklists as JSON: ``{"checklists": [{"name", "title", "published", "checked", "counts", "items"}]}``."""
    out = []
    for name, filled in fill_all(record, more).items():
        about = read_checklist(name).model_dump(include={"name", "title", "published", "checked"})
        out.append({**about, "counts": counted(filled), "items": [asdict(row) for row in filled]})
    return json.dumps({"checklists": out}, indent=1, ensure_ascii=False) + "\n"


def checklists_markdown(record: Record, more: Mapping[str, Fact] | None = None) -> str:
    """The checklists as one Markdown text: a table for each checklist, a row for each item."""
    out = ["# Reporting checklists", "", f"Run `{record.run_id}`, {record.status}. {INTRODUCTION}"]
    for name, filled in fill_all(record, more).items():
        about = read_checklist(name)
        numbers = ", ".join(f"{n} {state}" for state, n in counted(filled).items())
        out += ["", f"## {about.title}", "", f"{about.published} {about.checked}", "", f"{len(filled)} items: {numbers}.", ""]
        out += ["| Item | Requires | State | Answer | Where in the run |", "|---|---|---|---|---|"]
        for row in filled:
            answer = " ".join(text for text in (markdown(row.text), f"**{row.author}**" if row.author else "") if text)
            where = "<br>".join(f"`{pointer}`" for pointer in row.pointers)
            out.append(f"| {row.id} | **{row.subject}**: {markdown(row.needs)} | {row.state} | {answer} | {where} |")
    return "\n".join(out) + "\n"


INTRODUCTION = (
    "*filled*: the record answers the item; *partly*: it answers some of it; *author*: nothing in the "
    "record answers it; *not applicable*: with the reason. The requirements are paraphrased; the guideline itself is authoritative. "
    "A filled item states what the record contains, not that it is adequate."
)


def markdown(text: str) -> str:
    """``text`` for a cell of a Markdown table: one line, with Markdown and HTML characters escaped."""
    plain = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "|`*_~[]":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
