"""PLINK 1 files as a source of variants: against bed-reader and plink2's reading of bits, and every file that cannot be used."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.cohort.variants.genotypes import Genome, read_variants
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.plink import PlinkSource
from fedml.errors import InputError
from tests.conftest import write_bed

SAMPLES = ["s1", "s2", "s3", "s4", "s5"]
KEYS = (
    Variant("21", 100, "rs1", "A", "G"),
    Variant("21", 300, ".", "G", "GA"),
    Variant("22", 400, "rs4", "T", "A"),
    Variant("X", 500, "rs5", "GTT", "G"),
)
DOSAGE = np.array([[0, 1, 2, -1, 0], [0, 1, -1, 1, 0], [1, 1, 0, -1, 2], [-1, 0, -1, 2, 2]], dtype=np.int8)


def read(path: Path, samples: list[int] | None = None, memory_mb: int = 64, **selection: Any) -> tuple[list[Variant], npt.NDArray[np.int8]]:
    """All blocks, put together: keys and dosage (variants, samples)."""
    source = open_source(path)
    assert isinstance(source, PlinkSource)
    columns = list(range(len(source.samples))) if samples is None else samples
    blocks = list(source.blocks(columns, Selection(**selection), memory_mb))
    assert all(b.dosage.shape == (len(b.keys), len(columns)) and b.dosage.flags.c_contiguous for b in blocks)
    return [k for b in blocks for k in b.keys], np.concatenate([np.zeros((0, len(columns)), np.int8), *(b.dosage for b in blocks)])


def by_bits(path: Path) -> npt.NDArray[np.int8]:
    """Dosages of A1 from the bits, as PLINK's documentation has them: 00 two A1, 01 missing, 10 one, 11 none."""
    people = len(path.with_suffix(".fam").read_text().splitlines())
    content = np.frombuffer(path.read_bytes()[3:], dtype=np.uint8).reshape(-1, -(-people // 4))
    pairs = (content[:, :, None] >> np.array([0, 2, 4, 6], dtype=np.uint8)) & 3
    return np.array([2, -1, 1, 0], dtype=np.int8)[pairs.reshape(len(content), 4 * content.shape[1])[:, :people]]


def made(folder: Path) -> Path:
    return write_bed(folder / "c.bed", SAMPLES, KEYS, DOSAGE.T)


def test_the_dosages_that_were_written_are_read(tmp_path: Path) -> None:
    path = made(tmp_path)
    keys, dosage = read(path)
    assert keys == list(KEYS)
    np.testing.assert_array_equal(dosage, DOSAGE)
    assert dosage.dtype == np.int8
    source = open_source(path)
    assert source.samples == tuple(SAMPLES)
    assert source.contigs == {"21": None, "22": None, "X": None}
    np.testing.assert_array_equal(read(path, [4, 0, 2])[1], DOSAGE[:, [4, 0, 2]])


def test_regions_and_lists(tmp_path: Path) -> None:
    path = made(tmp_path)
    for regions, at in (
        (("21",), [0, 1]), (("chr21:100-299", "22:1-399"), [0]), (("X:500-500", "21:101-400"), [1, 3]), (("22:401-500",), []),
    ):  # fmt: skip
        keys, dosage = read(path, regions=regions)
        assert keys == [KEYS[k] for k in at]
        np.testing.assert_array_equal(dosage, DOSAGE[at])
    keys, dosage = read(path, [1, 0], listed=frozenset({"rs5", "21:100:A:G", "22:400:A:T"}))
    assert keys == [KEYS[0], KEYS[3]]
    np.testing.assert_array_equal(dosage, DOSAGE[[0, 3]][:, [1, 0]])
    assert read(path, regions=("21",), listed=frozenset({"rs5"}))[0] == []


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 2**32), st.data())
def test_any_file_is_read_as_its_bits_are(people: int, variants: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.bed"
        size = -(-people // 4)
        path.write_bytes(b"\x6c\x1b\x01" + rng.bytes(variants * size))  # random bits behind the last person too
        path.with_suffix(".fam").write_text("".join(f"f p{k} 0 0 0 -9\n" for k in range(people)))
        path.with_suffix(".bim").write_text("".join(f"1\trs{k}\t0\t{k + 1}\tG\tA\n" for k in range(variants)))
        columns = data.draw(st.permutations(range(people)))[: data.draw(st.integers(1, people))]
        listed = frozenset(data.draw(st.sets(st.sampled_from([f"rs{k}" for k in range(40)]))))
        kept = [k for k in range(variants) if f"rs{k}" in listed or not listed]
        keys, dosage = read(path, list(columns), listed=listed)
        assert [k.id for k in keys] == [f"rs{k}" for k in kept]
        np.testing.assert_array_equal(dosage, by_bits(path)[kept][:, columns])


def test_the_blocks_ends_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dosage = rng.integers(-1, 3, (1000, 600), dtype=np.int8)
    keys = [("1", k + 1, f"rs{k}", "A", "G") for k in range(1000)]
    path = write_bed(tmp_path / "c.bed", [f"p{k}" for k in range(600)], keys, dosage.T)
    source = PlinkSource(path)
    assert len(list(source.blocks(range(600), Selection(), 1))) > 5
    for memory_mb in (1, 512):
        np.testing.assert_array_equal(read(path, memory_mb=memory_mb)[1], dosage)
    some = frozenset(f"rs{k}" for k in range(0, 1000, 3))
    np.testing.assert_array_equal(read(path, memory_mb=1, listed=some)[1], dosage[::3])


def test_exclusions_are_counted(tmp_path: Path) -> None:
    keys = [
        ("1", 5, "a", "A", "0"),
        ("1", 6, "b", "A" * 1001, "C"),
        ("1", -7, "c", "A", "C"),
        ("1", 8, "d", "A", "C"),
        ("1", 9, "e", "0", "C"),
    ]
    source = PlinkSource(write_bed(tmp_path / "c.bed", SAMPLES, keys, np.ones((5, 5), np.int8)))
    for _ in range(2):
        assert [k.id for b in source.blocks(range(5), Selection(), 64) for k in b.keys] == ["d"]
        assert source.excluded == {"allele unknown": 2, "allele too long": 1, "no position": 1}
    list(source.blocks(range(5), Selection(listed=frozenset({"a"})), 64))
    assert source.excluded == {"allele unknown": 1}


# --- files that cannot be used


def refused(path: Path, *words: str, **selection: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(path, **selection)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bed_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:2], b"", b"junk" + whole[4:], whole + b"\0", b"\x6c\x1b\x00" + whole[3:]):
        path.write_bytes(broken)
        refused(path, str(path), "not a variant-major PLINK 1 .bed file" if broken[:3] != whole[:3] else "does not match its .bim and .fam")
    path.write_bytes(whole)
    for ending in (".bim", ".fam"):
        companion = path.with_suffix(ending)
        text = companion.read_text()
        companion.unlink()
        refused(path, f"c{ending}: no such file")
        companion.write_text(text + text.splitlines()[0].replace("s1", "s9") + "\n" * 2)
        refused(path, "line", "0 fields")
        companion.write_bytes(b"\xff" + text.encode())
        refused(path, f"c{ending}: is not UTF-8")
        companion.write_text("".join(line + "\n" for line in text.splitlines()[:-1]))
        if ending == ".bim":  # with one person fewer the bytes a variant are as many, or not
            refused(path, "does not match its .bim and .fam", "3 variants")
        companion.write_text(text)
    assert read(path)[0] == list(KEYS)


def test_persons_twice_and_positions_that_are_none_are_refused(tmp_path: Path) -> None:
    path = made(tmp_path)
    fam, bim = path.with_suffix(".fam"), path.with_suffix(".bim")
    fam.write_text(fam.read_text().replace("s3", "s1"))
    refused(path, "c.fam", 'individual "s1" twice')
    path = made(tmp_path)
    bim.write_text(bim.read_text().replace("300", "3x0"))
    refused(path, "c.bim: line 2", '"3x0"')
    path = made(tmp_path)
    refused(path, "has no contig 7, only 21, 22, X", regions=("7",))


def test_an_id_of_several_families_is_written_with_the_family(tmp_path: Path) -> None:
    path = made(tmp_path)
    fam = path.with_suffix(".fam")
    fam.write_text(
        "".join(f"{family} {name} 0 0 0 -9\n" for family, name in (("F1", "1"), ("F2", "1"), ("F1", "2"), ("F3", "3"), ("F4", "4")))
    )
    source = open_source(path)
    assert source.samples == ("F1_1", "F2_1", "2", "3", "4")
    own = read_variants(path, ["2", "F2_1", "F1_1"], genome=Genome("GRCh38"), cache=tmp_path / "cache")
    assert own.present.all()
    np.testing.assert_array_equal(np.asarray(own.dosage), DOSAGE[:, [2, 1, 0]].T)
    with pytest.raises(InputError, match=r'c.fam: has the individual "1" in 2 families.* such as "F1_1"\.'):
        read_variants(path, ["2", "1"], genome=Genome("GRCh38"), cache=tmp_path / "cache")
    fam.write_text(fam.read_text().replace("F4 4", "F4 F1_1"))
    refused(path, 'c.fam: "F1_1" may be two persons')
    fam.write_text(fam.read_text().replace("F4 F1_1", "F1 1"))
    refused(path, 'c.fam: names the individual "1" twice (family F1)')


def test_a_bim_without_genetic_distances_is_read(tmp_path: Path) -> None:
    path = made(tmp_path)
    bim = path.with_suffix(".bim")
    rows = [line.split() for line in bim.read_text().splitlines()]
    bim.write_text("".join("\t".join([*row[:2], *row[3:]]) + "\n" for row in rows))
    keys, dosage = read(path)
    assert keys == list(KEYS)
    np.testing.assert_array_equal(dosage, DOSAGE)
    bim.write_text("".join("\t".join(row if at == 2 else [*row[:2], *row[3:]]) + "\n" for at, row in enumerate(rows)))
    refused(path, "c.bim: line 3 has 6 fields where the first line has five")
    bim.write_text("".join("\t".join([*row[:2], *row[3:]] if at == 2 else row) + "\n" for at, row in enumerate(rows)))
    refused(path, "c.bim: line 3 has 5 fields where a .bim file has six")


def test_alleles_that_name_no_letters_are_left_out_and_counted(tmp_path: Path) -> None:
    pairs = [("A", "G"), ("1", "2"), ("I", "D"), ("A", "."), ("R", "A"), ("A", "a"), ("-", "A"), ("<DEL>", "A")]
    keys = [("1", at + 5, f"v{at}", ref, alt) for at, (alt, ref) in enumerate(pairs)]
    source = PlinkSource(write_bed(tmp_path / "c.bed", SAMPLES, keys, np.ones((5, len(keys)), np.int8)))
    assert [k.id for b in source.blocks(range(5), Selection(), 64) for k in b.keys] == ["v0", "v7"]
    assert source.excluded == {"allele unknown": 4, "allele of several bases (IUPAC code)": 1, "ALT is REF": 1}
