"""Public files from their official source: https only, a size limit, and a checksum that is verified before a file is read.

A download with an unknown checksum is refused. A file given by the user (``--data``) with an unknown checksum is used, with a warning:
other copies exist, and the readers check the format.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from fedml.errors import InputError

Say = Callable[[str], None]
TIMEOUT = 60.0  # seconds without a byte, not for the whole file


@dataclass(frozen=True)
class Source:
    """One public file: its name, its folder, its official address, and all checksums known to be good."""

    name: str
    folder: str
    url: str
    sha256: tuple[str, ...]
    md5: str | None = None  # only if the publisher states an MD5 and the SHA-256 of the official bytes is not known
    max_bytes: int = 16 << 20


@dataclass(frozen=True)
class Dataset:
    """A public data set and its conversion to site folders.

    ``build(files, out, seed, say)`` takes the files by name and writes one folder for each site to ``out``.
    """

    name: str
    about: str
    homepage: str
    licence: str
    sources: tuple[Source, ...]
    build: Callable[[dict[str, Path], Path, int, Say], None]


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The file's checksum in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify(path: Path, sha256: Iterable[str], md5: str | None = None) -> None:
    """Checks that the file's SHA-256 is in ``sha256``, or that its MD5 is ``md5``.

    Raises:
        InputError: neither is the case.
    """
    found = digest(path)
    if found in set(sha256) or (md5 is not None and digest(path, "md5") == md5):
        return
    raise InputError(
        f"{path.name}: its SHA-256 {found} is not that of a tested copy; download the file by hand, check it, and give its folder with "
        "--data"
    )


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an https address: the standard handler would also follow one to plain http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """The request to the new address. Raises ``InputError`` if it is not https."""
        require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def require_https(url: str) -> None:
    """Raises ``InputError`` for an address that is not https."""
    if not url.startswith("https://"):
        raise InputError(f"{url}: only https addresses are downloaded; download the file by hand and give its folder with --data")


def save(stream: IO[bytes], source: Source, path: Path) -> None:
    """Writes the stream to ``path`` and verifies the file; deletes ``path`` on an error.

    Raises:
        InputError: the stream is too large, or the checksum is unknown.
    """
    try:
        with path.open("wb") as file:
            size = 0
            while chunk := stream.read(1 << 16):
                size += len(chunk)
                if size > source.max_bytes:
                    raise InputError(
                        f"{source.url}: more than the {source.max_bytes} bytes expected; download the file by hand, check it, and give its "
                        "folder with --data"
                    )
                file.write(chunk)
        verify(path, source.sha256, source.md5)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def download(source: Source, folder: Path, *, timeout: float = TIMEOUT) -> Path:
    """Downloads ``source.url`` to ``folder/source.name``, verifies the file and returns its path. Leaves no file on an error.

    Raises:
        InputError: the address is not https, the network fails, the file is too large, or its checksum is unknown.
    """
    require_https(source.url)
    path = folder / source.name
    try:
        request = urllib.request.Request(source.url, headers={"User-Agent": "fedml-cohorts"})  # noqa: S310 (https, above)
        with urllib.request.build_opener(HttpsOnly()).open(request, timeout=timeout) as answer:
            save(answer, source, path)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        raise InputError(
            f"{source.url}: could not be downloaded ({why}); without a network, download the file on another machine and give its folder "
            "with --data"
        ) from error
    return path


def locate(source: Source, data: Path, say: Say) -> Path:
    """The path of the file: in its folder in ``data``, in ``data``, or in its folder in the parent of ``data``.

    Raises:
        InputError: ``data`` is not a folder, or the file is in none of these places.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; give --data the folder that has {source.folder}/{source.name}")
    for folder in (data / source.folder, data, data.parent / source.folder):
        path = folder / source.name
        if path.is_file():
            try:
                verify(path, source.sha256, source.md5)
            except InputError:
                say(f"warning: {path} is not a tested copy of the file (SHA-256 {digest(path)})")
            return path
    raise InputError(f"{data}: {source.name} is missing; download it from {source.url} and put it into {data / source.folder}")


def gather(dataset: Dataset, data: Path | None, folder: Path, say: Say) -> dict[str, Path]:
    """Name -> path of every file of the data set: from ``data`` if given, else downloaded to ``folder``.

    Raises:
        InputError: from ``locate`` or ``download``.
    """
    say(f"{dataset.name}: {dataset.about}")
    say(f"source: {dataset.homepage}")
    say(f"licence: {dataset.licence}")
    found = {}
    for source in dataset.sources:
        if data is None:
            say(f"downloading {source.url}")
            found[source.name] = download(source, folder)
        else:
            found[source.name] = locate(source, data, say)
    return found


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, without line ends.

    Raises:
        InputError: the file is not UTF-8 text, or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; get the original file again") from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: the file is empty; get the original file again")
    return lines


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file in UTF-8 with ``\\n`` line ends, the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_manifest(folder: Path, about: str, *data: str) -> None:
    """Writes ``site.toml`` of a site with the name of its folder; ``data``: the lines of ``[data]`` after ``persons``. The manifest
    declares the data public, because all prepared data are published or synthetic."""
    lines = [f"# {about}", "[site]", f'name = "{folder.name}"', "[data]", 'persons = "persons.csv"', "public = true", *data]
    (folder / "site.toml").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def remove(folder: Path) -> None:
    """Deletes a temporary folder with its contents."""
    shutil.rmtree(folder, ignore_errors=True)


def write_image_site(
    folder: Path, ids: Sequence[str], parts: Sequence[str], labels: Sequence[int], images: Any, target: str, about: str
) -> None:
    """Writes a site with one image a person, ``images`` (persons, *size), and a given split: tables, one ``.npz`` file, the manifest."""
    import numpy as np

    folder.mkdir()
    write_table(folder / "persons.csv", ("id", target), zip(ids, labels, strict=True))
    write_table(folder / "split.csv", ("id", "part"), zip(ids, parts, strict=True))
    np.savez_compressed(folder / "images.npz", ids=np.array(ids), images=images)
    write_manifest(folder, about, 'image = { path = "images.npz", format = "npz" }', 'split = "split.csv"')
