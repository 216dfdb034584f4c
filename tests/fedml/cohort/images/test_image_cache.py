"""The image cache: its content, its exclusions, and that a damaged or incomplete entry is rebuilt."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedml.cohort.images.cache import ImageCache, Reader, open_cache
from fedml.cohort.images.items import Item, Raw
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.transforms import prepared
from fedml.errors import InputError
from fedml.study.imaging import Preprocess
from tests.command import ROOT

SPEC = Preprocess(spacing_mm=(1.0, 1.0, 2.0), window=(0.0, 200.0))
HALF = 2**-12  # half of the distance between neighbours just below 1


class Cohort:
    """``count`` volumes on disk, each of its own size, with masks for those whose number is even; counts what is read."""

    def __init__(self, folder: Path, count: int = 5) -> None:
        self.folder, self.read_names = folder / "images", list[str]()
        self.folder.mkdir()
        for k in range(count):
            self.write(k)

    def write(self, k: int, seed: int | None = None) -> None:
        rng = np.random.default_rng(k if seed is None else seed)
        shape = (8 + k, 10, 6 + k)
        mask = {} if k % 2 else {"mask": rng.integers(0, 3, (1, *shape))}
        np.savez(self.folder / f"p{k}.npz", image=rng.uniform(-50, 250, (1, *shape)), **mask)

    @property
    def items(self) -> list[Item]:
        return [Item(path.stem, (path,)) for path in sorted(self.folder.glob("*.npz"))]

    def read(self, item: Item) -> Raw:
        self.read_names.append(item.name)
        with np.load(item.files[0], allow_pickle=False) as arrays:
            if "reason" in arrays:
                raise ItemError(Unusable(str(arrays["reason"])), f"{item.files[0]}: as it says itself")
            return Raw(arrays["image"], np.eye(4), arrays.get("mask"))

    def open(self, folder: Path, spec: Preprocess = SPEC, **changes: Any) -> ImageCache:
        self.read_names.clear()
        own = {"items": self.items, "read": self.read, "reader": "npz", **changes}
        return open_cache(folder, self.folder, own.pop("items"), spec, Reader(own.pop("read"), own.pop("reader")), **own)

    def prepared(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        raw = self.read(Item(name, (self.folder / f"{name}.npz",)))
        return prepared(SPEC, raw.image, raw.affine, raw.mask)


def entry_of(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.is_dir())


def test_it_holds_what_the_transforms_give(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    cache = cohort.open(tmp_path / "cache")
    assert list(cache.kept) == [0, 1, 2, 3, 4]
    assert cache.excluded == {}
    assert len(set(cache.shapes)) == 5
    for at in range(5):
        image, mask = cohort.prepared(f"p{at}")
        mine, labels = cache.image(at), cache.mask(at)
        assert mine.dtype == torch.float32
        assert tuple(mine.shape) == cache.shapes[at] == image.shape
        assert np.abs(mine.numpy() - image).max() <= HALF
        assert (labels is None) == (mask is None)
        if labels is not None and mask is not None:
            assert labels.dtype == torch.uint8
            np.testing.assert_array_equal(labels.numpy(), mask)
    place = entry_of(tmp_path / "cache")
    assert (place / "image.bin").stat().st_size == 2 * sum(int(np.prod(shape)) for shape in cache.shapes)
    assert place.parent.stat().st_mode & 0o077 == 0


def test_a_second_start_reads_no_image(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    first = cohort.open(tmp_path / "cache").image(2)
    again = cohort.open(tmp_path / "cache")
    assert cohort.read_names == []
    assert torch.equal(again.image(2), first)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, ImageCache]:
    folder = tmp_path_factory.mktemp("shared")
    cohort = Cohort(folder)
    return cohort, cohort.open(folder / "cache")


def test_an_image_is_new_memory(shared: tuple[Cohort, ImageCache]) -> None:
    cache = shared[1]
    before = cache.image(0)
    cache.image(0).zero_()
    assert torch.equal(cache.image(0), before)
    mask = cache.mask(0)
    assert mask is not None
    assert mask.any()
    kept = mask.clone()
    mask.zero_()
    assert torch.equal(cache.mask(0), kept)


def test_an_image_is_written_where_it_is_wanted(shared: tuple[Cohort, ImageCache]) -> None:
    cache = shared[1]
    image, mask = torch.full(cache.shapes[2], torch.nan), torch.full(cache.mask_shapes[2], 9, dtype=torch.uint8)
    assert cache.image(2, image) is image
    assert cache.mask(2, mask) is mask
    assert torch.equal(image, cache.image(2))
    assert torch.equal(mask, cache.mask(2))
    assert cache.mask(1, mask) is None


def test_broken_items_are_excluded_and_cached(tmp_path: Path) -> None:
    cohort, said = Cohort(tmp_path), list[str]()
    (cohort.folder / "p1.npz").write_bytes(b"no zip")
    np.savez(cohort.folder / "p3.npz", reason="gap")
    np.savez(cohort.folder / "p4.npz", image=np.full((1, 4, 4, 4), np.inf))
    items = [*cohort.items, Item("gone", (cohort.folder / "gone.npz",))]
    cache = cohort.open(tmp_path / "cache", items=items, say=said.append)
    assert list(cache.kept) == [0, 2]
    expected = {1: Unusable.UNREADABLE, 3: Unusable.GAP, 4: Unusable.NON_FINITE, 5: Unusable.UNREADABLE}
    assert cache.excluded == expected
    assert np.abs(cache.image(1).numpy() - cohort.prepared("p2")[0]).max() <= HALF
    assert sum("excluded as gap" in line and "as it says itself" in line for line in said) == 1
    again = cohort.open(tmp_path / "cache", items=items)
    assert again.excluded == expected
    assert cohort.read_names == []
    cohort.write(1)  # it is repaired
    assert list(cohort.open(tmp_path / "cache", items=items).kept) == [0, 1, 2]
    assert cohort.read_names == ["p1"]


def test_all_items_broken_is_an_empty_cache(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 1)
    (cohort.folder / "p0.npz").write_bytes(b"")
    cache = cohort.open(tmp_path / "cache")
    assert len(cache) == 0
    assert cache.excluded == {0: Unusable.UNREADABLE}


def test_values_are_kept_whole_unless_a_window_bounds_them(tmp_path: Path) -> None:
    """A T1 map has fractions of a ms that half precision drops, a PET more Bq/ml than it can hold: without a window both stay float32."""
    cohort = Cohort(tmp_path, 2)
    random = np.random.default_rng(1)
    relaxation = (1000 + random.random((1, 16, 16, 8))).astype(np.float32)
    activity = (1e6 * random.random((1, 16, 16, 8))).astype(np.float32)
    for name, image in (("p0", relaxation), ("p1", activity)):
        np.savez(cohort.folder / f"{name}.npz", image=image)
    raw = cohort.open(tmp_path / "cache", Preprocess())
    assert raw.excluded == {}
    np.testing.assert_array_equal(raw.image(0), relaxation)
    np.testing.assert_array_equal(raw.image(1), activity)
    held = cohort.open(tmp_path / "cache", Preprocess(window=(0.0, 1e6)))
    assert np.abs(held.image(1).numpy() - activity / 1e6).max() <= 2**-12
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache").glob("*/image.bin"))
    assert sizes == [2 * 2 * 16 * 16 * 8, 2 * 4 * 16 * 16 * 8]


def test_a_key_covers_bytes_spec_reader_and_order(tmp_path: Path) -> None:
    cohort, folder = Cohort(tmp_path, 3), tmp_path / "cache"
    cohort.open(folder)
    cohort.open(folder, Preprocess(window=(0.0, 201.0)))
    assert sorted(cohort.read_names) == ["p0", "p1", "p2"]
    cohort.open(folder, reader="npz 2")
    assert sorted(cohort.read_names) == ["p0", "p1", "p2"]
    before = (cohort.folder / "p1.npz").stat()
    cohort.write(1, seed=99)
    os.utime(cohort.folder / "p1.npz", ns=(before.st_atime_ns, before.st_mtime_ns))
    cache = cohort.open(folder, reader="npz 2")
    assert cohort.read_names == ["p1"]
    assert np.abs(cache.image(1).numpy() - cohort.prepared("p1")[0]).max() <= HALF
    turned = cohort.open(folder, reader="npz 2", items=cohort.items[::-1])
    assert cohort.read_names == []  # copied
    assert torch.equal(turned.image(0), cache.image(2))
    assert sum(path.is_dir() for path in folder.iterdir()) == 2  # the rest has been put away


def test_a_person_more_costs_a_person(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 4)
    before = cohort.open(tmp_path / "cache")
    images = [before.image(k) for k in range(4)]
    cohort.write(7)
    cache = cohort.open(tmp_path / "cache")
    assert cohort.read_names == ["p7"]
    assert all(torch.equal(cache.image(k), images[k]) for k in range(4))
    assert np.abs(cache.image(4).numpy() - cohort.prepared("p7")[0]).max() <= HALF


def flip(name: str) -> Callable[[Path], None]:
    def harm(place: Path) -> None:
        data = bytearray((place / name).read_bytes())
        data[len(data) // 2] ^= 1
        (place / name).write_bytes(data)

    return harm


def cut(name: str) -> Callable[[Path], None]:
    return lambda place: os.truncate(place / name, (place / name).stat().st_size - 1)


def put(name: str, text: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_text(text)


HARMS = [flip(n) for n in ("image.bin", "mask.bin", "items.json")] + [cut(n) for n in ("image.bin", "mask.bin", "items.json", "meta.json")]
HARMS += [lambda place, n=n: (place / n).unlink() for n in ("image.bin", "mask.bin", "items.json", "meta.json")]
HARMS += [put("meta.json", text) for text in ("", "[]", "{}", "null", '{"key": 1, "items_sha256": 2}')]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    cohort = Cohort(tmp_path, 3)
    before = cohort.open(tmp_path / "cache")
    images, masks = [before.image(k) for k in range(3)], [before.mask(k) for k in range(3)]
    del before
    harm(entry_of(tmp_path / "cache"))
    cache = cohort.open(tmp_path / "cache")
    assert cohort.read_names, "the damage was not seen"
    assert all(torch.equal(cache.image(k), images[k]) for k in range(3))
    for at, mask in enumerate(masks):
        mine = cache.mask(at)
        assert (mine is None) == (mask is None)
        assert mask is None or (mine is not None and torch.equal(mine, mask))
    cohort.open(tmp_path / "cache")
    assert cohort.read_names == []


def test_one_damaged_item_is_read_and_the_others_copied(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 3)
    cohort.open(tmp_path / "cache")
    path = entry_of(tmp_path / "cache") / "image.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    cohort.open(tmp_path / "cache")
    assert cohort.read_names == ["p2"]


def test_what_a_killed_process_leaves_is_no_cache(tmp_path: Path) -> None:
    """Killed in the midst of its items; the next start removes what it left and makes the whole."""
    cohort = Cohort(tmp_path, 3)
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tests.fedml.cohort.images.test_image_cache import *\n"
        "cohort = Cohort.__new__(Cohort); cohort.folder, cohort.read_names = Path(sys.argv[1]), []\n"
        "def read(item):\n"
        "    if item.name == 'p2': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return Cohort.read(cohort, item)\n"
        "cohort.open(Path(sys.argv[2]), read=read)\n"
    )
    command = [sys.executable, "-c", script, str(cohort.folder), str(tmp_path / "cache")]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [".partial"]
    assert len(cohort.open(tmp_path / "cache")) == 3
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left - {entry_of(tmp_path / "cache").name} <= {"digests.json"}


def test_two_that_want_the_same_make_it_once(tmp_path: Path) -> None:
    cohort, begun, said, opened = Cohort(tmp_path, 2), threading.Event(), list[str](), list[ImageCache]()

    def read(item: Item) -> Raw:
        begun.set()
        while not any("waiting" in line for line in said):
            time.sleep(0.01)
        return cohort.read(item)

    first = threading.Thread(target=lambda: opened.append(cohort.open(tmp_path / "cache", read=read)))
    first.start()
    assert begun.wait(60)
    second = open_cache(tmp_path / "cache", cohort.folder, cohort.items, SPEC, Reader(cohort.read, "npz"), said.append)
    first.join()
    assert sorted(cohort.read_names) == ["p0", "p1"]
    assert torch.equal(second.image(1), opened[0].image(1))


def test_a_reader_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 2)

    def read(item: Item) -> Raw:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort.open(tmp_path / "cache", read=read)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name != "digests.json"]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 2)

    def read(item: Item) -> Raw:
        raw = cohort.read(item)
        if item.name == "p1":
            cohort.write(1, seed=77)
        return raw

    with pytest.raises(InputError, match=r"p1\.npz: changed while it was read"):
        cohort.open(tmp_path / "cache", read=read)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        cohort.open(tmp_path / "file")


def test_percentiles_that_are_not_settled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="server computes the window"):
        Cohort(tmp_path, 1).open(tmp_path / "cache", Preprocess(percentiles=(1.0, 99.0)))


def test_several_images_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 6, 6), dtype=np.uint8)
    np.savez(path, images=images)

    def read(item: Item) -> Raw:
        with np.load(path, allow_pickle=False) as arrays:
            return Raw(arrays["images"][int(item.part)])

    items = [Item("same", (path,), str(k)) for k in range(4)]
    cache = open_cache(tmp_path / "cache", path, items, Preprocess(), Reader(read, "npz"))
    np.testing.assert_array_equal(np.stack([cache.image(k).numpy() for k in range(4)]), images)  # bytes are exact in half precision
    turned = open_cache(tmp_path / "cache", path, items[::-1], Preprocess(), Reader(read, "npz"))
    np.testing.assert_array_equal(np.stack([turned.image(k).numpy() for k in range(4)]), images[::-1])


def test_a_copy_for_a_worker(shared: tuple[Cohort, ImageCache]) -> None:
    cache = shared[1]
    other = copy.copy(cache)  # by the way that a spawned worker gets it
    assert torch.equal(other.image(3), cache.image(3))
    assert other.excluded == cache.excluded


def test_names_are_not_in_the_cache(tmp_path: Path) -> None:
    """An entry is kept under the owner's eyes alone, and still says no more than it must."""
    cohort = Cohort(tmp_path, 2)
    cohort.open(tmp_path / "cache")
    assert "p1" not in json.dumps(json.loads((entry_of(tmp_path / "cache") / "items.json").read_bytes()))
