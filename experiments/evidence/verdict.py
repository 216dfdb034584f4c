"""The verdict of ``fedml verify`` as text to paste, and the keys that a reader has of sites."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedml.errors import InputError

if TYPE_CHECKING:
    from fedml.experiments.evidence.verify import Verified

WORD = "rests on the signer's word alone"


def site_keys(given: Sequence[str]) -> dict[str, str]:
    """Site -> fingerprint of its key (``SHA256:...``), from ``NAME=FILE`` or ``NAME=FINGERPRINT``.

    Raises:
        InputError: one is neither, is there twice, or names a file that is no public key of a node.
    """
    from fedml.flower.keys import key_fingerprint, read_public_key

    out: dict[str, str] = {}
    for text in given:
        name, equals, key = text.partition("=")
        if not equals or not name or not key:
            raise InputError(f"--site-key {text}: is not NAME=FILE or NAME=FINGERPRINT, such as oslo=node.key.pub or oslo=SHA256:...")
        if name in out:
            raise InputError(f"--site-key {text}: {name} is given twice; give one key for each site.")
        plain = key if key.startswith("SHA256:") else key_fingerprint(read_public_key(Path(key)))
        if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", plain):
            raise InputError(f"--site-key {text}: is not a fingerprint as `ssh-keygen -l -f node.key.pub` prints it.")
        out[name] = plain
    return out


def markdown(bundle: str, found: Verified) -> str:
    """The verdict as a Markdown table: one row for each kind of check, failed ones first; and what rests on the signer's word."""
    rows = ["| Check | Result | Finding |", "|---|---|---|"]
    for name in dict.fromkeys(check.name for check in sorted(found.checks, key=lambda check: check.ok)):
        mine = [check for check in found.checks if check.name == name]
        wrong = [f"{check.file}: {check.text}" for check in mine if not check.ok]
        well = mine[0].text if len(mine) == 1 else f"{len(mine)} files: {', '.join(check.file for check in mine)}"
        rows.append(f"| {name} | {'FAILED' if wrong else 'passed'} | {_cell('; '.join(wrong) or well)} |")
    verdict = "every check passed" if found.ok else f"{sum(not check.ok for check in found.checks)} checks failed"
    word = f"\n\nWhat {WORD}: {found.word}." if found.word else ""
    return f"Verification of `{bundle}`: **{verdict}**.\n\n" + "\n".join(rows) + word


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
