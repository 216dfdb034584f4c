"""The DICOM series of a site's persons: which one a study takes as the image and why it leaves the others. Nothing leaves the site.

for line in series_lines(site, study): print(line)        # study: None for the rules of a study that states none
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

from fedml.clients.site.manifest import Site
from fedml.cohort.dicom.choice import Choice, choose
from fedml.cohort.dicom.headers import Candidate
from fedml.cohort.dicom.persons import has_mask, series_files
from fedml.cohort.dicom.series import off_grid
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.sheet import read_table
from fedml.errors import InputError
from fedml.study.study import Study

_TOLD_MM = 0.1  # a smaller distance is rounding


def series_lines(site: Site, study: Study | None) -> Iterator[str]:
    """For each person of the persons table a line, a line for each series, and at the end the sums.

    Raises:
        InputError: the site has no images in DICOM series, or its persons table cannot be read.
    """
    data = site.manifest.data
    if data.image is None or data.image.format != "dicom":
        raise InputError(f'{site.file}: [data] has no image with format = "dicom"; only DICOM files have series.')
    folder = site.folder / data.image.path
    shape = None if study is None else study.cohort.image
    rules = None if shape is None or shape.select is None else shape.select.at(data.image.select)
    masked = study is not None and study.traits.label == "mask"
    masks = None if data.image.masks is None else site.folder / data.image.masks
    sums: Counter[str] = Counter()
    for person in map(str, read_table(site.folder / data.persons, data.id).index):
        found, broken = series_files(folder, person)
        if broken:
            sums["with a file that cannot be read"] += 1
            yield f"{person}: not used: {len(broken)} files cannot be read, {broken[0]} among them"
            continue
        if not found:
            sums["without images"] += 1
            yield f"{person}: has no images"
            continue
        made = choose(found, rules, partial(has_mask, masks, person) if masked else None)
        sums["with an image" if made.problem is None else f"not used ({made.problem[0]})"] += 1
        yield f"{person}: " + (f"{len(made.taken)} of {len(found)} series" if made.problem is None else f"not used, {made.problem[0]}")
        yield from _series(found, made)
    yield f"{site.name}: " + ", ".join(f"{count} persons {what}" for what, count in sorted(sums.items()))


def _series(found: list[Candidate], made: Choice) -> Iterator[str]:
    why = {id(candidate): text for candidate, text in made.left}
    for candidate in found:
        words = candidate.about.words(described=True)
        if candidate in made.taken:
            yield f"  image     {words}{_uneven(candidate)}"
        elif id(candidate) in why:
            yield f"  left out  {words}: {why[id(candidate)]}"
        else:
            yield f"  undecided {words}"


def _uneven(candidate: Candidate) -> str:
    """How far the slices are off an even grid, or why they are no volume."""
    try:
        off = off_grid(candidate.files)
    except ItemError as error:
        return f": cannot be used, {error.reason}: {error}"
    return f": slices are up to {off:.2g} mm off an even grid" if off > _TOLD_MM else ""
