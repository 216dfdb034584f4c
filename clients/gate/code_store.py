"""The approved files of own code: ``code/SHA256.py`` in the site's state folder. Only these bytes are run, and only while they are equal to
their name. A package is not copied: it runs while the files that are installed are those that the study pins."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fedml.clients.gate.approvals import STUDIES, read_approvals, writable_by_others
from fedml.code.imports import check_imports, check_packages, findings, text_of
from fedml.errors import InputError, Reason, SiteError
from fedml.runs.log import write_whole
from fedml.study.code_section import Code, CodePackage
from fedml.study.packages import module_names, package_files
from fedml.study.sources import files_of
from fedml.study.study import parse_study
from fedml.text import printable

STORE = "code"


class Stored(NamedTuple):
    """Approved own code. ``files``: by file name; ``packages``: of each distribution by path."""

    files: dict[str, bytes]
    packages: tuple[Mapping[str, bytes], ...] = ()


def check_given(study_file: Path, code: Code | None, folder: Path | None) -> None:
    """Raises ``InputError`` if a study has files of own code and the person who approves it gave no ``folder`` of them."""
    if code is not None and code.modules and folder is None:
        raise InputError(f"{study_file}: the study has code of its own ({code.names()}); read it, then give its folder with --code DIR.")


def keep(state: Path, code: Code) -> None:
    """Copies the files, which the reading of the study has found, into the store.

    Raises:
        InputError: a file cannot be imported at this site.
    """
    files = files_of(code)
    _check(code, files)
    (state / STORE).mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in code.modules:
        write_whole(state / STORE / f"{file.sha256}.py", files[f"{file.module}.py"])


def _check(code: Code, files: Mapping[str, bytes]) -> None:
    check_packages([package_files(package) for package in code.packages])
    check_imports(files, [module for package in code.packages for module in package.modules])


def stored(state: Path, code: Code) -> Stored:
    """The approved bytes: of files from the store, of packages as they are installed here.

    Raises:
        SiteError: a file or package is missing or was changed, or another account can write to the store.
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
    try:
        return Stored(found, tuple(package_files(package) for package in code.packages))
    except InputError as error:
        raise SiteError(Reason.CODE, str(error)) from error


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
    for package in code.packages:
        out += _shown(package)
    return "\n".join(out)


def _shown(package: CodePackage) -> list[str]:
    """A distribution for a person who decides: its digest, and what its files open or hide. They are read where they are installed."""
    files = package_files(package)
    size = sum(map(len, files.values()))
    out = [
        f"--- {package.name} {package.version}, installed here, {len(files)} files, {size:,} bytes, SHA-256 {package.sha256}",
        f"    imported as {', '.join(package.modules)}; to read it: pip show --files {package.name}",
    ]
    found = [(path, *row) for path in sorted(module_names(files).values()) for row in findings(path, files[path])]
    out += [f"    {printable(path)}, line {line}: {what}  ({kind})" for path, line, what, kind in found]
    return out if found else [*out, "    opens no network, file or process in plain sight"]
