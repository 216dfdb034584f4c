"""The DICOM series of a site's persons: which one a study takes as the image and why it leaves the others. Nothing leaves the site.

for line in series_lines(site, study): print(line)        # study: None for the rules of a study that states none
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from fedml.clients.site.manifest import Site
from fedml.cohort.dicom.choice import Choice, choose, fits
from fedml.cohort.dicom.headers import Candidate
from fedml.cohort.dicom.persons import has_mask, series_files
from fedml.cohort.dicom.series import off_grid
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.sheet import read_table
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.series_section import Select
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
        made = list(_images(found, shape, rules, partial(has_mask, masks, person) if masked else None))
        problem = next((choice.problem for _, _, choice in made if choice.problem is not None), None)
        sums["with an image" if problem is None else f"not used ({problem[0]})"] += 1
        used = sum(len(choice.taken) for _, _, choice in made)
        yield f"{person}: " + (f"{used} of {len(found)} series" if problem is None else f"not used, {problem[0]}")
        for name, of, choice in made:
            if name:
                yield f'  channel "{name}"' + (": no series has such a description" if not of else "")
            yield from _series(of, choice)
    yield f"{site.name}: " + ", ".join(f"{count} persons {what}" for what, count in sorted(sums.items()))


def _images(
    found: list[Candidate], shape: ImageShape | None, rules: Select | None, drawn: Callable[[Candidate], bool] | None
) -> Iterator[tuple[str, list[Candidate], Choice]]:
    """(channel, the series that may be it, the choice) for each named channel; of an image without them one, with an empty name."""
    if shape is None or not shape.channel_files:
        yield "", found, choose(found, rules, drawn)
        return
    for channel in shape.channel_files:
        of = [series for series in found if fits(series.about.description, [channel.pattern])]
        yield channel.name, of, choose(of, rules)


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
