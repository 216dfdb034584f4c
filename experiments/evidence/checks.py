"""What the verifications of all kinds of runs share: checks and their results, the study's check, and the comparison of derived files."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedml.experiments.evidence.contents import MANIFEST, SIGNATURE, TOML, VERSIONS
from fedml.experiments.evidence.recompute import differs, value_differs
from fedml.experiments.evidence.signing import canonical
from fedml.experiments.runs.record import Record
from fedml.runs.log import EVENTS, STUDY

MOST = 20  # problems listed for one check

Problem = tuple[str, str]  # file, description


@dataclass(frozen=True)
class Check:
    """The result of one check. ``file``: the file at fault, or the file that was checked. ``text``: the finding."""

    name: str
    ok: bool
    file: str
    text: str


def check(name: str, about: str, well: str, look: Callable[[], Iterable[Problem]]) -> list[Check]:
    """A failed check for each problem that ``look`` yields, or one passed check with the text ``well``."""
    try:
        wrong = list(look())
    except Exception as error:  # a crafted file may raise any error
        wrong = [(about, f"cannot be interpreted ({type(error).__name__})")]
    return [Check(name, False, shown(file), shown(text)) for file, text in wrong[:MOST]] or [Check(name, True, about, shown(well))]


def shown(text: str) -> str:
    """Untrusted text for a terminal: non-printable characters, such as cursor movements, are replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:400]


_OTHER_CODE = (
    "another version of this software wrote it, so the difference proves nothing: verify with the version that versions.json names, or "
    "unpack the bundle and write a new report with `fedml report`"
)


def same_files(files: Mapping[str, bytes], fresh: Mapping[str, bytes], sources: Collection[str], *, same: bool) -> Iterator[Check]:
    """A check for each derived file, and one for each file that is neither derived nor a source.

    Args:
        fresh: the derived files, recomputed. sources: of the run, by name. same: the bundle was written by this code.
    """
    for name, data in sorted(fresh.items()):
        how = "recomputed from the run: identical"
        if files.get(name) != data:
            how += " except for last digits"
        yield from check("recomputed", name, how, partial(_same, files, name, data, same))
    for name in sorted(files.keys() - fresh.keys() - {MANIFEST, SIGNATURE, VERSIONS, *sources}):
        yield Check("files", False, name, "does not belong in a bundle")


def _same(files: Mapping[str, bytes], name: str, fresh: bytes, same: bool) -> Iterator[Problem]:
    if name not in files:
        yield name, "is missing from the bundle"
    elif found := differs(name, files[name], fresh):
        yield name, found if same else f"{found}; {_OTHER_CODE}"


def check_study(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    """study.json is the study that was run, and manifest and versions are of this run."""
    start = record.start
    # A later version of this software has more keys, with defaults; so the file's bytes identify the study, not its parsed form.
    written = json.loads(files[STUDY])
    if canonical(written).rstrip(b"\n") != files[STUDY]:
        yield STUDY, "is not canonical JSON"
    if found := value_differs(written, json.loads(record.study.canonical), "", whole=False):
        yield STUDY, f"{found}: this software's reading differs from the file"
    digest = hashlib.sha256(files[STUDY]).hexdigest()
    if (start.study_sha256, start.seed, start.study) != (digest, record.study.study.seed, record.study.study.name):
        yield STUDY, f"is not the study that was run: {EVENTS} has another hash, seed or name"
    if json.loads(files[MANIFEST])["run"] != record.run_id:
        yield MANIFEST, f"names another run than {EVENTS}"
    if json.loads(files[VERSIONS])["run"] != start.versions:
        yield VERSIONS, f"has other versions than {EVENTS}"


def changes(files: Mapping[str, bytes], record: Record) -> str:
    """The differences between the study that was run and the author's file, as text; also if that file cannot be read."""
    try:
        written = _leaves(tomllib.loads(files[TOML].decode()))
    except Exception:
        return f"cannot be read; {STUDY} is the study that was run"
    run = _leaves(json.loads(record.study.canonical))
    changed = [key for key, value in written.items() if key not in run or value_differs(value, run[key], "")]
    return f"the study that was run, {STUDY}, differs from it in: {', '.join(changed)[:200]}" if changed else f"{STUDY} is equivalent"


def _leaves(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {where: value}
    return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{where}.{key}" if where else str(key)).items()}
