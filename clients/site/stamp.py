"""A stamp of the files that a site's manifest names: it changes when one of them is replaced, written or removed."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from fedml.clients.site.manifest import Site


def stamp_of(site: Site) -> str:
    """SHA-256 over path, size, time of change and inode of the manifest and of every data file, in folders too. Reads no content."""
    digest = hashlib.sha256()
    for path in [site.file, *(site.folder / name for name in site.manifest.data.files)]:
        _add(digest, path)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path, deeper: int = 16) -> None:
    try:
        about = path.stat()
    except OSError:  # not a file: a key such as a format or a build; or a link to nothing
        digest.update(f"{path}\0".encode(errors="surrogateescape"))
        return
    digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ino}\0".encode(errors="surrogateescape"))
    if path.is_dir() and deeper:
        with suppress(OSError), os.scandir(path) as found:
            for entry in sorted(found, key=lambda e: e.name):
                _add(digest, Path(entry.path), deeper - 1)
