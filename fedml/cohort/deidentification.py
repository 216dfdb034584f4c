"""What is known of the de-identification of a folder of images: every file, its name and the names of its folders, by rules.

    for one in looked_at(Path("images"), ids):
        one.person, one.where, one.findings        # "p1", "p1/scan.nii.gz", [Finding("descrip", "a name of a person", refuse)]
    require_clean(Path("images/p1.png"), Path("images"), "p1", "quarantine")    # ItemError(not-de-identified)

``[policy] deidentification`` of a site says what happens to an image: with a finding of level refuse it is excluded (``quarantine``,
``strict``), ends the reading (``refuse``) or is used with a line in the site's log (``warn``); one with findings of level review is
used, and excluded with ``strict``. Files that no study reads (sidecars) are looked at for the report only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from fedml.cohort.dicom.deidentified import Deidentification, findings
from fedml.cohort.dicom.files import looks_dicom, open_dataset, reading
from fedml.cohort.identifiers import ocr
from fedml.cohort.identifiers.headers import findings_of
from fedml.cohort.identifiers.names import findings_of_name, shown
from fedml.cohort.identifiers.rules import Finding, Severity
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.slides.dicom import picture_findings
from fedml.cohort.slides.files import ENDINGS
from fedml.errors import InputError
from fedml.quiet import hush

log = logging.getLogger("fedml.site")
_UNREADABLE = Finding(0, "", "file", "cannot be read, so no one knows what it holds", Severity.REVIEW)


class Looked(NamedTuple):
    """A file: the person whose it is ("" if no one's), its path as it may be shown, its kind, its findings."""

    person: str
    where: str
    kind: str
    findings: list[Finding]


def looked_at(root: Path, ids: Collection[str], *, pixels: bool = True) -> Iterator[Looked]:
    """Every file below ``root``, in the order of names. ``pixels``: whether text is looked for in pictures, where a program for that is
    installed (``ocr.missing()``). Memory: one file at a time."""
    known = set(ids)
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            person = _person(path.relative_to(root), known)
            with hush():
                kind, found = _look(path, person, pixels)
            found += findings_of_name(path.relative_to(root), person)
            yield Looked(person, shown(path, root), kind, found)


def _person(path: Path, known: Collection[str]) -> str:
    first = path.parts[0]
    if first in known:
        return first
    while "." in first:
        first = first.rpartition(".")[0]
        if first in known:
            return first
    return ""


def _look(path: Path, person: str, pixels: bool) -> tuple[str, list[Finding]]:
    try:
        if not path.is_file() or path.is_symlink():
            return "other", [Finding(0, "", "file", "is a link or no file, and was not followed", Severity.REVIEW)]
        if looks_dicom(path):
            found = [*findings(path, pseudonym=person or None), *picture_findings(path)]
            return "DICOM", found + (_drawn(path, found) if pixels else [])
        kind = path.suffix.lower().removeprefix(".") or "other"
        found = findings_of(path)
        if path.name.lower().endswith(ENDINGS):
            found += _slide(path, pixels)
        elif kind in ("png", "jpg", "jpeg", "bmp") and pixels and not ocr.missing():
            found += ocr.in_file(path)
        return {"gz": "nii.gz"}.get(kind, kind), found
    except (ItemError, OSError):
        return "other", [_UNREADABLE]


def _drawn(path: Path, found: list[Finding]) -> list[Finding]:
    """Text in the pixels of a DICOM file of a camera, an ultrasound or a screen, of which the header does not say that there is none."""
    if ocr.missing() or not any(one.keyword == "BurnedInAnnotation" for one in found):
        return []
    from fedml.cohort.dicom.files import frames

    try:
        with reading(path):
            first = next(frames(open_dataset(path), path), None)
        return [] if first is None else ocr.in_pixels(first)
    except ItemError:
        return []


def _slide(path: Path, pixels: bool) -> list[Finding]:
    """The pictures of the label and of the whole glass, which a slide's file has besides the tissue; no study reads them."""
    import openslide

    try:
        with openslide.OpenSlide(str(path)) as slide:
            found: list[Finding] = []
            for name in ("label", "macro"):
                if name in slide.associated_images:
                    what = "a picture of the label" if name == "label" else "a picture of the glass with its label"
                    found.append(Finding(0, "", name, what, Severity.REVIEW))
                    if pixels and not ocr.missing():
                        found += ocr.in_picture(slide.associated_images[name], name)
            return found
    except (openslide.OpenSlideError, OSError, ValueError):
        return []


def _of_header(path: Path, person: str) -> list[Finding]:
    """Of what the file holds besides pixels, in DICOM by the rules for DICOM."""
    if not looks_dicom(path):
        return findings_of(path)
    with hush():
        return [*findings(path, pseudonym=person or None), *picture_findings(path)]


def require_clean(path: Path, root: Path, person: str, policy: Deidentification, *, header: bool = True) -> None:
    """Applies a site's policy to a file that a study is about to read, and to its name; ``header``: also to what the file holds.

    Raises:
        ItemError: not-de-identified: the policy is to exclude the file.
        InputError: the policy is to stop.
    """
    try:
        inside = path.relative_to(root)
    except ValueError:
        inside = Path(path.name)
    found = [*(_of_header(path, person) if header else []), *findings_of_name(inside, person)]
    worst = [one for one in found if policy == "strict" or one.severity is Severity.REFUSE]
    if not worst:
        return
    text = f"{shown(path, root)}: is not de-identified, {len(worst)} findings, the first in {worst[0].where}: {worst[0].why}"
    if policy == "refuse":
        raise InputError(f'{text}; de-identify it ([policy] deidentification = "refuse").')
    if policy != "warn":
        raise ItemError(Unusable.NOT_DE_IDENTIFIED, f"{text}.")
    log.warning("used although not de-identified: %s", text)
