"""Whole slides in DICOM: VL Whole Slide Microscopy (PS3.3 A.32.8). OpenSlide decodes the frames; this file decides what is a slide.

    for path in slides_below(Path("slides/p1")): ...      # one instance of each series that has tissue
    instances_of(path)                                    # all files of its series: levels, label, overview
    check_series(path)                                    # ItemError if OpenSlide would read something else than the whole tissue

A slide is a series in one folder. Its instances of the flavours LABEL, OVERVIEW and THUMBNAIL are pictures of the glass: never read as
tissue, and named by ``fedml-site deidentification``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedml.cohort.dicom.files import looks_dicom, open_dataset, reading
from fedml.cohort.identifiers.rules import Finding, Severity
from fedml.cohort.images.reasons import ItemError, Unusable

CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_PICTURES = {"LABEL": "a picture of the label", "OVERVIEW": "a picture of the glass with its label", "THUMBNAIL": "a picture of the slide"}
_MOST = 100  # instances of a series


class _Instance(NamedTuple):
    path: Path
    series: str
    flavour: str  # VOLUME, LABEL, OVERVIEW, THUMBNAIL
    header: Any


def slides_below(folder: Path) -> list[Path]:
    """The first instance with tissue of each series in ``folder`` and in the folders inside, sorted by path."""
    found: dict[tuple[Path, str], Path] = {}
    for inside in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        for instance in _instances(inside):
            if instance.flavour == "VOLUME":
                found.setdefault((inside, instance.series), instance.path)
    return sorted(found.values())


def instances_of(path: Path) -> list[Path]:
    """All files of the slide of which ``path`` is one: those of its series in its folder, sorted."""
    every = list(_instances(path.parent))
    series = next((instance.series for instance in every if instance.path == path), None)
    return [instance.path for instance in every if instance.series == series] if series is not None else [path]


def check_series(path: Path) -> None:
    """Raises ``ItemError`` if the series has parts that would silently be left out: focal planes, optical paths, split or sparse levels."""
    own = [instance for instance in _instances(path.parent) if instance.flavour == "VOLUME"]
    series = next((instance.series for instance in own if instance.path == path), None)
    if series is None:
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is no level of a whole slide in DICOM.")
    for instance in own:
        if instance.series != series:
            continue
        header = instance.header
        problem = (
            "is a part of a split instance (ConcatenationUID)" if "ConcatenationUID" in header
            else "has several focal planes" if int(header.get("TotalPixelMatrixFocalPlanes", 1) or 1) > 1
            else "has several optical paths" if int(header.get("NumberOfOpticalPaths", 1) or 1) > 1
            else "is not tiled in full (DimensionOrganizationType)" if header.get("DimensionOrganizationType") != "TILED_FULL"
            else ""
        )  # fmt: skip
        if problem:
            raise ItemError(Unusable.UNREADABLE, f"{instance.path}: {problem}, which is not read; convert the slide.")


def picture_findings(path: Path) -> list[Finding]:
    """What a data officer looks at: the instance is a picture of the glass or its label."""
    instance = _instance(path)
    if instance is None or instance.flavour not in _PICTURES:
        return []
    return [Finding(0x00080008, "ImageType", "ImageType", _PICTURES[instance.flavour], Severity.REVIEW)]


def _instances(folder: Path) -> Iterator[_Instance]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    count = 0
    for path in files:
        if (instance := _instance(path)) is None:
            continue
        count += 1
        if count > _MOST:
            raise ItemError(Unusable.TOO_LARGE, f"{folder}: has more than {_MOST} instances of slides; give each slide its own folder.")
        yield instance


def _instance(path: Path) -> _Instance | None:
    """None: the file is no instance of a slide; a broken one is left to the reader of its series."""
    try:
        if not looks_dicom(path):
            return None
        with reading(path):
            header = open_dataset(path, pixels=False)
            if str(header.get("SOPClassUID", "")) != CLASS:
                return None
            kinds = [str(word) for word in header.get("ImageType", [])]
            flavour = next((word for word in kinds[2:] if word in (*_PICTURES, "VOLUME")), "VOLUME")
            return _Instance(path, str(header.get("SeriesInstanceUID", "")), flavour, header)
    except (ItemError, OSError):
        return None
