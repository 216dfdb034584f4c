"""The two ways a command ends badly: the input was wrong (exit 2), or the run failed (exit 1).

Each message is one sentence for a person: which file, which key, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum


class InputError(Exception):
    """What the user gave cannot be used. ``str()`` names the file, the key and the mend; the command exits with 2."""


class RunError(Exception):
    """A run that was started did not finish. ``str()`` names the cause and what to do; the command exits with 1."""


class Reason(StrEnum):
    """Why a site did not answer. The code is all that travels: the exception's text stays in the site's own log."""

    NOT_IN_ROSTER = "not-in-roster"
    WRONG_NAME = "wrong-name"
    BAD_MESSAGE = "bad-message"
    BAD_DATA = "bad-data"
    NON_FINITE = "non-finite"
    INTERNAL = "internal"
    NO_ANSWER = "no-answer"
    NOT_APPROVED = "not-approved"
    PURPOSE = "purpose-not-allowed"
    ROUNDS = "rounds-beyond-policy"
    REPLAYED = "replayed"
    UNDECLARED = "undeclared-record"
    TOO_LARGE = "too-large"
    TOO_FEW = "too-few-persons"
    BUDGET = "privacy-budget"


class SiteError(Exception):
    """A site refuses or fails. ``reason`` may leave the site; ``str()`` never does."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def nearest(word: str, known: Iterable[str]) -> str:
    """``' (did you mean "x"?)'`` for the nearest of ``known``, or ``''`` when none is near."""
    spelled = {str(k).lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), list(spelled), n=1, cutoff=0.6)
    return f' (did you mean "{spelled[close[0]]}"?)' if close else ""
