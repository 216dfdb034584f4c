"""Public data turned into site folders, one file a study."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fedml.errors import InputError, RunError, nearest
from fedml.experiments.prepare import adrenal, ancestry, heart, lesions, pneumonia, trait, wbc
from fedml.experiments.prepare.source import Dataset, Say, gather, remove

DATASETS: dict[str, Dataset] = {m.DATASET.name: m.DATASET for m in (heart, pneumonia, adrenal, ancestry, trait, wbc, lesions)}


def prepare(name: str, out: Path, *, data: Path | None = None, seed: int = 1, say: Say = print) -> list[Path]:
    """Writes the site folders of data set ``name`` into ``out`` and returns them: same input, same seed, same bytes.

    ``data`` is a folder that holds the data set's folder, or that folder itself; without it the files are downloaded.
    ``seed`` fixes the partition where there is one to draw. ``out`` appears whole or not at all.

    Raises:
        InputError: an unknown name, ``out`` in use, or a file missing, malformed or (downloaded) of unknown checksum.
        RunError: the disk refuses.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise InputError(f'"{name}": no such data set{nearest(name, DATASETS)}; choose one of {", ".join(DATASETS)}')
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: a file is in the way; name a new folder with --out")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: the folder is not empty; name a new one with --out")

    # In the nearest folder that exists: the last step is a rename on one disk, and a failure leaves no parents behind.
    anchor = next(parent for parent in out.absolute().parents if parent.is_dir())
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=anchor))
    except OSError as error:
        raise InputError(f"{anchor}: cannot be written to ({error.strerror}); name another folder with --out") from error
    try:
        files, built = work / "files", work / "sites"
        files.mkdir()
        built.mkdir()
        dataset.build(gather(dataset, data, files, say), built, seed, say)
        names = sorted(site.name for site in built.iterdir() if site.is_dir())
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(built, out)
    except OSError as error:
        raise RunError(f"{error.filename or out}: {error.strerror or error}; see that it can be read, and {anchor} written to") from error
    finally:
        remove(work)
    return [out / name for name in names]
