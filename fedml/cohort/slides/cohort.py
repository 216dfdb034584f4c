"""The slides of a cohort: positions of the tiles with tissue. The tiles themselves are read when a batch is iterated.

    slides = read_slides(Path("slides"), ids, study.cohort.image.tiles, cache=Path(".fedml/cache/slides"))
    bag = slides.bag(rows)                       # all tiles of those persons
    bag = slides.bag(rows, generator)            # at most ``per_step`` random tiles of each person
    for chunk in bag: ...                        # uint8 (tiles, 3, size, size), about a quarter of a million pixels each

Files: ``<id>.<extension>``, or ``<id>/<name>.<extension>`` if a person has several slides. A person's bag has the tiles of all their
slides.

The first reading of a slide finds its tissue and decodes each tile with tissue once. So a damaged slide is excluded before a run begins,
and the channel sums for standardisation include all tiles. Corners and sums are cached under the SHA-256 of the file's bytes and of the
tile parameters. If a slide changes or is damaged later, the site stops with an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cache_entries import content_digests
from fedml.cohort.images.reasons import Exclusion, ItemError, Unusable, check_exclusion_limit
from fedml.cohort.inputs import rows_of_items
from fedml.cohort.slides.files import ENDINGS, files_of_slide, slides_of_person
from fedml.cohort.slides.quality import REASONS, fault
from fedml.cohort.slides.slide import Slide, open_slide, tile_at, tissue_tiles, tissue_tiles_at
from fedml.cohort.slides.stain import jittered
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.tiles import Tiles

if TYPE_CHECKING:
    import torch

FORMAT = 1  # increment when corners, sums or tiles of the same file change
CHUNK_PIXELS = 2**18  # pixels per chunk of tiles: 4 tiles of 256 x 256; larger chunks are slower and take more memory
Ints = npt.NDArray[np.int64]


class SlideTissue(NamedTuple):
    """The tiles with tissue of a slide: ``corners`` (tiles, 2) in pixels of level 0; ``sums`` (3, channels): count, sum and sum of squares
    of the tiles' pixels; ``stamp``: the file's size and modification time at the first reading; ``key``: digest of its bytes and of the
    rules for tiles; ``mpp``: as the site states it, None: as in the file; ``left_out``: tiles that ``fedml.cohort.slides.quality`` left
    out, by ``REASONS``."""

    path: Path
    corners: Ints
    sums: npt.NDArray[np.float64]
    stamp: tuple[int, int]
    key: str = ""
    mpp: float | None = None
    left_out: tuple[int, ...] = (0,) * len(REASONS)


@dataclass(frozen=True, eq=False)
class Slides:
    """All slides of a cohort; ``person`` (slides,): row of each slide's person, ascending; ``excluded``: excluded slides; ``stain``: of
    ``[training.augment]``."""

    spec: Tiles
    slides: tuple[SlideTissue, ...]
    person: Ints
    excluded: tuple[Exclusion, ...] = ()
    stain: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a tile."""
        return 3, self.spec.size_px, self.spec.size_px

    @property
    def digest(self) -> bytes:
        """SHA-256 of the tiles' corners and pixel sums, 32 bytes."""
        sha256 = hashlib.sha256(self.person.tobytes())
        for slide in self.slides:
            sha256.update(slide.corners.tobytes() + slide.sums.tobytes())
        return sha256.digest()

    @property
    def tiles(self) -> int:
        """Number of tiles of all persons."""
        return sum(len(slide.corners) for slide in self.slides)

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

    def chosen(self, rows: Ints, draw: torch.Generator | None) -> tuple[list[tuple[int, Ints]], Ints]:
        """(number of a slide, its tiles) for the persons in ``rows``, person by person; and (tiles,) the place of each in ``rows``. With
        ``draw`` at most ``per_step`` random tiles of each person."""
        pieces, owner = list[tuple[int, Ints]](), list[Ints]()
        for at, row in enumerate(rows):
            of_person = range(*np.searchsorted(self.person, [row, row + 1]))
            kept = _drawn(sum(len(self.slides[k].corners) for k in of_person), self.spec.per_step, draw)
            begin = 0
            for k in of_person:
                count = len(self.slides[k].corners)
                own = kept[(kept >= begin) & (kept < begin + count)] - begin
                begin += count
                if len(own):
                    pieces.append((k, own))
            owner.append(np.full(len(kept), at, np.int64))
        return pieces, np.concatenate(owner) if owner else np.zeros(0, np.int64)

    def bag(self, rows: Ints, draw: torch.Generator | None = None) -> Bag:
        """The tiles of the persons in ``rows``, person by person; with ``draw`` at most ``per_step`` random tiles of each person."""
        found, person = self.chosen(rows, draw)
        pieces = [self.slides[k]._replace(corners=self.slides[k].corners[own]) for k, own in found]
        seed = None
        if self.stain and draw is not None:
            import torch

            seed = self.stain, int(torch.randint(2**62, (), generator=draw))
        return Bag(self.spec, tuple(pieces), person, stain=seed)

    def sums(self, rows: Ints) -> npt.NDArray[np.float64]:
        """(3, channels): count, sum and sum of squares over the pixels of all tiles of the persons in ``rows``."""
        chosen = np.flatnonzero(np.isin(self.person, rows))
        return np.sum([self.slides[k].sums for k in chosen], axis=0) if len(chosen) else np.zeros((3, 3))


@dataclass(frozen=True, eq=False)
class Bag:
    """Tiles of some persons; ``person`` (tiles,): the person's index in the batch. Iteration reads the tiles, chunk by chunk."""

    spec: Tiles
    pieces: tuple[SlideTissue, ...]
    person: Ints
    device: torch.device | None = None  # device of the chunks; None: CPU
    stain: tuple[float, int] | None = None  # largest change of the stains, and the seed; None: none

    def to(self, device: torch.device) -> Bag:
        """The same tiles, with each chunk moved to ``device`` when it is read."""
        return replace(self, device=device)

    def __len__(self) -> int:
        return len(self.person)

    @property
    def chunk(self) -> int:
        """Tiles per chunk."""
        return max(1, CHUNK_PIXELS // self.spec.size_px**2)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Chunks uint8 (tiles, 3, size, size) of at most ``chunk`` tiles.

        Raises:
            InputError: a slide has changed since its first reading, or can no longer be read.
        """
        import torch

        size, filled = self.spec.size_px, 0
        out = np.empty((self.chunk, 3, size, size), np.uint8)
        for number, tile in enumerate(self._read_tiles()):
            out[filled] = tile if self.stain is None else jittered(tile, *self.stain, number)
            filled += 1
            if filled == len(out):
                yield torch.from_numpy(out).to(self.device)
                out, filled = np.empty_like(out), 0
        if filled:
            yield torch.from_numpy(out[:filled]).to(self.device)

    def _read_tiles(self) -> Iterator[npt.NDArray[np.uint8]]:
        for piece in self.pieces:  # one slide is open at a time, because an open slide keeps about 30 MB of decoded pixels
            yield from read_tiles(piece, self.spec)


def read_tiles(piece: SlideTissue, spec: Tiles) -> Iterator[npt.NDArray[np.uint8]]:
    """The tiles of ``piece``, in the order of its corners: uint8 (3, size, size).

    Raises:
        InputError: the slide has changed since its first reading, or can no longer be read.
    """
    try:
        if _stamp(piece.path) != piece.stamp:
            raise InputError(f"{piece.path}: has changed since it was first read; start again.")
        slide = open_slide(piece.path, piece.mpp)
        try:
            for x, y in piece.corners:
                yield _tile(slide, int(x), int(y), spec)
        finally:
            slide.close()
    except (ItemError, OSError) as error:
        raise InputError(f"{piece.path}: can no longer be read ({told(error)}); restore or delete the file and start again.") from error


def read_slides(
    folder: Path, persons: Sequence[str], spec: Tiles, *, cache: Path, max_quarantined: float = 0.1,
    check: Callable[[Path, str], None] = lambda path, person: None, mpp: Callable[[Path], float | None] = lambda path: None,
) -> Slides:  # fmt: skip
    """The slides of ``persons`` in the table's order; a person may have no slide or several.

    A slide is excluded if it is damaged, has no tile with enough tissue, or does not state its scale although the study sets ``mpp``.

    Args:
        persons: ids; slides of other persons are not read.
        cache: folder of the cached corners and sums; if it cannot be written, slides are analysed again at each start.
        max_quarantined: largest fraction of the persons with slides who may have an excluded slide.
        check: of a file and its person; raises ``ItemError`` if the file is to be excluded.
        mpp: of a file, micrometres per pixel of its finest level as the site states them; None: as in the file.

    Raises:
        TooManyExcluded: the fraction is exceeded; the message names the first file.
        InputError: the folder does not exist, or no person has a usable slide.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct data.image in site.toml.")
    found, rows, excluded = list[SlideTissue](), list[int](), list[Exclusion]()
    with_slides = set[int]()
    for row, person in enumerate(persons):
        for path in slides_of_person(folder, person):
            with_slides.add(row)
            try:
                check(path, person)
                found.append(slide_tissue(path, spec, cache, mpp(path)))
                rows.append(row)
            except ItemError as error:
                excluded.append(Exclusion(person, str(path), error.reason, str(error)))
    check_exclusion_limit(excluded, len(with_slides), max_quarantined)
    if not found:
        endings = ", ".join(ENDINGS)
        usable = "usable slide" if excluded else "slide"
        text = f"{folder}: has no {usable} of a person in the persons table, as <id>.<extension> or <id>/<name>.<extension> ({endings}); "
        raise InputError(text + "correct data.image in site.toml.")
    return Slides(spec, tuple(found), np.array(rows, np.int64), tuple(excluded))


def pool_slides(parts: Sequence[tuple[Slides | None, int]]) -> Slides:
    """Several sites' slides, at least one of them with any; each with the number of its site's persons."""
    start = np.cumsum([0, *(persons for _, persons in parts)])
    found = [(slides, int(s)) for (slides, _), s in zip(parts, start, strict=False) if slides is not None]
    person = np.concatenate([slides.person + s for slides, s in found])
    return Slides(found[0][0].spec, tuple(one for slides, _ in found for one in slides.slides), person)


# --- inside


def _drawn(count: int, most: int, draw: torch.Generator | None) -> Ints:
    """Ascending indices below ``count``: all, or a random sample of ``most`` without replacement."""
    if draw is None or count <= most:
        return np.arange(count)
    import torch

    return torch.randperm(count, generator=draw)[:most].sort().values.numpy()


def _tile(slide: Slide, x: int, y: int, spec: Tiles) -> npt.NDArray[np.uint8]:
    return slide.tile(x, y, spec.size_px) if spec.mpp is None else tile_at(slide, x, y, spec.size_px, spec.mpp)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def slide_tissue(path: Path, spec: Tiles, cache: Path, mpp: float | None = None) -> SlideTissue:
    """The slide's tiles with tissue, from the cache or by reading the slide.

    Raises:
        ItemError: the slide cannot be used.
    """
    try:
        with suppress(OSError):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts = files_of_slide(path)
        stamp, digests = _stamp(path), content_digests(cache, parts, lambda _: None)
    except (InputError, OSError) as error:
        text = f"{path}: cannot be read, or changes while it is read; correct its permissions or delete it."
        raise ItemError(Unusable.UNREADABLE, text) from error
    parameters = spec.model_dump(mode="json", include={"size_px", "mpp", "min_tissue", "quality"})
    if mpp is not None:
        parameters["stated"] = mpp
    key = hashlib.sha256(json.dumps([FORMAT, parameters, [digests[p][0] for p in parts]], sort_keys=True).encode()).hexdigest()
    entry = cache / f"{key}.npz"
    cached = _load_entry(entry)
    if cached is None:
        cached = _find_tissue(path, spec, mpp)
        _save_entry(entry, *cached)
    return SlideTissue(path, cached[0], cached[1], stamp, key, mpp, tuple(cached[2].tolist()))


def _find_tissue(path: Path, spec: Tiles, mpp: float | None) -> tuple[Ints, npt.NDArray[np.float64], Ints]:
    """Corners of the tiles that are used (tiles, 2), pixel sums (3, channels) and numbers of tiles left out; decodes each tile."""
    slide = open_slide(path, mpp)
    try:
        if spec.mpp is None:
            corners = tissue_tiles(slide, spec.size_px, min_tissue=spec.min_tissue)
        else:
            corners = tissue_tiles_at(slide, spec.size_px, spec.mpp, spec.min_tissue)
        if not len(corners):
            text = f"{path}: has no tile of {spec.size_px} pixels with at least {spec.min_tissue:.0%} tissue; check the slide."
            raise ItemError(Unusable.NO_TISSUE, text)
        sums, left_out, kept = np.zeros((3, 3)), np.zeros(len(REASONS), np.int64), np.ones(len(corners), bool)
        for at, (x, y) in enumerate(corners):
            tile = _tile(slide, int(x), int(y), spec)
            if spec.quality is not None and (why := fault(tile, spec.quality)) is not None:
                left_out[why] += 1
                kept[at] = False
                continue
            pixels = tile.reshape(3, -1).astype(np.float64)
            sums += np.stack([np.full(3, pixels.shape[1]), pixels.sum(1), (pixels**2).sum(1)])
        if not kept.any():
            counts = ", ".join(f"{count} {reason}" for reason, count in zip(REASONS, left_out, strict=True))
            raise ItemError(Unusable.NO_TISSUE, f"{path}: all {len(corners)} tiles with tissue are left out ({counts}); check the slide.")
        return corners[kept], sums, left_out
    except ValueError as error:  # at this scale a tile exceeds the largest region that can be read
        raise ItemError(Unusable.GEOMETRY, f"{path}: a tile is larger than the largest region that is read.") from error
    finally:
        slide.close()


def _load_entry(entry: Path) -> tuple[Ints, npt.NDArray[np.float64], Ints] | None:
    none = np.zeros(len(REASONS), np.int64)
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            corners, sums, left_out = arrays["corners"], arrays["sums"], arrays.get("left_out", none)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = corners.dtype == np.int64 and corners.ndim == 2 and corners.shape[1:] == (2,) and len(corners) and sums.shape == (3, 3)
    return (corners, sums.astype(np.float64), left_out) if whole and left_out.shape == none.shape else None


def _save_entry(entry: Path, corners: Ints, sums: npt.NDArray[Any], left_out: Ints) -> None:
    partial = entry.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):  # if the folder cannot be written, the next start analyses the slide again
        try:
            with partial.open("wb") as file:
                np.savez(file, corners=corners, sums=sums, left_out=left_out)
            os.replace(partial, entry)
        finally:
            partial.unlink(missing_ok=True)
