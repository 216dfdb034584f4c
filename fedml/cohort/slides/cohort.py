"""The slides of a cohort: where the tiles with tissue are, never the tiles themselves; they are read when a batch is gone through.

    slides = read_slides(Path("slides"), ids, study.cohort.image.tiles, cache=Path(".fedml/cache/slides"))
    bag = slides.bag(rows)                       # all tiles of those persons
    bag = slides.bag(rows, generator)            # at most ``per_step`` of each, drawn
    for chunk in bag: ...                        # uint8 (tiles, 3, size, size), about a quarter of a million pixels each

Files: ``<id>.<ending>``, or ``<id>/<anything>.<ending>`` where a person has several; a person is all of their slides.

When a slide is first seen its tissue is looked for and each tile with tissue is decoded once. So a broken slide is set aside before a run
begins, and the sums of the channels that standardisation needs are of all those tiles. Corners and sums are kept, under the SHA-256 of the
file's bytes and of what was asked. A slide that changes or breaks after that is the site's fault: it refuses to go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cache_entries import content_digests
from fedml.cohort.images.reasons import Aside, ItemError, Unusable
from fedml.cohort.inputs import rows_of_items
from fedml.cohort.read_images import hold
from fedml.cohort.slides.slide import Slide, open_slide, tile_at, tissue_tiles, tissue_tiles_at
from fedml.errors import InputError
from fedml.study.sections import Tiles

if TYPE_CHECKING:
    import torch

ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".mrxs", ".svslide")  # OpenSlide's formats of one file, and MIRAX
FORMAT = 1  # raise it when corners, sums or what a tile holds would be others for the same file
CHUNK_PIXELS = 2**18  # of a chunk of tiles: 4 of 256 x 256; more at once is slower and takes more memory
Ints = npt.NDArray[np.int64]


class Looked(NamedTuple):
    """What is kept of a slide: ``corners`` (tiles, 2) in pixels of level 0, ``sums`` (3, channels) of their pixels: count, sum, sum of
    squares; ``stamp``: the file's size and time of change then."""

    path: Path
    corners: Ints
    sums: npt.NDArray[np.float64]
    stamp: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Slides:
    """All slides of a cohort, and for each the row of its person (ascending). ``aside``: what could not be used."""

    spec: Tiles
    slides: tuple[Looked, ...]
    person: Ints
    aside: tuple[Aside, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a tile."""
        return 3, self.spec.size_px, self.spec.size_px

    @property
    def digest(self) -> bytes:
        """SHA-256 of where the tiles are and of the sums of their pixels, 32 bytes."""
        sha256 = hashlib.sha256(self.person.tobytes())
        for one in self.slides:
            sha256.update(one.corners.tobytes() + one.sums.tobytes())
        return sha256.digest()

    @property
    def tiles(self) -> int:
        """Tiles of all persons."""
        return sum(len(one.corners) for one in self.slides)

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): who has a slide."""
        return np.isin(np.arange(persons), self.person)

    def tensors(self, rows: Ints, draw: torch.Generator | None) -> dict[str, Any]:
        """``image``: the ``Bag`` of those persons' tiles; ``image_person`` (tiles,): the place of each in ``rows``."""
        import torch

        bag = self.bag(rows, draw)
        return {"image": bag, "image_person": torch.from_numpy(bag.person)}

    def select(self, rows: Ints) -> Slides:
        """The slides of the persons in ``rows`` (ascending)."""
        kept, person = rows_of_items(self.person, rows)
        return replace(self, slides=tuple(self.slides[k] for k in np.flatnonzero(kept)), person=person)

    def content(self) -> dict[str, bytes]:
        """Where the tiles are, and the sums of their pixels."""
        return {"slides": self.digest}

    def bag(self, rows: Ints, draw: torch.Generator | None = None) -> Bag:
        """The tiles of the persons in ``rows``, person by person; with ``draw`` at most ``per_step`` of each, without replacement."""
        pieces, owner = [], []
        for at, row in enumerate(rows):
            own = range(*np.searchsorted(self.person, [row, row + 1]))
            kept = _drawn(sum(len(self.slides[k].corners) for k in own), self.spec.per_step, draw)
            begin = 0
            for k in own:
                one = self.slides[k]
                chosen = kept[(kept >= begin) & (kept < begin + len(one.corners))] - begin
                begin += len(one.corners)
                if len(chosen):
                    pieces.append(one._replace(corners=one.corners[chosen]))
            owner.append(np.full(len(kept), at, np.int64))
        return Bag(self.spec, tuple(pieces), np.concatenate(owner) if owner else np.zeros(0, np.int64))

    def sums(self, rows: Ints) -> npt.NDArray[np.float64]:
        """(3, channels): count, sum and sum of squares over the pixels of all tiles of the persons in ``rows``; exact."""
        chosen = np.flatnonzero(np.isin(self.person, rows))
        return np.sum([self.slides[k].sums for k in chosen], axis=0) if len(chosen) else np.zeros((3, 3))


@dataclass(frozen=True, eq=False)
class Bag:
    """Tiles of some persons; ``person`` (tiles,): the row of each in the batch. Going through it reads them, chunk by chunk."""

    spec: Tiles
    pieces: tuple[Looked, ...]
    person: Ints
    device: torch.device | None = None  # where its chunks go; None: they stay on the CPU

    def to(self, device: torch.device) -> Bag:
        """The same tiles, each chunk put on ``device`` as it is read."""
        return replace(self, device=device)

    def __len__(self) -> int:
        return len(self.person)

    @property
    def chunk(self) -> int:
        """Tiles of a chunk."""
        return max(1, CHUNK_PIXELS // self.spec.size_px**2)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """uint8 (tiles, 3, size, size), at most ``chunk`` of them each time.

        Raises:
            InputError: a slide is no longer what it was when it was looked at.
        """
        import torch

        size, filled = self.spec.size_px, 0
        out = np.empty((self.chunk, 3, size, size), np.uint8)
        for tile in self._each():
            out[filled] = tile
            filled += 1
            if filled == len(out):
                yield torch.from_numpy(out).to(self.device)
                out, filled = np.empty_like(out), 0
        if filled:
            yield torch.from_numpy(out[:filled]).to(self.device)

    def _each(self) -> Iterator[npt.NDArray[np.uint8]]:
        for one in self.pieces:
            try:
                if _stamp(one.path) != one.stamp:
                    raise InputError(f"{one.path}: has changed since it was looked at; start again.")
                slide = open_slide(one.path)
                try:  # one slide is open at a time: each holds some 30 MB of what was decoded last
                    for x, y in one.corners:
                        yield _tile(slide, int(x), int(y), self.spec)
                finally:
                    slide.close()
            except (ItemError, OSError) as error:
                raise InputError(f"{one.path}: can no longer be read ({error}); mend it or take it away, and start again.") from error


def read_slides(folder: Path, persons: Sequence[str], spec: Tiles, *, cache: Path, max_quarantined: float = 0.1) -> Slides:
    """The slides of ``persons`` in the table's order; a person may have none or several.

    A slide that is broken, does not say its scale where one is asked for, or has no tile with enough tissue is set aside.

    Args:
        persons: ids; slides of anybody else are not read.
        cache: the folder in which corners and sums are kept; where it cannot be written to, slides are looked at anew each time.
        max_quarantined: fraction of the persons with slides of whom one may be set aside.

    Raises:
        TooManyAside: more than that; the sentence names the first file.
        InputError: there is no such folder, or nobody has a slide.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct data.image in site.toml.")
    found, rows, aside = list[Looked](), list[int](), list[Aside]()
    seen = set[int]()
    for row, person in enumerate(persons):
        for path in _files(folder, person):
            seen.add(row)
            try:
                found.append(_looked(path, spec, cache))
                rows.append(row)
            except ItemError as error:
                aside.append(Aside(person, str(path), error.reason, str(error)))
    hold(aside, len(seen), max_quarantined)
    if not found:
        endings = ", ".join(ENDINGS)
        usable = "slide that can be used" if aside else "slide"
        text = f"{folder}: holds no {usable} of a person in the persons table as <id>.<ending> or <id>/<name>.<ending> ({endings}); "
        raise InputError(text + "correct data.image in site.toml.")
    return Slides(spec, tuple(found), np.array(rows, np.int64), tuple(aside))


def pool_slides(parts: Sequence[tuple[Slides | None, int]]) -> Slides:
    """Several sites' slides, at least one of them with any; each with the number of its site's persons."""
    start = np.cumsum([0, *(persons for _, persons in parts)])
    found = [(slides, int(s)) for (slides, _), s in zip(parts, start, strict=False) if slides is not None]
    person = np.concatenate([slides.person + s for slides, s in found])
    return Slides(found[0][0].spec, tuple(one for slides, _ in found for one in slides.slides), person)


# --- inside


def _files(folder: Path, person: str) -> list[Path]:
    """A person's slides, by name."""
    own = [path for ending in ENDINGS if (path := folder / f"{person}{ending}").exists()]
    if (folder / person).is_dir():
        own += sorted(path for path in (folder / person).iterdir() if path.name.endswith(ENDINGS))
    return own


def _drawn(count: int, most: int, draw: torch.Generator | None) -> Ints:
    """Ascending numbers below ``count``: all, or ``most`` of them."""
    if draw is None or count <= most:
        return np.arange(count)
    import torch

    return torch.randperm(count, generator=draw)[:most].sort().values.numpy()


def _tile(slide: Slide, x: int, y: int, spec: Tiles) -> npt.NDArray[np.uint8]:
    return slide.tile(x, y, spec.size_px) if spec.mpp is None else tile_at(slide, x, y, spec.size_px, spec.mpp)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _looked(path: Path, spec: Tiles, cache: Path) -> Looked:
    """From the cache, or by looking.

    Raises:
        ItemError: the slide cannot be used.
    """
    parts = [path]
    if path.suffix == ".mrxs":  # an index; the pixels are in the folder of the same name
        parts += sorted(p for p in path.with_suffix("").glob("*") if p.is_file())
    try:
        with suppress(OSError):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp, digests = _stamp(path), content_digests(cache, parts, lambda _: None)
    except (InputError, OSError) as error:
        raise ItemError(Unusable.UNREADABLE, f"{path}: cannot be read, or changes while it is; mend its rights or take it away.") from error
    asked = spec.model_dump(mode="json", include={"size_px", "mpp", "min_tissue"})
    key = hashlib.sha256(json.dumps([FORMAT, asked, [digests[p][0] for p in parts]], sort_keys=True).encode()).hexdigest()
    entry = cache / f"{key}.npz"
    kept = _kept(entry)
    if kept is None:
        kept = _look(path, spec)
        _keep(entry, *kept)
    return Looked(path, *kept, stamp)


def _look(path: Path, spec: Tiles) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Corners, and the sums of the pixels of all tiles there; each tile is decoded."""
    slide = open_slide(path)
    try:
        if spec.mpp is None:
            corners = tissue_tiles(slide, spec.size_px, min_tissue=spec.min_tissue)
        else:
            corners = tissue_tiles_at(slide, spec.size_px, spec.mpp, spec.min_tissue)
        if not len(corners):
            text = f"{path}: has no tile of {spec.size_px} pixels with at least {spec.min_tissue:.0%} tissue; look at it."
            raise ItemError(Unusable.NO_TISSUE, text)
        sums = np.zeros((3, 3))
        for x, y in corners:
            pixels = _tile(slide, int(x), int(y), spec).reshape(3, -1).astype(np.float64)
            sums += np.stack([np.full(3, pixels.shape[1]), pixels.sum(1), (pixels**2).sum(1)])
        return corners, sums
    except ValueError as error:  # a scale at which a tile would be larger than what is read at once
        raise ItemError(Unusable.GEOMETRY, f"{path}: {error}") from error
    finally:
        slide.close()


def _kept(entry: Path) -> tuple[Ints, npt.NDArray[np.float64]] | None:
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            corners, sums = arrays["corners"], arrays["sums"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = corners.dtype == np.int64 and corners.ndim == 2 and corners.shape[1:] == (2,) and len(corners) and sums.shape == (3, 3)
    return (corners, sums.astype(np.float64)) if whole else None


def _keep(entry: Path, corners: Ints, sums: npt.NDArray[Any]) -> None:
    partial = entry.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):  # a folder that cannot be written to: the next reading looks anew
        try:
            with partial.open("wb") as file:
                np.savez(file, corners=corners, sums=sums)
            os.replace(partial, entry)
        finally:
            partial.unlink(missing_ok=True)
