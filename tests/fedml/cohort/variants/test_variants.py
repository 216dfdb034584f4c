"""A site's variants as a study reads them: selected, packed, in canonical spelling; and the error for a file that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.cohort.variants.genotypes import Genome, genotype_counts, read_variants
from fedml.cohort.variants.keys import Variant, from_text, to_text
from fedml.cohort.variants.model import Dosages, Selection
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig
from tests.conftest import write_bed, write_vcf

SAMPLES = ["s1", "s2", "s3", "s4"]
RECORDS = [
    ("chr21", 9_000_100, "rs1", "A", "G", ["0/0", "0/1", "1/1", "./."]),
    ("chr21", 9_000_200, "rs2", "C", "T", ["0|0", "1|0", "0|1", "1|1"]),
    ("chr21", 9_000_300, ".", "G", "GA", ["0", "1", ".", "0/1"]),
    ("22", 20_000_400, "rs4", "T", "A,C", ["0/1", "1/2", "2/2", "./2"]),
    ("22", 20_000_500, "rs5", "GTT", "G", ["./1", "0/0", ".|.", "1/1"]),
]
KEYS = (
    Variant("21", 9_000_100, "rs1", "A", "G"),
    Variant("21", 9_000_200, "rs2", "C", "T"),
    Variant("21", 9_000_300, ".", "G", "GA"),
    Variant("22", 20_000_400, "rs4", "T", "A"),
    Variant("22", 20_000_400, "rs4", "T", "C"),
    Variant("22", 20_000_500, "rs5", "GTT", "G"),
)
DOSAGE = np.array([[0, 0, 0, 1, 0, -1], [1, 1, 1, 1, 1, 0], [2, 1, -1, 0, 2, -1], [-1, 2, 1, -1, -1, 2]], dtype=np.int8)


def read(path: Path, persons: list[str] = SAMPLES, **options: object) -> Dosages:
    genome = Genome("GRCh38", options.pop("reference", None))  # type: ignore[arg-type]
    return read_variants(path, persons, genome=genome, cache=path.parent / ".fedml" / "cache", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cohort.vcf", "cohort.vcf.gz", "cohort.bcf", "cohort.bed"])
def test_every_format_gives_the_dosages_that_were_written_twice(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_bed(path, SAMPLES, KEYS, DOSAGE) if name.endswith("bed") else write_vcf(path, SAMPLES, RECORDS)
    for own in (read(path), read(path)):  # made, then from the cache
        assert own.keys == KEYS
        np.testing.assert_array_equal(own.dosage[np.arange(4)], DOSAGE)
        assert own.present.all()
    assert list((tmp_path / ".fedml" / "cache").rglob("keys.tsv"))


@pytest.mark.parametrize("name", ["cohort.vcf.gz", "cohort.bed"])
def test_persons_in_their_own_order_and_those_without_genotypes_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_bed(path, SAMPLES, KEYS, DOSAGE) if name.endswith("bed") else write_vcf(path, SAMPLES, RECORDS)
    own = read(path, ["s4", "absent", "s1", "s3"])
    assert own.present.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(own.dosage[np.arange(4)], [DOSAGE[3], [-1] * 6, DOSAGE[0], DOSAGE[2]])
    counts = genotype_counts(own)  # of the three who are there
    np.testing.assert_array_equal(counts, [[(DOSAGE[[0, 2, 3], v] == g).sum() for v in range(6)] for g in (0, 1, 2, -1)])


def test_only_the_wanted_variants_are_read(tmp_path: Path) -> None:
    path = write_vcf(tmp_path / "c.vcf", SAMPLES, RECORDS)
    assert read(path, selection=Selection(regions=("22",))).keys == KEYS[3:]
    assert read(path, selection=Selection(regions=("chr21:9000150-9000300",))).keys == KEYS[1:3]
    listed = Selection(listed=frozenset({"rs2", "22:20000400:T:C", "rs99"}))
    assert read(path, selection=listed).keys == (KEYS[1], KEYS[4])
    with pytest.raises(InputError, match="none of the study's variants"):
        read(path, selection=Selection(listed=frozenset({"rs99"})))


@pytest.mark.parametrize(
    ("region", "text"),
    [("22:5-1", "ends before"), ("a b", "not of the form"), ("22:x-y", "not of the form"), ("22:1", "not of the form")],
)
def test_an_invalid_region_is_reported(region: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Selection(regions=(region,)).spans()


def test_contigs_go_by_one_name() -> None:
    assert {canonical_contig(n) for n in ("chr22", "22", "CHR22")} == {"22"}
    assert {canonical_contig(n) for n in ("chrM", "MT", "M", "26", "chrMT")} == {"MT"}
    assert {canonical_contig(n) for n in ("chrX", "X", "23", "x")} == {"X"}
    assert canonical_contig("GL000191.1") == "GL000191.1"


def refused(path: Path, *words: str, persons: list[str] = SAMPLES, **options: object) -> None:
    before = sorted(p.name for p in path.parent.rglob("*") if p.is_file())
    with pytest.raises(InputError) as caught:
        read(path, persons, **options)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    left = sorted(p.name for p in path.parent.rglob("*") if p.is_file() and p.name not in ("digests.json", ".lock"))
    assert [n for n in left if n not in before and not n.endswith((".lock", ".json"))] == []


def test_unknown_samples_are_reported(tmp_path: Path) -> None:
    for path in (write_vcf(tmp_path / "c.vcf.gz", SAMPLES, RECORDS), write_bed(tmp_path / "c.bed", SAMPLES, KEYS, DOSAGE)):
        with pytest.raises(InputError, match="names none of the 2 persons"):
            read(path, ["x", "y"])


def test_a_truncated_file_leaves_no_cache(tmp_path: Path) -> None:
    records = [("22", 20_000_000 + k, f"rs{k}", "A", "G", ["0/0", "0/1", "1/1", "0/1"]) for k in range(9000)]
    path = write_vcf(tmp_path / "c.vcf.gz", SAMPLES, records)
    whole = path.read_bytes()
    for kept in (whole[:-28], whole[: len(whole) // 2]):
        path.write_bytes(kept)
        refused(path)


def test_another_build_than_stated_is_reported(tmp_path: Path) -> None:
    text = (
        "##fileformat=VCFv4.2\n##contig=<ID=22,length=51304566>\n"
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2\n22\t20000\trs1\tA\tG\t.\t.\t.\tGT\t0/1\t1/1\n"
    )
    path = tmp_path / "c.vcf"
    path.write_text(text)
    with pytest.raises(InputError, match=r"contig lengths are those of GRCh37, but site\.toml says GRCh38"):
        read(path)
    beyond = write_bed(tmp_path / "c.bed", SAMPLES, [Variant("22", 50_900_000, "rs1", "A", "G")], DOSAGE[:, :1])
    with pytest.raises(InputError, match="past the end of that chromosome in GRCh38"):
        read(beyond)


FIELD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=6)


@given(st.lists(st.builds(Variant, FIELD, st.integers(0, 2**40), FIELD, FIELD, FIELD), max_size=8))
def test_keys_cross_the_wire(keys: list[Variant]) -> None:
    assert from_text(to_text(keys)) == tuple(keys)
    assert to_text(keys).count(b"\n") == len(keys)


@pytest.mark.parametrize("text", [b"1\t5\trs\tA\n", b"1\tx\trs\tA\tG\n", b"1\t5\trs\tA\tG\tG\n", b"\xff\xfe\n", b"\n"])
def test_text_that_is_no_panel_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_text(text)
