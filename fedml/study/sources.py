"""The bytes of own code, by their SHA-256. What a process knows comes from files that were given to it; nothing is fetched.

provide_folder(run / "code")                # every .py in a folder, whatever its name
source_of(study.code.modules[0])            # the bytes, which have the study's digest
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.study.code_section import MODULE, Code, CodeFile

FOLDER = "code"  # in a run's folder and in a bundle
LARGEST = 2**20  # bytes of a file
_KNOWN: dict[str, bytes] = {}  # SHA-256 -> bytes; content decides, so no order of calls changes a result


def provide(data: bytes) -> str:
    """Makes a file's bytes known to this process; their SHA-256."""
    digest = hashlib.sha256(data).hexdigest()
    _KNOWN[digest] = data
    return digest


def provide_folder(folder: Path) -> None:
    """Makes the Python files of ``folder`` known; one that is too large or cannot be read is left out."""
    for path in sorted(folder.glob("*.py")) if folder.is_dir() else ():
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
        except OSError:
            continue
        if len(data) <= LARGEST:
            provide(data)


def source_of(file: CodeFile) -> bytes:
    """The bytes of a module.

    Raises:
        InputError: this process was not given them.
    """
    if file.sha256 not in _KNOWN:
        raise InputError(
            f"[code] {file.module}.py with SHA-256 {file.sha256[:12]}.. is not here; put the file beside the study, as [code] files says."
        )
    return _KNOWN[file.sha256]


def files_of(code: Code | None) -> Mapping[str, bytes]:
    """File name -> bytes of all modules of ``code``.

    Raises:
        InputError: as ``source_of``.
    """
    return {f"{file.module}.py": source_of(file) for file in code.modules} if code is not None else {}


def write_files(code: Code | None, run: Path) -> None:
    """Writes the files of ``code`` into the folder ``code`` of ``run``, for the processes and readers of the run.

    Raises:
        InputError: as ``source_of``.
    """
    for name, data in files_of(code).items():
        (run / FOLDER).mkdir(exist_ok=True)
        (run / FOLDER / name).write_bytes(data)


def read_files(given: Sequence[Any], study_file: Path, folder: Path | None) -> list[dict[str, str]]:
    """``modules`` of ``[code]`` from its ``files``; their bytes are known from now on.

    Args:
        given: paths relative to the study's file. folder: where the files are instead, by their names alone.

    Raises:
        InputError: a path is no text, or the file cannot be read, is too large or is not Python.
    """
    return [_read(path, study_file, folder) for path in given]


def _read(given: Any, study_file: Path, folder: Path | None) -> dict[str, str]:
    if not isinstance(given, str) or not given.endswith(".py") or not re.fullmatch(MODULE, Path(given).stem):
        raise InputError(f'{study_file}: [code] files lists {given!r}; write paths of Python files with plain names, such as "my_net.py".')
    path = study_file.parent / given if folder is None else folder / Path(given).name
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); [code] files of {study_file} lists it.") from error
    if len(data) > LARGEST:
        raise InputError(f"{path}: has more than {LARGEST:,} bytes, the limit of a file of own code; keep data out of it.")
    return {"module": path.stem, "sha256": provide(data)}
