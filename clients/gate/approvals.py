"""The studies approved at this site, by whom and when: ``approvals.json`` in the site's state folder. The approved studies are stored
in the folder ``studies`` of the state folder.

An approval is for one exact study, identified by its SHA-256. A study that differs in one character is another study.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fedml.errors import InputError
from fedml.runs.log import write_whole
from fedml.study.study import Study, parse_study

FILE, STUDIES = "approvals.json", "studies"


@dataclass(frozen=True)
class Approval:
    """One approval. ``revoked_at`` is empty while the approval is in force. Times are ISO 8601, UTC."""

    sha256: str
    name: str
    purpose: str
    approved_by: str
    approved_at: str
    revoked_by: str = ""
    revoked_at: str = ""

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


def approve(state: Path, study: Study, by: str) -> Approval:
    """Approves ``study`` in the name of ``by``. Returns the existing approval if one is in force."""
    approvals = read_approvals(state)
    standing = next((a for a in approvals if a.sha256 == study.sha256 and a.stands), None)
    if standing is not None:
        return standing
    (state / STUDIES).mkdir(parents=True, exist_ok=True)
    write_whole(state / STUDIES / f"{study.sha256}.json", study.canonical.encode())
    approval = Approval(study.sha256, study.study.name, study.study.purpose, by, _now())
    _write(state, [*approvals, approval])
    return approval


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
    _write(state, [revoked[matching.index(a)] if a in matching else a for a in approvals])
    return revoked


def is_approved(state: Path, sha256: str) -> bool:
    """Whether an approval of exactly this study is in force."""
    return any(a.stands and a.sha256 == sha256 for a in read_approvals(state))


def approved_studies(state: Path) -> list[Study]:
    """The studies whose approval is in force, oldest first."""
    return [parse_study((state / STUDIES / f"{a.sha256}.json").read_text(encoding="utf-8")) for a in read_approvals(state) if a.stands]
