"""A site's variants in canonical spelling: builds distinguished, indels trimmed and left-aligned, every REF checked against a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pysam.bcftools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.cohort.variants.alleles import trim
from fedml.cohort.variants.builds import BUILDS, LENGTHS, build_of, check_build, mixed
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.normalise import fingerprint
from fedml.cohort.variants.reference import left_align
from fedml.errors import InputError

COMPLEMENT = str.maketrans("ACGT", "TGCA")
GENOME = "".join(np.random.default_rng(3).choice(list("ACGT"), 400)) + "CACACACACA" + "TTTTTTTT" + "GATTACA" * 5


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "ref.fa"
    path.write_text(f">chr22\n{GENOME}\n")
    pysam.faidx(str(path))
    return path


def base_at(_contig: str, position: int) -> str:
    return GENOME[position - 1]


def apply(key: Variant) -> str:
    """The sequence with the change made: what the variant means."""
    start = key.position - 1
    assert GENOME[start : start + len(key.ref)] == key.ref
    return GENOME[:start] + key.alt + GENOME[start + len(key.ref) :]


@st.composite
def changes(draw: st.DrawFn) -> Variant:
    start = draw(st.integers(0, len(GENOME) - 12))
    ref = GENOME[start : start + draw(st.integers(1, 8))]
    alt = draw(st.text("ACGT", min_size=1, max_size=8).filter(lambda a: a != ref))
    return Variant("22", start + 1, ".", ref, alt)


@given(changes())
def test_trimmed_and_moved_a_change_stays_the_same_change(key: Variant) -> None:
    for made in (trim(key), left_align(key, base_at)):
        assert apply(made) == apply(key)
        assert made.ref
        assert made.alt
        assert not (min(len(made.ref), len(made.alt)) > 1 and made.ref[-1] == made.alt[-1])
    assert trim(trim(key)) == trim(key)
    again = left_align(key, base_at)
    assert left_align(again, base_at) == again
    assert again.position <= trim(key).position


@given(st.integers(1, len(GENOME) - 12), st.integers(1, 3), st.integers(0, 2**32))
def test_every_spelling_of_a_deletion_becomes_the_same_and_bcftools_says_so_too(start: int, length: int, seed: int) -> None:
    """All places at which the deletion of so many bases gives the same sequence."""
    gone = GENOME[:start] + GENOME[start + length :]
    spellings = []
    for at in range(1, len(GENOME) - length):
        if GENOME[:at] + GENOME[at + length :] == gone:
            left = int(np.random.default_rng(seed + at).integers(1, min(at, 4) + 1))  # letters of context before it
            spellings.append(Variant("22", at - left + 1, ".", GENOME[at - left : at + length], GENOME[at - left : at]))
    found = {left_align(key, base_at) for key in spellings}
    assert len(found) == 1
    first = next(iter(found))
    assert all(GENOME[:at] + GENOME[at + length :] != gone for at in range(1, first.position))


def test_bcftools_norm_moves_and_trims_the_same(tmp_path: Path, fasta: Path) -> None:
    rng = np.random.default_rng(0)
    keys = []
    for _ in range(300):
        start, length = int(rng.integers(5, len(GENOME) - 20)), int(rng.integers(1, 7))
        ref = GENOME[start : start + length]
        alt = "".join(rng.choice(list("ACGT"), rng.integers(1, 7)))
        if alt != ref:
            keys.append(Variant("chr22", start + 1, f"v{len(keys)}", ref, alt))
    text = f"##fileformat=VCFv4.2\n##contig=<ID=chr22,length={len(GENOME)}>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "in.vcf").write_text(text + "".join(f"chr22\t{k.position}\t{k.id}\t{k.ref}\t{k.alt}\t.\t.\t.\n" for k in keys))
    out = pysam.bcftools.norm("-f", str(fasta), str(tmp_path / "in.vcf"))
    rows = [line.split("\t") for line in out.splitlines() if line and not line.startswith("#")]
    expected = {r[2]: (int(r[1]), r[3], r[4]) for r in rows}
    own = fingerprint(keys, {"chr22": None}, "GRCh38", where="x.vcf", reference=fasta)
    assert {k.id: (k.position, k.ref, k.alt) for k in own.keys} == expected
    assert own.notes["left-aligned"] > 0
    assert own.notes["contig renamed"] == len(keys)


def test_ref_is_held_against_the_reference(fasta: Path) -> None:
    ref = GENOME[99]
    alt = next(b for b in "ACGT" if b != ref and b != ref.translate(COMPLEMENT))
    good = Variant("22", 100, "rs1", ref, alt)
    turned = Variant("chr22", 100, "rs2", alt, ref)
    strand = Variant("22", 100, "rs3", ref.translate(COMPLEMENT), alt.translate(COMPLEMENT))
    both = Variant("22", 100, "rs4", alt.translate(COMPLEMENT), ref.translate(COMPLEMENT))
    other = [b for b in "ACGT" if b not in (ref, ref.translate(COMPLEMENT))]
    misfit = Variant("22", 100, "rs5", *other)
    own = fingerprint([good, turned, strand, both, misfit, good], {}, "GRCh38", where="x.vcf", reference=fasta)
    assert [(k.id, k.ref, k.alt) for k in own.keys] == [(n, ref, alt) for n in ("rs1", "rs2", "rs3", "rs4", "rs1")]
    assert own.flip.tolist() == [False, True, False, True, False]
    assert own.columns.tolist() == [0, 1, 2, 3, 5]
    reported = {k: v for k, v in own.notes.items() if v}
    assert reported == {
        "read": 6, "contig renamed": 1, "alleles swapped to the reference": 2, "strand turned to the reference": 2, "reference mismatch": 1,
    }  # fmt: skip
    with pytest.raises(InputError, match="do not match"):
        fingerprint([misfit, misfit, good], {}, "GRCh38", where="x.vcf", reference=fasta)
    with pytest.raises(InputError, match="no such file"):
        fingerprint([good], {}, "GRCh38", where="x.vcf", reference=fasta.with_name("none.fa"))


def test_a_build_is_known_by_its_lengths() -> None:
    for build in BUILDS:
        assert build_of({f"chr{name}": length for name, length in LENGTHS[build].items()}) == build
        assert build_of({"22": LENGTHS[build]["22"], "GL000191.1": 106433, "MT": 16569}) == build
    assert build_of({"22": None, "chr1": None}) is None
    assert build_of({"22": 12345}) is None
    assert build_of({"1": LENGTHS["GRCh37"]["1"], "2": LENGTHS["GRCh38"]["2"]}) is None


def test_alleles_that_are_not_plain_stay_and_are_counted() -> None:
    keys = [
        Variant("1", 5, ".", "A", "<DEL>"),
        Variant("1", 6, ".", "A", "*"),
        Variant("1", 7, ".", "a", "g"),
        Variant("1", 8, ".", "N", "A"),
    ]
    own = fingerprint(keys, {}, "GRCh38", where="x.vcf")
    assert [k.alt for k in own.keys] == ["<DEL>", "*", "G", "A"]
    assert own.notes["not plain alleles"] == 3


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ({"20": ("GRCh37", "20"), "chrY": ("GRCh38", "Y")}, "20 as in GRCh37, chrY as in GRCh38"),
        ({"1": ("T2T-CHM13", "1"), "21": ("T2T-CHM13", "21"), "Y": ("GRCh38", "Y")}, "1 as in T2T-CHM13, Y as in GRCh38"),
        ({"1": ("GRCh38", "1"), "2": ("NCBI36", "2"), "3": ("GRCh37", "3")}, "1 as in GRCh38, 2 as in NCBI36, 3 as in GRCh37"),
    ],
)
@pytest.mark.parametrize("build", BUILDS)
def test_lengths_of_several_builds_are_refused_whatever_the_site_says(lengths: Any, words: str, build: Any) -> None:
    contigs = {name: LENGTHS[b][chromosome] for name, (b, chromosome) in lengths.items()} | {"22": None, "GL000191.1": 106433}
    assert mixed(contigs) == words
    with pytest.raises(InputError) as caught:
        check_build(contigs, build, "c.vcf")
    assert f"c.vcf: the contig lengths in the header are of several builds ({words})" in str(caught.value)
    with pytest.raises(InputError, match="of several builds"):
        fingerprint([Variant("22", 100, ".", "A", "G")], contigs, build, where="c.vcf")


def test_a_length_of_no_build_is_no_evidence() -> None:
    """1000 Genomes' GRCh37 has a shorter Y."""
    contigs = {"20": LENGTHS["GRCh37"]["20"], "Y": 59034049}
    assert (build_of(contigs), mixed(contigs), check_build(contigs, "GRCh37", "")) == ("GRCh37", "", "GRCh37")
    with pytest.raises(InputError, match=r"those of GRCh37, but site\.toml says GRCh38"):
        check_build(contigs, "GRCh38", "c.vcf")


def test_a_breakend_at_a_telomere_is_left_out_and_counted() -> None:
    end = LENGTHS["GRCh38"]["21"]
    keys = [Variant("21", end, "a", "A", "C"), Variant("21", end + 1, "b", "N", ".[13:5[")]
    own = fingerprint(keys, {"21": None}, "GRCh38", where="c.vcf")
    assert ([key.id for key in own.keys], own.notes["position of a telomere"]) == (["a"], 1)
    for wrong in (Variant("21", end + 1, "c", "A", "C"), Variant("21", end + 2, "d", "N", ".[13:5[")):
        with pytest.raises(InputError, match="past the end of that chromosome"):
            fingerprint([wrong], {"21": None}, "GRCh38", where="c.vcf")


def test_of_several_ids_those_of_dbsnp_are_kept() -> None:
    for text, kept in (
        ("rs1;own_7", "rs1"),
        ("own;rs2;rs3;rs2", "rs2;rs3"),
        ("a;b", "a;b"),
        ("rs4", "rs4"),
        ("x", "x"),
        ("rs5;RS6", "rs5"),
    ):
        own = fingerprint([Variant("21", 100, text, "A", "C")], {}, "GRCh38", where="c.vcf")
        assert own.keys[0].id == kept
