"""A cohort's images after the deterministic part of their preprocessing, in half precision in one file that is mapped into memory.

    cache = open_cache(Path("cache"), Path("images"), items, spec, read, reader="nifti", say=print)
    cache.kept, cache.left_out                                   # which of items are in it; why the others are not
    cache.image(0), cache.mask(0)                                # float32 (channels, *size), uint8 or None; read from the disk here

An entry is a folder: ``image.bin`` (float16, one item after another), ``mask.bin`` (uint8), ``items.json`` (each item's key, shape and
SHA-256, or the reason why it is left out) and ``meta.json``. An item's key is the SHA-256 over the bytes of its files, the spec, the
reader and the libraries' versions; the entry's is that of all of them in order. It appears by one rename when it is whole; one that is
partial or damaged is made anew. Items that an older entry holds are copied, so a person more costs a person.

Intensities in 0..1 keep an error of at most 2^-12. Without a window raw numbers are kept to 11 binary digits: whole numbers to 2,048.
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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch

from fedml.cache_entries import SMALL, Say, Unwritable, clean, content_digests, evict, locked, publish, stamp_of, writing
from fedml.cohort.images.items import Item, Raw, Read
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.transforms import digest, prepared, spacing_after
from fedml.errors import InputError
from fedml.study.imaging import Preprocess

FORMAT = 2  # raise it when the layout changes
_EVERY = 2.0  # seconds between lines of progress


class _Kept(NamedTuple):
    key: str
    shape: tuple[int, ...]
    mask: tuple[int, ...]  # () without one
    sha256: str
    spacing: tuple[float, ...]  # mm along each axis; () where the file does not say


class _LeftOut(NamedTuple):
    key: str
    reason: Unusable
    text: str  # of the error; the k-th of the item's files stands as NUL k NUL, so that it names no file of another item


_Index = tuple[_Kept | _LeftOut, ...]


@final
class ImageCache:
    """A whole entry. ``kept`` (n,) int64 are the numbers of the items it holds, in their order, ``left_out`` the others and why in a code,
    ``texts`` in words; ``shapes`` are (channels, *size) of the kept, alike or not, ``spacings`` mm along each axis, () where it is not
    known. Images and masks are asked for by place in ``kept``.
    """

    def __init__(self, place: Path, index: _Index, texts: Mapping[int, str]) -> None:
        kept = [(at, entry) for at, entry in enumerate(index) if isinstance(entry, _Kept)]
        self.kept = np.array([at for at, _ in kept], dtype=np.int64)
        self.left_out = {at: entry.reason for at, entry in enumerate(index) if isinstance(entry, _LeftOut)}
        self.texts = dict(texts)
        self.shapes = tuple(entry.shape for _, entry in kept)
        self.mask_shapes = tuple(entry.mask for _, entry in kept)
        self.spacings = tuple(entry.spacing for _, entry in kept)
        self._place, self._index = place, index
        self._images = _mapped(place / "image.bin", torch.float16, self.shapes)
        self._masks = _mapped(place / "mask.bin", torch.uint8, self.mask_shapes)

    def __len__(self) -> int:
        return len(self.kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache, (self._place, self._index, self.texts)  # a worker maps the file itself

    def content(self, at: int) -> str:
        """SHA-256, hexadecimal, of what is kept of item ``kept[at]``: image and mask."""
        entry = self._index[int(self.kept[at])]
        return entry.sha256 if isinstance(entry, _Kept) else ""

    def source(self, at: int) -> str:
        """Key of item ``kept[at]``, hexadecimal: of the bytes of its files (mask too), the preprocessing, the reader, versions."""
        return self._index[int(self.kept[at])].key

    def image(self, at: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Item ``kept[at]``: float32 (channels, *size) in new memory, or written to ``out`` of that shape."""
        return torch.empty(self.shapes[at]).copy_(self._images[at]) if out is None else out.copy_(self._images[at])

    def mask(self, at: int, out: torch.Tensor | None = None) -> torch.Tensor | None:
        """Its mask: uint8 (channels of the mask, *size) in new memory, or written to ``out``; None where the item has none."""
        if not self.mask_shapes[at]:
            return None
        return self._masks[at].clone() if out is None else out.copy_(self._masks[at])


Make = Callable[[Preprocess, Raw], tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]]
_Finish = Callable[[Raw], tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]]


def _made(spec: Preprocess, raw: Raw) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    return prepared(spec, raw.image, raw.affine, raw.mask)


class CannotKeep(InputError):
    """The cache's folder cannot be written, or does not give back what was written."""


def open_cache(
    folder: Path,
    source: Path,
    items: Sequence[Item],
    spec: Preprocess,
    read: Read,
    reader: str,
    say: Say = lambda line: None,
    make: Make = _made,
) -> ImageCache:
    """The entry of these items, from ``folder``; made and kept there if it is not. Of two processes that want the same, one waits.

    An item that cannot be used is left out with its reason, whatever is wrong with it, but for an ``InputError``, which ends the making.
    That is remembered with the item's bytes, so it is tried again when a file or ``reader`` has changed. Memory: one item at a time.

    Args:
        folder: made if it is not there, for its owner alone: it holds what the images hold.
        source: what the items are of, such as the images' folder; the two entries of it that were used last are kept.
        spec: with its window settled.
        read: an item's raw image; raises ``ItemError`` with the reason.
        make: what is kept of a raw image, as image and mask.
        reader: the name of ``read`` (and of ``make``), and whatever else its result depends on, such as versions of decoders.

    Raises:
        CannotKeep: the folder cannot be written.
        InputError: a file changes while it is read.
        ValueError: ``percentiles`` of the spec are not settled.
    """
    if spec.percentiles:
        raise ValueError("percentiles are settled by the server: take windowed(spec, low, high)")
    try:
        with writing():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(folder)
        digests = content_digests(folder, sorted({f.resolve() for item in items for f in item.files if _readable(f)}), say)
        keys = [_item_key(item, digests, spec, reader) for item in items]
        key = _sha256(keys)
        place = folder / f"{_sha256([str(source.resolve())])[:12]}-{key[:32]}"
        cache = _open(place, key, items)
        if cache is None:
            with locked(place.with_suffix(".lock"), say):
                cache = _open(place, key, items)  # another process may have made it meanwhile
                if cache is None:
                    _make(place, key, source, _results(folder, place, items, keys, partial(make, spec), spec, read, say), digests)
                    cache = _open(place, key, items)
                    evict(folder, place)
    except Unwritable as error:
        raise CannotKeep(f"{folder}: cannot be written ({error}); free space there, or name another cache folder.") from error
    if cache is None:
        raise CannotKeep(f"{folder}: what was written reads back otherwise; look at the disk, or name another cache folder.")
    with suppress(OSError):
        os.utime(place / "meta.json")  # when it was last used
    return cache


# --- keys


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False


def _item_key(item: Item, digests: Mapping[Path, tuple[str, list[int]]], spec: Preprocess, reader: str) -> str:
    content = [digests[path][0] if (path := file.resolve()) in digests else "unreadable" for file in item.files]
    versions = [importlib.metadata.version(package) for package in ("monai", "torch", "numpy")]
    return _sha256([FORMAT, content, item.part, digest(spec), reader, versions])


# --- reading an entry


def _mapped(path: Path, kind: torch.dtype, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """The file's items as tensors; none of it is read. An item without a shape is an empty tensor."""
    counts = [math.prod(shape) if shape else 0 for shape in shapes]
    if not sum(counts):
        return [torch.empty(0, dtype=kind) for _ in shapes]
    values = np.asarray(np.memmap(path, np.float16 if kind is torch.float16 else np.uint8, "r", shape=(sum(counts),)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only: what is given out is a copy
        whole = torch.from_numpy(values)
    return [part.view(shape or (0,)) for part, shape in zip(torch.split(whole, counts), shapes, strict=True)]


def _read_index(place: Path) -> tuple[dict[str, Any], _Index]:
    """What ``meta.json`` and ``items.json`` say.

    Raises:
        OSError, ValueError, LookupError, TypeError: they are not there or damaged.
    """
    meta = json.loads((place / "meta.json").read_bytes())
    text = (place / "items.json").read_bytes()
    if hashlib.sha256(text).hexdigest() != meta["items_sha256"]:
        raise ValueError("items.json is damaged")
    index: list[_Kept | _LeftOut] = []
    for entry in json.loads(text):
        if len(entry) == 3:
            index.append(_LeftOut(str(entry[0]), Unusable(entry[1]), str(entry[2])))
        else:
            key, shape, mask, sha256, spacing = entry
            index.append(_Kept(str(key), tuple(map(int, shape)), tuple(map(int, mask)), str(sha256), tuple(map(float, spacing))))
    sizes = _sizes(index)
    if sizes != ((place / "image.bin").stat().st_size, (place / "mask.bin").stat().st_size):
        raise ValueError("image.bin or mask.bin has another length")
    return meta, tuple(index)


def _open(place: Path, key: str, items: Sequence[Item]) -> ImageCache | None:
    """The entry, or None if it is not there or is damaged; of a large one, lengths and lists are looked at, as of a genotype table."""
    try:
        meta, index = _read_index(place)
        if meta["key"] != key:
            return None
        texts = {at: _named(entry.text, items[at]) for at, entry in enumerate(index) if isinstance(entry, _LeftOut)}
        return ImageCache(place, index, texts) if sum(_sizes(index)) > SMALL or _whole(place, index) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _sizes(index: Sequence[_Kept | _LeftOut]) -> tuple[int, int]:
    """Bytes of ``image.bin`` and ``mask.bin``."""
    kept = [entry for entry in index if isinstance(entry, _Kept)]
    return sum(2 * math.prod(k.shape) for k in kept), sum(math.prod(k.mask) for k in kept if k.mask)


def _whole(place: Path, index: _Index) -> bool:
    """Are all bytes those that were written?"""
    with (place / "image.bin").open("rb") as images, (place / "mask.bin").open("rb") as masks:
        for entry in index:
            if isinstance(entry, _Kept):
                image, mask = _sizes([entry])
                if _content(images.read(image), masks.read(mask)) != entry.sha256:
                    return False
    return True


def _content(image: bytes, mask: bytes) -> str:
    sha256 = hashlib.sha256(image)
    sha256.update(mask)
    return sha256.hexdigest()


# --- making an entry

_Result = tuple[_Kept | _LeftOut, bytes, bytes]


def _results(
    folder: Path, place: Path, items: Sequence[Item], keys: Sequence[str], make: _Finish, spec: Preprocess, read: Read, say: Say
) -> Iterator[_Result]:
    """Each item in order: copied from an older entry, or read and prepared."""
    older = _Older(folder, place.name.split("-")[0], set(keys))
    said, copied = time.monotonic(), 0
    for at, (item, key) in enumerate(zip(items, keys, strict=True)):
        known = older.find(key)
        yield known or _prepare(item, key, make, spec, read, say)
        copied += known is not None
        if time.monotonic() - said >= _EVERY:
            say(f"images: {at + 1:,} of {len(items):,} prepared, {copied:,} of them copied from an older cache")
            said = time.monotonic()


class _Older:
    """Items of the entries that are there of a source, by key; a damaged item is as if it were not there."""

    def __init__(self, folder: Path, source: str, wanted: set[str]) -> None:
        self._found: dict[str, tuple[Path, _Kept | _LeftOut, int, int]] = {}
        for place in folder.glob(f"{source}-*"):
            try:
                index = _read_index(place)[1]
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue
            image_at = mask_at = 0
            for entry in index:
                if entry.key in wanted:
                    self._found[entry.key] = place, entry, image_at, mask_at
                image, mask = _sizes([entry])
                image_at, mask_at = image_at + image, mask_at + mask

    def find(self, key: str) -> _Result | None:
        """The item, or None."""
        if key not in self._found:
            return None
        place, entry, image_at, mask_at = self._found[key]
        if isinstance(entry, _LeftOut):
            return entry, b"", b""
        sizes = _sizes([entry])
        try:
            with (place / "image.bin").open("rb") as images, (place / "mask.bin").open("rb") as masks:
                images.seek(image_at)
                masks.seek(mask_at)
                image, mask = images.read(sizes[0]), masks.read(sizes[1])
        except OSError:
            return None
        return (entry, image, mask) if _content(image, mask) == entry.sha256 else None


def _prepare(item: Item, key: str, make: _Finish, spec: Preprocess, read: Read, say: Say) -> _Result:
    try:
        raw = read(item)
        image, mask = make(raw)
        spacing = spacing_after(spec, raw.affine, raw.image.ndim - 1)
        with np.errstate(over="ignore"):
            half = image.astype(np.float16)
        if not np.isfinite(half).all():
            raise ItemError(Unusable.NON_FINITE, "holds numbers beyond half precision; give the study a window")
    except ItemError as error:
        say(f"{item.name}: left out as {error.reason} ({error})")
        return _LeftOut(key, error.reason, _unnamed(str(error), item)), b"", b""
    except InputError:
        raise
    except Exception as error:  # a decoder raises whatever it likes on a broken file
        reason = Unusable.TOO_LARGE if isinstance(error, MemoryError) else Unusable.UNREADABLE
        say(f"{item.name}: left out as {reason} ({type(error).__name__}: {error})")
        return _LeftOut(key, reason, _unnamed(f"{type(error).__name__}: {error}", item)), b"", b""
    known = tuple(spacing.tolist()) if np.isfinite(spacing).all() else ()
    parts = half.tobytes(), b"" if mask is None else mask.tobytes()
    return (_Kept(key, half.shape, () if mask is None else mask.shape, _content(*parts), known), *parts)


def _unnamed(text: str, item: Item) -> str:
    for k, file in enumerate(item.files):
        text = text.replace(str(file), f"\0{k}\0")
    return text


def _named(text: str, item: Item) -> str:
    for k, file in enumerate(item.files):
        text = text.replace(f"\0{k}\0", str(file))
    return text


def _make(place: Path, key: str, source: Path, results: Iterator[_Result], digests: Mapping[Path, tuple[str, list[int]]]) -> None:
    """Makes the entry in a folder beside its place and renames it; leaves nothing behind if it cannot."""
    beside = place.with_suffix(".partial")
    try:
        with writing():
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(mode=0o700)
            images, masks = (beside / "image.bin").open("wb"), (beside / "mask.bin").open("wb")
        index: list[_Kept | _LeftOut] = []
        with writing(), images, masks:
            for entry, image, mask in results:  # an item's own OSError has become its reason
                images.write(image)
                masks.write(mask)
                index.append(entry)
        for path, (_, stamp) in digests.items():
            if not path.exists() or stamp_of(path) != stamp:
                raise InputError(f"{path}: changed while it was read; start again when it is whole.")
        with writing():
            (beside / "items.json").write_text(json.dumps(index))
            items_sha256 = hashlib.sha256((beside / "items.json").read_bytes()).hexdigest()
            (beside / "meta.json").write_text(json.dumps({"key": key, "source": str(source.resolve()), "items_sha256": items_sha256}))
            publish(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
