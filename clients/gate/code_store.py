"""The approved files of own code: ``code/SHA256.py`` in the site's state folder. Only these bytes are run, and only while they are equal to
their name."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

from fedml.clients.gate.approvals import STUDIES, read_approvals, writable_by_others
from fedml.code.imports import check_imports, findings, text_of
from fedml.errors import InputError, Reason, SiteError
from fedml.runs.log import write_whole
from fedml.study.code_section import Code
from fedml.study.sources import files_of
from fedml.study.study import parse_study
from fedml.text import printable

STORE = "code"


def keep(state: Path, code: Code) -> None:
    """Copies the files, which the reading of the study has found, into the store.

    Raises:
        InputError: a file cannot be imported at this site.
    """
    files = files_of(code)
    check_imports(files)
    (state / STORE).mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in code.modules:
        write_whole(state / STORE / f"{file.sha256}.py", files[f"{file.module}.py"])


def stored(state: Path, code: Code) -> dict[str, bytes]:
    """File name -> approved bytes.

    Raises:
        SiteError: a file is missing or was changed, or another account can write to the store.
    """
    found = {}
    for file in code.modules:
        path = state / STORE / f"{file.sha256}.py"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SiteError(Reason.CODE, f"{path}: cannot be read ({error.strerror}); approve the study again, with --code") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise SiteError(Reason.CODE, f"{path}: was changed after it was approved; approve the study again, with --code")
        found[f"{file.module}.py"] = data
    if loose := writable_by_others(state):
        raise SiteError(Reason.CODE, f"{loose}: other accounts can write to it")
    return found


def _before(state: Path, module: str, digest: str) -> tuple[str, bytes] | None:
    """Study and bytes of the version of a module whose approval came last and is in force, if it is another one."""
    for approval in reversed([a for a in read_approvals(state) if a.stands] if state.exists() else []):
        try:
            code = parse_study((state / STUDIES / f"{approval.sha256}.json").read_text(encoding="utf-8")).code
            known = code.digest_of(module) if code is not None else ""
            if known:
                found = (state / STORE / f"{known}.py").read_bytes()
                return (approval.name, found) if known != digest and hashlib.sha256(found).hexdigest() == known else None
        except (OSError, InputError):
            continue
    return None


def show(state: Path, code: Code) -> str:
    """Each file for a person who decides: its digest, its text, what it opens or hides, and what changed since the last approval."""
    files, out = files_of(code), list[str]()
    for file in code.modules:
        name = f"{file.module}.py"
        text = text_of(name, files[name]).split("\n")
        out += [f"--- {name}, {len(text)} lines, SHA-256 {file.sha256}"]
        found = findings(name, files[name])
        out += [f"    line {line}: {what}  ({kind})" for line, what, kind in found] or [
            "    opens no network, file or process in plain sight"
        ]
        before = _before(state, file.module, file.sha256)
        out += [f"{number:5}  {printable(line)}" for number, line in enumerate(text, start=1)]
        if before is not None:
            name_before, old = before
            out += [f"    changes to the version that is approved in study {name_before}:"]
            lines = difflib.unified_diff(old.decode("utf-8", "replace").split("\n"), text, "approved", "now", lineterm="")
            out += [f"    {printable(line)}" for line in lines]
    return "\n".join(out)
