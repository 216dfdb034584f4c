"""Files with dosages as they should not be: each gives the right number, or one sentence that says what to do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest

from fedml.cohort.variants.fine import SCALE, Fine, codes, concat_fine, one_copy
from fedml.cohort.variants.genotypes import Genome, read_variants
from fedml.cohort.variants.model import Dosages, Selection
from fedml.cohort.variants.normalise import NOTES
from fedml.cohort.variants.packed import Packed
from fedml.errors import InputError
from tests.dosages import plink2

IDS = ("p1", "p2", "p3")
HEADER = [
    "##fileformat=VCFv4.3", '##FILTER=<ID=PASS,Description="">', "##contig=<ID=1>", "##contig=<ID=X>", "##contig=<ID=MT>",
    *(f'##FORMAT=<ID={name},Number={number},Type={kind},Description="">' for name, number, kind in (
        ("GT", "1", "String"), ("DS", "A", "Float"), ("HDS", ".", "Float"), ("GP", "G", "Float"), ("GQ", "1", "Integer"),
        ("DP", "1", "Integer"))),
    '##INFO=<ID=R2,Number=1,Type=Float,Description="">',
    "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *IDS]),
]  # fmt: skip


def read(path: Path, sex: Sequence[int] | None = None, **selection: Any) -> Dosages:
    genome = Genome("GRCh38", None, None if sex is None else np.array(sex, np.int8))
    return read_variants(path, IDS, genome=genome, cache=path.parent / "cache", selection=Selection(**selection))


def floats(own: Dosages) -> Any:
    """(persons, variants) dosages, nan where missing."""
    assert isinstance(own.dosage, Fine)
    found = own.dosage.floats(slice(None)).astype(float)
    return np.where(found < 0, np.nan, found)


def notes(own: Dosages) -> dict[str, int]:
    assert own.notes is not None
    return {name: int(count) for name, count in zip(NOTES[1:], own.notes[1:], strict=True) if count}


@pytest.fixture(params=["vcf", "bcf"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes records, each "contig position REF ALT INFO FORMAT calls", as VCF or BCF."""

    def written(*records: str) -> Path:
        lines = []
        for number, record in enumerate(records):
            contig, position, ref, alt, info, form, *calls = record.split()
            lines.append("\t".join([contig, position, f"rs{number + 1}", ref, alt, ".", "PASS", info, form, *calls]))
        path = tmp_path / "cohort.vcf"
        path.write_text("\n".join([*HEADER, *lines, ""]))
        if request.param == "bcf":
            pysam.bcftools.view("-Ob", "-o", str(tmp_path / "cohort.bcf"), str(path), catch_stdout=False)
            path = tmp_path / "cohort.bcf"
        return path

    return written


def test_numbers_of_each_field(write: Any) -> None:
    path = write(
        "1 100 A G . GT:DS:HDS:GP 0|1:1.25:0.5,0.75:0.1,0.55,0.35 1|1:2:1,1:0,0,1 0|0:0:0,0:1,0,0",
        "1 200 A G,T . GT:DS:GP 0|1:0.25,1.5:0.1,0.2,0.1,0.3,0.2,0.1 1|1:2,0:0,0,1,0,0,0 0|0:0,0:1,0,0,0,0,0",
        "1 300 A G,T . GT:HDS 0|1:0.5,0.5,0,0.1 1|1:0,0,0,0 0|0:0,0,0,0",
    )
    assert np.allclose(floats(read(path, dosage="DS")), [[1.25, 0.25, 1.5, 1, 0], [2, 2, 0, 2, 0], [0] * 5], atol=1 / SCALE)
    # Genotypes 00 01 11 02 12 22: of G 0.2 + 2 x 0.1 + 0.2, of T 0.3 + 0.2 + 2 x 0.1.
    assert np.allclose(floats(read(path, dosage="GP")), [[1.25, 0.6, 0.7, 1, 0], [2, 2, 0, 2, 0], [0] * 5], atol=1 / SCALE)
    own = read(path, dosage="HDS")
    assert np.allclose(floats(own), [[1.25, 1, 0], [2, 2, 0], [0, 0, 0]], atol=1 / SCALE), "the second record has genotypes only"
    assert notes(own) == {"genotypes where a dosage is missing": 2, "no dosage in the record": 2}, "HDS does not tell two ALT alleles apart"
    nearest = np.asarray(read(path, dosage="DS").dosage[:])
    assert nearest.tolist() == [[1, 0, 2, 1, 0], [2, 2, 0, 2, 0], [0] * 5]


def test_missing_values(write: Any) -> None:
    path = write(
        "1 100 A G . GT:DS 0|1:. ./.:. 0|0:0.5", "1 200 A G . GT 0|1 ./. 1|1", "1 300 A G . DP 1 1 1", "1 400 A G . GT:DS 0|1 ./.:1.5 0/0:0"
    )
    own = read(path, dosage="any")
    expected = [[1, 1, 1], [np.nan, np.nan, 1.5], [0.5, 2, 0]]
    assert np.array_equal(floats(own), expected, equal_nan=True), "PLINK 2 leaves DS out where it is the genotype"
    assert notes(own) == {"genotypes where a dosage is missing": 3, "no dosage in the record": 1}


@pytest.mark.parametrize(
    ("field", "record", "why"),
    [
        ("DS", "DS 2.3 0 0", "which is not from 0 to 2"),
        ("DS", "DS 0 -0.2 0", "which is not from 0 to 2"),
        ("DS", "DS 0.1,0.2 0 0", "where ALT has 1"),
        ("HDS", "HDS 0.5,1.4 0,0 0,0", "which is not from 0 to 1"),
        ("HDS", "HDS 0.5,0.4,0.1 0,0 0,0", "which is not of one or two haplotypes"),
        ("GP", "GP 0.5,0.4,0.4 1,0,0 1,0,0", "which do not sum to 1"),
        ("GP", "GP 0.5,0.4,0.1,0 1,0,0 1,0,0", "have 3 genotypes"),
    ],
)
def test_what_is_no_dosage_is_refused(write: Any, field: str, record: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as raised:
        read(write("1 90 A G . GT:" + record.replace(" ", " 0|0:"), ".".join(["1 100 A G ", " " + record])), dosage=field)
    text = str(raised.value)
    assert text.count("cohort.") == 1
    assert "; " in text
    assert text.endswith(".")


def test_a_word_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "cohort.vcf"
    for value in ("abc", "nan", "1.2.3", "0x1", "inf", "1e400"):
        path.write_text("\n".join([*HEADER, f"1\t100\t.\tA\tG\t.\tPASS\t.\tDS\t0\t{value}\t0", ""]))
        with pytest.raises(InputError, match=f'line {len(HEADER) + 1} has DS "{value}" in column 11, which is no number'):
            read(path, dosage="DS")
    path.write_text("\n".join([*HEADER, "1\t100\t.\tA\tG\t.\tPASS\t.\tDS\t0\t1e-1\t1.0000000000000000001", ""]))
    assert np.allclose(floats(read(path, dosage="DS"))[:, 0], [0, 0.1, 1], atol=1 / SCALE)
    path.write_text("\n".join([*HEADER, "1\t100\t.\tA\tG\t.\tPASS\t.\tDS\t0\t1\t1.2"]))
    with pytest.raises(InputError, match="has no line end"):
        read(path, dosage="DS")


def test_rounded_probabilities_are_dosages(write: Any) -> None:
    own = read(write("1 100 A G . GT:GP 0|0:0.33,0.33,0.33 0|0:0,0,0 0|0:0.5,0.51,0"), dosage="GP")
    assert np.allclose(floats(own)[:, 0], [1, 0, 0.51 / 1.01], atol=1 / SCALE), "three zeros: no call, so the genotype"


def test_a_file_without_the_field_is_refused(write: Any, tmp_path: Path) -> None:
    path = write("1 100 A G . GT 0|0 0|1 0|0")
    header = [line for line in HEADER if "ID=DS" not in line and "ID=GQ" not in line and "ID=R2" not in line]
    path.with_suffix(".vcf").write_text("\n".join([*header, "1\t100\t.\tA\tG\t.\tPASS\t.\tGT\t0|0\t0|0\t0|1", ""]))
    plain = path.with_suffix(".vcf")
    for asked, what in (({"dosage": "DS"}, "declares no DS"), ({"min_gq": 20}, "declares no GQ"), ({"min_info": 0.3}, "none of R2, DR2")):
        with pytest.raises(InputError, match=what):
            read(plain, **asked)


def test_one_copy_has_one_coding(write: Any) -> None:
    """On X a man's number is doubled, whether DS, HDS or GP says it; a woman's is not; an autosome's haploid call stays one copy."""
    path = write(
        "X 5000000 A G . GT:DS:HDS:GP 1:0.8:0.8:0.2,0.8 0|1:1.1:0.5,0.6:0.2,0.5,0.3 0:0.25:0.25:0.75,0.25",
        "X 5000100 A G . GT:DS:HDS:GP 0|1:1:0.5,0.5:0,1,0 0|1:1:0.5,0.5:0,1,0 0:0:0:1,0",
        "MT 100 A G . GT:DS:HDS:GP 1:0.9:0.9:0.1,0.9 0:0.2:0.2:0.8,0.2 0:0.5:0.5:0.5,0.5",
        "1 100 A G . GT:DS:HDS:GP 1:0.8:0.8:0.2,0.8 0|1:1:0.5,0.5:0,1,0 0:0:0:1,0",
    )
    expected = [[1.6, np.nan, 1.8, 0.8], [1.1, 1, 0.4, 1], [0.5, 0, np.nan, 0]]
    for field in ("DS", "HDS", "GP"):
        own = read(path, sex=(1, 2, 1), dosage=field)
        assert np.allclose(floats(own), expected, atol=2 / SCALE, equal_nan=True), field
        assert np.asarray(own.dosage[:]).tolist() == [[2, -1, 2, 1], [1, 1, 0, 1], [0, 0, -1, 0]]
    assert "heterozygous calls of one copy set to missing" in notes(own)
    assert notes(read(path, dosage="DS"))["on X or Y, sex not known"] == 2


def test_thresholds_of_calls_and_of_imputation(write: Any) -> None:
    path = write(
        "1 100 A G R2=0.9 GT:DS:GQ:DP 0|1:1.25:20:9 1|1:2:19:9 0|0:0.5:99:3",
        "1 200 A G R2=0.2 GT:DS:GQ:DP 0|1:1.25:20:9 1|1:2:19:9 0|0:0.5:99:9",
        "1 300 A G . GT:DS:GQ:DP 0|1:1.25:.:9 1|1:2:99:9 0|0:0.5:99",
        "1 400 A G R2=0.8 GT:DS 0|1:1.25 1|1:2 0|0:0.5",
    )
    own = read(path, min_gq=20, min_dp=5)
    assert np.asarray(own.dosage[:]).T.tolist() == [[1, -1, -1], [1, -1, 0], [-1, 2, -1], [-1, -1, -1]]
    assert notes(own) == {"calls of low GQ or DP set to missing": 4}
    own = read(path, min_info=0.3)
    assert [key.position for key in own.keys] == [100, 400]
    assert notes(own) == {"imputation quality below min_info": 2}
    own = read(path, dosage="DS", min_gq=20, min_info=0.3)
    assert np.allclose(floats(own).T, [[1.25, np.nan, 0.5], [np.nan] * 3], equal_nan=True)


# --- BGEN ---------------------------------------------------------------------------------------------------------------------------------


def bgen(
    path: Path,
    variants: Sequence[tuple[Any, bytes]],
    ids: Sequence[str] | None = IDS,
    count: int = 3,
    compression: int = 1,
    layout: int = 2,
) -> Path:
    """Writes a file: of each variant contig, position and alleles, and its block of probabilities."""
    body = b""
    for (contig, position, *alleles), block in variants:
        names = b"".join(struct.pack("<H", len(x)) + x for x in (b"v", b"rs1", contig.encode()))
        letters = b"".join(struct.pack("<I", len(x)) + x.encode() for x in alleles)
        packed = zlib.compress(block) if compression == 1 else block
        size = struct.pack("<II", len(packed) + 4, len(block)) if compression else struct.pack("<I", len(packed))
        body += names + struct.pack("<IH", position, len(alleles)) + letters + size + packed
    names = b"".join(struct.pack("<H", len(x)) + x.encode() for x in ids or ())
    sample = b"" if ids is None else struct.pack("<II", 8 + len(names), len(ids)) + names
    flags = compression | layout << 2 | (ids is not None) << 31
    header = struct.pack("<IIIII", 20 + len(sample), 20, len(variants), count, 0x6E656762) + struct.pack("<I", flags)
    path.write_bytes(header + sample + body)
    return path


def block(ploidy: Sequence[int], phased: int, bits: int, numbers: Sequence[float], alleles: int = 2, missing: Sequence[int] = ()) -> bytes:
    whole = [round(number * (2**bits - 1)) for number in numbers]
    flat = sum(number << bits * at for at, number in enumerate(whole)).to_bytes(-(-bits * len(whole) // 8), "little")
    each = bytes(value | (128 if at in missing else 0) for at, value in enumerate(ploidy))
    return struct.pack("<IHBB", len(ploidy), alleles, min(ploidy), max(ploidy)) + each + bytes([phased, bits]) + flat


@pytest.mark.parametrize("bits", [1, 3, 8, 12, 16, 24, 32])
@pytest.mark.parametrize("compression", [0, 1])
def test_bgen_of_any_number_of_bits(tmp_path: Path, bits: int, compression: int) -> None:
    most = 2**bits - 1
    p = [round(x * most) / most for x in (0.25, 0.5, 1.0, 0.0, 0.1, 0.0)]
    own = read(bgen(tmp_path / "a.bgen", [(("1", 100, "A", "G"), block([2] * 3, 0, bits, p))], compression=compression), dosage="any")
    expected = [2 - 2 * p[at] - p[at + 1] for at in (0, 2, 4)]
    assert np.allclose(floats(own)[:, 0], expected, atol=0.6 / SCALE)


def test_bgen_phased_of_other_ploidy_and_with_several_alleles(tmp_path: Path) -> None:
    path = bgen(tmp_path / "a.bgen", [
        (("1", 100, "A", "G"), block([2, 2, 2], 1, 16, [0.75, 0.5, 1, 1, 0, 0.25])),
        (("X", 5_000_000, "A", "G"), block([1, 2, 1], 0, 16, [0.2, 0.25, 0.5, 0.9])),
        (("01", 200, "A", "G", "T"), block([2, 2, 2], 0, 16, [0.1, 0.2, 0.1, 0.3, 0.2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0], 3)),
        (("1", 300, "A", "G"), block([3, 2, 2], 0, 16, [1, 0, 0, 1, 0, 1, 0])),
        (("1", 400, "A", "G"), block([2, 2, 2], 0, 16, [0, 0, 0, 1, 0, 0], missing=[0])),
    ])  # fmt: skip
    own = read(path, sex=(1, 2, 1), dosage="any")
    expected = [[0.75, 1.6, 0.6, 0.7, np.nan], [0, 1, 0, 0, 1], [1.75, 0.2, 2, 0, 2]]
    assert [(key.contig, key.position, key.alt) for key in own.keys] == [
        ("1", 100, "G"), ("X", 5_000_000, "G"), ("1", 200, "G"), ("1", 200, "T"), ("1", 400, "G"),
    ]  # fmt: skip
    assert np.allclose(floats(own), expected, atol=2.2 / SCALE, equal_nan=True)
    assert notes(own)["ploidy above 2"] == 1
    nearest = np.asarray(read(path, sex=(1, 2, 1), dosage="nearest").dosage[:])
    assert nearest[:, [0, 2, 3]].tolist() == [[1, 1, 1], [0, 0, 0], [2, 2, 0]]


def test_bgen_that_cannot_be_read(tmp_path: Path) -> None:
    good = block([2, 2, 2], 0, 8, [1, 0, 0, 1, 0, 0])
    path, key = tmp_path / "a.bgen", ("1", 100, "A", "G")
    whole = bgen(path, [(key, good), (key, good)]).read_bytes()
    for size in (3, 23, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"is truncated|is not a BGEN file"):
            read(path, dosage="any")
    with pytest.raises(InputError, match=r'set \[cohort.variants\] dosage = "any"'):
        read(bgen(path, [(key, good)]))
    with pytest.raises(InputError, match="layout 1"):
        read(bgen(path, [(key, good)], layout=1), dosage="any")
    with pytest.raises(InputError, match=r"names no samples; put a.sample"):
        read(bgen(path, [(key, good)], ids=None), dosage="any")
    sample = tmp_path / "a.sample"
    sample.write_text("ID_1 ID_2 missing sex\n0 0 0 D\nf p1 0 1\nf p2 0 2\nf p3 0 1\n")
    own = read(path, dosage="any")
    assert own.sex is not None
    assert own.sex.tolist() == [1, 2, 1]
    sample.write_text("ID_1 ID_2 missing\n0 0 0\nf p1 0\nf p2 0\n")
    with pytest.raises(InputError, match=r"has 2 samples where a.bgen has 3"):
        read(path, dosage="any")
    sample.write_text("p1\np2\np3\n")
    with pytest.raises(InputError, match=r"is not a .sample file"):
        read(path, dosage="any")
    sample.write_text("ID_1 ID_2 missing\n0 0 0\nf p2 0\nf p1 0\nf p3 0\n")
    with pytest.raises(InputError, match="in another order"):
        read(bgen(path, [(key, good)]), dosage="any")
    sample.unlink()
    for harmed in (good[:-1], good[:4] + b"\3" + good[5:], good[:-8] + b"\0\0" + good[-6:], block([2, 2, 2], 0, 8, [1, 1, 0, 1, 0, 0])):
        with pytest.raises(InputError, match="the variant at 1:100"):
            read(bgen(path, [(key, harmed)]), dosage="any")
    with pytest.raises(InputError, match="BGEN has no GQ or DP"):
        read(bgen(path, [(key, good)]), dosage="any", min_gq=20)
    with pytest.raises(InputError, match="has no contig 7"):
        read(path, dosage="any", regions=("7",))


def test_imputation_quality_is_computed(tmp_path: Path) -> None:
    sure, unsure = block([2] * 3, 0, 16, [1, 0, 0, 1, 0, 0]), block([2] * 3, 0, 16, [0.25, 0.5] * 3)
    own = read(bgen(tmp_path / "a.bgen", [(("1", 100, "A", "G"), sure), (("1", 200, "A", "G"), unsure)]), dosage="any", min_info=0.3)
    assert [key.position for key in own.keys] == [100]
    assert notes(own) == {"imputation quality below min_info": 1}


# --- PGEN ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pgen(tmp_path: Path) -> Path:
    pytest.importorskip("pgenlib", reason="pgenlib is not installed")
    lines = ["1\t100\trs1\tA\tG\t.\tPASS\t.\tGT:DS\t0|1:1.25\t1|1:2\t0|0:0", "1\t200\trs2\tA\tG\t.\tPASS\t.\tGT:DS\t0|1:1\t1|1:2\t./.:."]
    (tmp_path / "in.vcf").write_text("\n".join([*(line for line in HEADER if "R2" not in line), *lines, ""]))
    plink2("--vcf", "in.vcf", "dosage=DS", "--make-pgen", "--out", "cohort", cwd=tmp_path)
    return tmp_path / "cohort.pgen"


def test_pgen(pgen: Path) -> None:
    assert np.array_equal(floats(read(pgen, dosage="any")), [[1.25, 1], [2, 2], [0, np.nan]], equal_nan=True)
    assert np.asarray(read(pgen, dosage="nearest").dosage[:]).tolist() == [[1, 1], [2, 2], [0, -1]]
    with pytest.raises(InputError, match="has dosages with fractions"):
        read(pgen)
    assert np.asarray(read(pgen, regions=("1:150-300",)).dosage[:]).tolist() == [[1], [2], [-1]], "this variant has none"
    kept = [key.position for key in read(pgen, dosage="any", min_info=0.99).keys]
    assert kept == [100], "the variance is 1.37 x 2 p (1 - p) with p = 0.54, and 0.67 x with p = 0.75"


def test_pgen_that_cannot_be_read(pgen: Path) -> None:
    psam = pgen.with_suffix(".psam").read_text()
    cases = {
        "#IID\tSEX\np1\tNA\np2\tNA\n": "cannot be read with 2 persons",
        "p1\np2\np3\n": "has no header line that begins with #FID or #IID",
        "#IID\nq\nq\nr\n": 'names the person "q" twice',
        "#IID\n": "names no person",
    }
    for text, why in cases.items():
        pgen.with_suffix(".psam").write_text(text)
        with pytest.raises(InputError, match=why):
            read(pgen, dosage="any")
    pgen.with_suffix(".psam").write_text(psam)
    pvar = pgen.with_suffix(".pvar").read_text()
    pgen.with_suffix(".pvar").write_text(pvar[: pvar.rindex("1\t200")])
    with pytest.raises(InputError, match=r"and 1 variants in the .pvar"):
        read(pgen, dosage="any")
    pgen.with_suffix(".pvar").write_text(pvar[pvar.index("1\t100") :])
    with pytest.raises(InputError, match="has no header line with #CHROM"):
        read(pgen, dosage="any")
    pgen.with_suffix(".pvar").unlink()
    with pytest.raises(InputError, match=r"no such file; put the .pvar"):
        read(pgen, dosage="any")


# --- the table ----------------------------------------------------------------------------------------------------------------------------


def test_views_of_a_table() -> None:
    random = np.random.default_rng(3)
    dosage = np.where(random.random((7, 20)) < 0.1, np.nan, random.integers(0, 2 * SCALE + 1, (7, 20)) / SCALE)
    stored = codes(dosage)
    stored[2] = one_copy(codes(np.round(dosage[2] * SCALE / 2) * 2 / SCALE))
    dosage[2] = np.round(dosage[2] * SCALE / 2) * 2 / SCALE
    table = Fine(stored)
    plain = np.nan_to_num(dosage, nan=-1)
    assert np.array_equal(table.floats(slice(None)), plain.astype(np.float32))
    copies = np.where(np.isnan(dosage), -1, np.floor(np.nan_to_num(dosage) + 0.5))
    copies[2] = np.where(np.isnan(dosage[2]), -1, 2 * (np.nan_to_num(dosage[2]) >= 1))
    assert np.array_equal(table[:], copies)
    columns, flip, rows = np.array([3, -1, 0, 19, 3]), np.array([True, False, False, True, False]), np.array([5, 2, 2])
    view = table.aligned(columns, flip).take(rows)
    expected = np.where(columns < 0, np.nan, dosage[rows][:, columns])
    expected = np.where(flip, 2 - expected, expected)
    assert np.array_equal(view.floats(slice(None)), np.nan_to_num(expected, nan=-1).astype(np.float32))
    again = view.aligned(np.array([4, 0, 1]), np.array([True, True, False]))
    expected = np.stack([2 - expected[:, 4], 2 - expected[:, 0], expected[:, 1]], 1)
    assert np.array_equal(again.fractions(0, 3), np.nan_to_num(expected, nan=-1).astype(np.float32))
    coarse = table.rounded(np.arange(20) < 5).aligned(np.arange(3, 8), np.zeros(5, bool))
    assert np.array_equal(coarse.floats(slice(None))[:, :2], copies[:, 3:5])
    assert np.array_equal(coarse.floats(slice(None))[:, 2:], plain[:, 5:8].astype(np.float32))
    hard = Packed.of(np.array([[0, 1, -1]], np.int8))
    assert np.array_equal(concat_fine([hard, again]).floats(slice(None))[0], [0, 1, -1])
    assert np.array_equal(concat_fine([again, hard]).floats(slice(None))[:3], again.floats(slice(None)))
    assert again.digest != view.digest
