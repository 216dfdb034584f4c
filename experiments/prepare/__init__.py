"""Conversion of public data sets to site folders, one file for each study."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fedml.errors import InputError, RunError, nearest
from fedml.experiments.prepare import adrenal, ancestry, brca, heart, lesions, lung, pneumonia, trait, wbc
from fedml.experiments.prepare.source import Dataset, Say, gather, remove

DATASETS: dict[str, Dataset] = {m.DATASET.name: m.DATASET for m in (heart, pneumonia, adrenal, ancestry, trait, wbc, lesions, lung, brca)}


def prepare(name: str, out: Path, *, data: Path | None = None, seed: int = 1, say: Say = print) -> list[Path]:
    """Writes the site folders of data set ``name`` to ``out`` and returns them. The same input and seed give the same bytes.

    Args:
        out: a new or empty folder; written completely or not at all.
        data: the data set's folder, or its parent folder; None: the files are downloaded.
        seed: of the partition, if the data set draws one.

    Raises:
        InputError: an unknown name; ``out`` is in use; a file is missing, malformed or (if downloaded) has an unknown checksum.
        RunError: a file or folder cannot be read or written.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise InputError(f'"{name}": no such data set{nearest(name, DATASETS)}; choose one of {", ".join(DATASETS)}')
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: is a file or a link; give --out a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: the folder is not empty; give --out a new folder")

    # Work in the nearest existing parent folder, so that the last step is a rename on one disk and a failure leaves no new folders.
    anchor = next(parent for parent in out.absolute().parents if parent.is_dir())
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=anchor))
    except OSError as error:
        raise InputError(f"{anchor}: cannot be written to ({error.strerror}); give --out another folder") from error
    try:
        files, built = work / "files", work / "sites"
        files.mkdir()
        built.mkdir()
        dataset.build(gather(dataset, data, files, say), built, seed, say)
        names = sorted(site.name for site in built.iterdir() if site.is_dir())
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(built, out)
    except OSError as error:
        raise RunError(f"{error.filename or out}: {error.strerror or error}; check that it is readable and {anchor} writable") from error
    finally:
        remove(work)
    return [out / name for name in names]
