"""Exceptions of the commands: invalid input (exit code 2), or a failed run (exit code 1).

Each message is one sentence for the user: what is wrong, in which file and key, and what to do.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice


class InputError(Exception):
    """The user's input is invalid. ``str()`` names the file, the key and the correction; the command exits with code 2."""


class RunError(Exception):
    """A run was started but did not finish. ``str()`` names the cause and what to do; the command exits with code 1."""


@dataclass(frozen=True)
class NotBuilt:
    """Replaces a function that does not exist. ``reason``: a phrase for the error message."""

    reason: str


class Reason(StrEnum):
    """Why a site did not answer. Only this code leaves the site: the exception's text stays in the site's log."""

    NOT_IN_ROSTER = "not-in-roster"
    WRONG_NAME = "wrong-name"
    BAD_MESSAGE = "bad-message"
    BAD_DATA = "bad-data"
    NON_FINITE = "non-finite"
    IMPLAUSIBLE = "implausible"
    INTERNAL = "internal"
    NO_ANSWER = "no-answer"
    NOT_ASKED = "not-asked"
    LATE = "late"
    REMOVED = "removed"
    NOT_APPROVED = "not-approved"
    PURPOSE = "purpose-not-allowed"
    DISTRUSTED = "centre-distrusted"
    BOUNDS = "plan-beyond-policy"
    OFF_PLAN = "not-of-the-plan"
    DATA_CHANGED = "data-changed"
    ROUNDS = "rounds-beyond-policy"
    REPLAYED = "replayed"
    UNDECLARED = "undeclared-record"
    TOO_LARGE = "too-large"
    TOO_FEW = "too-few-persons"
    BUDGET = "privacy-budget"
    STATE_LOST = "state-lost"
    MEMORY = "out-of-memory"
    DISK = "disk-full"
    CODE = "own-code"


def disk_is_full(error: BaseException) -> bool:
    """Whether it is that: the disk, a quota or a limit on the size of a file."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def memory_is_full(error: BaseException) -> bool:
    """Whether it is that: of this process, or of an accelerator (torch's errors are ``RuntimeError``)."""
    if isinstance(error, MemoryError) or not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    try:
        text = str(error)
    except Exception:  # one whose text cannot be made
        return False
    return "out of memory" in text or "can't allocate memory" in text


def sentence_of(error: BaseException) -> str:
    """Why a run failed, for a person."""
    if disk_is_full(error):
        return f"the disk is full ({error}); free some space, then run again"
    if memory_is_full(error):
        return "there is too little memory for this study; close other programs, or set a smaller [training] batch_size"
    return str(error) if isinstance(error, RunError | InputError) and str(error) else f"{type(error).__name__}: {error}"


class SiteError(Exception):
    """A site refuses a request or fails. ``reason`` may leave the site; ``str()`` must not."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def nearest(word: str, known: Iterable[str]) -> str:
    """``' (did you mean "x"?)'`` with the most similar of ``known``, or ``''`` if none is similar."""
    if len(word) > 200:  # the comparison takes a time that grows with the square of the length
        return ""
    spelled = {str(k).lower(): k for k in islice(known, 2_000)}
    close = difflib.get_close_matches(word.lower(), list(spelled), n=1, cutoff=0.6)
    return f' (did you mean "{spelled[close[0]]}"?)' if close else ""
