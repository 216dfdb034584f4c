"""Which studies a person at this site approved, who and when: ``approvals.json`` in the site's state folder,
and the studies themselves beside it.

An approval is for one exact study: its SHA-256. A study that differs in a character is another study.
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
    """One decision. ``revoked_at`` is empty while it stands. Times are ISO 8601, UTC."""

    sha256: str
    name: str
    purpose: str
    approved_by: str
    approved_at: str
    revoked_by: str = ""
    revoked_at: str = ""

    @property
    def stands(self) -> bool:
        """Is it in force?"""
        return not self.revoked_at


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_approvals(state: Path) -> list[Approval]:
    """All decisions, oldest first; none if the file is absent.

    Raises:
        InputError: the file was damaged: then nothing is approved.
    """
    path = state / FILE
    try:
        return [Approval(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore it, or take it away and approve the studies again.") from error


def _write(state: Path, approvals: list[Approval]) -> None:
    state.mkdir(parents=True, exist_ok=True)
    write_whole(state / FILE, json.dumps([asdict(a) for a in approvals], indent=1).encode())


def approve(state: Path, study: Study, by: str) -> Approval:
    """Approves ``study``; approving it again leaves the first decision as it is."""
    approvals = read_approvals(state)
    standing = next((a for a in approvals if a.sha256 == study.sha256 and a.stands), None)
    if standing is not None:
        return standing
    (state / STUDIES).mkdir(parents=True, exist_ok=True)
    write_whole(state / STUDIES / f"{study.sha256}.json", study.canonical.encode())
    made = Approval(study.sha256, study.study.name, study.study.purpose, by, _now())
    _write(state, [*approvals, made])
    return made


def revoke(state: Path, word: str, by: str) -> list[Approval]:
    """Revokes the standing approvals of a study by its name, or by the first digits of its SHA-256.

    Raises:
        InputError: no standing approval is meant by ``word``.
    """
    approvals = read_approvals(state)
    meant = [a for a in approvals if a.stands and (a.name == word or (len(word) >= 6 and a.sha256.startswith(word)))]
    if not meant:
        known = ", ".join(f"{a.name} ({a.sha256[:8]})" for a in approvals if a.stands) or "none"
        raise InputError(f'no approval stands for "{word}"; standing: {known}. Give a study\'s name or six digits of its SHA-256.')
    ended = [replace(a, revoked_by=by, revoked_at=_now()) for a in meant]
    _write(state, [ended[meant.index(a)] if a in meant else a for a in approvals])
    return ended


def is_approved(state: Path, sha256: str) -> bool:
    """Does an approval of exactly this study stand?"""
    return any(a.stands and a.sha256 == sha256 for a in read_approvals(state))


def approved_studies(state: Path) -> list[Study]:
    """The studies whose approval stands, oldest first."""
    return [parse_study((state / STUDIES / f"{a.sha256}.json").read_text(encoding="utf-8")) for a in read_approvals(state) if a.stands]
