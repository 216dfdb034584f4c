"""An index that is not the file's: of an earlier or another version. With it a region silently lacks records, so it is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pysam
import pysam.bcftools
import pytest

from fedml.cohort.variants.csi import read_index
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.stale import check_index
from fedml.errors import InputError

CASES = Path(__file__).parents[5] / "shared" / "cases" / "genomes"
HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=1,length=248956422>\n##contig=<ID=chr2>\n"
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2\ts3\ts4\n"
)
KINDS = [(".vcf.gz", "--tbi"), (".vcf.gz", "--csi"), (".bcf", "--csi")]


def lines(count: int, contig: str = "1", step: int = 150, seed: int = 0) -> list[str]:
    calls = ["\t".join(f"{a}|{b}" for a, b in row) for row in np.random.default_rng(seed).integers(0, 2, (count, 4, 2)).tolist()]
    return [f"{contig}\t{100_000 + step * k}\trs{k}\tA\tG\t.\tPASS\t.\tGT\t{cells}" for k, cells in enumerate(calls)]


BASE = [*lines(2400), *lines(800, "chr2")]
OTHERS = {
    "more records at the end": [*BASE, *lines(1000, "chr2")[800:]],
    "more records of a contig before": [*lines(2600), *lines(800, "chr2")],
    "fewer records": BASE[:2800],
    "a contig less": BASE[:2400],
    "other genotypes": [*lines(2400, seed=1), *lines(800, "chr2", seed=1)],
    "other positions": [*lines(2400, step=151), *lines(800, "chr2")],
    "no record": [],
}


def write(path: Path, records: Sequence[str], kind: str = "", level: int = 6) -> Path:
    """A genotype file, and its index if ``kind`` is given. ``level`` 0: blocks are not compressed, so equal lengths have equal offsets."""
    plain = path.with_name("plain.vcf")
    plain.write_text(HEADER + "".join(f"{line}\n" for line in records))
    what = ("b" if path.suffix == ".bcf" else "z") + str(level)
    pysam.bcftools.view("--no-version", "-O", what, "-o", str(path), str(plain), catch_stdout=False)
    if kind:
        pysam.bcftools.index("-f", kind, str(path), catch_stdout=False)
    return path


def index_of(path: Path) -> Path:
    (found,) = path.parent.glob(path.name + ".*")
    return found


def positions(path: Path, *regions: str) -> list[int]:
    source = open_source(path)
    return [key.position for block in source.blocks(range(4), Selection(regions=regions or ("1", "2")), 64) for key in block.keys]


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        positions(path)
    for word in (str(index_of(path)), "belongs to another file or to an earlier version of", f"run bcftools index -f {path}", *words):
        assert word in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(("ending", "kind"), KINDS)
@pytest.mark.parametrize("older", [False, True])
def test_an_index_that_fits_is_used_also_if_it_is_older(tmp_path: Path, ending: str, kind: str, older: bool) -> None:
    """A copy made without its times has an index of any age."""
    path = write(tmp_path / f"c{ending}", BASE, kind)
    if older:
        os.utime(index_of(path), (1, 1))
    assert positions(path) == [int(line.split("\t")[1]) for line in BASE]
    assert positions(path, "1:100150-100449") == [100_150, 100_300]


@pytest.mark.parametrize(("ending", "kind"), KINDS)
def test_an_index_of_a_file_without_records_fits(tmp_path: Path, ending: str, kind: str) -> None:
    assert positions(write(tmp_path / f"c{ending}", [], kind)) == []


@pytest.mark.parametrize(("ending", "kind"), KINDS)
def test_an_index_of_another_version_is_refused(tmp_path: Path, ending: str, kind: str) -> None:
    path = write(tmp_path / f"c{ending}", BASE, kind)
    index = index_of(path).read_bytes()
    for records in OTHERS.values():
        write(path, records)
        for time in (1, 2**32):  # older than the file, and newer
            index_of(path).write_bytes(index)
            os.utime(index_of(path), (time, time))
            refused(path, *([", and it is older than the file"] if time == 1 else []))
    empty = write(tmp_path / f"d{ending}", [], kind)
    index = index_of(empty).read_bytes()
    write(empty, BASE)
    index_of(empty).write_bytes(index)
    refused(empty, "the index knows no record, the file has some")


def _swapped(records: Sequence[str]) -> list[str]:
    """The same lines, those of the middle third in another order."""
    third = len(records) // 3
    return [*records[:third], *records[third : 2 * third][::-1], *records[2 * third :]]


@pytest.mark.parametrize(("ending", "kind"), KINDS)
def test_offsets_that_begin_other_records_are_found(tmp_path: Path, ending: str, kind: str) -> None:
    """Files of the same length, block by block, whose records have changed places."""
    path = write(tmp_path / f"c{ending}", BASE, kind, level=0)
    index, size = index_of(path).read_bytes(), path.stat().st_size
    write(path, [*_swapped(BASE[:2400]), *BASE[2400:]], level=0)
    index_of(path).write_bytes(index)
    assert path.stat().st_size == size
    refused(path, "no record of contig 1 begins where the index says")


@pytest.mark.parametrize("kind", ["--tbi", "--csi"])
def test_a_record_more_between_two_offsets_is_counted_where_the_index_is_older(tmp_path: Path, kind: str) -> None:
    """Two lines in the place of one of the same length: no offset tells them from it."""
    short = BASE[10].replace("rs10", "rs10;" + "x" * (len(BASE[11])))
    path = write(tmp_path / "c.vcf.gz", [*BASE[:10], short, *BASE[12:]], kind, level=0)
    index, size = index_of(path).read_bytes(), path.stat().st_size
    write(path, BASE, level=0)
    assert path.stat().st_size == size
    index_of(path).write_bytes(index)
    os.utime(index_of(path), (1, 1))
    refused(path, "the file has 3,200 records, the index 3,199, and it is older than the file")


@pytest.mark.parametrize(("ending", "kind"), KINDS)
def test_what_is_read_of_an_index(tmp_path: Path, ending: str, kind: str) -> None:
    path = write(tmp_path / f"c{ending}", BASE, kind)
    index = read_index(index_of(path))
    assert index.names == (() if ending == ".bcf" else (b"1", b"chr2"))
    assert [contig[index.described].chunks[1] for contig in index.contigs] == [(2400, 0), (800, 0)]
    assert index.span(0) == (0, 1 << (index.shift + 3 * index.depth))
    lowest = (8**index.depth - 1) // 7
    assert index.span(lowest + 6) == (6 << index.shift, 7 << index.shift)
    index_of(path).write_bytes(b"TBI\1" + b"\xff" * 40)
    with pytest.raises(InputError, match="cannot be read as an index"):
        check_index(path, index_of(path), None)


@pytest.mark.skipif(not CASES.exists(), reason="shared/cases/genomes, files that were made by hand, is not here")
@pytest.mark.parametrize("name", ["c19.vcf.gz", "c19b.vcf.gz", "c19c.bcf"])
def test_files_made_by_hand_with_an_index_of_an_earlier_version(name: str) -> None:
    source = open_source(CASES / name)
    with pytest.raises(InputError, match="the index ends where no block of the file does"):
        list(source.blocks(range(len(source.samples)), Selection(regions=("1:1-3000000",)), 64))
