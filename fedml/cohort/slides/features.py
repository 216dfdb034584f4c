"""Features of tiles by a frozen encoder, computed once for each slide and kept on disk in half precision.

    features = read_features(slides, encoder, cache=Path(".fedml/cache/features"), say=print)
    features.tensors(rows, None)["image"]          # float32 (tiles of those persons, encoder.width)

The cache has a folder for each encoder and rule of tiles, and in it one file for each slide: the name holds the key (digest of the slide's
bytes, of the rules and of the encoder) and the SHA-256 of the features. A file is written whole or not at all. The two folders that were
used last are kept (``fedml.cache_entries.KEPT``), as of other caches, and of a slide that no study has read for 30 days nothing. Where the
folder cannot be written, features are kept in memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fedml.cache_entries import KEPT, SMALL
from fedml.cohort.images.reasons import Exclusion
from fedml.cohort.inputs import rows_of_items
from fedml.cohort.slides.cohort import Ints, Slides, SlideTissue, pool_slides, read_tiles
from fedml.errors import InputError
from fedml.study.tiles import Tiles

if TYPE_CHECKING:
    import torch

Half = npt.NDArray[np.float16]
TOGETHER_PIXELS = 2**21  # of the tiles that the encoder gets together: 32 tiles of 256 x 256
_SEVERAL = 20.0  # seconds of work after which the next line says how far it is
_STALE = 30 * 86_400.0  # seconds after which the features of a slide that no study has read are deleted


class Encoder(Protocol):
    """``fedml.networks.frozen.FrozenEncoder``: uint8 (tiles, 3, size, size) -> float16 (tiles, width)."""

    width: int
    digest: bytes

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> Half: ...


@dataclass(frozen=True, eq=False)
class SlideFeatures:
    """The features of all slides of a cohort. ``slides``: where the tiles are; ``arrays``: of each slide, float16 (tiles, width), mapped
    from the disk; ``encoder``: the site's file of weights."""

    slides: Slides
    arrays: tuple[Half, ...]
    width: int
    encoder: Path | None = None

    @property
    def spec(self) -> Tiles:
        """The rules of the tiles."""
        return self.slides.spec

    @property
    def person(self) -> Ints:
        """(slides,): the row of each slide's person."""
        return self.slides.person

    @property
    def excluded(self) -> tuple[Exclusion, ...]:
        """Excluded slides."""
        return self.slides.excluded

    @property
    def shape(self) -> tuple[int]:
        """(features,) of a tile."""
        return (self.width,)

    @property
    def tiles(self) -> int:
        """Number of tiles of all persons."""
        return self.slides.tiles

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): who has a slide."""
        return self.slides.has(persons)

    def tensors(self, rows: Ints, draw: torch.Generator | None) -> dict[str, Any]:
        """``image``: float32 (tiles, width) of those persons; ``image_person`` (tiles,): the place of each in ``rows``. With ``draw`` at
        most ``per_step`` random tiles of each person."""
        import torch

        pieces, person = self.slides.chosen(rows, draw)
        out, begin = np.empty((len(person), self.width), np.float32), 0
        for k, own in pieces:
            out[begin : begin + len(own)] = self.arrays[k][own]
            begin += len(own)
        return {"image": torch.from_numpy(out), "image_person": torch.from_numpy(person)}

    def select(self, rows: Ints) -> SlideFeatures:
        """The features of the persons in ``rows`` (ascending)."""
        kept, _ = rows_of_items(self.person, rows)
        return replace(self, slides=self.slides.select(rows), arrays=tuple(self.arrays[k] for k in np.flatnonzero(kept)))

    def content(self) -> dict[str, bytes]:
        """Where the tiles are, the sums of their pixels, and the number of features; those follow from the slides and the study."""
        return {"slides": hashlib.sha256(self.slides.digest + f"features {self.width}".encode()).digest()}

    def sums(self, rows: Ints) -> npt.NDArray[np.float64]:
        """(3, width): count, sum and sum of squares over all tiles of the persons in ``rows``."""
        out = np.zeros((3, self.width))
        for k in np.flatnonzero(np.isin(self.person, rows)):
            values = self.arrays[k].astype(np.float64)
            out += np.stack([np.full(self.width, len(values)), values.sum(0), (values**2).sum(0)])
        return out


def read_features(slides: Slides, encoder: Encoder, *, cache: Path, say: Callable[[str], None], file: Path | None = None) -> SlideFeatures:
    """The features of ``slides``, from the cache or by the encoder, slide by slide.

    Args:
        cache: folder of the caches of features. say: is told how far a long computation is. file: the site's file of weights.

    Raises:
        InputError: a slide has changed or can no longer be read, or a feature is no finite number in half precision.
    """
    rules = slides.spec.model_dump_json(include={"size_px", "mpp", "min_tissue", "quality"})
    place = cache / hashlib.sha256(encoder.digest + rules.encode()).hexdigest()
    with suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(place)
        _evict(cache, place)
    arrays, checked, told = list[Half](), 0, time.monotonic()
    for number, slide in enumerate(slides.slides):
        key = hashlib.sha256(encoder.digest + slide.key.encode()).hexdigest()
        shape = len(slide.corners), encoder.width
        found = _load(place, key, shape, verify=checked <= SMALL)
        if found is None:
            if time.monotonic() - told > _SEVERAL:
                say(f"features of tiles: {number} of {len(slides.slides)} slides are ready")
                told = time.monotonic()
            found = _save(place, key, encoded(slide, slides.spec, encoder))
        checked += found.nbytes
        arrays.append(found)
    return SlideFeatures(slides, tuple(arrays), encoder.width, file)


def encoded(slide: SlideTissue, spec: Tiles, encoder: Encoder) -> Half:
    """The features of one slide's tiles: float16 (tiles, width)."""
    together = max(1, TOGETHER_PIXELS // spec.size_px**2)
    out, begin = np.empty((len(slide.corners), encoder.width), np.float16), 0
    for tiles in _stacked(read_tiles(slide, spec), together):
        out[begin : begin + len(tiles)] = encoder(tiles)
        begin += len(tiles)
    return out


def pool_features(parts: list[tuple[SlideFeatures | None, int]]) -> SlideFeatures:
    """Several sites' features, at least one of them with any; each with the number of its site's persons."""
    found = [features for features, _ in parts if features is not None]
    if len({features.width for features in found}) > 1:
        raise InputError("the sites' encoders give different numbers of features; use the encoder that the study pins.")
    slides = pool_slides([(None if features is None else features.slides, persons) for features, persons in parts])
    return SlideFeatures(slides, tuple(array for features in found for array in features.arrays), found[0].width, found[0].encoder)


# --- inside


def _stacked(tiles: Iterator[npt.NDArray[np.uint8]], together: int) -> Iterator[npt.NDArray[np.uint8]]:
    held = list[npt.NDArray[np.uint8]]()
    for tile in tiles:
        held.append(tile)
        if len(held) == together:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def _load(place: Path, key: str, shape: tuple[int, int], *, verify: bool) -> Half | None:
    """The features of a slide, mapped; None: they are not there, or are damaged and now deleted."""
    for path in place.glob(f"{key}-*.npy"):
        try:
            array: Half = np.load(path, mmap_mode="r", allow_pickle=False)
            right = array.shape == shape and array.dtype == np.float16
            if right and (not verify or _digest(array) == path.stem.partition("-")[2]):
                with suppress(OSError):
                    os.utime(path)
                return array
        except (OSError, ValueError, EOFError):
            pass
        with suppress(OSError):
            path.unlink()
    return None


def _save(place: Path, key: str, array: Half) -> Half:
    path = place / f"{key}-{_digest(array)}.npy"
    partial = place / f"{key}.{os.getpid()}.partial"
    try:
        try:
            with partial.open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        mapped: Half = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    except OSError:  # no such folder, or no space
        return array


def _digest(array: Half) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _evict(cache: Path, newest: Path) -> None:
    """Removes the least recently used folders beyond ``KEPT``, and what killed processes left of files in ``newest``."""
    others = sorted((p for p in cache.iterdir() if p.is_dir() and p != newest), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for place in others[KEPT - 1 :]:
        shutil.rmtree(place, ignore_errors=True)
    for path in newest.glob("*.npy"):
        if time.time() - path.stat().st_mtime > _STALE:
            path.unlink(missing_ok=True)
    for partial in newest.glob("*.partial"):
        pid = partial.suffixes[-2].removeprefix(".") if len(partial.suffixes) > 1 else ""
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            partial.unlink(missing_ok=True)
