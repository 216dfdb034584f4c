"""Installed distributions as own code: ``[code] packages = ["my_pkg==1.2.0"]``, pinned by name, version and a SHA-256 over their files.

read_package("my_pkg==1.2.0", "study.toml")      # an entry of ``packages``, from the distribution that is installed here
package_files(study.code.packages[0])            # path -> bytes, which have the study's digest

A distribution is never fetched and nothing of it is run here: its files are read by the list that the installer wrote (RECORD). Files that
an installer or a machine writes are left out (.pyc, RECORD, INSTALLER, scripts), so the same wheel has the same digest everywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

from fedml.errors import InputError
from fedml.study.code_section import DISTRIBUTION, MODULE, CodePackage

FILES, BYTES = 500, 5_000_000  # of one distribution
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]{1,64})==([A-Za-z0-9.!+_-]{1,40})")
_OF_AN_INSTALLER = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
_COMPILED = (".so", ".pyd", ".dll", ".dylib", ".exe", ".a", ".o", ".lib")
_MACHINE_CODE = (  # how ELF, Windows, macOS, archive and WebAssembly files begin
    b"\x7fELF", b"MZ", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"!<arch>",
    b"\0asm",
)  # fmt: skip
_KNOWN: dict[str, Mapping[str, bytes]] = {}  # SHA-256 -> path -> bytes; content decides, so no order of calls changes a result


def digest_of(files: Mapping[str, bytes]) -> str:
    """SHA-256 of the lines that ``sha256sum`` prints of the files in the order of their paths."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def provide_package(files: Mapping[str, bytes]) -> str:
    """Makes the files of a distribution known to this process; their SHA-256."""
    digest = digest_of(files)
    _KNOWN[digest] = dict(files)
    return digest


def package_files(package: CodePackage) -> Mapping[str, bytes]:
    """Path -> bytes of a distribution: as this process was given them, or as they are installed here.

    Raises:
        InputError: it is not installed, or its files are not those that the study pins.
    """
    if package.sha256 not in _KNOWN:
        files = _installed(package.name, package.version, f"[code] packages {package.name}=={package.version}")
        if (found := digest_of(files)) != package.sha256:
            raise InputError(
                f"[code] packages {package.name}=={package.version}: its files here have the SHA-256 {found[:12]}.., the study pins "
                f"{package.sha256[:12]}..; install the wheel that the study was written with."
            )
        provide_package(files)
    return _KNOWN[package.sha256]


def read_packages(given: Sequence[Any], study_file: object) -> list[dict[str, Any]]:
    """``packages`` of ``[code]`` as entries with name, version, SHA-256 and importable modules.

    Raises:
        InputError: an entry is not ``NAME==VERSION``, or the distribution is not installed here or cannot be own code.
    """
    out = []
    for text in given:
        found = _REQUIREMENT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InputError(f'{study_file}: [code] packages lists {text!r}; write names with exact versions, such as "my_pkg==1.2.0".')
        name, version = found.groups()
        files = _installed(name, version, f"{study_file}: [code] packages {text}")
        modules = sorted({_top(path) for path in files if path.endswith(".py")})
        out.append({"name": name, "version": version, "sha256": provide_package(files), "modules": modules})
    return out


def module_names(files: Mapping[str, bytes]) -> dict[str, str]:
    """Dotted name of each module -> its path."""
    return {
        ".".join(PurePosixPath(path.removesuffix("/__init__.py").removesuffix(".py")).parts): path for path in files if path.endswith(".py")
    }


def _top(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def _installed(name: str, version: str, where: str) -> dict[str, bytes]:
    """Path -> bytes of an installed distribution; ``where``: the beginning of an error."""
    try:
        found = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise InputError(f"{where}: is not installed here; run pip install --no-deps with the study's wheel of it.") from error
    if found.version != version:
        raise InputError(f"{where}: version {found.version} is installed here; run pip install --no-deps with the study's wheel of it.")
    if re.sub(r"[-_.]+", "-", name).lower() == DISTRIBUTION:
        raise InputError(f"{where}: is this software itself; take it out of packages.")
    if found.files is None:
        raise InputError(f"{where}: has no list of its files (RECORD); install it from a wheel with pip.")
    files, size = dict[str, bytes](), 0
    for entry in found.files:
        path = PurePosixPath(entry).as_posix()
        if (
            ".." in PurePosixPath(path).parts
            or path.startswith("/")
            or path.endswith(".pyc")
            or (".dist-info/" in path and entry.name in _OF_AN_INSTALLER)
        ):
            continue  # scripts, and what an installer or a machine writes
        if path.endswith(".pth"):
            raise InputError(
                f"{where}: has {path}, which Python runs at every start (an editable install has one); install a wheel without it."
            )
        try:
            with open(entry.locate(), "rb") as file:
                files[path] = file.read(BYTES + 1)
        except OSError as error:
            raise InputError(f"{where}: {path} cannot be read ({error.strerror}); install it again.") from error
        size += len(files[path])
        if len(files) > FILES or size > BYTES:
            raise InputError(f"{where}: has more than {FILES} files or {BYTES:,} bytes, the limits of own code; keep data out of it.")
    _check(files, where)
    return files


def _check(files: Mapping[str, bytes], where: str) -> None:
    """Raises ``InputError`` unless all code of a distribution is Python in plain packages."""
    for path, data in files.items():
        suffixes = PurePosixPath(path).suffixes
        if set(suffixes) & set(_COMPILED) or data.startswith(_MACHINE_CODE):
            raise InputError(f"{where}: {path} is compiled; own code is Python that a person can read, so name a distribution without it.")
        if path.endswith(".py"):
            *folders, _ = PurePosixPath(path).parts
            for depth in range(len(folders)):
                package = "/".join(folders[: depth + 1])
                if f"{package}/__init__.py" not in files:
                    raise InputError(
                        f"{where}: {path} is in a folder without __init__.py (a namespace); name a distribution without namespaces."
                    )
            if not re.fullmatch(MODULE, _top(path)):
                raise InputError(f"{where}: {path} has no plain name, so nothing could import it; name a distribution without it.")
    if not any(path.endswith(".py") for path in files):
        raise InputError(f"{where}: has no Python file; name a distribution with code.")
