"""Variants: dosages from VCF, BCF and PLINK files, and the panel that sites with different files share."""

from __future__ import annotations

import gzip
import random as stdlib_random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import vcf_text, write_bed, write_vcf
from hypothesis import given
from hypothesis import strategies as st

from fedml.cohort.variants import Dosages, Variant, agree_panel, align, from_text, read_variants, to_text
from fedml.errors import InputError

SAMPLES = ["s1", "s2", "s3", "s4"]
RECORDS = [
    ("chr21", 100, "rs1", "A", "G", ["0/0", "0/1", "1/1", "./."]),
    ("chr21", 200, "rs2", "C", "T", ["0|0", "1|0", "0|1", "1|1"]),
    ("chr21", 300, ".", "G", "GA", ["0", "1", ".", "0/1"]),
    ("22", 400, "rs4", "T", "A,C", ["0/1", "1/2", "2/2", "./2"]),
    ("22", 500, "rs5", "GTT", "G", ["./1", "0/0", ".|.", "1/1"]),
]
KEYS = (
    Variant("21", 100, "rs1", "A", "G"),
    Variant("21", 200, "rs2", "C", "T"),
    Variant("21", 300, ".", "G", "GA"),
    Variant("22", 400, "rs4", "T", "A"),
    Variant("22", 400, "rs4", "T", "C"),
    Variant("22", 500, "rs5", "GTT", "G"),
)
DOSAGE = np.array([[0, 0, 0, 1, 0, -1], [1, 1, 1, 1, 1, 0], [2, 1, -1, 0, 2, -1], [-1, 2, 1, -1, -1, 2]], dtype=np.int8)


@pytest.mark.parametrize("name", ["cohort.vcf", "cohort.vcf.gz", "cohort.bcf"])
def test_vcf_and_bcf_give_the_dosages_that_were_written(tmp_path: Path, name: str) -> None:
    read = read_variants(write_vcf(tmp_path / name, SAMPLES, RECORDS), SAMPLES)
    assert read.keys == KEYS
    np.testing.assert_array_equal(read.dosage, DOSAGE)
    assert read.dosage.dtype == np.int8
    assert read.present.all()


def test_bed_gives_the_same_dosages(tmp_path: Path) -> None:
    read = read_variants(write_bed(tmp_path / "cohort.bed", SAMPLES, KEYS, DOSAGE), SAMPLES)
    assert read.keys == KEYS
    np.testing.assert_array_equal(read.dosage, DOSAGE)


@pytest.mark.parametrize("name", ["cohort.vcf.gz", "cohort.bcf", "cohort.bed"])
def test_persons_in_their_own_order_and_those_without_genotypes_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_bed(path, SAMPLES, KEYS, DOSAGE) if name.endswith("bed") else write_vcf(path, SAMPLES, RECORDS)
    read = read_variants(path, ["s4", "nobody", "s1", "s3"])
    assert read.present.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(read.dosage, [DOSAGE[3], [-1] * 6, DOSAGE[0], DOSAGE[2]])


def test_real_chromosome_21_against_a_plain_text_parse(tmp_path: Path, chromosome_21: Path) -> None:
    """Independent of htslib: gzip and string splitting. The file as published is plain gzip, so it is written anew as bgzip."""
    import pysam

    (tmp_path / "plain.vcf").write_bytes(gzip.decompress(chromosome_21.read_bytes()))
    pysam.tabix_compress(str(tmp_path / "plain.vcf"), str(tmp_path / "c.vcf.gz"))
    keys, columns, samples = [], [], []
    with gzip.open(chromosome_21, "rt") as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            if line.startswith("#CHROM"):
                samples = fields[9:]
            if line.startswith("#"):
                continue
            contig, position, name, ref, alts = fields[:5]
            calls = [f.split(":")[fields[8].split(":").index("GT")].replace("|", "/").split("/") for f in fields[9:]]
            for number, alt in enumerate(alts.split(","), 1):
                keys.append(Variant(contig, int(position), name, ref, alt))
                columns.append([-1 if "." in c else sum(a == str(number) for a in c) for c in calls])
    assert len(keys) > 50
    persons = stdlib_random.Random(0).sample(samples, 200)
    read = read_variants(tmp_path / "c.vcf.gz", persons)
    assert read.keys == tuple(keys)
    expected = np.array(columns, dtype=np.int8).T[[samples.index(p) for p in persons]]
    np.testing.assert_array_equal(read.dosage, expected)
    assert len(np.unique(expected)) >= 3


# --- files that cannot be used


def refused(path: Path, *words: str, persons: list[str] = SAMPLES) -> None:
    with pytest.raises(InputError) as caught:
        read_variants(path, persons)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_vcf_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.vcf"
    refused(tmp_path / "nowhere.vcf.gz", "no such file")
    for text in ("", "hello", vcf_text(SAMPLES, RECORDS).split("\n", 5)[5]):
        path.write_text(text)
        refused(path, "header")
    path.write_text(vcf_text(SAMPLES, RECORDS).replace("##FORMAT=<ID=GT", "##FORMAT=<ID=XX"))
    refused(path)
    path.write_text(vcf_text(SAMPLES, []))
    refused(path, "holds no variant")


@pytest.mark.parametrize("ending", [".vcf.gz", ".bcf"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99, "last block"])
def test_a_truncated_bgzip_is_refused(tmp_path: Path, ending: str, kept: Any) -> None:
    random = stdlib_random.Random(0)
    records = [("22", k + 1, f"rs{k}", "A", "G", [random.choice(["0/0", "0/1", "1/1"]) for _ in SAMPLES]) for k in range(9000)]
    path = write_vcf(tmp_path / f"c{ending}", SAMPLES, records)
    whole = path.read_bytes()
    path.write_bytes(whole[:-28] if kept == "last block" else whole[: int(kept * len(whole))])
    refused(path)


def test_a_vcf_with_a_line_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.vcf"
    path.write_text(vcf_text(SAMPLES, RECORDS)[:-9])
    refused(path, "cannot be read as VCF")


def test_plain_gzip_is_refused_with_its_mend(tmp_path: Path) -> None:
    path = tmp_path / "c.vcf.gz"
    path.write_bytes(gzip.compress(vcf_text(SAMPLES, RECORDS).encode()))
    refused(path, "bgzip")


def test_samples_that_nobody_knows_are_told(tmp_path: Path) -> None:
    for path in (write_vcf(tmp_path / "c.vcf.gz", SAMPLES, RECORDS), write_bed(tmp_path / "c.bed", SAMPLES, KEYS, DOSAGE)):
        refused(path, "none of its samples", persons=["x", "y"])


def test_bed_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    dosage = np.tile(DOSAGE, (30, 1))
    samples = [f"s{k}" for k in range(120)]
    path = write_bed(tmp_path / "c.bed", samples, KEYS, dosage)
    whole = path.read_bytes()
    for broken in (whole[:-20], whole[:2], b"", b"junk" + whole[4:]):
        path.write_bytes(broken)
        refused(path, "cannot be read as PLINK bed", persons=samples)
    path.write_bytes(whole)
    (tmp_path / "c.bim").unlink()
    with pytest.raises(InputError, match=r"c\.bim: no such file"):
        read_variants(path, samples)


# --- panels

PAIRS = [(r, a) for r in "ACGT" for a in "ACGT" if r != a]
COMPLEMENT = {"A": "T", "T": "A", "C": "G", "G": "C"}


def ambiguous(key: Variant) -> bool:
    return COMPLEMENT[key.ref] == key.alt


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[Dosages, Dosages, dict[str, set[str]]]:
    """Site A; site B with the same persons, its variants dropped, shuffled, allele-swapped, strand-flipped; what was done to each."""
    count = draw(st.integers(1, 12))
    keys = tuple(Variant("1", 10 * k + 1, f"rs{k}", *draw(st.sampled_from(PAIRS))) for k in range(count))
    dosage = np.array(draw(st.lists(st.lists(st.integers(-1, 2), min_size=count, max_size=count), min_size=1, max_size=4)), dtype=np.int8)
    present = np.ones(len(dosage), dtype=bool)
    done: dict[str, set[str]] = {}
    own, columns = [], []
    for at in draw(st.permutations(range(count))):
        key, column = keys[at], dosage[:, at]
        what = done[key.id] = draw(st.sets(st.sampled_from(["dropped", "swapped", "flipped", "twice"]), max_size=2))
        if "swapped" in what:
            key, column = key._replace(ref=key.alt, alt=key.ref), np.where(column < 0, -1, 2 - column)
        if "flipped" in what:
            key = key._replace(ref=COMPLEMENT[key.ref], alt=COMPLEMENT[key.alt])
        for _ in range(0 if "dropped" in what else 2 if "twice" in what else 1):
            own.append(key)
            columns.append(column)
    other = np.array(columns, dtype=np.int8).T.reshape(len(dosage), len(own))
    return Dosages(keys, dosage, present), Dosages(tuple(own), other, present), done


@given(cohorts())
def test_by_rsid_every_variant_comes_back_or_is_dropped(made: tuple[Dosages, Dosages, dict[str, set[str]]]) -> None:
    a, b, done = made
    panel, counts = agree_panel({"a": a.keys, "b": b.keys}, "rsid")
    back = align(b, panel, "rsid")
    original = align(a, panel, "rsid")
    column = {k.id: i for i, k in enumerate(a.keys)}
    kept = []
    for key in a.keys:
        what = done[key.id]
        # A/T and C/G read the same on both strands: a swap or a flip alone gives the same letters, so neither can be believed.
        if what & {"dropped", "twice"} or (ambiguous(key) and len(what) == 1):
            continue
        kept.append(key)
    both = [k.id for k in panel if ambiguous(k) and done[k.id] == {"swapped", "flipped"}]  # letters as they were, dosages not
    assert panel == tuple(kept)
    assert back.keys == panel
    np.testing.assert_array_equal(original.dosage, a.dosage[:, [column[k.id] for k in panel]])
    for at, key in enumerate(panel):
        if key.id not in both:
            np.testing.assert_array_equal(back.dosage[:, at], a.dosage[:, column[key.id]], err_msg=str((key, done[key.id])))
    assert sum(counts["b"].values()) == len(a.keys)
    assert sum(n for fit, n in counts["b"].items() if fit not in ("absent", "none")) == len(panel)


@given(cohorts())
def test_by_position_every_variant_comes_back_or_is_dropped(made: tuple[Dosages, Dosages, dict[str, set[str]]]) -> None:
    a, b, done = made
    panel, _ = agree_panel({"a": a.keys, "b": b.keys}, "position")
    back = align(b, panel, "position")
    column = {k.id: i for i, k in enumerate(a.keys)}
    for at, key in enumerate(panel):
        if not (ambiguous(key) and "flipped" in done[key.id]):  # builds are on the plus strand: nothing can tell otherwise
            np.testing.assert_array_equal(back.dosage[:, at], a.dosage[:, column[key.id]])
    expected = [k for k in a.keys if not done[k.id] & {"dropped", "twice"} and (ambiguous(k) or "flipped" not in done[k.id])]
    assert panel == tuple(expected)


@pytest.mark.parametrize(("ref", "alt"), [("A", "T"), ("T", "A"), ("C", "G"), ("G", "C")])
def test_palindromes_are_taken_by_rsid_only_as_they_stand(ref: str, alt: str) -> None:
    a, swapped = [Variant("1", 5, "rs1", ref, alt)], [Variant("1", 5, "rs1", alt, ref)]
    assert agree_panel({"a": a, "b": a}, "rsid")[0] == tuple(a)
    panel, counts = agree_panel({"a": a, "b": swapped}, "rsid")
    assert panel == ()
    assert counts["b"] == {"none": 1}
    assert agree_panel({"a": a, "b": swapped}, "position")[1]["b"] == {"swapped": 1}


def test_the_panel_is_what_all_sites_have_as_the_first_writes_it() -> None:
    v = [Variant("1", 10 * k, f"rs{k}", "A", "G") for k in range(5)]
    own = {"a": v[:4], "b": [k._replace(ref="G", alt="A") for k in v[1:]], "c": [v[3], v[1], v[0]]}
    panel, counts = agree_panel(own, "position")
    assert panel == (v[1], v[3])
    assert counts == {"a": {"same": 4}, "b": {"absent": 1, "swapped": 3}, "c": {"same": 3, "absent": 1}}


def test_other_alleles_at_one_place_are_another_variant() -> None:
    a, b = [Variant("1", 5, "rs1", "A", "G")], [Variant("1", 5, "rs1", "A", "C")]
    assert agree_panel({"a": a, "b": b}, "position")[0] == ()
    panel, counts = agree_panel({"a": a, "b": b}, "rsid")
    assert panel == ()
    assert counts["b"] == {"none": 1}


def test_variants_without_an_rsid_never_match_by_rsid() -> None:
    dots = [Variant("1", 5, ".", "A", "G")]
    assert agree_panel({"a": dots, "b": dots}, "rsid")[0] == ()


def test_align_leaves_what_is_absent_missing() -> None:
    own = Dosages(KEYS, DOSAGE, np.ones(4, dtype=bool))
    out = align(own, (Variant("9", 1, "rs9", "A", "C"), KEYS[1]), "position")
    np.testing.assert_array_equal(out.dosage, np.stack([[-1] * 4, DOSAGE[:, 1]], axis=1))


FIELD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=6)


@given(st.lists(st.builds(Variant, FIELD, st.integers(0, 2**40), FIELD, FIELD, FIELD), max_size=8))
def test_keys_cross_the_wire(keys: list[Variant]) -> None:
    assert from_text(to_text(keys)) == tuple(keys)
    assert to_text(keys).count(b"\n") == len(keys)


@pytest.mark.parametrize("text", [b"1\t5\trs\tA\n", b"1\tx\trs\tA\tG\n", b"1\t5\trs\tA\tG\tG\n", b"\xff\xfe\n", b"\n"])
def test_text_that_is_no_panel_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_text(text)
