"""The studies approved at this site, by whom and when: ``approvals.json`` in the site's state folder. The approved studies are stored
in the folder ``studies`` of the state folder.

An approval is for one exact study, identified by its SHA-256. A study that differs in one character is another study. It counts if the
journal has an entry about it, and if no other account can write to the file: a line added by hand is no approval.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fedml.clients.gate.journal import About, Journal, entries
from fedml.errors import InputError
from fedml.runs.log import write_whole
from fedml.study.study import Study, parse_study

FILE, STUDIES = "approvals.json", "studies"
JOURNAL = "journal.jsonl"
_APPROVE, _REVOKE = "approve", "revoke"
_LONGEST_REASON = 120  # characters


@dataclass(frozen=True)
class Approval:
    """One approval. ``revoked_at`` is empty while the approval is in force. Times are ISO 8601, UTC. ``trust``: why the approver trusts the
    centre with this study; "": without such a statement."""

    sha256: str
    name: str
    purpose: str
    approved_by: str
    approved_at: str
    revoked_by: str = ""
    revoked_at: str = ""
    trust: str = ""

    @property
    def stands(self) -> bool:
        """Whether the approval is in force."""
        return not self.revoked_at


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_approvals(state: Path) -> list[Approval]:
    """All approvals, revoked ones included, oldest first; an empty list if the file does not exist.

    Raises:
        InputError: the file is damaged; no study counts as approved.
    """
    path = state / FILE
    try:
        return [Approval(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore it, or delete it and approve the studies again.") from error


def _write(state: Path, approvals: list[Approval]) -> None:
    state.mkdir(parents=True, exist_ok=True)
    write_whole(state / FILE, json.dumps([asdict(a) for a in approvals], indent=1).encode())


def approve(state: Path, study: Study, by: str, trust: str = "") -> Approval:
    """Approves ``study`` in the name of ``by``, and writes a journal entry. Returns the existing approval if an equal one is in force.

    Args:
        trust: why the centre is trusted with this study (``fedml.clients.gate.trust``); "": no such statement.

    Raises:
        InputError: a text is too long or not printable.
    """
    if len(trust) > _LONGEST_REASON or not (trust + by).isprintable():
        raise InputError(f"--trust-centre: give a reason of at most {_LONGEST_REASON} printable characters, and a printable name.")
    approvals = read_approvals(state)
    standing = next((a for a in approvals if a.sha256 == study.sha256 and a.stands), None)
    if standing is not None and standing.trust == trust and _noted(state, standing):
        return standing
    (state / STUDIES).mkdir(parents=True, exist_ok=True)
    write_whole(state / STUDIES / f"{study.sha256}.json", study.canonical.encode())
    approval = Approval(study.sha256, study.study.name, study.study.purpose, by, _now(), trust=trust)
    _note(state, approval, _entry_of(approval))
    _write(state, [*(a for a in approvals if a is not standing), approval])
    return approval


def _entry_of(approval: Approval) -> str:
    """The reason in the journal's entry about an approval."""
    return f"{_APPROVE}; the centre is trusted: {approval.trust}" if approval.trust else _APPROVE


def _note(state: Path, approval: Approval, reason: str) -> None:
    about = About(study=approval.sha256, study_name=approval.name)
    Journal(state / JOURNAL).append(direction="site", verdict="noted", about=about, reason=reason)


def _noted(state: Path, approval: Approval) -> bool:
    """Whether the last entry about this study's approval, in the journal, is this approval."""
    last = ""
    for entry in entries(state / JOURNAL):
        if entry.direction == "site" and entry.study == approval.sha256 and entry.reason.partition(";")[0] in (_APPROVE, _REVOKE):
            last = entry.reason
    return last == _entry_of(approval)


def revoke(state: Path, word: str, by: str) -> list[Approval]:
    """Revokes the approvals of a study and returns them.

    Args:
        word: the study's name, or at least six first digits of its SHA-256.
        by: who revokes.

    Raises:
        InputError: no approval in force matches ``word``.
    """
    approvals = read_approvals(state)
    matching = [a for a in approvals if a.stands and (a.name == word or (len(word) >= 6 and a.sha256.startswith(word)))]
    if not matching:
        known = ", ".join(f"{a.name} ({a.sha256[:8]})" for a in approvals if a.stands) or "none"
        raise InputError(
            f'no approval in force matches "{word}"; in force: {known}. Give a study\'s name or the first six digits of its SHA-256.'
        )
    revoked = [replace(a, revoked_by=by, revoked_at=_now()) for a in matching]
    for approval in revoked:
        _note(state, approval, _REVOKE)
    _write(state, [revoked[matching.index(a)] if a in matching else a for a in approvals])
    return revoked


def approval_of(state: Path, sha256: str) -> Approval | None:
    """The approval of exactly this study that is in force; None if there is none that counts (see the module's docstring).

    Raises:
        InputError: another account can write to the file, or to the folder.
    """
    if loose := writable_by_others(state):
        raise InputError(
            f"{loose}: other accounts can write to it, so no approval counts; run chmod go-w {loose}, and look at its content."
        )
    found = [a for a in read_approvals(state) if a.stands and a.sha256 == sha256]
    return found[-1] if found and _noted(state, found[-1]) else None


def stamp(state: Path) -> str:
    """Changes when the approvals, or who may write to them, change."""
    found = []
    for path in (state, state / FILE, state / JOURNAL):
        if path.exists():
            about = path.stat()
            found.append(f"{about.st_mode} {about.st_uid} " + (f"{about.st_ino} {about.st_size} {about.st_mtime_ns}" * (path.name == FILE)))
    return "; ".join(found)


def writable_by_others(state: Path) -> Path | None:
    """The first of the state folder, its approvals and its journal that another account can write to, or owns."""
    for path in (state, state / FILE, state / JOURNAL):
        if path.exists():
            about = path.stat()
            if about.st_mode & 0o022 or about.st_uid not in (os.geteuid(), 0):
                return path
    return None


def approved_studies(state: Path) -> list[Study]:
    """The studies whose approval is in force, oldest first."""
    return [parse_study((state / STUDIES / f"{a.sha256}.json").read_text(encoding="utf-8")) for a in read_approvals(state) if a.stands]
