"""VCF and BCF files as sources of variants: against htslib by three ways (pysam, cyvcf2, bcftools), and every file that cannot be used."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.vcf import VcfSource, open_vcf
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig
from tests.conftest import vcf_text, write_bed, write_vcf

SAMPLES = ["s1", "s2", "s3", "s4"]
RECORDS = [
    ("chr21", 100, "rs1", "A", "G", ["0/0", "0/1", "1/1", "./."]),
    ("chr21", 200, "rs2", "C", "T", ["0|0", "1|0", "0|1", "1|1"]),
    ("chr21", 300, ".", "G", "GA", ["0", "1", ".", "0/1"]),
    ("22", 400, "rs4", "T", "A,C", ["0/1", "1/2", "2/2", "./2"]),
    ("22", 500, "rs5", "GTT", "G", ["./1", "0/0", ".|.", "1/1"]),
    ("22", 600, "rs6", "G", "A", ["1/1/1", "0/1/1/1", "0|1", "./1/1"]),
]
KEYS = (
    Variant("chr21", 100, "rs1", "A", "G"),
    Variant("chr21", 200, "rs2", "C", "T"),
    Variant("chr21", 300, ".", "G", "GA"),
    Variant("22", 400, "rs4", "T", "A"),
    Variant("22", 400, "rs4", "T", "C"),
    Variant("22", 500, "rs5", "GTT", "G"),
    Variant("22", 600, "rs6", "G", "A"),
)
DOSAGE = np.array([[0, 1, 2, -1], [0, 1, 1, 2], [0, 1, -1, 1], [1, 1, 0, -1], [0, 1, 2, -1], [-1, 0, -1, 2], [3, 3, 1, -1]], dtype=np.int8)
HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=1,length=1000000>\n##contig=<ID=chr2>\n"
    + "".join(
        f'##FORMAT=<ID={name},Number={count},Type={kind},Description="x">\n'
        for name, count, kind in (("GT", 1, "String"), ("AD", "R", "Integer"), ("DP", 1, "Integer"), ("GQ", 1, "Integer"))
    )
    + '##INFO=<ID=NOTE,Number=1,Type=String,Description="x">\n'
)
Read = tuple[list[Variant], npt.NDArray[np.int8]]


def read(path: Path, samples: Sequence[int] | None = None, memory_mb: int = 64, fast: bool = True, **selection: Any) -> Read:
    """All blocks, put together: keys and dosage (variants, samples)."""
    source = open_source(path)
    if isinstance(source, VcfSource):
        source.fast = fast
    samples = range(len(source.samples)) if samples is None else samples
    blocks = list(source.blocks(samples, Selection(**selection), memory_mb))
    for block in blocks:
        assert block.dosage.dtype == np.int8
        assert block.dosage.flags.c_contiguous
        assert block.dosage.shape == (len(block.keys), len(samples))
        assert block.keys
    dosage = np.concatenate([np.zeros((0, len(samples)), np.int8), *(b.dosage for b in blocks)])
    return [key for b in blocks for key in b.keys], dosage


def same(a: Read, b: Read) -> None:
    assert a[0] == b[0]
    np.testing.assert_array_equal(a[1], b[1])


def matrix(rows: list[Any], path: Path) -> npt.NDArray[np.int8]:
    return np.array(rows, dtype=np.int8).reshape(len(rows), len(open_source(path).samples))


def by_bcftools(path: Path) -> Read:
    """Keys and dosages of a file, by bcftools' text and this test's own reading of a genotype."""
    import pysam.bcftools

    keys, rows = [], []
    for line in pysam.bcftools.query("-f", r"%CHROM\t%POS\t%ID\t%REF\t%ALT[\t%GT]\n", str(path)).splitlines():
        contig, position, name, ref, alts, *calls = line.split("\t")
        for number, alt in enumerate([] if alts == "." else alts.split(","), start=1):
            keys.append(Variant(contig, int(position), name, ref, alt))
            alleles = [re.split(r"[/|]", call) for call in calls]
            rows.append([-1 if "." in a else a.count(str(number)) for a in alleles])
    return keys, matrix(rows, path)


def by_cyvcf2(path: Path) -> npt.NDArray[np.int8]:
    import cyvcf2

    rows = []
    file = cyvcf2.VCF(str(path), strict_gt=True)
    for record in file:
        try:
            alleles = record.genotype.array()[:, :-1]  # -1 missing, -2 padding
        except Exception:  # cyvcf2's own, of a record without GT
            alleles = np.full((len(file.samples), 1), -1)
        for number in range(1, len(record.ALT) + 1):
            count = (alleles == number).sum(axis=1)
            rows.append(np.where((alleles == -1).any(axis=1) | (alleles == -2).all(axis=1), -1, count))
    return matrix(rows, path)


def by_pysam(path: Path) -> npt.NDArray[np.int8]:
    """pysam sees a GT only where it is first in FORMAT."""
    import pysam

    rows = []
    with pysam.VariantFile(str(path)) as file:
        for record in file:
            alleles = [call.allele_indices or (None,) for call in record.samples.values()]
            rows += [[-1 if None in a else a.count(k) for a in alleles] for k in range(1, len(record.alts or ()) + 1)]
    return matrix(rows, path)


def convert(path: Path, ending: str) -> Path:
    """Another file with the same records, indexed where it can be."""
    import pysam
    import pysam.bcftools

    out = path.with_name(f"converted{ending}")
    if ending == ".vcf.gz":
        pysam.tabix_compress(str(path), str(out), force=True)
    else:
        pysam.bcftools.view("--no-version", "-O", {".bcf": "b", ".vcf": "v"}[ending], "-o", str(out), str(path), catch_stdout=False)
    return out


def index(path: Path, kind: str = "") -> Path:
    import pysam.bcftools

    pysam.bcftools.index("-f", *([kind] if kind else []), str(path), catch_stdout=False)
    return path


# --- what is read


@pytest.mark.parametrize("name", ["cohort.vcf", "cohort.vcf.gz", "cohort.bcf"])
@pytest.mark.parametrize("memory_mb", [1, 512])
@pytest.mark.parametrize("fast", [True, False])
def test_every_format_gives_the_dosages_that_were_written(tmp_path: Path, name: str, memory_mb: int, fast: bool) -> None:
    path = write_vcf(tmp_path / name, SAMPLES, RECORDS)
    same(read(path, memory_mb=memory_mb, fast=fast), (list(KEYS), DOSAGE))
    same(read(path, [3, 0, 2], memory_mb=memory_mb, fast=fast), (list(KEYS), DOSAGE[:, [3, 0, 2]]))
    source = open_vcf(path)
    assert source.samples == tuple(SAMPLES)
    assert list(source.contigs) == ["chr21", "22"]


@st.composite
def calls(draw: st.DrawFn, alts: int, common: bool) -> str:
    allele = st.integers(0, alts if not common else min(1, alts)).map(str)
    if common:
        return draw(st.sampled_from(["0|0", "0|1", "1|0", "0/0", "./.", "."])) if alts else "0/0"
    kind = draw(st.sampled_from(["diploid", "haploid", "triploid", "half", "missing"]))
    if kind == "missing":
        return draw(st.sampled_from([".", "./.", ".|.", "././."]))
    count = {"diploid": 2, "haploid": 1, "triploid": 3, "half": 2}[kind]
    parts = [draw(allele) for _ in range(count)]
    if kind == "half":
        parts[draw(st.integers(0, 1))] = "."
    return parts[0] + "".join(draw(st.sampled_from("/|")) + part for part in parts[1:])


@st.composite
def vcfs(draw: st.DrawFn) -> str:
    """A VCF with every odd thing a valid one may have; half of its records are common ones."""
    columns = draw(st.integers(1, 5))
    lines = ["#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t" + "\t".join(f"p{k}" for k in range(columns))]
    contigs = draw(st.lists(st.booleans(), max_size=12).map(sorted))
    for at, second in enumerate(contigs):
        common = draw(st.booleans())
        odd = ["C", "G,T", "<DEL>", "*", "c", ".", "CA,<INS>,*", ",".join("A" + "C" * k for k in range(1, 13))]
        alt = "C" if common else draw(st.sampled_from(odd))
        format_ = "GT" if common else draw(st.sampled_from(["GT", "GT:DP", "GT:AD:DP:GQ", "DP:GT", "DP", "GQ:GT:DP"]))
        cells = []
        for _ in range(columns):
            call = draw(calls(0 if alt == "." else alt.count(",") + 1, common))
            values = {"GT": call, "DP": draw(st.sampled_from([".", "7"])), "AD": ".", "GQ": "9"}
            cell = [values[f] for f in format_.split(":")]
            least = format_.split(":").index("GT") + 1 if "GT" in format_ else 1  # bcftools ends the process where all drop GT
            cells.append(":".join(cell[: draw(st.integers(least, len(cell)))]))
        id_ = draw(st.sampled_from([".", f"rs{at}"]))
        fixed = ["chr2" if second else "1", str(at * 7 + 1), id_, draw(st.sampled_from(["A", "a", "ATTG"])), alt, ".", "PASS"]
        lines.append("\t".join([*fixed, draw(st.sampled_from([".", "NOTE=0|0"])), format_, *cells]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return (HEADER + "\n".join(lines) + "\n").replace("\n", end)


@given(vcfs(), st.integers(1, 3))
def test_any_vcf_is_read_as_htslib_reads_it(text: str, memory_mb: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.vcf"
        path.write_text(text, newline="")
        own = read(path, memory_mb=memory_mb)
        same(own, read(path, fast=False))
        same(own, by_bcftools(path))
        np.testing.assert_array_equal(own[1], by_cyvcf2(path))
        if "DP:GT" not in text and "GQ:GT" not in text:
            np.testing.assert_array_equal(own[1], by_pysam(path))
        for ending in (".vcf.gz", ".bcf"):
            same(own, read(convert(path, ending), memory_mb=memory_mb))


@given(vcfs(), st.lists(st.tuples(st.sampled_from(["1", "2"]), st.integers(1, 90), st.integers(0, 40)), min_size=1, max_size=4))
def test_regions_are_the_records_whose_position_is_in_them(text: str, places: list[tuple[str, int, int]]) -> None:
    regions = tuple(f"{contig}:{first}-{first + length}" for contig, first, length in places)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.vcf"
        path.write_text(text, newline="")
        keys, dosage = read(path)
        kept = [any(canonical_contig(k.contig) == c and f <= k.position <= f + n for c, f, n in places) for k in keys]
        expected = ([k for k, keep in zip(keys, kept, strict=True) if keep], dosage[np.array(kept, dtype=bool)])
        same(read(path, regions=regions), expected)
        for ending, kind in ((".vcf.gz", "--tbi"), (".vcf.gz", "--csi"), (".bcf", "")):
            other = convert(path, ending)
            for old in Path(folder).glob("*.?[bs]i"):
                old.unlink()
            same(read(index(other, kind), regions=regions), expected)
        listed = frozenset(
            [k.id for k in keys[::2] if k.id != "."] + [f"{canonical_contig(k.contig)}:{k.position}:{k.ref}:{k.alt}" for k in keys[:3]]
        )
        if listed:
            wanted = [Selection(listed=listed).wants(k) for k in keys]
            for other in (path, Path(folder) / "converted.vcf.gz", Path(folder) / "converted.bcf"):
                same(read(other, listed=listed), ([k for k, w in zip(keys, wanted, strict=True) if w], dosage[wanted]))


def test_genotypes_that_are_dropped_or_stand_elsewhere(tmp_path: Path) -> None:
    lines = [
        "1\t5\t.\tA\tG\t.\t.\t.\tDP:GT\t4:0/1\t5\t.\t9:1",
        "1\t6\t.\tA\tG\t.\t.\t.\tDP:GT:GQ\t.\t.\t.\t.",
        "1\t7\t.\tA\tG\t.\t.\t.\tDP\t4\t5\t6\t7",
        "1\t8\t.\tA\tG\t.\t.\t.\tDP:GQ:GT\t4:5:1|1\t5:6\t.\t9:8:0/0",
        "1\t9\t.\tA\tG\t.\t.\t.\t.\t.\t.\t.\t.",
        "1\t10\t.\tA\tG\t.\t.\t.\tGT\t/0/1\t|1|1\t/.\t|1",  # a first separator: VCF 4.4
    ]
    path = write_lines(tmp_path / "c.vcf", lines)
    expected = [[1, -1, -1, 1], [-1] * 4, [-1] * 4, [2, -1, -1, 0], [-1] * 4, [1, 2, -1, 1]]
    np.testing.assert_array_equal(read(path)[1], expected)
    path = write_lines(tmp_path / "c.vcf", lines[:5])
    np.testing.assert_array_equal(read(convert(path, ".bcf"))[1], expected[:5])


def write_lines(path: Path, lines: Sequence[str], samples: Sequence[str] = SAMPLES, end: str = "\n") -> Path:
    """A VCF of these records, as text."""
    head = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t" + "\t".join(samples)
    path.write_text(HEADER + "\n".join([head, *lines]) + end, newline="")
    return path


def many(count: int, columns: int, seed: int = 0, format_: str = "GT") -> list[str]:
    """Records of common and rare variants with a few missing and half calls."""
    rng = np.random.default_rng(seed)
    words = np.array(["0|0", "0|1", "1|0", "1|1", "./.", "0/1", ".|1"])
    lines = []
    for at in range(count):
        rare = rng.random() < 0.5
        cells = words[rng.choice(7, columns, p=[0.94, 0.03, 0.02, 0.01, 0, 0, 0] if rare else [0.5, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])]
        rest = ":3,4:7:99" if format_ != "GT" else ""
        lines.append("\t".join(["1", str(at + 1), f"rs{at}", "A", "G", ".", ".", ".", format_, *(c + rest for c in cells)]))
    return lines


@pytest.mark.parametrize("format_", ["GT", "GT:AD:DP:GQ"])
@pytest.mark.parametrize("columns", [3, 1200])
def test_the_blocks_ends_change_nothing(tmp_path: Path, format_: str, columns: int) -> None:
    lines = many(6000 if columns == 3 else 400, columns, format_=format_)
    lines[::50] = [line.replace("0|0", "0") for line in lines[::50]]
    samples = [f"p{k}" for k in range(columns)]
    path = write_lines(tmp_path / "c.vcf", lines, samples)
    expected = by_bcftools(path)
    for name in (path, convert(path, ".vcf.gz"), convert(path, ".bcf")):
        assert len(list(open_vcf(name).blocks(range(columns), Selection(), 1))) > 3
        same(read(name, memory_mb=1), expected)
        same(read(name, memory_mb=512), expected)
    same(read(path, fast=False), expected)


@pytest.mark.long
def test_a_real_file_against_every_other_reader(tmp_path: Path, chromosome_21: Path) -> None:
    """1000 Genomes, published as plain gzip: rewritten as bgzip, as BCF and, where both alleles are plain, as PLINK bed."""
    plain = tmp_path / "plain.vcf"
    plain.write_bytes(gzip.decompress(chromosome_21.read_bytes()))
    own = read(plain)
    assert len(own[0]) > 50
    assert len(np.unique(own[1])) >= 3
    same(own, read(plain, fast=False))
    same(own, by_bcftools(plain))
    np.testing.assert_array_equal(own[1], by_cyvcf2(plain))
    np.testing.assert_array_equal(own[1], by_pysam(plain))
    for ending in (".vcf.gz", ".bcf"):
        other = index(convert(plain, ending))
        same(own, read(other))
        middle = own[0][len(own[0]) // 2].position
        kept = np.array([k.position >= middle for k in own[0]])
        there = ([k for k in own[0] if k.position >= middle], own[1][kept])
        same(there, read(other, regions=(f"chr21:{middle}-{2**31 - 1}",)))
    samples = open_vcf(plain).samples
    bed = write_bed(tmp_path / "c.bed", samples, own[0], own[1].T)
    same(own, read(bed))


@given(st.lists(st.sampled_from(["0|0", "0/1", "1|0", "1/1", "./."]), min_size=4, max_size=40))
def test_a_person_stays_as_she_is_from_vcf_over_bcf_to_bed(genotypes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [genotypes[k : k + 4] for k in range(0, len(genotypes) - 3, 4)]
        path = write_vcf(Path(folder) / "c.vcf", SAMPLES, [("22", k + 1, f"rs{k}", "A", "G", row) for k, row in enumerate(rows)])
        first = read(path)
        second = read(convert(path, ".bcf"))
        third = read(write_bed(Path(folder) / "c.bed", SAMPLES, second[0], second[1].T))
        same(first, second)
        same(second, third)


def test_exclusions_are_counted(tmp_path: Path) -> None:
    long = "A" * 1001
    lines = [
        f"1\t{k + 5}\trs{k}\t{ref}\t{alt}\t.\t.\t.\tGT\t0/0\t0/0\t0/0\t0/1"
        for k, (ref, alt) in enumerate([("A", "G"), ("A", "<NON_REF>"), (long, "A"), ("A", f"{long},C"), (long[1:], "A"), (long, "C,G")])
    ]
    lines += ["1\t90\trs9\tA\t.\t.\t.\t.\tGT\t0/0\t0/0\t0/0\t./."]
    path = write_lines(tmp_path / "c.vcf", lines)
    for other in (path, convert(path, ".vcf.gz"), convert(path, ".bcf")):
        source = open_vcf(other)
        for _ in range(2):  # counted again each time
            keys = [key for b in source.blocks(range(4), Selection(), 64) for key in b.keys]
            assert [(k.position, len(k.ref), k.alt) for k in keys] == [(5, 1, "G"), (6, 1, "<NON_REF>"), (8, 1, "C"), (9, 1000, "A")]
            assert source.excluded == {"no ALT": 1, "allele too long": 4}
        list(source.blocks(range(4), Selection(listed=frozenset({"rs9", "rs2"})), 64))
        assert source.excluded == {"no ALT": 1, "allele too long": 1}
        list(source.blocks(range(4), Selection(listed=frozenset({"1:5:A:G"})), 64))
        assert not any(source.excluded.values())


@pytest.mark.parametrize("ending", [".vcf", ".vcf.gz", ".bcf"])
def test_long_lines_that_are_valid_are_read(tmp_path: Path, ending: str) -> None:
    lines = many(50, 4)
    fields = lines[20].split("\t")
    lines[20] = "\t".join([*fields[:7], "NOTE=" + "x" * 5_000_000, *fields[8:]])
    fields = lines[30].split("\t")
    lines[30] = "\t".join([*fields[:3], "A" * 5_000_000, *fields[4:]])
    path = write_lines(tmp_path / "c.vcf", lines)
    plain = read(write_lines(tmp_path / "short.vcf", many(50, 4)))
    kept = np.arange(50) != 30
    path = path if ending == ".vcf" else convert(path, ending)
    same(read(path, memory_mb=64), ([k for k, keep in zip(plain[0], kept, strict=True) if keep], plain[1][kept]))
    source = open_vcf(path)
    with pytest.raises(InputError, match=r"(line 30|record 21) has 5,\d{3},\d{3} bytes.*raise data.variants.memory_mb in site.toml"):
        list(source.blocks(range(4), Selection(), 16))


# --- files that cannot be used


def refused(path: Path, *words: str, **selection: Any) -> None:
    """Reading ends in one sentence with these words."""
    with pytest.raises(InputError) as caught:
        read(path, **selection)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value).replace(str(path), "")) < 400


def read_or_message(path: Path) -> Read | str:
    """What the file holds, or the one sentence of why it cannot be read."""
    try:
        return read(path)
    except InputError as error:
        return str(error) if "\n" not in str(error) else "more than one line"


GOOD = "1\t5\trs1\tA\tG\t.\t.\t.\tGT\t0/0\t0/1\t1/1\t0|1"
BAD = {
    "": ["is empty"],
    "x" * 5_000_000: ["1 columns", "5,000,000 bytes"],
    GOOD.replace("\t5\t", "\tfive\t"): ['POS "five"'],
    GOOD.replace("\t5\t", "\t-5\t"): ['POS "-5"'],
    GOOD.replace("\t5\t", "\t12345678901\t"): ['POS "12345678901"'],
    GOOD + "\t0/0": ["14 columns", "13"],
    GOOD[:-4]: ["12 columns", "13"],
    GOOD.rsplit("\t", 5)[0]: ["8 columns", "13"],
    GOOD.replace("\tA\t", "\t\t"): ["an empty"],
    GOOD.replace("0/1", ""): ['genotype ""'],
    GOOD.replace("0/1", "0/"): ['genotype "0/"'],
    GOOD.replace("0/1", "0-1"): ['genotype "0-1"'],
    GOOD.replace("0/1", "a/b"): ['genotype "a/b"'],
    GOOD.replace("0/1", "0/1 "): ['genotype "0/1 "'],
    GOOD.replace("0/1", "0/2"): ["allele 2", "1 in ALT"],
    GOOD.replace("0/1", "10/1"): ["allele 10", "1 in ALT"],
    GOOD.replace("0/1", "2"): ["allele 2", "1 in ALT"],
    GOOD.replace("rs1", "\udce9"): ["UTF-8"],
}


@pytest.mark.parametrize("line", list(BAD), ids=lambda line: repr(line[-20:]))
@pytest.mark.parametrize("fast", [True, False])
def test_an_invalid_line_is_reported_by_its_number(tmp_path: Path, line: str, fast: bool) -> None:
    path = tmp_path / "c.vcf"
    text = (
        HEADER + "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2\ts3\ts4\n" + "\n".join([*many(700, 4), line, GOOD]) + "\n"
    )
    path.write_bytes(text.encode(errors="surrogateescape"))
    import pysam

    pysam.tabix_compress(str(path), str(tmp_path / "c.vcf.gz"))
    for other in (path, tmp_path / "c.vcf.gz"):
        for memory_mb in (64, 128):
            refused(other, f"line {10 + 700}", *BAD[line], memory_mb=memory_mb, fast=fast)


def test_a_line_without_its_end_is_taken_only_where_nothing_can_be_gone(tmp_path: Path) -> None:
    rows = [[1, 0, 0, 2]]
    fields = GOOD.rsplit("\t", 4)[0]
    whole = [f"{fields}\t0/1\t0\t0\t1/1", f"{fields}:DP\t0/1\t0\t0\t1/1:3"]
    for line in whole:
        np.testing.assert_array_equal(read(write_lines(tmp_path / "c.vcf", [line], end=""))[1], rows)
    for line in (
        whole[0][:-2],
        whole[0][:-1],
        whole[0][:-4],
        whole[0][:-6],
        whole[0][:3],
    ):
        refused(write_lines(tmp_path / "c.vcf", [GOOD, line], end=""), "line 11")


def test_files_that_are_no_vcf_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.vcf"
    refused(tmp_path / "nowhere.vcf.gz", "no such file")
    for text in ("", "hello", "hello\n" * 9, HEADER, vcf_text(SAMPLES, RECORDS).split("\n", 5)[5], "x" * 5_000_000, "\0" * 1000):
        path.write_text(text)
        refused(path, "header")
    text = vcf_text(SAMPLES, RECORDS)
    path.write_text(text.replace("s3", "s1"))
    refused(path, 'sample "s1" twice')
    path.write_text(vcf_text([], []))
    refused(path, "no sample")
    path.write_text(text.replace("\tFORMAT\ts1\ts2\ts3\ts4", ""))
    refused(path, "no sample")
    path.write_bytes(b"BCF\1\1" + bytes(100))
    refused(path, "BCF version 2")
    path.write_bytes(b"BCF\2\2" + bytes([255, 255, 0, 0]) + bytes(100))
    refused(path, "header")


@pytest.mark.parametrize("lost", ["all", "##fileformat", "#CHROM"])
@pytest.mark.parametrize("ending", [".vcf", ".vcf.gz"])
def test_the_way_to_a_header_that_the_error_names_works_where_bcftools_does_not(tmp_path: Path, lost: str, ending: str) -> None:
    whole = vcf_text(SAMPLES, RECORDS)
    lines = [line for line in whole.splitlines() if not line.startswith("#" if lost == "all" else lost)]
    path, other = tmp_path / f"a cohort{ending}", tmp_path / "other.vcf"
    (path.write_text if ending == ".vcf" else lambda text: _bgzip(path, text))("\n".join(lines) + "\n")
    other.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    with pytest.raises(pysam.SamtoolsError):
        pysam.bcftools.view(str(path))
    with pytest.raises(InputError) as raised:
        open_vcf(path)
    said = str(raised.value)
    assert "has no valid VCF header" in said
    # The command of the message, with the two programs from pysam: bcftools is not installed everywhere.
    found = re.search(r"\(bcftools view -h OTHER\.vcf\.gz; (.*)\) \| bgzip > NEW\.vcf\.gz", said)
    assert found is not None
    records = subprocess.run(shlex.split(found[1]), capture_output=True, text=True, check=True).stdout
    _bgzip(tmp_path / "new.vcf.gz", pysam.bcftools.view("-h", "--no-version", str(other)) + records)
    assert open_vcf(tmp_path / "new.vcf.gz").samples == tuple(SAMPLES)
    with pysam.VariantFile(str(tmp_path / "new.vcf.gz")) as file:
        assert len(list(file)) == len(RECORDS)


def _bgzip(path: Path, text: str) -> None:
    with pysam.BGZFile(str(path), "wb") as out:
        out.write(text.encode())


def test_a_file_without_records_gives_no_block(tmp_path: Path) -> None:
    for name in ("c.vcf", "c.vcf.gz", "c.bcf"):
        assert read(write_vcf(tmp_path / name, SAMPLES, []))[0] == []


@pytest.mark.parametrize("ending", [".vcf.gz", ".bcf"])
def test_a_truncated_or_corrupt_bgzip_is_refused(tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = convert(write_lines(tmp_path / "c.vcf", many(9000, 4)), ending)
    whole = path.read_bytes()
    expected = read(path)
    end = whole[-28:]
    for kept in (0.3, 0.7, 0.99):
        cut = whole[: int(kept * len(whole))]
        for broken in (cut, cut + end):
            path.write_bytes(broken)
            refused(path)
    path.write_bytes(whole[:-28])
    refused(path, "last bgzip block is missing")
    starts = [at for at in range(len(whole)) if whole.startswith(b"\x1f\x8b\x08\x04", at)]
    path.write_bytes(whole[: starts[2]] + whole[starts[3] :])  # a block gone: lines do not fit together any more, or records
    refused(path)
    rng = np.random.default_rng(0)
    for at in rng.integers(starts[1], len(whole) - 28, 40):
        broken_ = bytearray(whole)
        broken_[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken_)
        found = read_or_message(path)
        if isinstance(found, str):
            assert str(path) in found
        else:  # a bit of a block's head that means nothing (time, system)
            same(found, expected)
    path.write_bytes(whole)
    same(read(path), expected)
    assert capfd.readouterr() == ("", "")


def test_plain_gzip_is_refused_with_its_fix(tmp_path: Path) -> None:
    path = tmp_path / "c.vcf.gz"
    path.write_bytes(gzip.compress(vcf_text(SAMPLES, RECORDS).encode()))
    refused(path, "bgzip")


@pytest.mark.parametrize("name", ["c.vcf", "c.vcf.gz", "c.bcf"])
def test_regions_need_an_index_and_a_contig(tmp_path: Path, name: str) -> None:
    path = write_vcf(tmp_path / name, SAMPLES, RECORDS)
    if name != "c.vcf":
        refused(path, "has no index", f"bcftools index {path}", regions=("22",))
        index(path)
    refused(path, "has no contig 7, only 21, 22", regions=("22", "chr7:1-5"))
    assert [k.position for k in read(path, regions=("22:450-550", "chr21:100-199"))[0]] == [100, 500]
    assert [k.position for k in read(path, regions=("22:450-550", "chr22:400-460", "21"), listed=frozenset({"rs4", "21:300:G:GA"}))[0]] == [
        300,
        400,
        400,
    ]
    if name != "c.vcf":
        for index_file in tmp_path.glob("c.*.[ct][sb]i"):
            index_file.write_bytes(b"junk")
        with pytest.raises(InputError, match="cannot be read as an index"):
            read(path, regions=("22",))


def test_a_record_that_reaches_into_a_region_is_not_in_it(tmp_path: Path) -> None:
    lines = [GOOD.replace("\t5\t", "\t10\t").replace("\tA\t", "\t" + "A" * 50 + "\t"), GOOD.replace("\t5\t", "\t40\t")]
    path = write_lines(tmp_path / "c.vcf", lines)
    for other in (path, index(convert(path, ".vcf.gz")), index(convert(path, ".bcf"))):
        assert [k.position for k in read(other, regions=("1:30-50",))[0]] == [40]
        assert [k.position for k in read(other, regions=("1:5-15", "1:30-50"))[0]] == [10, 40]
        assert read(other, regions=("2",))[0] == []


def test_damage_in_a_bcf_record_is_reported_in_one_sentence(tmp_path: Path) -> None:
    """Any byte of the records may be wrong: what is read is refused, or has the shape that it should have."""
    import pysam

    path = convert(write_lines(tmp_path / "c.vcf", many(40, 4)), ".bcf")
    content = pysam.BGZFile(str(path)).read()
    header = 9 + int.from_bytes(content[5:9], "little")
    rng = np.random.default_rng(0)
    reported = 0
    for at in rng.integers(header, len(content), 300):
        broken = bytearray(content)
        broken[at] = rng.integers(256)
        with pysam.BGZFile(str(path), "wb") as out:
            out.write(bytes(broken))
        reported += isinstance(read_or_message(path), str)
    assert reported > 30


def test_an_allele_that_a_bcf_record_lacks_is_refused(tmp_path: Path) -> None:
    import pysam

    raw = {"0/1": (b"\x02\x04\x04\x04", b"\x02\x06\x04\x04"), "0/0/1": (b"\x02\x02\x04", b"\x02\x02\x06")}
    raw["1"] = (b"\x05\x81\x04\x04", b"\x07\x81\x04\x04")
    for call, (there, beyond) in raw.items():
        plain = write_lines(
            tmp_path / "c.vcf", [GOOD.replace("\t0/1", "\t" + call), GOOD.replace("\tG\t", "\tG,T\t").replace("0/1", "0/2")]
        )
        path = convert(plain, ".bcf")
        content = pysam.BGZFile(str(path)).read()
        assert read(path)[1].max() == 2
        assert content.count(there) == 1
        with pysam.BGZFile(str(path), "wb") as out:
            out.write(content.replace(there, beyond))
        refused(path, "the record at 1:5", "allele 2", "1 in ALT")


@pytest.mark.parametrize("largest", [30_000_000, pytest.param(100_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("rich", [False, True])
def test_memory_stays_under_the_budget_whatever_the_size(tmp_path: Path, rich: bool, largest: int) -> None:
    from tests.measured import read_alone, repeat

    path = tmp_path / "c.vcf.gz"
    peaks = []
    for size in (5_000_000, largest):
        _, variants, alleles = repeat(path, size, 400, rich)
        got = read_alone(path, 16)
        assert (got["variants"], got["total"]) == (variants, alleles)
        peaks.append(got["peak_mb"])
    assert max(peaks) < 16


def test_many_samples_in_a_line_of_odd_calls(tmp_path: Path) -> None:
    """More columns than are split at a time."""
    calls = np.array(["0/1", "1/1/1", ".", "10/11", "0|11"])[np.arange(40_000) % 5]
    line = "\t".join(["1", "5", ".", "A", ",".join("A" + "C" * k for k in range(1, 12)), ".", ".", ".", "GT", *calls])
    keys, dosage = read(write_lines(tmp_path / "c.vcf", [line], [f"p{k}" for k in range(40_000)]))
    assert len(keys) == 11
    np.testing.assert_array_equal(dosage[0], np.array([1, 3, -1, 0, 0])[np.arange(40_000) % 5])
    np.testing.assert_array_equal(dosage[9:], np.array([[0, 0, -1, 1, 0], [0, 0, -1, 1, 1]])[:, np.arange(40_000) % 5])


def test_haploid_calls_with_many_alleles(tmp_path: Path) -> None:
    alts = [f"A{'C' * k}" for k in range(1, 21)]
    line = "\t".join(["1", "5", ".", "A", ",".join(alts), ".", ".", ".", "GT", "0", "1/0", ".", "9"])
    keys, dosage = read(write_lines(tmp_path / "c.vcf", [line]))
    assert [k.alt for k in keys] == alts
    np.testing.assert_array_equal(dosage, [[0, int(k == 1), -1, int(k == 9)] for k in range(1, 21)])


def test_columns_too_many_in_a_line_of_the_usual_length(tmp_path: Path) -> None:
    """Two haploid calls take the place of one diploid call, and the line is as long as it should be."""
    three = ["s1", "s2", "s3"]
    fields = GOOD.rsplit("\t", 4)[0]
    for cells in ("0\t1\t0|0\t1|1", "0|0\t0\t1\t1|1", "0|0\t1|1\t0\t1"):
        refused(write_lines(tmp_path / "c.vcf", [f"{fields}\t0|0\t0|1\t1|1", f"{fields}\t{cells}"], three), "line 11 has 13 columns", "12")


def test_a_column_too_many_and_one_too_few_do_not_make_up_for_each_other(tmp_path: Path) -> None:
    fields = GOOD.rsplit("\t", 4)[0] + ":DP"
    more, fewer = fields + "\t0/0:3" * 5, fields + "\t0/0:3" * 3
    refused(write_lines(tmp_path / "c.vcf", [more, fewer]), "line 10 has 14 columns")
    refused(write_lines(tmp_path / "c.vcf", [fewer, more]), "line 10 has 12 columns")


def test_a_call_that_is_all_padding_is_missing(tmp_path: Path) -> None:
    """Some BCF writers leave a dropped genotype so."""
    import pysam

    path = convert(write_lines(tmp_path / "c.vcf", [GOOD.replace("0/1", "1")]), ".bcf")
    content = pysam.BGZFile(str(path)).read()
    assert content.count(b"\x05\x81\x04\x04") == 1
    with pysam.BGZFile(str(path), "wb") as out:
        out.write(content.replace(b"\x05\x81\x04\x04", b"\x81\x81\x04\x04"))
    np.testing.assert_array_equal(read(path)[1], [[0, -1, 2, 1]])


@pytest.mark.long
def test_regions_of_a_file_with_many_blocks(tmp_path: Path) -> None:
    """Positions as wide apart as on a chromosome, and dense in places, so that every level of the index is used."""
    rng = np.random.default_rng(0)
    lines = []
    for contig in ("1", "chr2"):
        sparse, dense = rng.integers(1, 240_000_000, 3000), 100_000_000 + rng.integers(1, 200_000, 9000)
        long = "A" * 900
        for k, position in enumerate(np.sort(np.concatenate([sparse, dense])).tolist()):
            cells = "\t".join(f"{a}|{b}" for a, b in rng.integers(0, 2, (4, 2)).tolist())
            lines.append(f"{contig}\t{position}\trs{k}\t{long if k % 50 == 0 else 'A'}\tG\t.\t.\t.\tGT\t{cells}")
    path = write_lines(tmp_path / "c.vcf", lines)
    path.write_text(path.read_text().replace("length=1000000", "length=248956422"))  # an index has as many levels as that asks for
    keys, dosage = read(path)
    files = [index(convert(path, ".vcf.gz")), index(convert(path, ".bcf"))]
    positions = np.array([k.position for k in keys])
    contigs = np.array([canonical_contig(k.contig) for k in keys])
    for case in range(40):
        regions, kept = [], np.zeros(len(keys), dtype=bool)
        for _ in range(int(rng.integers(1, 4))):
            contig = str(rng.choice(["1", "2"]))
            first = int(rng.integers(1, 240_000_000)) if case % 2 else int(100_000_000 + rng.integers(-5000, 200_000))
            last = first + int(10 ** rng.uniform(0, 8))
            regions.append(f"{contig}:{first}-{last}")
            kept |= (contigs == contig) & (positions >= first) & (positions <= last)
        expected = ([keys[i] for i in np.flatnonzero(kept)], dosage[kept])
        for file in files:
            same(read(file, memory_mb=1, regions=tuple(regions)), expected)
    for file in files:
        same(read(file, regions=("2",)), ([k for k in keys if k.contig == "chr2"], dosage[contigs == "2"]))
