"""Caches a cohort's images after deterministic preprocessing in one memory-mapped file.

    cache = open_cache(Path("cache"), Path("images"), items, spec, Reader(read, "nifti"), say=print)
    cache.kept, cache.excluded                                   # which of items are in it; why the others are not
    cache.image(0), cache.mask(0)                                # float32 (channels, *size), uint8 or None; read from the disk here

A cache entry is a folder: ``image.bin`` (items in order, half precision if a window bounds them, else float32), ``mask.bin`` (uint8),
``items.json`` (each item's key, shape and SHA-256, or the reason of its exclusion) and ``meta.json``. An item's key is the SHA-256 over
the bytes of its files, the spec, the reader and the libraries' versions; the entry's key is the SHA-256 over all item keys in order. An
entry is published by one rename when it is complete; a partial or damaged entry is rebuilt. Items are copied from older entries, so adding
a person costs the preprocessing of one person.

``fedml.cohort.images.precision`` says which type and why.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch

from fedml.cache_entries import SMALL, Say, Unwritable, clean, content_digests, evict, locked, publish, resolved, stamp_of, writing
from fedml.cohort.images.items import Item, Raw, Read
from fedml.cohort.images.parallel import cost_of, in_order
from fedml.cohort.images.precision import kept_type
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.transforms import digest, prepared, spacing_after
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.imaging import Preprocess

FORMAT = 3  # increment when the layout changes
_LOG_EVERY_SECONDS = 2.0


class _Kept(NamedTuple):
    key: str
    shape: tuple[int, ...]
    mask: tuple[int, ...]  # shape of the mask, () without a mask
    sha256: str
    spacing: tuple[float, ...]  # mm along each axis; () if unknown


class _Excluded(NamedTuple):
    key: str
    reason: Unusable
    text: str  # of the error; NUL k NUL stands for the path of the item's k-th file, because an identical item may have other paths


_Index = tuple[_Kept | _Excluded, ...]


@final
class ImageCache:
    """A complete cache entry. ``kept`` (n,) int64: indices of the cached items, in order; ``excluded``: index of an excluded item -> reason
    code; ``texts``: index -> error text. ``shapes``: (channels, *size) of each cached item; ``spacings``: mm along each axis, () if
    unknown. ``image`` and ``mask`` take an index into ``kept``.
    """

    def __init__(self, place: Path, index: _Index, kind: np.dtype[Any], texts: Mapping[int, str]) -> None:
        kept = [(at, entry) for at, entry in enumerate(index) if isinstance(entry, _Kept)]
        self.kept = np.array([at for at, _ in kept], dtype=np.int64)
        self.excluded = {at: entry.reason for at, entry in enumerate(index) if isinstance(entry, _Excluded)}
        self.texts = dict(texts)
        self.shapes = tuple(entry.shape for _, entry in kept)
        self.mask_shapes = tuple(entry.mask for _, entry in kept)
        self.spacings = tuple(entry.spacing for _, entry in kept)
        self._place, self._index, self._kind = place, index, kind
        self._images = _mapped(place / "image.bin", kind, self.shapes)
        self._masks = _mapped(place / "mask.bin", np.dtype(np.uint8), self.mask_shapes)

    def __len__(self) -> int:
        return len(self.kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache, (self._place, self._index, self._kind, self.texts)  # each worker process maps the file itself

    def content(self, at: int) -> str:
        """SHA-256, hexadecimal, of the cached image and mask of item ``kept[at]``."""
        entry = self._index[int(self.kept[at])]
        return entry.sha256 if isinstance(entry, _Kept) else ""

    def source(self, at: int) -> str:
        """Key of item ``kept[at]``, hexadecimal: depends on the bytes of its files (mask included), the preprocessing, reader and
        versions."""
        return self._index[int(self.kept[at])].key

    def image(self, at: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Item ``kept[at]``: float32 (channels, *size) in new memory, or written to ``out`` of that shape."""
        return torch.empty(self.shapes[at]).copy_(self._images[at]) if out is None else out.copy_(self._images[at])

    def part(self, at: int, box: tuple[slice, ...] = (), *, masks: bool = False) -> torch.Tensor:
        """The part of item ``kept[at]`` in ``box``: float32 (channels, *size of the box), of its mask uint8, in new memory."""
        values = (self._masks if masks else self._images)[at][(slice(None), *box)]
        return values.clone() if masks else values.float()

    def mask(self, at: int, out: torch.Tensor | None = None) -> torch.Tensor | None:
        """Its mask: uint8 (channels of the mask, *size) in new memory, or written to ``out``; None where the item has none."""
        if not self.mask_shapes[at]:
            return None
        return self._masks[at].clone() if out is None else out.copy_(self._masks[at])


Make = Callable[[Preprocess, Raw], tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]]


def _prepared(spec: Preprocess, raw: Raw) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    return prepared(spec, raw.image, raw.affine, raw.mask)


@dataclass(frozen=True)
class Reader:
    """How an item becomes the cached image and mask.

    Args:
        read: returns an item's raw image; raises ``ItemError`` with the reason.
        name: of ``read`` (and of ``make``) and every other dependency of its result, such as versions of decoders.
        make: computes the cached image and mask from a raw image.
    """

    read: Read
    name: str
    make: Make = _prepared


class CannotKeep(InputError):
    """The cache folder cannot be written, or the data read back differ from the data written."""


def open_cache(
    folder: Path,
    source: Path,
    items: Sequence[Item],
    spec: Preprocess,
    reader: Reader,
    say: Say = lambda line: None,
) -> ImageCache:
    """The cache entry of these items in ``folder``; a missing entry is built. If two processes need the same entry, one waits.

    An unusable item is excluded with its reason; only an ``InputError`` stops the build. The exclusion is cached under the item's key, so
    the item is read again when a file or ``reader.name`` changes. Memory: a few items at a time (``parallel``).

    Args:
        folder: created with mode 0700 if it does not exist, because it contains the same personal data as the images.
        source: the items' origin, such as the images' folder; the two most recently used entries of a source are kept.
        spec: with a window instead of percentiles.

    Raises:
        CannotKeep: the folder cannot be written.
        InputError: a file changes while it is read.
        ValueError: the spec still has ``percentiles``.
    """
    if spec.percentiles:
        raise ValueError("the server computes the window of percentiles: use windowed(spec, low, high)")
    try:
        with writing():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(folder)
        real = resolved(file for item in items for file in item.files)
        digests = content_digests(folder, sorted(set(real.values())), say)
        keys = [_item_key(item, real, digests, digest(spec), reader.name) for item in items]
        key = _sha256(keys)
        place = folder / f"{_sha256([str(source.resolve())])[:12]}-{key[:32]}"
        cache = _open(place, key, items)
        if cache is None:
            with locked(place.with_suffix(".lock"), say):
                cache = _open(place, key, items)  # another process may have built it before this one got the lock
                if cache is None:
                    _make(place, key, source, _results(place, items, keys, spec, reader, say), digests, kept_type(spec))
                    cache = _open(place, key, items)
                    evict(folder, place)
    except Unwritable as error:
        raise CannotKeep(f"{folder}: cannot be written ({error}); free disk space or set another cache folder.") from error
    if cache is None:
        raise CannotKeep(f"{folder}: the data read back differ from the data written; check the disk or set another cache folder.")
    with suppress(OSError):
        os.utime(place / "meta.json")  # records the time of last use
    return cache


# --- keys


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _item_key(item: Item, real: Mapping[Path, Path], digests: Mapping[Path, tuple[str, list[int]]], spec: str, reader: str) -> str:
    content = [digests[real[file]][0] if file in real else "unreadable" for file in item.files]
    return _sha256([FORMAT, content, item.part, spec, reader, _versions()])


@lru_cache(maxsize=1)
def _versions() -> list[str]:
    return [importlib.metadata.version(package) for package in ("monai", "torch", "numpy")]


# --- reading an entry


def _mapped(path: Path, kind: np.dtype[Any], shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """The file's items as memory-mapped tensors. An item without a shape is an empty tensor."""
    counts = [math.prod(shape) if shape else 0 for shape in shapes]
    if not sum(counts):
        return [torch.from_numpy(np.empty(0, kind)) for _ in shapes]
    values = np.asarray(np.memmap(path, kind, "r", shape=(sum(counts),)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only: what is given out is a copy
        whole = torch.from_numpy(values)
    return [part.view(shape or (0,)) for part, shape in zip(torch.split(whole, counts), shapes, strict=True)]


def _read_index(place: Path) -> tuple[dict[str, Any], _Index]:
    """The contents of ``meta.json`` and ``items.json``.

    Raises:
        OSError, ValueError, LookupError, TypeError: a file is missing or damaged.
    """
    meta = json.loads((place / "meta.json").read_bytes())
    text = (place / "items.json").read_bytes()
    if hashlib.sha256(text).hexdigest() != meta["items_sha256"]:
        raise ValueError("items.json is damaged")
    index: list[_Kept | _Excluded] = []
    for entry in json.loads(text):
        if len(entry) == 3:
            index.append(_Excluded(str(entry[0]), Unusable(entry[1]), str(entry[2])))
        else:
            key, shape, mask, sha256, spacing = entry
            index.append(_Kept(str(key), tuple(map(int, shape)), tuple(map(int, mask)), str(sha256), tuple(map(float, spacing))))
    sizes = _sizes(index, _kind_of(meta))
    if sizes != ((place / "image.bin").stat().st_size, (place / "mask.bin").stat().st_size):
        raise ValueError("image.bin or mask.bin does not have the length that items.json gives")
    return meta, tuple(index)


def _open(place: Path, key: str, items: Sequence[Item]) -> ImageCache | None:
    """The entry, or None if it is missing or damaged. Checksums are verified for entries up to ``SMALL`` bytes, lengths for all."""
    try:
        meta, index = _read_index(place)
        if meta["key"] != key:
            return None
        texts = {at: items[at].named(entry.text) for at, entry in enumerate(index) if isinstance(entry, _Excluded)}
        kind = _kind_of(meta)
        return ImageCache(place, index, kind, texts) if sum(_sizes(index, kind)) > SMALL or _whole(place, index, kind) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _kind_of(meta: Mapping[str, Any]) -> np.dtype[Any]:
    return np.dtype({"float16": np.float16, "float32": np.float32}[meta["type"]])


def _sizes(index: Sequence[_Kept | _Excluded], kind: np.dtype[Any]) -> tuple[int, int]:
    """Bytes of ``image.bin`` and ``mask.bin``."""
    kept = [entry for entry in index if isinstance(entry, _Kept)]
    return sum(kind.itemsize * math.prod(k.shape) for k in kept), sum(math.prod(k.mask) for k in kept if k.mask)


def _whole(place: Path, index: _Index, kind: np.dtype[Any]) -> bool:
    """True if the SHA-256 of every item equals the recorded one."""
    with (place / "image.bin").open("rb") as images, (place / "mask.bin").open("rb") as masks:
        for entry in index:
            if isinstance(entry, _Kept):
                image, mask = _sizes([entry], kind)
                if _content(images.read(image), masks.read(mask)) != entry.sha256:
                    return False
    return True


def _content(image: bytes, mask: bytes) -> str:
    sha256 = hashlib.sha256(image)
    sha256.update(mask)
    return sha256.hexdigest()


# --- making an entry

_Result = tuple[_Kept | _Excluded, bytes, bytes]


def _results(place: Path, items: Sequence[Item], keys: Sequence[str], spec: Preprocess, reader: Reader, say: Say) -> Iterator[_Result]:
    """Each item in order, copied from an older entry or read and preprocessed."""
    older = _Older(place.parent, place.name.split("-")[0], set(keys))
    logged, copied = time.monotonic(), 0

    def one(pair: tuple[Item, str]) -> tuple[_Result, bool]:
        known = older.find(pair[1])
        return known or _prepare(*pair, spec, reader, say), known is not None

    pairs, threads = list(zip(items, keys, strict=True)), 1 if spec.transforms else None  # own code need not be safe in threads
    for at, (result, known) in enumerate(in_order(pairs, one, lambda pair: cost_of(pair[0].files), threads=threads)):
        yield result
        copied += known
        if time.monotonic() - logged >= _LOG_EVERY_SECONDS:
            say(f"images: {at + 1:,} of {len(items):,} prepared, {copied:,} of them copied from an older cache entry")
            logged = time.monotonic()


class _Older:
    """Items in the existing entries of a source, by key; damaged items are ignored."""

    def __init__(self, folder: Path, source: str, wanted: set[str]) -> None:
        self._found: dict[str, tuple[Path, _Kept | _Excluded, tuple[int, int], tuple[int, int]]] = {}
        for place in folder.glob(f"{source}-*"):
            try:
                meta, index = _read_index(place)
                kind = _kind_of(meta)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue
            image_at = mask_at = 0
            for entry in index:
                image, mask = _sizes([entry], kind)
                if entry.key in wanted:
                    self._found[entry.key] = place, entry, (image_at, mask_at), (image, mask)
                image_at, mask_at = image_at + image, mask_at + mask

    def find(self, key: str) -> _Result | None:
        """The item, or None."""
        if key not in self._found:
            return None
        place, entry, starts, sizes = self._found[key]
        if isinstance(entry, _Excluded):
            return entry, b"", b""
        try:
            with (place / "image.bin").open("rb") as images, (place / "mask.bin").open("rb") as masks:
                images.seek(starts[0])
                masks.seek(starts[1])
                image, mask = images.read(sizes[0]), masks.read(sizes[1])
        except OSError:
            return None
        return (entry, image, mask) if _content(image, mask) == entry.sha256 else None


def _prepare(item: Item, key: str, spec: Preprocess, reader: Reader, say: Say) -> _Result:
    try:
        raw = reader.read(item)
        image, mask = reader.make(spec, raw)
        spacing = spacing_after(spec, raw.affine, raw.image.ndim - 1)
        values = image.astype(kept_type(spec))
    except ItemError as error:
        say(f"{item.name}: excluded as {error.reason} ({error})")
        return _Excluded(key, error.reason, item.unnamed(str(error))), b"", b""
    except InputError:
        raise
    except Exception as error:  # decoders raise exceptions of any class on damaged files
        reason = Unusable.TOO_LARGE if isinstance(error, MemoryError) else Unusable.UNREADABLE
        say(f"{item.name}: excluded as {reason} ({told(error)})")
        return _Excluded(key, reason, told(error)), b"", b""
    known = tuple(spacing.tolist()) if np.isfinite(spacing).all() else ()
    parts = values.tobytes(), b"" if mask is None else mask.tobytes()
    return (_Kept(key, values.shape, () if mask is None else mask.shape, _content(*parts), known), *parts)


def _make(
    place: Path, key: str, source: Path, results: Iterator[_Result], digests: Mapping[Path, tuple[str, list[int]]], kind: type[Any]
) -> None:
    """Writes the entry in a ``.partial`` folder and renames it; removes the partial folder if writing fails."""
    temporary = place.with_suffix(".partial")
    try:
        with writing():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(mode=0o700)
            images, masks = (temporary / "image.bin").open("wb"), (temporary / "mask.bin").open("wb")
        index: list[_Kept | _Excluded] = []
        with writing(), images, masks:
            for entry, image, mask in results:  # an OSError of an item's files was already converted to its reason
                images.write(image)
                masks.write(mask)
                index.append(entry)
        for path, (_, stamp) in digests.items():
            if not path.exists() or stamp_of(path) != stamp:
                raise InputError(f"{path}: changed while it was read; start again when the file is complete.")
        with writing():
            (temporary / "items.json").write_text(json.dumps(index))
            items_sha256 = hashlib.sha256((temporary / "items.json").read_bytes()).hexdigest()
            about = {"key": key, "source": str(source.resolve()), "type": np.dtype(kind).name, "items_sha256": items_sha256}
            (temporary / "meta.json").write_text(json.dumps(about))
            publish(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
