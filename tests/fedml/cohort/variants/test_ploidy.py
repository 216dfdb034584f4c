"""Calls on X, Y and MT: one coding whatever the file wrote, by position, build and sex; and no count that tells of few men or few women."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml.cohort.variants import frequency as f
from fedml.cohort.variants.builds import BUILDS, LENGTHS, Build
from fedml.cohort.variants.genotypes import Genome, read_variants, shared_panel, site_counts
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages, Selection
from fedml.cohort.variants.normalise import NOTES
from fedml.cohort.variants.packed import Packed
from fedml.cohort.variants.ploidy import DIPLOID, MAN, MT, WOMAN, Coding, X, Y, place, places, sexes, site_table, two_copies
from fedml.cohort.variants.sex_check import contradictions, sex_lines
from fedml.errors import InputError
from fedml.study.cohort_section import Variants
from tests.conftest import vcf_text, write_bed, write_vcf

MEN_AND_WOMEN = np.array([1, 1, 2, 2, 0], np.int8)
SAMPLES = ["m1", "m2", "w1", "w2", "u"]
IN_X, IN_Y, IN_PAR = 5_000_000, 6_000_000, 1_000_000
RECORDS = [
    ("chr1", 100, "rs1", "A", "G", ["0/1", "1/1", "0/0", "0/1", "0/1"]),
    ("chrX", IN_PAR, "rs2", "A", "G", ["0/1", "1/1", "0/0", "0/1", "0/1"]),
    ("chrX", IN_X, "rs3", "A", "G", ["1", "0", "0/1", "1/1", "0/1"]),
    ("chrX", IN_X + 1, "rs4", "A", "G", ["0/1", "1/1", "0/1", "./.", "1/1"]),
    ("chrX", IN_X + 2, "rs5", "A", "G,T", ["2", "1", "1/2", "0/2", "0/0"]),
    ("chrY", IN_Y, "rs6", "A", "G", ["1", "0", "0/0", ".", "1"]),
    ("chrM", 73, "rs7", "A", "G", ["1", "0", "1/1", "0/1", "1"]),
]
CODED = np.array(
    [[1, 1, 2, -1, 0, 2, 2, 2], [2, 2, 0, 2, 2, 0, 0, 0], [0, 0, 1, 1, 1, 1, -1, 2], [1, 1, 2, -1, 0, 1, -1, -1],
     [1, 1, -1, -1, -1, -1, -1, 2]], np.int8,
)  # fmt: skip
# As a file without haploid calls has them; not of rs5, whose second ALT allele PLINK 1 cannot hold with the first.
DIPLOID_CALLS = np.array(
    [[1, 1, 2, 1, 2, 2], [2, 2, 0, 2, 0, 0], [0, 0, 1, 1, 0, 2], [1, 1, 2, -1, -1, 1], [1, 1, 1, 2, 2, 2]], np.int8
)  # fmt: skip
AS_BED = [0, 1, 2, 3, 6, 7]  # its columns of CODED


def read(path: Path, **options: Any) -> Dosages:
    return read_variants(path, SAMPLES, genome=Genome("GRCh38", **options), cache=path.parent / ".fedml" / "cache")


def notes_of(own: Dosages) -> dict[str, int]:
    assert own.notes is not None
    return {name: int(count) for name, count in zip(NOTES, own.notes, strict=True) if count}


def write_bcf(path: Path) -> Path:
    plain = path.with_suffix(".vcf")
    contigs = "".join(f"##contig=<ID={name}>\n" for name in ("chr1", "chrX", "chrY", "chrM"))
    plain.write_text(vcf_text(SAMPLES, RECORDS).replace("##contig=<ID=22>\n", contigs))
    with pysam.VariantFile(str(plain)) as source, pysam.VariantFile(str(path), "wb", header=source.header) as out:
        for record in source:
            out.write(record)
    return path


@pytest.mark.parametrize("name", ["cohort.vcf", "cohort.vcf.gz", "cohort.bcf"])
def test_haploid_calls_count_as_homozygous_ones(tmp_path: Path, name: str) -> None:
    path = write_bcf(tmp_path / name) if name.endswith("bcf") else write_vcf(tmp_path / name, SAMPLES, RECORDS)
    own = read(path, sex=MEN_AND_WOMEN)
    np.testing.assert_array_equal(own.dosage[np.arange(5)], CODED)
    assert own.where is not None
    assert own.where.tolist() == [DIPLOID, DIPLOID, X, X, X, X, Y, MT]
    assert notes_of(own) == {"read": 8, "contig renamed": 8, "heterozygous calls of one copy set to missing": 2}


def test_a_bed_with_homozygous_men_is_the_same(tmp_path: Path) -> None:
    keys = [("X" if c == "chrX" else c, p, i, r, a) for c, p, i, r, a, _ in RECORDS if i != "rs5"]
    path = write_bed(tmp_path / "cohort.bed", SAMPLES, keys, DIPLOID_CALLS)
    own = read(path, sex=MEN_AND_WOMEN)
    np.testing.assert_array_equal(own.dosage[np.arange(5)], CODED[:, AS_BED])
    lines = (tmp_path / "cohort.fam").read_text().splitlines()
    (tmp_path / "cohort.fam").write_text("\n".join(" ".join([*x.split()[:4], s, "-9"]) for x, s in zip(lines, "11220", strict=True)) + "\n")
    by_fam = read(path)
    np.testing.assert_array_equal(by_fam.dosage[np.arange(5)], CODED[:, AS_BED])
    assert by_fam.sex is not None
    assert by_fam.sex.tolist() == MEN_AND_WOMEN.tolist()
    other = read(path, sex=np.array([2, 2, 2, 2, 2], np.int8))  # the study's own column comes first
    assert other.dosage[np.arange(5)][:, 2].tolist() == [2, 0, 1, 2, 1]


def test_an_autosome_keeps_its_haploid_calls_as_they_were(tmp_path: Path) -> None:
    records = [("1", 100, "rs1", "A", "G", ["1", "0", "0/1", "1/1", "."])]
    own = read(write_vcf(tmp_path / "cohort.vcf", SAMPLES, records))
    assert own.dosage[np.arange(5)][:, 0].tolist() == [1, 0, 1, 2, -1]
    assert own.where is None


@pytest.mark.parametrize("sex", [None, np.zeros(5, np.int8)], ids=["not asked", "empty column"])
def test_without_sex_x_and_y_are_left_out_and_counted(tmp_path: Path, sex: Any) -> None:
    path = write_vcf(tmp_path / "cohort.vcf", SAMPLES, RECORDS)
    own = read(path, sex=sex)
    assert [key.id for key in own.keys] == ["rs1", "rs2", "rs7"]
    np.testing.assert_array_equal(own.dosage[np.arange(5)], CODED[:, [0, 1, 7]])
    assert notes_of(own)["on X or Y, sex not known"] == 5
    assert len(read(path, sex=MEN_AND_WOMEN).keys) == 8, "another sex is another entry of the cache"
    alone = write_vcf(tmp_path / "x.vcf", SAMPLES, [r for r in RECORDS if r[2] in ("rs3", "rs4", "rs6")])
    with pytest.raises(InputError) as error:
        read(alone, sex=sex)
    assert str(error.value) == (
        f"{alone}: its 3 variants are on X or Y, and nobody's sex is known; add the column to the study, such as [cohort.variants] "
        'sex = { column = "sex", male = "M", female = "F" }.'
    )


def test_a_score_reads_x_without_sex(tmp_path: Path) -> None:
    own = read(write_vcf(tmp_path / "cohort.vcf", SAMPLES, RECORDS), strict=False)
    assert own.dosage[np.arange(5)][:, 2].tolist() == [2, 0, 1, 2, 1]
    assert own.dosage[np.arange(5)][:, 7].tolist() == [2, 0, 2, -1, 2]


# First and last positions of what is not pseudoautosomal, written out from the assemblies' own tables.
EDGES: list[tuple[Build, str, int, int]] = [
    ("NCBI36", "X", 2_709_521, 154_584_237), ("NCBI36", "Y", 2_709_521, 57_443_437),
    ("GRCh37", "X", 2_699_521, 154_931_043), ("GRCh37", "Y", 2_649_521, 59_034_049),
    ("GRCh38", "X", 2_781_480, 155_701_382), ("GRCh38", "Y", 2_781_480, 56_887_902),
    ("T2T-CHM13", "X", 2_394_411, 153_925_834), ("T2T-CHM13", "Y", 2_458_321, 62_122_809),
]  # fmt: skip


@pytest.mark.parametrize(("build", "contig", "first", "last"), EDGES)
def test_pseudoautosomal_regions_to_the_base(build: Build, contig: str, first: int, last: int) -> None:
    one = X if contig == "X" else Y
    found = [place(contig, at, build) for at in (1, first - 1, first, last, last + 1, LENGTHS[build][contig])]
    assert found == [DIPLOID, DIPLOID, one, one, DIPLOID, DIPLOID]
    keys = [Variant(f"chr{contig}", at, ".", "A", "G") for at in (first - 1, first)]
    dosage = np.array([[1, 1], [1, 1]], np.int8)
    _, coded = Coding(build, np.array([MAN, WOMAN], np.int8)).coded(tuple(keys), dosage, Counter())
    assert coded.tolist() == [[1, 1], [-1, 1 if contig == "X" else -1]]
    assert dosage.tolist() == [[1, 1], [1, 1]], "the block that was read is not changed"


def test_every_build_has_its_regions() -> None:
    assert {build for build, *_ in EDGES} == set(BUILDS)
    # The second region has one length on X and Y where they are copies; in T2T-CHM13 they are of two persons.
    ends = {(build, contig): LENGTHS[build][contig] - last for build, contig, _, last in EDGES}
    assert ends["NCBI36", "X"] == ends["NCBI36", "Y"]
    assert ends["GRCh37", "X"] == ends["GRCh37", "Y"]
    assert ends["GRCh38", "X"] == ends["GRCh38", "Y"]


def test_contigs_by_any_name() -> None:
    names = ["23", "chrX", "x", "24", "chrM", "26", "25", "XY", "1"]
    found = places([Variant(name, IN_X, ".", "A", "G") for name in names], "GRCh38")
    assert found is not None
    assert found.tolist() == [X, X, X, Y, MT, MT, DIPLOID, DIPLOID, DIPLOID]
    assert places([Variant("1", 5, ".", "A", "G"), Variant("X", IN_PAR, ".", "A", "G")], "GRCh38") is None


def test_the_key_of_the_cache_holds_the_sex_only_where_it_matters() -> None:
    coding = Coding("GRCh38", MEN_AND_WOMEN)
    assert coding.described(["1", "22", "MT"], Selection()) == []
    assert coding.described(["1", "X"], Selection(regions=("22",))) == []
    assert coding.described(["1", "chrX"], Selection()) == ["GRCh38", True, [1, 1, 2, 2, 0]]
    assert coding.described([], Selection()) == ["GRCh38", True, [1, 1, 2, 2, 0]], "a VCF may have contigs that its header lacks"
    assert coding.described([], Selection(regions=("22", "MT"))) == []


# --- counts -------------------------------------------------------------------------------------------------------------------------------


def tables(dosage: Any, sex: Any, where: Any, min_count: int, fewest_men: int = 0) -> tuple[Any, Any]:
    """``site_table`` of persons, as a site computes it; all are one group."""
    groups = f.group_counts(dosage, np.ones((1, len(dosage)), bool))
    return site_table(groups, f.group_counts(dosage, sexes(sex, len(dosage))), where, min_count, fewest_men)


def test_frequency_call_rate_and_equilibrium_by_hand(tmp_path: Path) -> None:
    own = read(write_vcf(tmp_path / "cohort.vcf", SAMPLES, RECORDS), sex=MEN_AND_WOMEN)
    counts = site_counts(own, Variants())
    assert counts[:, 2].tolist() == [1, 1, 2, 1, 0, 1, 1]  # men 2, 0; women 1, 2; one person of unknown sex is not called
    assert counts[:, 6].tolist() == [1, 0, 1, 0, 0, 1, 1]  # Y: the two men
    assert counts[:, 7].tolist() == [1, 0, 3, 1, 0, 1, 3]  # MT: everyone, one of them mixed
    alt, called = f.alleles(counts)
    assert (alt[2], called[2]) == (4, 6)
    assert (alt[6], called[6]) == (1, 2)
    assert (alt[7], called[7]) == (3, 4)
    np.testing.assert_allclose(f.allele_frequency(counts)[[0, 2, 6, 7]], [5 / 10, 4 / 6, 1 / 2, 3 / 4])
    np.testing.assert_allclose(f.call_rate(counts)[[2, 6, 7]], [4 / 5, 1.0, 4 / 5])
    pooled = shared_panel({"a": own, "b": own}, Variants(min_maf=0.4, max_palindromic_maf=0.5))
    assert [key.id for key in pooled.keys] == ["rs1", "rs2", "rs5", "rs6"]


def test_only_women_are_tested_for_equilibrium_on_x_and_nobody_on_y_and_mt() -> None:
    everyone = np.array([[60] * 4, [0] * 4, [60] * 4, [0] * 4])  # no heterozygote, as men on X: far from equilibrium
    women = np.array([[25] * 4, [50] * 4, [25] * 4, [0] * 4])
    where = np.array([DIPLOID, X, Y, MT])
    p = f.hardy_weinberg_p(*two_copies(everyone, women, where)[:3])
    assert p[0] < 1e-20
    assert p[1] == 1.0
    assert np.isnan(p[2:]).all()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 14), st.integers(0, 14), st.integers(0, 3), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5]))
def test_no_count_tells_of_few_men_or_few_women(men: int, women: int, unknown: int, seed: int, min_count: int) -> None:
    random = np.random.default_rng(seed)
    sex = np.repeat(np.array([1, 2, 0], np.int8), [men, women, unknown])
    where = np.tile(np.array([X, Y, MT, DIPLOID], np.int8), 30)
    keys = tuple({X: Variant("X", IN_X, ".", "A", "G"), Y: Variant("Y", IN_Y, ".", "A", "G"), MT: Variant("MT", 9, ".", "A", "G"),
                  DIPLOID: Variant("1", 9, ".", "A", "G")}[w] for w in where)  # fmt: skip
    raw = random.choice(np.array([-1, 0, 1, 2], np.int8), (len(where), len(sex)), p=random.dirichlet([0.3, 1, 0.5, 1]))
    _, coded = Coding("GRCh38", sex).coded(keys, raw, Counter())
    dosage = coded.T
    told, hidden = tables(dosage, sex, where, min_count)
    for at in np.flatnonzero(~hidden):
        no, one, two, _, one_ref, one_alt = told[:, at].tolist()
        who = {X: sex > 0, Y: sex == 1, MT: sex >= 0, DIPLOID: sex >= 0}[where[at]]
        # All that sums and differences of the table give: each sex's genotypes and carriers of each allele.
        read = {"no": no, "one": one, "two": two, "men's REF": one_ref, "men's ALT": one_alt, "women's no": no - one_ref,
                "women's two": two - one_alt, "ALT": one + two, "REF": no + one, "women's ALT": one + two - one_alt,
                "women's REF": no + one - one_ref, "called": no + one + two}  # fmt: skip
        if where[at] == Y:  # all men are told, called or not, and by subtraction from all persons the others
            read |= {"men": int(told[:4, at].sum()), "others": len(sex) - int(told[:4, at].sum())}
        assert all(n == 0 or n >= min_count for n in read.values()), read
        # And the alleles are exact: of men one, of women two, counted from the calls themselves.
        called = dosage[who & (dosage[:, at] >= 0), at]
        copies = np.where((where[at] == MT) | (sex[who & (dosage[:, at] >= 0)] == 1) & (where[at] != DIPLOID), 1, 2)
        table = np.insert(told[:, at], 4, 0)[:, None]
        alt, total = f.alleles(table)
        assert (alt[0], total[0]) == (int((called * copies // 2).sum()), int(copies.sum()))
    if min_count == 1:
        assert not hidden.any()


def test_few_men_or_few_women_hide_x_and_y_and_nothing_else() -> None:
    where = np.array([X, Y, MT, DIPLOID])
    for men, women, expected in ((4, 50, [True, True, False, False]), (50, 4, [True, True, False, False]), (50, 0, [False] * 4)):
        sex = np.repeat(np.array([1, 2], np.int8), [men, women])
        dosage = np.tile(np.array([0, 2], np.int8), 100)[: men + women, None].repeat(4, axis=1)
        dosage[sex == 2, 1] = -1
        assert tables(dosage, sex, where, 5)[1].tolist() == expected
    sex = np.repeat(np.array([1, 2], np.int8), [20, 50])
    dosage = np.tile(np.array([0, 2], np.int8), 100)[:70, None].repeat(4, axis=1)
    dosage[sex == 2, 1] = -1
    assert tables(dosage, sex, where, 5, fewest_men=21)[1].tolist() == [False, True, False, False]


def test_autosomes_are_told_as_before() -> None:
    random = np.random.default_rng(3)
    dosage = random.choice(np.array([-1, 0, 1, 2], np.int8), (60, 200), p=[0.02, 0.7, 0.2, 0.08])
    groups = f.group_counts(dosage, np.stack([np.ones(60, bool), np.arange(60) < 25]))
    told, hidden = site_table(groups, np.zeros((2, 4, 200), np.int64), None, 5)
    np.testing.assert_array_equal(told[:4], f.folded(groups[0], 5))
    assert not told[4:].any()
    np.testing.assert_array_equal(hidden, f.withheld(groups, 5))


# --- stated and genetic sex ---------------------------------------------------------------------------------------------------------------


def persons_on_x_and_y(stated: Any, genetic: Any, variants: int) -> Dosages:
    """Coded calls of persons, as their file and the stated sex make them: ``variants`` on X and half as many on Y."""
    random = np.random.default_rng(2)
    where = np.repeat(np.array([X, Y], np.int8), [variants, variants // 2])
    keys = tuple(Variant("X" if w == X else "Y", IN_Y + at, ".", "A", "G") for at, w in enumerate(where))
    raw = random.binomial(2, random.uniform(0.1, 0.5, len(where)), (len(stated), len(where)))
    raw = np.where((genetic == 1)[:, None], 2 * (raw > 0), raw)
    raw = np.where((genetic == 2)[:, None] & (where == Y), -1, raw)
    raw = np.where(random.random(raw.shape) < 0.03, -1, raw).astype(np.int8)
    _, coded = Coding("GRCh38", stated).coded(keys, np.ascontiguousarray(raw.T), Counter())
    return Dosages(keys, coded.T.copy(), np.ones(len(stated), bool), where=where, sex=stated)


def test_persons_whose_calls_contradict_their_sex_are_named_at_the_site() -> None:
    genetic = np.repeat(np.array([1, 2], np.int8), [30, 40])
    stated = genetic.copy()
    stated[[7, 51, 60]] = [2, 1, 1]  # a man stated as a woman, and two women stated as men
    ids = [f"p{at}" for at in range(70)]
    own = persons_on_x_and_y(stated, genetic, 120)
    wrong = contradictions(own)
    assert wrong is not None
    assert np.flatnonzero(wrong).tolist() == [7, 51, 60]
    assert sex_lines(ids, own) == [
        "sex: calls on X and Y contradict it, or are poor, of 3 persons: p7, p51, p60; correct their sex or their samples"
    ]
    packed = replace(own, dosage=Packed.of(own.dosage))  # type: ignore[arg-type]
    assert sex_lines(ids, packed) == sex_lines(ids, own)
    assert sex_lines(ids, persons_on_x_and_y(genetic, genetic, 120)) == ["sex: no person's calls on X and Y contradict it"]
    assert sex_lines(ids, persons_on_x_and_y(stated, genetic, 30)) == [], "too few variants to tell"
    assert sex_lines(ids, replace(own, sex=None)) == []
