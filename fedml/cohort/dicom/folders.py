"""The DICOM files below a folder, by series; names of files do not matter."""

from __future__ import annotations

import os
from pathlib import Path

from fedml.cohort.dicom.header_index import header_of

DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR
_ENDINGS = (".dcm", ".dicom", ".ima")


def group_series(folder: Path) -> dict[str, list[Path]]:
    """Series instance UID -> its files below ``folder``, sorted; without files that are not DICOM, and without DICOMDIR.

    The key ``""`` has the files that may be a missing slice: files that begin like DICOM but cannot be read or name no series, files named
    ``.dcm`` that do not begin like DICOM, and empty files without another extension.
    """
    series: dict[str, list[Path]] = {}
    for where, _, names in os.walk(folder):  # links to folders are not followed, because they may form a cycle
        for path in (Path(where, name) for name in names):
            try:
                if not path.is_file():
                    continue
                header = header_of(path)
                if not header.dicom:
                    if named_dicom(path):
                        series.setdefault("", []).append(path)
                    continue
                if header.kind == DIRECTORY:
                    continue
                uid = header.series
            except OSError:
                uid = ""
            series.setdefault(uid, []).append(path)
    return {uid: sorted(files) for uid, files in sorted(series.items())}


def named_dicom(path: Path) -> bool:
    """True if the name says that the file is DICOM, or if it is empty and its name says nothing else."""
    ending = path.suffix.lower()
    return ending in _ENDINGS or (not path.stat().st_size and not path.name.startswith(".") and not ending[1:].isalpha())
