"""Records that are damaged, or that no study can use: refused by line and field, or left out and counted, by both readers alike."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pysam
import pysam.bcftools
import pytest

from fedml.cohort.variants.genotypes import Genome, read_variants
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.records import kind_of
from fedml.cohort.variants.vcf import VcfSource
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

CASES = Path(__file__).parents[5] / "shared" / "cases" / "genomes"
GT = '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=1,length=1000>\n##contig=<ID=2>\n" + GT
    + '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="x">\n##FILTER=<ID=q10,Description="x">\n##FILTER=<ID=s50,Description="x">\n'
)  # fmt: skip
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2\ts3\n"
FIRST = len(HEADER.splitlines()) + 2  # line of the first record
LAST = "1\t900\trs9\tA\tG\t.\tPASS\t.\tGT\t0/1\t0/0\t1/1"
ENDINGS = (".vcf", ".vcf.gz", ".bcf")
Read = tuple[list[Variant], npt.NDArray[np.int8], dict[str, int]]


def record(contig: str = "1", pos: int = 10, id_: str = "rs1", ref: str = "A", alt: str = "G", filter_: str = "PASS") -> str:
    calls = "\t".join(["0/1", "0/0", "1/1"])
    return f"{contig}\t{pos}\t{id_}\t{ref}\t{alt}\t.\t{filter_}\t.\tGT\t{calls}"


def write(path: Path, *lines: str, header: str = HEADER, end: str = "\n") -> Path:
    """A VCF of these lines, as text, or as bgzip or BCF from htslib."""
    plain = path.with_suffix("").with_suffix(".vcf")
    plain.write_text(header + COLUMNS + "\n".join(lines) + end)
    if path.name.endswith(".vcf.gz"):
        pysam.tabix_compress(str(plain), str(path), force=True)
    elif path.suffix == ".bcf":
        pysam.bcftools.view("--no-version", "-Ob", "-o", str(path), str(plain), catch_stdout=False)
    return path


def read(path: Path, selection: Selection = Selection(), fast: bool = True) -> Read:
    source = open_source(path)
    assert isinstance(source, VcfSource)
    source.fast = fast
    blocks = list(source.blocks(range(len(source.samples)), selection, 64))
    dosage = np.concatenate([np.zeros((0, len(source.samples)), np.int8), *(b.dosage for b in blocks)])
    return [key for b in blocks for key in b.keys], dosage, {why: n for why, n in source.excluded.items() if n}


def refused(path: Path, *words: str, fast: bool = True) -> None:
    with pytest.raises(InputError) as caught:
        read(path, fast=fast)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


# --- left out and counted


LEFT_OUT = {
    "ALT is REF": ("ALT is REF", record(alt="A"), []),
    "ALT is REF in another case": ("ALT is REF", record(ref="a", alt="A"), []),
    "ALT is REF, longer": ("ALT is REF", record(ref="AC", alt="ac,A"), ["A"]),
    "IUPAC in ALT": ("allele of several bases (IUPAC code)", record(alt="R"), []),
    "IUPAC in one ALT": ("allele of several bases (IUPAC code)", record(alt="AY,C"), ["C"]),
    "IUPAC in REF": ("allele of several bases (IUPAC code)", record(ref="M", alt="G"), []),
    "IUPAC in REF of a deletion": ("allele of several bases (IUPAC code)", record(ref="AM", alt="<DEL>"), []),
    "REF unknown": ("allele unknown", record(ref=".", alt="G"), []),
    "position 0": ("position of a telomere", record(pos=0, ref="N", alt="<DEL>"), []),
    "one past the end": ("position of a telomere", record(pos=1001, ref="N", alt=".[2:5["), []),
    "a filter": ("FILTER not PASS", record(filter_="q10"), []),
    "two filters": ("FILTER not PASS", record(filter_="q10;s50"), []),
    "PASS and a filter": ("FILTER not PASS", record(filter_="PASS;s50"), []),
    "a filter, two alleles": ("FILTER not PASS", record(alt="G,T", filter_="q10"), []),
}


@pytest.mark.parametrize("case", LEFT_OUT)
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_no_study_can_use_is_left_out_and_counted(tmp_path: Path, case: str, ending: str) -> None:
    why, line, kept = LEFT_OUT[case]
    alts = line.split("\t")[4].split(",")
    if ending == ".bcf" and case in ("position 0", "PASS and a filter", "REF unknown"):
        pytest.skip("htslib writes this record in another way, or not at all")
    keys, dosage, excluded = read(write(tmp_path / f"c{ending}", line, LAST))
    assert [key.alt for key in keys] == [*kept, "G"]
    assert excluded == {why: len(alts) - len(kept)}
    np.testing.assert_array_equal(dosage[-1], [1, 0, 2])
    listed = Selection(listed=frozenset({"rs9"}))  # what is not asked for is not counted
    assert read(tmp_path / f"c{ending}", listed)[2] == {}


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_filter_is_read_if_the_study_says_so(tmp_path: Path, ending: str) -> None:
    lines = [record(pos=10 + k, filter_=text) for k, text in enumerate(["PASS", ".", "q10", "s50;q10"])]
    path = write(tmp_path / f"c{ending}", *lines)
    keys, _, excluded = read(path)
    assert [key.position for key in keys] == [10, 11]
    assert excluded == {"FILTER not PASS": 2}
    keys, dosage, excluded = read(path, Selection(passed=False))
    assert [key.position for key in keys] == [10, 11, 12, 13]
    assert (dosage.tolist(), excluded) == ([[1, 0, 2]] * 4, {})
    own = read_variants(path, ["s1", "s2", "s3"], genome=Genome("GRCh38"), cache=tmp_path / "cache")
    other = read_variants(path, ["s1", "s2", "s3"], genome=Genome("GRCh38"), cache=tmp_path / "cache", selection=Selection(passed=False))
    assert (len(own.keys), len(other.keys)) == (2, 4)  # the cache keeps them apart


def test_a_file_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "c.vcf", record(filter_="q10"), record(alt="A"))
    with pytest.raises(InputError, match=r"has no variant that can be used \(FILTER not PASS: 1, ALT is REF: 1\); correct data.variants"):
        read_variants(path, ["s1"], genome=Genome("GRCh38"), cache=tmp_path / "cache")


# --- damaged


DAMAGED = {
    "a slash in ALT": (record(alt="A/T"), 'has ALT "A/T", which is no allele'),
    "a dash": (record(alt="-"), 'has ALT "-"'),
    "a number": (record(alt="1"), 'has ALT "1"'),
    "a word": (record(alt="INS"), 'has ALT "INS"'),
    "a letter": (record(alt="E"), 'has ALT "E"'),
    "an open bracket": (record(alt="<DEL"), 'has ALT "<DEL"'),
    "half a breakend": (record(alt="N[2:5"), 'has ALT "N[2:5"'),
    "an empty ALT of two": (record(alt="G,"), 'has ALT ""'),
    "REF symbolic": (record(ref="<DEL>"), 'has REF "<DEL>"'),
    "REF a word": (record(ref="foo"), 'has REF "foo"'),
    "past the end": (record(pos=1002), "has POS 1002, past the end of contig 1 in the header (1000 bases)"),
    "no such contig": (record(contig="3"), 'is on contig "3", which the header does not declare (1, 2)'),
    "another name of a contig": (record(contig="chr1"), "##contig=<ID=chr1>"),
    "GT twice": (record().replace("GT", "GT:GT").replace("0/1", "0/1:0/0"), "has GT twice in FORMAT"),
    "GT twice, apart": (record().replace("GT", "GT:DP:GT"), "has GT twice in FORMAT"),
    "more values": (record().replace("0/1", "0/1:7"), "has 2 values in column 10 where FORMAT names 1"),
    "more values, haploid": (record().replace("0/1", "0:7"), "has 2 values in column 10 where FORMAT names 1"),
    "more values at the end": (record() + ":7:8", "has 3 values in column 12 where FORMAT names 1"),
    "one more, one fewer": (record().replace("GT", "GT:DP").replace("0/1", "0/1:7:8").replace("0/0", "0/0:3"), "has 3 values in column 10"),
    "more values, GT later": (record().replace("GT\t", "DP:GT\t").replace("0/1", "5:0/1:7"), "has 3 values in column 10"),
    "a filter and columns of two lines": (record(filter_="0|0") + "\t0|0", "has 13 columns where the header has 12"),
    "a header line": ("##contig=<ID=2>", "is a header line among the records"),
    "a second list of samples": (COLUMNS.rstrip("\n"), "is a header line among the records; if two files were joined, join them with"),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("fast", [True, False])
def test_a_damaged_line_is_refused_by_its_number_and_field(tmp_path: Path, case: str, fast: bool) -> None:
    line, words = DAMAGED[case]
    for ending in (".vcf", ".vcf.gz"):
        refused(
            write(tmp_path / f"c{ending}", LAST, line, LAST), f"line {FIRST + 1} {words}" if "##contig=<" not in words else words, fast=fast
        )


@pytest.mark.parametrize("case", ["a slash in ALT", "a dash", "a word", "REF a word"])
def test_a_damaged_allele_of_a_bcf_is_refused_by_its_place(tmp_path: Path, case: str) -> None:
    line, words = DAMAGED[case]
    refused(write(tmp_path / "c.bcf", LAST, line), f"the record at 1:10 {words}")


def test_places_of_a_bcf_that_its_header_excludes(tmp_path: Path) -> None:
    path = write(tmp_path / "c.bcf", record())
    content = pysam.BGZFile(str(path)).read()
    at = 9 + int.from_bytes(content[5:9], "little") + 12
    assert struct.unpack_from("<i", content, at) == (9,)
    for position, words in ((1001, "has POS 1002, past the end of contig 1"), (-2, "has POS -1, which is not a position")):
        with pysam.BGZFile(str(path), "wb") as out:
            out.write(content[:at] + struct.pack("<i", position) + content[at + 4 :])
        refused(path, words)
    with pysam.BGZFile(str(path), "wb") as out:
        out.write(content[:at] + struct.pack("<i", -1) + content[at + 4 :])
    assert read(path)[2] == {"position of a telomere": 1}


def test_gt_twice_in_a_bcf_record(tmp_path: Path) -> None:
    header = HEADER.replace("ID=DP,Number=1,Type=Integer", "ID=DP,Number=1,Type=String")
    line = record().replace("GT", "GT:DP").replace("0/1", "0/1:x").replace("0/0", "0/0:x").replace("1/1", "1/1:x")
    path = write(tmp_path / "c.bcf", line, header=header)
    content = pysam.BGZFile(str(path)).read()
    names = pysam.VariantFile(str(path)).header.formats
    gt, dp = bytes([0x11, names["GT"].id]), bytes([0x11, names["DP"].id])
    assert (read(path)[1].tolist(), content.count(gt), content.count(dp)) == ([[1, 0, 2]], 1, 1)
    with pysam.BGZFile(str(path), "wb") as out:
        out.write(content.replace(dp, gt))
    refused(path, "the record at 1:10 has GT twice in FORMAT")


def test_a_header_line_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "c.vcf", record(), header=HEADER + COLUMNS)
    refused(path, f"line {FIRST} is a second header line (#CHROM)")


# --- legal


def test_calls_with_fewer_values_than_format_names_are_read(tmp_path: Path) -> None:
    line = record().replace("GT", "GT:DP").replace("0/1", "0/1:7")
    for fast in (True, False):
        assert read(write(tmp_path / "c.vcf", line), fast=fast)[1].tolist() == [[1, 0, 2]]


def test_a_contig_is_not_asked_for_where_the_header_declares_none(tmp_path: Path) -> None:
    header = "".join(line for line in HEADER.splitlines(keepends=True) if not line.startswith("##contig"))
    keys, _, _ = read(write(tmp_path / "c.vcf", record(contig="7", pos=10**8), record(contig="8"), header=header))
    assert [key.contig for key in keys] == ["7", "8"]


@pytest.mark.parametrize("ending", [".vcf", ".vcf.gz"])
def test_gt_need_not_be_declared_where_records_have_it(tmp_path: Path, ending: str) -> None:
    header = HEADER.replace(GT, "")
    assert read(write(tmp_path / f"c{ending}", record(), header=header))[1].tolist() == [[1, 0, 2]]
    refused(
        write(tmp_path / f"c{ending}", record().replace("GT", "DP"), header=header), f"line {FIRST - 1} has no GT in FORMAT, and the header"
    )


@pytest.mark.parametrize(
    ("calls", "dosage"),
    [("0/1 0/0 1/1", [1, 0, 2]), ("0 1 1", [0, 1, 1]), ("0/1:7 . 0", [1, -1, 0]), ("0/1 0/0 1:9", [1, 0, 1]), ("0|1 0|0 .|.", [1, 0, -1])],
)
def test_a_last_line_without_a_line_end_is_read_where_nothing_can_be_missing(tmp_path: Path, calls: str, dosage: list[int]) -> None:
    line = record().replace("GT", "GT:DP").rsplit("\t", 3)[0] + "\t" + calls.replace(" ", "\t")
    for ending in (".vcf", ".vcf.gz"):  # of a bgzip file a block may be gone
        path = write(tmp_path / f"c{ending}", LAST, line, end="")
        if calls == "0/1:7 . 0":
            refused(path, f"line {FIRST + 1} has no line end after its last call")  # it may be the beginning of 0/1
        else:
            assert read(path)[1].tolist() == [[1, 0, 2], dosage]


def test_a_number_without_its_last_digit_is_not_taken_for_whole(tmp_path: Path) -> None:
    line = record(alt=",".join("A" + "C" * k for k in range(1, 13))).replace("1/1", "1/1")
    refused(write(tmp_path / "c.vcf", line, end=""), "has no line end")
    assert len(read(write(tmp_path / "c.vcf", line))[0]) == 12


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("chr22", "22"), ("chrM", "MT"), ("XY", "PAR"), ("25", "PAR"), ("chrX_par1", "PAR"), ("PAR2", "PAR"), ("X_PAR2", "PAR"),
        ("XPAR1", "PAR"),
        ("NC_000021.9", "21"), ("NC_000023.11", "X"), ("NC_000024.10", "Y"), ("NC_012920.1", "MT"), ("NC_000025.1", "NC_000025.1"),
        ("HLA-A*01:01:01:01", "HLA-A*01:01:01:01"), ("PARP1", "PARP1"), ("X", "X"),
    ],
)  # fmt: skip
def test_names_of_contigs(name: str, canonical: str) -> None:
    assert canonical_contig(name) == canonical


def test_regions_on_names_with_colons(tmp_path: Path) -> None:
    hla = "HLA-A*01:01:01:01"
    header = HEADER + f"##contig=<ID={hla}>\n##contig=<ID=chrX_par1>\n"
    path = write(tmp_path / "c.vcf.gz", record(), record(contig=hla), record(contig=hla, pos=90), record("chrX_par1", 20000), header=header)
    pysam.bcftools.index("-f", str(path), catch_stdout=False)
    for regions, places in (((hla,), [10, 90]), ((f"{hla}:5-50",), [10]), (("PAR",), [20000]), (("1", f"{hla}:50-100"), [10, 90])):
        assert [key.position for key in read(path, Selection(regions=regions))[0]] == places
    for text in ("1:5", "1:5-", "1:", "1:a-b", "HLA A", ""):
        with pytest.raises(InputError, match="is not of the form"):
            Selection(regions=(text,)).spans()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_listed_id_is_found_among_several(tmp_path: Path, ending: str) -> None:
    lines = [record(pos=10, id_="rs1;own_7"), record(pos=20, id_="rs2;rs3"), record(pos=30, id_="rs33"), record(pos=40, id_=".")]
    path = write(tmp_path / f"c{ending}", *lines)
    for listed, places in (({"rs1"}, [10]), ({"rs3", "own_7"}, [10, 20]), ({"rs33"}, [30]), ({"rs2;rs3"}, [20]), ({"rs4", "rs"}, [])):
        assert [key.position for key in read(path, Selection(listed=frozenset(listed)))[0]] == places


@pytest.mark.parametrize(
    ("allele", "kind"),
    [
        (b"A", "bases"), (b"acgtn", "bases"), (b"*", "symbolic"), (b"<NON_REF>", "symbolic"), (b"<DUP:TANDEM>", "symbolic"),
        (b"<*>", "symbolic"),
        (b"N]2:5]", "symbolic"), (b"]13:123456]T", "symbolic"), (b"C[<ctg1>:7[", "symbolic"), (b".A", "symbolic"), (b"G.", "symbolic"),
        (b"R", "codes"), (b"ARG", "codes"), (b".", "unknown"), (b"", "invalid"), (b"A*", "invalid"), (b"<>", "invalid"),
        (b"A,C", "invalid"),
        (b"A T", "invalid"), (b"0", "invalid"), (b"\xff", "invalid"),
    ],
)  # fmt: skip
def test_kinds_of_alleles(allele: bytes, kind: str) -> None:
    assert kind_of(allele) == kind


# --- the whole against files that were made for it


EXPECTED: dict[str, int | str] = {
    "c08_star.vcf": 5, "c09_hla.vcf": 2, "c12_local.vcf": 4, "c14_gvcf.vcf": 4, "c17a_pos0.vcf": 1, "c17b_telo.vcf": 1,
    "c20.vcf.gz": "truncated",
    "c20b.vcf.gz": "not bgzip", "c21_mix.vcf": "those of GRCh37", "c21b.vcf": "those of GRCh37", "c21c.vcf": "of several builds",
    "c22.vcf": 1, "c22b.vcf": 1, "c28.vcf": 14, "c30.vcf": 2, "c32.vcf": "FILTER not PASS: 1", "c11/x.bed": 2, "c11/y.bed": 2,
}  # fmt: skip


@pytest.mark.skipif(not CASES.exists(), reason="shared/cases/genomes, files that were made by hand, is not here")
@pytest.mark.parametrize("name", EXPECTED)
def test_files_made_by_hand(tmp_path: Path, name: str) -> None:
    def keys() -> int:
        samples = open_source(CASES / name).samples
        return len(read_variants(CASES / name, samples, genome=Genome("GRCh38"), cache=tmp_path).keys)

    expected = EXPECTED[name]
    if isinstance(expected, int):
        assert keys() == expected
        return
    with pytest.raises(InputError, match=expected):
        keys()
