"""Packed dosages against plain arrays, and the cache: whole or not there, whatever happens while it is made."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.cache_entries import content_digests
from fedml.cohort.variants import cache, packed
from fedml.cohort.variants.cache import Cached, cached
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Block, Selection, Source
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.packed import Packed, concat_packed
from fedml.cohort.variants.transpose import Spool
from fedml.errors import InputError
from tests.conftest import write_bed, write_vcf

Dosage = np.ndarray[Any, np.dtype[np.int8]]


@st.composite
def dosages(draw: st.DrawFn, *, least: int = 0) -> Dosage:
    """int8 (persons, variants) of -1, 0, 1, 2; widths around multiples of 4 are as likely as others."""
    persons, variants = draw(st.integers(least, 9)), draw(st.integers(least, 21))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(-1, 3, (persons, variants), dtype=np.int8)


def aligned_plainly(dosage: Dosage, columns: np.ndarray, flip: np.ndarray) -> Dosage:
    """What ``aligned`` says, a variant at a time."""
    out = np.full((len(dosage), len(columns)), -1, np.int8)
    for at, (column, turned) in enumerate(zip(columns, flip, strict=True)):
        if column >= 0:
            own = dosage[:, column]
            out[:, at] = np.where(own < 0, own, 2 - own) if turned else own
    return out


@given(dosages())
def test_packing_is_undone_by_unpacking(dosage: Dosage) -> None:
    table = Packed.of(dosage)
    assert (table.shape, len(table), table.dtype) == (dosage.shape, len(dosage), np.int8)
    np.testing.assert_array_equal(table, dosage)
    assert np.asarray(table, dtype=np.float64).dtype == np.float64
    assert table.table.nbytes == len(dosage) * -(-dosage.shape[1] // 4)


@given(dosages(), st.data())
def test_rows_blocks_and_floats_are_the_arrays(dosage: Dosage, data: st.DataObject) -> None:
    table, (persons, variants) = Packed.of(dosage), dosage.shape
    rows = np.array(data.draw(st.lists(st.integers(-persons, persons - 1), max_size=12) if persons else st.just([])), dtype=np.int64)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=persons, max_size=persons)), dtype=bool)
    start = data.draw(st.integers(0, variants))
    stop = data.draw(st.integers(start, variants))
    for chosen in (rows, rows.tolist(), mask, slice(None), slice(1, None, 2), slice(None, None, -1)):
        expected = dosage[np.array(chosen, dtype=np.int64)] if isinstance(chosen, list) else dosage[chosen]
        np.testing.assert_array_equal(table[chosen], expected)
        np.testing.assert_array_equal(table.block(start, stop, chosen), expected[:, start:stop])
        floats, out = table.floats(chosen), np.full(expected.shape, 7, np.float32)
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(floats, expected.astype(np.float32))
        assert table.floats(chosen, out) is out
        np.testing.assert_array_equal(out, floats)
    np.testing.assert_array_equal(table.block(start, stop), dosage[:, start:stop])
    if persons:
        np.testing.assert_array_equal(table[persons - 1], dosage[-1])
        np.testing.assert_array_equal(table[-1], dosage[-1])


@given(dosages(least=1), st.data())
def test_views_of_views_are_what_one_makes_by_hand(dosage: Dosage, data: st.DataObject) -> None:
    view, expected = Packed.of(dosage), dosage
    for _ in range(data.draw(st.integers(1, 4))):
        persons, variants = expected.shape
        if data.draw(st.booleans()) and persons:
            rows = np.array(data.draw(st.lists(st.integers(0, persons - 1), max_size=8)), dtype=np.int64)
            view, expected = view.take(rows), expected[rows]
        else:
            columns = np.array(data.draw(st.lists(st.integers(-1, variants - 1), max_size=15)), dtype=np.int64)
            flip = np.array(data.draw(st.lists(st.booleans(), min_size=len(columns), max_size=len(columns))), dtype=bool)
            view, expected = view.aligned(columns, flip), aligned_plainly(expected, columns, flip)
    assert view.shape == expected.shape
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(view.floats(slice(None)), expected.astype(np.float32))
    start = data.draw(st.integers(0, expected.shape[1]))
    stop = data.draw(st.integers(start, expected.shape[1]))
    np.testing.assert_array_equal(view.block(start, stop), expected[:, start:stop])
    written = concat_packed([view, view.take(slice(0, 1))])
    np.testing.assert_array_equal(written, np.concatenate([expected, expected[:1]]))
    assert written.columns is None
    assert written.rows is None


def test_the_identity_costs_nothing_and_a_flip_undone_is_the_identity() -> None:
    table = Packed.of(np.random.default_rng(0).integers(-1, 3, (5, 11), dtype=np.int8))
    order, flip = np.random.default_rng(1).permutation(11), np.arange(11) % 2 == 0
    assert table.aligned(np.arange(11), np.zeros(11, bool)).columns is None
    turned = table.aligned(order, flip)
    assert turned.columns is not None
    assert turned.aligned(np.argsort(order), flip[np.argsort(order)]).columns is None


def test_many_columns_are_gathered_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_GATHER", 5)
    monkeypatch.setattr(packed, "_CHUNK", 40)
    generator = np.random.default_rng(0)
    dosage = generator.integers(-1, 3, (7, 33), dtype=np.int8)
    columns, flip = generator.integers(-1, 33, 29), generator.random(29) < 0.5
    view, expected = Packed.of(dosage).aligned(columns, flip), aligned_plainly(dosage, columns, flip)
    np.testing.assert_array_equal(view.block(3, 28), expected[:, 3:28])
    np.testing.assert_array_equal(concat_packed([view, view]), np.concatenate([expected, expected]))


@pytest.mark.parametrize("value", [-2, 3, -127, 127])
def test_other_values_are_refused(value: int) -> None:
    dosage = np.zeros((3, 5), np.int8)
    dosage[1, 3] = value
    with pytest.raises(ValueError, match="-1, 0, 1 or 2"):
        Packed.of(dosage)


def test_what_is_not_there_is_refused() -> None:
    table = Packed.of(np.zeros((3, 5), np.int8))
    wrong: list[Any] = [[3], [-4], [0.5], np.zeros(4, bool), np.zeros((2, 2), int), (slice(None), 0), 3]
    for rows in wrong:
        with pytest.raises(IndexError):
            table[rows]
    for start, stop in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(IndexError):
            table.block(start, stop)
    for columns in ([5], [-2]):
        with pytest.raises(IndexError):
            table.aligned(np.array(columns), np.zeros(1, bool))
    with pytest.raises(ValueError, match="panel"):
        table.aligned(np.arange(2), np.zeros(1, bool))
    with pytest.raises(ValueError, match="int8"):
        Packed.of(np.zeros((3, 5), np.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        Packed(table.table, 9)
    with pytest.raises(ValueError, match="out"):
        table.floats([0, 1], np.empty((2, 10), np.float32)[:, :5])
    with pytest.raises(ValueError, match="stacked"):
        concat_packed([table, Packed.of(np.zeros((3, 6), np.int8))])
    with pytest.raises(ValueError, match="copy"):
        np.array(table, copy=False)


@given(st.integers(1, 9), st.lists(st.integers(0, 13), max_size=8), st.integers(0, 2**32), st.sampled_from([1, 5, 20, 60, 10_000]))
def test_the_spool_turns_blocks_of_any_size(tmp_path: Path, persons: int, sizes: list[int], seed: int, capacity: int) -> None:
    generator = np.random.default_rng(seed)
    blocks = [generator.integers(-1, 3, (n, persons), dtype=np.int8) for n in sizes]
    spool = Spool(persons, capacity, tmp_path)
    for block in blocks:
        spool.add(block)
    expected = np.concatenate([np.zeros((0, persons), np.int8), *blocks]).T
    table = np.empty((persons, packed.width(spool.variants)), np.uint8)
    seen = 0
    for begin, rows in spool.rows():
        assert begin == seen
        table[begin : begin + len(rows)] = rows
        seen += len(rows)
        on_disk = sum(p.stat().st_size for p in tmp_path.iterdir())
        assert on_disk in (0, (persons - seen) * table.shape[1])  # what was given is no longer spooled
    assert seen == persons
    np.testing.assert_array_equal(Packed(table, spool.variants), expected)
    assert not list(tmp_path.iterdir())


# --- the cache

SAMPLES = ("s0", "s1", "s2", "s3", "s4", "s5", "s6")
PERSONS = ["s5", "absent", "s0", "s3", "s6"]


class ArraySource(Source):
    """Blocks of an array (variants, samples); ``path`` is a real file, for the digest. ``before(variants)`` is called before each block."""

    def __init__(self, path: Path, dosage: Dosage, before: Callable[[int], object] = lambda seen: None, size: int = 13) -> None:
        self.path, self.dosage, self.before, self.size = path, dosage, before, size
        self.samples, self.contigs, self.excluded, self.opened = SAMPLES[: dosage.shape[1]], {"chr1": None}, {}, 0

    def blocks(self, samples: Sequence[int], selection: Selection, memory_mb: int) -> Iterator[Block]:
        self.opened += 1
        for at in range(0, len(self.dosage), self.size):
            self.before(at)
            dosage = self.dosage[at : at + self.size, list(samples)]
            yield Block(tuple(Variant("chr1", at + i + 1, f"rs{at + i}", "A", "C") for i in range(len(dosage))), dosage)
        self.excluded = {"no ALT": 2, "allele too long": 0}


@pytest.fixture
def source(tmp_path: Path) -> ArraySource:
    """203 variants of 7 samples, in a file that holds other bytes than any other test's."""
    path = tmp_path / "cohort.vcf.gz"
    path.write_bytes(b"first content")
    return ArraySource(path, np.random.default_rng(0).integers(-1, 3, (203, 7), dtype=np.int8))


def check(found: Cached, source: ArraySource, persons: Sequence[str] = PERSONS) -> None:
    """Is ``found`` what the source holds of ``persons``?"""
    rows = [SAMPLES.index(p) if p in source.samples else -1 for p in persons]
    expected = np.where(np.array(rows)[:, None] < 0, -1, source.dosage.T[rows])
    np.testing.assert_array_equal(found.table, expected)
    assert found.present.tolist() == [r >= 0 for r in rows]
    assert [k.position for k in found.keys] == list(range(1, len(source.dosage) + 1))


def entries(folder: Path) -> list[Path]:
    """Folders of entries; and nothing else but the digests may be in the cache."""
    assert not [p for p in folder.iterdir() if p.suffix in (".partial", ".lock")]
    return [p for p in folder.iterdir() if p.is_dir()]


def test_a_second_start_maps_the_table_and_opens_no_genotypes(tmp_path: Path, source: ArraySource) -> None:
    first = cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    check(first, source)
    assert first.notes == {"no ALT": 2}
    again = ArraySource(source.path, source.dosage)
    second = cached(tmp_path / "c", again, PERSONS, Selection(), 8)
    check(second, source)
    assert (source.opened, again.opened) == (1, 0)
    assert (second.keys, second.notes) == (first.keys, first.notes)
    assert len(entries(tmp_path / "c")) == 1
    assert not second.table.table.flags.writeable
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0


def test_all_persons_in_the_files_order_are_the_table_unchanged(tmp_path: Path, source: ArraySource) -> None:
    found = cached(tmp_path / "c", source, SAMPLES, Selection(), 8)
    check(found, source, SAMPLES)
    assert found.table.rows is None


@pytest.mark.parametrize("change", ["bytes", "persons", "order", "selection", "listed", "samples"])
def test_another_content_is_another_entry(tmp_path: Path, source: ArraySource, change: str) -> None:
    cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    persons, selection = PERSONS, Selection()
    if change == "bytes":
        source.path.write_bytes(b"other content")
    elif change == "samples":
        source.samples = (*SAMPLES[:-1], "s6new")
    elif change in ("persons", "order"):
        persons = PERSONS[:-1] if change == "persons" else PERSONS[::-1]
    else:
        selection = Selection(regions=("1:1-300",)) if change == "selection" else Selection(listed=frozenset({"rs1"}))
    cached(tmp_path / "c", source, persons, selection, 8)
    assert source.opened == 2
    assert len(entries(tmp_path / "c")) == 2


def test_a_changed_bim_is_another_entry(tmp_path: Path) -> None:
    dosage = np.array([[0, 1], [2, -1]], np.int8)
    path = write_bed(tmp_path / "cohort.bed", SAMPLES[:2], [("1", 1, "rs1", "A", "C"), ("1", 2, "rs2", "A", "C")], dosage)
    source = ArraySource(path, dosage.T)
    cached(tmp_path / "c", source, SAMPLES[:2], Selection(), 8)
    path.with_suffix(".bim").write_bytes(path.with_suffix(".bim").read_bytes().replace(b"rs2", b"rs3"))
    cached(tmp_path / "c", source, SAMPLES[:2], Selection(), 8)
    assert source.opened == 2
    path.with_suffix(".fam").unlink()
    with pytest.raises(InputError, match=r"cohort\.fam: cannot be read"):
        cached(tmp_path / "c", source, SAMPLES[:2], Selection(), 8)


def test_of_one_source_the_two_entries_used_last_are_kept(tmp_path: Path, source: ArraySource) -> None:
    other = ArraySource(tmp_path / "other.vcf", source.dosage)
    other.path.write_bytes(b"another file")
    cached(tmp_path / "c", other, PERSONS, Selection(), 8)

    def use(count: int) -> None:
        cached(tmp_path / "c", source, SAMPLES[:count], Selection(), 8)
        time.sleep(0.02)  # the order follows from the time stamps of the file system

    for count in (3, 4, 3, 5):
        use(count)
    assert source.opened == 3
    assert len(entries(tmp_path / "c")) == 3
    use(3)
    assert source.opened == 3
    use(4)
    assert source.opened == 4


def test_ploidy_above_two_is_excluded_and_counted(tmp_path: Path, source: ArraySource) -> None:
    source.dosage[5, 3], source.dosage[100, 0], source.dosage[150, 1] = 3, 8, 4
    found = cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    assert found.notes == {"no ALT": 2, "ploidy above 2": 2}  # sample s1, who has the third, is not among the persons
    np.testing.assert_array_equal(found.table[2], np.delete(source.dosage[:, 0], [5, 100]))
    assert {6, 101} & {k.position for k in found.keys} == set()
    assert cached(tmp_path / "c", source, PERSONS, Selection(), 8).notes == found.notes


def test_no_variant_at_all_is_an_empty_table(tmp_path: Path, source: ArraySource) -> None:
    source.dosage = source.dosage[:0]
    for _ in range(2):
        assert cached(tmp_path / "c", source, PERSONS, Selection(), 8).table.shape == (5, 0)
    assert source.opened == 1


def test_none_of_the_persons_in_the_file(tmp_path: Path, source: ArraySource) -> None:
    with pytest.raises(InputError, match=r"cohort\.vcf\.gz: none of its samples"):
        cached(tmp_path / "c", source, ["x", "y"], Selection(), 8)


def test_a_reader_that_breaks_its_word_is_refused(tmp_path: Path, source: ArraySource) -> None:
    source.dosage[7, 5] = -127
    with pytest.raises(ValueError, match="with values >= -1"):
        cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    assert not entries(tmp_path / "c")


def truncate(place: Path) -> None:
    (place / "table.bin").write_bytes((place / "table.bin").read_bytes()[:-1])


def flip_a_bit(place: Path) -> None:
    data = bytearray((place / "table.bin").read_bytes())
    data[7] ^= 1
    (place / "table.bin").write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "table cut": truncate,
    "table altered": flip_a_bit,
    "no table": lambda p: (p / "table.bin").unlink(),
    "no meta": lambda p: (p / "meta.json").unlink(),
    "meta of zeros": lambda p: (p / "meta.json").write_bytes(bytes(100)),
    "meta is a list": lambda p: (p / "meta.json").write_text("[1]"),
    "meta without rows": lambda p: (p / "meta.json").write_text(json.dumps({"key": "x"})),
    "keys cut": lambda p: (p / "keys.tsv").write_bytes((p / "keys.tsv").read_bytes()[:-40]),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_entry_is_rebuilt(tmp_path: Path, source: ArraySource, how: str) -> None:
    cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    (place,) = entries(tmp_path / "c")
    DAMAGE[how](place)
    check(cached(tmp_path / "c", source, PERSONS, Selection(), 8), source)
    assert source.opened == 2
    check(cached(tmp_path / "c", source, PERSONS, Selection(), 8), source)
    assert source.opened == 2


@pytest.mark.parametrize("by", [-1, 1])
def test_a_large_table_of_another_size_is_rebuilt(tmp_path: Path, source: ArraySource, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALL", 0)  # its SHA-256 is not looked at
    cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    (place,) = entries(tmp_path / "c")
    os.truncate(place / "table.bin", (place / "table.bin").stat().st_size + by)
    check(cached(tmp_path / "c", source, PERSONS, Selection(), 8), source)
    assert source.opened == 2


def refuse(seen: int) -> None:
    if seen > 100:
        raise InputError("cohort.vcf.gz: line 112 is junk; fix it.")


def test_a_bad_file_leaves_nothing(tmp_path: Path, source: ArraySource) -> None:
    with pytest.raises(InputError, match="line 112"):
        cached(tmp_path / "c", ArraySource(source.path, source.dosage, refuse), PERSONS, Selection(), 8)
    assert not entries(tmp_path / "c")
    check(cached(tmp_path / "c", source, PERSONS, Selection(), 8), source)


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"changed"), lambda path: path.unlink()])
def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, source: ArraySource, change: Callable[[Path], object]) -> None:
    source.before = lambda seen: change(source.path) if seen == 104 else None
    with pytest.raises(InputError, match="changed while it was read"):
        cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    assert not entries(tmp_path / "c")


def test_digests_are_remembered_once_a_file_has_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder, read = tmp_path / "big.vcf", tmp_path / "c", []
    folder.mkdir()
    path.write_bytes(b"one")
    digest = cache.hashlib.file_digest
    monkeypatch.setattr(cache.hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    first = content_digests(folder, [path], print)
    assert content_digests(folder, [path], print) == first
    assert len(read) == 2  # it may change again within the clock's tick: not yet remembered
    monkeypatch.setattr("fedml.cache_entries.SETTLED", -1.0)
    for _ in range(3):
        assert content_digests(folder, [path], print) == first
    assert len(read) == 3
    path.write_bytes(b"two")
    os.utime(path, ns=(first[path][1][1], first[path][1][1]))  # the same length, and the old time put back
    assert content_digests(folder, [path], print)[path][0] != first[path][0]
    (folder / "digests.json").write_text('{"x": 3}')
    assert content_digests(folder, [path], print)[path][0] != first[path][0]


def make_and_die(folder: Path, source: ArraySource) -> None:
    def die(seen: int) -> None:
        if seen > 100:
            os.kill(os.getpid(), signal.SIGKILL)

    cached(folder, ArraySource(source.path, source.dosage, die), PERSONS, Selection(), 8)


def test_killed_in_the_middle(tmp_path: Path, source: ArraySource) -> None:
    process = multiprocessing.get_context("fork").Process(target=make_and_die, args=(tmp_path / "c", source))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert {p.suffix for p in (tmp_path / "c").iterdir()} == {".partial", ".lock"}
    check(cached(tmp_path / "c", source, SAMPLES[:2], Selection(), 8), source, SAMPLES[:2])  # another key: it cleans up all the same
    assert len(entries(tmp_path / "c")) == 1
    check(cached(tmp_path / "c", source, PERSONS, Selection(), 8), source)


def make_slowly(folder: Path, source: ArraySource, out: Any) -> None:
    slow = ArraySource(source.path, source.dosage, lambda seen: time.sleep(0.03))
    said: list[str] = []
    check(cached(folder, slow, PERSONS, Selection(), 8, said.append), source)
    out.put((slow.opened, any("waiting" in line for line in said)))


def test_two_processes_that_want_the_same(tmp_path: Path, source: ArraySource) -> None:
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    processes = [context.Process(target=make_slowly, args=(tmp_path / "c", source, out)) for _ in range(3)]
    for process in processes:
        process.start()
    found = sorted(out.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [opened for opened, _ in found] == [0, 0, 1]
    assert [waited for _, waited in found].count(False) >= 1
    assert len(entries(tmp_path / "c")) == 1


def test_a_partial_of_a_living_process_is_left_alone(tmp_path: Path, source: ArraySource) -> None:
    seen: list[set[str]] = []

    def look(at: int) -> None:
        if at == 104:
            cached(tmp_path / "c", ArraySource(source.path, source.dosage), SAMPLES[:3], Selection(), 8)
            seen.append({p.suffix for p in (tmp_path / "c").iterdir()})

    check(cached(tmp_path / "c", ArraySource(source.path, source.dosage, look), PERSONS, Selection(), 8), source)
    assert seen == [{"", ".partial", ".lock"}]
    assert len(entries(tmp_path / "c")) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, source: ArraySource, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    check(cached(tmp_path / "file" / "c", source, PERSONS, Selection(), 8, said.append), source)
    assert "cannot be written" in said[0]
    monkeypatch.setattr(cache, "SMALL", 150)
    with pytest.raises(InputError, match=r"file/c: cannot be written \(Not a directory\).*set another cache folder"):
        cached(tmp_path / "file" / "c", source, PERSONS, Selection(), 8)


@pytest.mark.parametrize("small", range(196, 213))
def test_a_table_in_memory_up_to_the_very_byte(tmp_path: Path, source: ArraySource, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 persons x 51 bytes."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(cache, "SMALL", small)
    if small < 204:
        with pytest.raises(InputError, match="cannot be written"):
            cached(tmp_path / "file", source, PERSONS, Selection(), 8)
    else:
        check(cached(tmp_path / "file", source, PERSONS, Selection(), 8), source)


@pytest.mark.parametrize("small", [150, 2**20])
def test_a_full_disk(tmp_path: Path, source: ArraySource, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for it: the kernel refuses a write in the same way."""
    monkeypatch.setattr(cache, "SMALL", small)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        if small > 1000:
            check(cached(tmp_path / "c", source, PERSONS, Selection(), 8), source)
        else:
            with pytest.raises(InputError, match=r"cannot be written .*free disk space"):
                cached(tmp_path / "c", source, PERSONS, Selection(), 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not entries(tmp_path / "c")
    check(cached(tmp_path / "c", source, PERSONS, Selection(), 8), source)


def test_long_work_says_how_far_it_is(tmp_path: Path, source: ArraySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LOG_EVERY_SECONDS", 0.0)
    said: list[str] = []
    cached(tmp_path / "c", source, PERSONS, Selection(), 8, said.append)
    assert "cohort.vcf.gz: 104 variants read" in said
    assert "cohort.vcf.gz: 4 of 4 persons written" in said


@pytest.mark.parametrize("name", ["cohort.vcf", "cohort.vcf.gz", "cohort.bcf", "cohort.bed"])
def test_real_files_give_the_dosages_that_were_written(tmp_path: Path, name: str) -> None:
    dosage = np.random.default_rng(0).integers(-1, 3, (7, 30), dtype=np.int8)
    keys = [("chr21", 100 * (i + 1), f"rs{i}", "A", "G") for i in range(30)]
    if name.endswith("bed"):
        path = write_bed(tmp_path / name, SAMPLES, keys, dosage)
    else:
        calls = {-1: "./.", 0: "0|0", 1: "0|1", 2: "1/1"}
        path = write_vcf(tmp_path / name, SAMPLES, [(*key, [calls[int(d)] for d in dosage[:, i]]) for i, key in enumerate(keys)])
    for _ in range(2):
        found = cached(tmp_path / "c", open_source(path), PERSONS, Selection(listed=frozenset(f"rs{i}" for i in range(3, 30))), 64)
        np.testing.assert_array_equal(found.table, np.stack([dosage[5], np.full(30, -1), dosage[0], dosage[3], dosage[6]])[:, 3:])
        assert [k.id for k in found.keys] == [f"rs{i}" for i in range(3, 30)]
    assert len(entries(tmp_path / "c")) == 1


LARGE = """
import sys
from pathlib import Path
import numpy as np
from fedml.experiments.bench.timing import PeakMemory
from fedml.cohort.variants.cache import cached
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Block, Selection, Source

PERSONS, VARIANTS = 5000, int(sys.argv[2])

def expected(begin, end, persons):
    persons, variants = np.asarray(persons).astype(np.uint8), np.arange(begin, end).astype(np.uint8)[:, None]
    return (persons * np.uint8(7) + variants * (persons % np.uint8(3) + np.uint8(1)) & np.uint8(3)).view(np.int8) - np.int8(1)

class Large(Source):
    def __init__(self, path):
        self.path, self.samples, self.contigs, self.excluded = path, tuple(map(str, range(PERSONS))), {}, {}
    def blocks(self, samples, selection, memory_mb):
        for at in range(0, VARIANTS, 499):
            dosage = expected(at, min(at + 499, VARIANTS), samples)
            yield Block(tuple(Variant("1", at + i, ".", "A", "C") for i in range(len(dosage))), dosage)

folder = Path(sys.argv[1])
(folder / "x.vcf").write_text("x")
source = Large(folder / "x.vcf")
cached(folder / "warm", source, ["1", "2"], Selection(), 64)
with PeakMemory() as memory:
    table = cached(folder / "c", source, source.samples, Selection(), 64).table
print(memory.extra_mb, table.table.nbytes / 2**20)
people = np.arange(PERSONS)
for row in (0, 1, 1234, PERSONS - 1):
    assert (table[[row]] == expected(0, VARIANTS, people[[row]]).T).all()
for begin in (0, 4001, VARIANTS - 4003):
    assert (table.block(begin, begin + 4001) == expected(begin, begin + 4001, people).T).all()
"""


@pytest.mark.long
def test_a_large_table_is_made_in_little_memory(tmp_path: Path) -> None:
    """5,000 persons x 60,000 variants: a table of 72 MB from 286 MB of dosages, within the 64 MB that were allowed."""
    command = [sys.executable, "-c", LARGE, str(tmp_path), "60000"]
    extra, size = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert size > 70
    assert extra < 64
