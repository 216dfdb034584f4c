"""Checks of what a study pins besides its data: the weights with which a model begins, and code of the study's author, which is not run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from fedml.experiments.evidence.closed import Problem
from fedml.experiments.runs.record import Record
from fedml.study.sources import FOLDER as CODE
from fedml.study.start import FILE as START
from fedml.study.start import Start


def start(files: Mapping[str, bytes], pinned: Start) -> Iterator[Problem]:
    """The file of the first weights is the one that the study pins."""
    if START not in files:
        yield START, "is missing from the bundle; the study pins it"
    elif hashlib.sha256(files[START]).hexdigest() != pinned.sha256:
        yield START, "is not the file that the study pins"


def words(record: Record) -> str:
    """What of own code is compared, and what is not."""
    own = ", ".join(measure.partition(":")[2] for measure in record.study.evaluation.metrics)
    text = "the study pins the bytes of each file in code/; they are not run"
    for package in record.study.code.packages if record.study.code is not None else ():
        text += f"; {package.name} {package.version}, SHA-256 {package.sha256[:12]}, is pinned, not in the bundle, and not looked at"
    return f"{text}, so {own} of the last evaluation is not recomputed" if own else text


def code(files: Mapping[str, bytes], record: Record) -> Iterator[Problem]:
    """The files in code/ are those that the study pins."""
    given = record.study.code
    pinned = {} if given is None else {f"{CODE}/{file.module}.py": file.sha256 for file in given.modules}
    for name in sorted(pinned.keys() | {name for name in files if name.startswith(f"{CODE}/")}):
        if name not in files:
            yield name, "is missing from the bundle; the study pins it"
        elif name not in pinned:
            yield name, "is no file of the study's [code]"
        elif hashlib.sha256(files[name]).hexdigest() != pinned[name]:
            yield name, "is not the file that the study pins"
