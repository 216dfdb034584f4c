"""Public files from their official source: https only, a limit on the size, and a checksum before anything is read.

A download whose checksum is not a known one is refused. A file that a person hands over (``--data``) is used as it is,
with a warning where its checksum is new: people have their own copies, and the readers check the form of what they get.
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
    """One public file: its name, the folder it is kept in, its official address, and every checksum known as good."""

    name: str
    folder: str
    url: str
    sha256: tuple[str, ...]
    md5: str | None = None  # only where the publisher states an MD5 and no SHA-256 of the official bytes is known
    max_bytes: int = 16 << 20


@dataclass(frozen=True)
class Dataset:
    """A public data set and how it becomes site folders.

    ``build(files, out, seed, say)`` gets the files by name and writes one folder a site into ``out``.
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
    """Passes where the file's SHA-256 is one of ``sha256`` (or its MD5 is ``md5``).

    Raises:
        InputError: it is neither.
    """
    found = digest(path)
    if found in set(sha256) or (md5 is not None and digest(path, "md5") == md5):
        return
    raise InputError(
        f"{path.name}: its SHA-256 {found} is not that of a copy this was tested with; fetch the file by hand, look at "
        "it, and name its folder with --data"
    )


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to another https address: the standard handler would go on over plain http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """The next request, or a refusal."""
        require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def require_https(url: str) -> None:
    """Raises InputError for any address that is not https."""
    if not url.startswith("https://"):
        raise InputError(f"{url}: only https addresses are downloaded; fetch the file by hand and name its folder with --data")


def save(stream: IO[bytes], source: Source, path: Path) -> None:
    """Writes what the stream gives to ``path`` and verifies it; ``path`` is gone when that fails.

    Raises:
        InputError: too large, or an unknown checksum.
    """
    try:
        with path.open("wb") as file:
            size = 0
            while chunk := stream.read(1 << 16):
                size += len(chunk)
                if size > source.max_bytes:
                    raise InputError(
                        f"{source.url}: more than the {source.max_bytes} bytes expected; fetch the file by hand, look "
                        "at it, and name its folder with --data"
                    )
                file.write(chunk)
        verify(path, source.sha256, source.md5)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def download(source: Source, folder: Path, *, timeout: float = TIMEOUT) -> Path:
    """The file at ``source.url``, verified, as ``folder/source.name``. Nothing is left there when it fails.

    Raises:
        InputError: not https, no network, too large, or an unknown checksum; each says what to do instead.
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
            f"{source.url}: could not be downloaded ({why}); where there is no network, fetch the file elsewhere and "
            "name its folder with --data"
        ) from error
    return path


def locate(source: Source, data: Path, say: Say) -> Path:
    """The file in ``data``: in its folder there, there itself, or in its folder beside ``data``.

    Raises:
        InputError: ``data`` is no folder, or the file is in none of those places.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; name with --data the folder that holds {source.folder}/{source.name}")
    for folder in (data / source.folder, data, data.parent / source.folder):
        path = folder / source.name
        if path.is_file():
            try:
                verify(path, source.sha256, source.md5)
            except InputError:
                say(f"warning: {path} is another copy than the one this was tested with (SHA-256 {digest(path)})")
            return path
    raise InputError(f"{data}: {source.name} is missing; get it from {source.url} and put it into {data / source.folder}")


def gather(dataset: Dataset, data: Path | None, folder: Path, say: Say) -> dict[str, Path]:
    """Every file of the data set by name: from ``data`` where it is given, else downloaded into ``folder``.

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
        InputError: it is not text, or it is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; get the original again") from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: the file is empty; get the original again")
    return lines


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file in UTF-8 with ``\\n`` line ends, the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_manifest(folder: Path, about: str, *data: str) -> None:
    """``site.toml`` of a site named like its folder; ``data`` are the lines of ``[data]`` after ``persons``. What is prepared
    here is published, and the manifest says so."""
    lines = [f"# {about}", "[site]", f'name = "{folder.name}"', "[data]", 'persons = "persons.csv"', "public = true", *data]
    (folder / "site.toml").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def remove(folder: Path) -> None:
    """Deletes a temporary folder, whatever is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def write_image_site(
    folder: Path, ids: Sequence[str], parts: Sequence[str], labels: Sequence[int], images: Any, target: str, about: str
) -> None:
    """A site of one image a person, ``images`` (persons, *size), whose part is fixed: tables, one ``.npz`` and the manifest."""
    import numpy as np

    folder.mkdir()
    write_table(folder / "persons.csv", ("id", target), zip(ids, labels, strict=True))
    write_table(folder / "split.csv", ("id", "part"), zip(ids, parts, strict=True))
    np.savez_compressed(folder / "images.npz", ids=np.array(ids), images=images)
    write_manifest(folder, about, 'image = { path = "images.npz", format = "npz" }', 'split = "split.csv"')
