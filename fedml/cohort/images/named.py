"""Files of persons, each an image or a named channel of one: ``<id>.<ending>``, ``<id>/<any>.<ending>``, and with channels ``<id>_<any>``.

files_of(folder, ids, endings)                      # id -> files that may be channels, sorted
one_each(files, channel_files, endings, where)      # a file for each channel, or ItemError
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.series_section import ChannelFile


def files_of(folder: Path, persons: Collection[str], endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of each person: below ``<id>/``, and in ``folder`` the ones whose name is the id, or begins with it and goes on with a sign
    that is neither letter nor digit (``<id>_0000.nii.gz``). A name that begins with two ids is of the longer one."""
    known = set(persons)
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name in known:
            found.setdefault(path.name, []).extend(sorted(p for p in path.iterdir() if p.name.endswith(endings)))
        elif path.name.endswith(endings) and (owner := owner_of(stem(path, endings), known)) is not None:
            found.setdefault(owner, []).append(path)
    return found


def owner_of(name: str, persons: Collection[str]) -> str | None:
    """The longest id that the name is, or begins with before a sign."""
    ends = [len(name), *(at for at in range(len(name) - 1, 0, -1) if not name[at].isalnum())]
    return next((name[:at] for at in ends if name[:at] in persons), None)


def stem(path: Path, endings: tuple[str, ...]) -> str:
    """The name without its ending."""
    return next((path.name.removesuffix(e) for e in endings if path.name.endswith(e)), path.name)


def one_each(files: Sequence[Path], channels: Sequence[ChannelFile], endings: tuple[str, ...], where: Path) -> list[Path]:
    """The file of each channel; capitals matter, as in names of files.

    Raises:
        ItemError: no-series: a channel has no file; several-series: more than one.
    """
    chosen = []
    for channel in channels:
        fitting = [path for path in files if fnmatchcase(stem(path, endings), channel.pattern)]
        if not fitting:
            raise ItemError(Unusable.NO_SERIES, f'{where}: no file of the person fits channel "{channel.name}" ("{channel.pattern}").')
        if len(fitting) > 1:
            text = f'{len(fitting)} files of the person fit channel "{channel.name}" ("{channel.pattern}"), and one is needed'
            raise ItemError(Unusable.SEVERAL_SERIES, f"{where}: {text}.")
        chosen.append(fitting[0])
    return chosen
