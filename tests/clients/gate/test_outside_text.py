"""A study's text is shown on the screen on which a person decides: nothing in it may forge, hide or reorder what is shown."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.cli import PrintableFormatter
from fedml.errors import InputError
from fedml.strategies.describe import describe
from fedml.study.read import read_study
from fedml.study.study import parse_study
from fedml.text import printable, unsafe_character
from tests.command import quick
from tests.conftest import clinical_site, make_plan, make_study, to_toml

HIDDEN = {
    "escape": "\x1b[2J\x1b[H", "backspace": "ok\b\b", "return": "a\rb", "line": "a\nb", "null": "a\0", "C1 control": "a\x9b2J",
    "delete": "a\x7f",
    "right to left": "a\u202eb", "isolate": "\u2066a\u2069", "arabic mark": "\u061c", "zero width": "a\u200bb", "joiner": "a\u200db",
    "soft hyphen": "a\u00adb", "line separator": "a\u2028b", "paragraph separator": "a\u2029b", "byte order mark": "\ufeffa",
    "private use": "\ue000", "not assigned": "\u0378", "tag": "\U000e0041",
}  # fmt: skip
PLACES: dict[str, dict[str, Any]] = {
    "[study] question": {"study": {"question": "TEXT"}},
    "[study] purpose": {"study": {"purpose": "TEXT"}},
    "target": {"cohort__target": "TEXT"},
    "a class": {"cohort__classes": ["TEXT", "b"]},
    "a column": {"cohort__clinical": {"columns": ["x1", "TEXT"]}},
    "a code of a missing value": {"cohort__clinical": {"columns": ["x1", "x2", "x3"], "missing": {"x1": ["TEXT"]}}},
    "split key": {"cohort__split_key": "TEXT"},
    "an option": {"strategy": {"name": "fedavg", "TEXT": 1}},
}


def with_text(place: Any, text: str) -> Any:
    """``place`` with ``text`` for each TEXT."""
    if isinstance(place, dict):
        return {with_text(k, text): with_text(v, text) for k, v in place.items()}
    if isinstance(place, list):
        return [with_text(v, text) for v in place]
    return text if place == "TEXT" else place


def plan_of(place: str, text: str) -> dict[str, Any]:
    changes = with_text(PLACES[place], text)
    name = {"study": {"name": "toy", **changes.pop("study")}} if "study" in changes else {}
    return make_plan(**name, **changes)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_study_with_such_a_character_is_refused_by_name(kind: str, place: str) -> None:
    text = HIDDEN[kind]
    if kind == "line" and place == "[study] question":
        pytest.skip("a question may have lines: see below")
    plan = plan_of(place, f"sex{text}")
    character = unsafe_character(text)
    with pytest.raises(InputError, match="which is invisible or changes what a terminal shows; delete it") as refused:
        parse_study(json.dumps(plan))
    assert f"the character {character}" in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("text", ["Größe (cm)", "年齢", "возраст", "العمر", "a\u00a0b", "CRP mg/L µ ≥ 3", "naïve 'x' \"y\""])
def test_letters_of_every_writing_are_shown(text: str) -> None:
    study = parse_study(json.dumps(plan_of("[study] question", text)))
    assert " ".join(text.split()) in describe(study)


def test_a_question_of_several_lines_is_one_line_of_the_plan() -> None:
    """A line end in a text cannot add a line that looks like the plan's own."""
    forged = "Who?\nPrivacy     unit: one patient of a site; epsilon 1\n\nSites       oslo"
    plain, several = (describe(parse_study(json.dumps(plan_of("[study] question", text)))) for text in ("Who?", forged))
    assert len(plain.splitlines()) == len(several.splitlines())
    assert [line.split()[0] for line in several.splitlines() if line.strip()].count("Privacy") == plain.count("\nPrivacy")


@given(st.text(max_size=200))
def test_what_is_shown_is_printable(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not unsafe_character(shown)
    assert all(a == b or unsafe_character(a) for a, b in zip(text, shown, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        '{"study": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"study": {"seed": ' + "9" * 5000 + "}}", '{"study": {"seed": 1e999}}',
        "[]", "null", '"study"',
        '{"federation": {"rounds": ' + "1" * 400 + "}}",
    ],
    ids=["deep", "5,000 digits", "infinite", "a list", "null", "a text", "400 digits"],
)  # fmt: skip
def test_what_no_study_is_is_one_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        parse_study(text)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "[study]\nseed = " + "9" * 5000, "x = { " * 5000, "[study]\nname = \"a\x1b[2J\"", "[study\x1b]"],
    ids=["deep", "digits", "tables", "escape", "escape in a section"],
)  # fmt: skip
def test_a_file_that_is_no_study_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        read_study(tmp_path / "study.toml")
    assert str(refused.value).isprintable()


def test_approve_shows_nothing_of_a_forged_plan(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 40, 1)
    forged = "\x1b[2J\x1b[HStudy       heart\nPrivacy     unit: one patient of a site\x1b[8m"
    (tmp_path / "forged.toml").write_text(to_toml(plan_of("[study] question", forged)))
    done = quick("fedml-site", "approve", "forged.toml", "--site", "a", "--yes", cwd=tmp_path)
    assert done.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr
    assert "study.question has the character U+001B" in done.stderr
    assert not (tmp_path / "a" / ".fedml" / "approvals.json").exists()


def test_the_log_of_a_site_shows_printable_characters_only() -> None:
    record = logging.LogRecord("fedml.site", logging.ERROR, "", 0, "in refused: %s", ("a\x1b[2Jb\u202ec",), None)
    assert PrintableFormatter("%(message)s").format(record) == "in refused: a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c"


def test_an_error_of_a_command_shows_printable_characters_only(tmp_path: Path) -> None:
    done = quick("fedml", "check", "no\x1b[2Jfile.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert make_study().study.name
