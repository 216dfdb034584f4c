"""The rules by which a study makes numbers of dates: ``age_at:COLUMN`` (years) and ``days_since:COLUMN``; in the place of a column also a
date, ``days_since:2000-01-01``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

AGE, DAYS = "age_at", "days_since"
DAYS_PER_YEAR = 365.25


def rule_of(text: str) -> tuple[str, str | date]:
    """(``age_at`` or ``days_since``, the column or the date that is meant). Raises ``ValueError``: it is no rule."""
    kind, sign, reference = text.partition(":")
    reference = reference.strip()
    if kind not in (AGE, DAYS) or not sign or not reference:
        raise ValueError(f'"{text[:80]}" is no rule of a date; write "age_at:COLUMN" (years) or "days_since:COLUMN", or a date for COLUMN')
    return kind, date.fromisoformat(reference) if re.fullmatch(r"\d{4}-\d\d-\d\d", reference, re.ASCII) else reference


def words(text: str) -> str:
    """A rule in words."""
    kind, reference = rule_of(text)
    return f"{'age in years at' if kind == AGE else 'days since'} {reference}"


def references(rules: Mapping[str, str]) -> list[str]:
    """The columns that rules refer to, each once."""
    return list(dict.fromkeys(reference for text in rules.values() if isinstance(reference := rule_of(text)[1], str)))


def circle(rules: Mapping[str, str]) -> str:
    """A column whose rule leads back to itself, which is the same number twice; "" if there is none."""
    for start in rules:
        seen, at = {start}, rule_of(rules[start])[1]
        while isinstance(at, str) and at in rules and at not in seen:
            seen.add(at)
            at = rule_of(rules[at])[1]
        if at in seen:
            return start
    return ""
