"""Scoring files of the PGS Catalog, polygenic scores against PLINK 2, linear models as scoring files, and the elastic net's step."""

from __future__ import annotations

import csv
import gzip
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, LogisticRegression
from torch import nn

from fedml.cohort.scores.scores import Scores, match, score
from fedml.cohort.scores.scoring_file import DOMINANT, RECESSIVE, LinearModel, Scoring, known_build, read_scoring, write_scoring
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.packed import Packed
from fedml.errors import InputError
from fedml.modalities.layout import Layout
from fedml.models.fusion import CohortModel, build_model, constants, load
from fedml.models.linear_score import linear_score
from fedml.networks.variants import shrink
from fedml.tasks.registry import make_task
from tests.conftest import make_study, public_data, write_bed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


HEADER = """###PGS CATALOG SCORING FILE - see https://www.pgscatalog.org/downloads/#dl_ftp_scoring for additional information
#format_version=2.0
##POLYGENIC SCORE (PGS) INFORMATION
#pgs_id=PGS000117
#pgs_name=CVD_EJ2020
#weight_type=NR
#genome_build={build}
"""
COLUMNS = ["rsID", "chr_name", "chr_position", "effect_allele", "other_allele", "effect_weight"]
Row = Sequence[object]


def scoring_text(rows: Sequence[Row], columns: Sequence[str] = COLUMNS, build: str = "GRCh37", more: str = "") -> str:
    return HEADER.format(build=build) + more + "".join("\t".join(map(str, line)) + "\n" for line in (columns, *rows))


def scoring(folder: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS, **changes: str) -> Scoring:
    (folder / "score.txt").write_text(scoring_text(rows, columns, **changes))
    return read_scoring(folder / "score.txt")


# --- reading


def test_a_file_of_the_catalog(tmp_path: Path) -> None:
    columns = [*COLUMNS, "allelefrequency_effect", "is_dominant", "is_recessive", "is_interaction"]
    rows = [
        ("rs11240779", "1", 808631, "A", "G", 0.00077622, 0.25, "False", "False", "FALSE"),
        ("", "chrX", 949608, "a", "g/t", -5.8e-3, "NA", "True", "", ""),
        ("rs3", "", "", "T", "", "1", "", "0", "1", "0"),
    ]
    text = scoring_text(rows, columns)
    (tmp_path / "s.txt").write_text(text)
    (tmp_path / "s.txt.gz").write_bytes(gzip.compress(text.encode()))
    for path in (tmp_path / "s.txt", tmp_path / "s.txt.gz"):
        read = read_scoring(path)
        assert (read.name, read.build, len(read), read.intercept) == ("PGS000117", "GRCh37", 3, 0.0)
        assert read.rsid == ("rs11240779", "", "rs3")
        assert read.contig == ("1", "X", "")
        assert read.effect == ("A", "A", "T")
        assert read.other == ("G", "", "")  # one of several is not known
        assert read.position.tolist() == [808631, 949608, 0]
        assert read.weight.tolist() == [0.00077622, -0.0058, 1.0]
        assert read.model.tolist() == [0, DOMINANT, RECESSIVE]
        np.testing.assert_array_equal(read.frequency, [0.25, np.nan, np.nan])
        assert read.header["pgs_name"] == "CVD_EJ2020"


@given(seed=st.integers(0, 2**32))
def test_a_file_read_by_columns_is_the_file_read_by_rows(tmp_path: Path, seed: int) -> None:
    """A row that leaves out its empty last cell is read by rows, and with it the whole file."""
    random = np.random.default_rng(seed)
    pick = lambda *cells: str(random.choice(cells))  # noqa: E731
    columns = [*COLUMNS, "hm_inferOtherAllele", "allelefrequency_effect", "is_recessive", "is_dominant", "is_haplotype", "dosage_0_weight"]
    rows = []
    for k in range(40):
        model = [pick("", "False", "0"), pick("true", "T", "no", "NA")]
        random.shuffle(model)
        place = (pick("", f"rs{k}", " rs1 "), pick("chr1", "X", "", "23", "NA"), pick("", "5", "0070", str(k)))
        alleles = (pick("A", "t", "ACG"), pick("", "C", "g", "A/C", "NR"), repr(random.normal()), pick("", "T", "c/t"))
        rows.append((*place, *alleles, pick("", "0", "1", "1e-3", "NA", "nan"), *model, pick("", "FALSE"), pick("", "NA")))
    whole = scoring(tmp_path, rows, columns)
    text = (tmp_path / "score.txt").read_text()
    (tmp_path / "score.txt").write_text(text + "rs9\t1\t5\tA\tC\t2.5\n")
    by_rows = read_scoring(tmp_path / "score.txt")
    assert len(by_rows) == len(whole) + 1
    for name in ("rsid", "contig", "effect", "other"):
        assert getattr(whole, name) == getattr(by_rows, name)[:-1]
    for name in ("position", "weight", "frequency", "model"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(by_rows, name)[:-1])
        assert getattr(whole, name).dtype == getattr(by_rows, name).dtype


def test_of_a_harmonised_file_the_harmonised_places(tmp_path: Path) -> None:
    columns = [*COLUMNS, "hm_source", "hm_rsID", "hm_chr", "hm_pos", "hm_inferOtherAllele"]
    rows = [
        ("rs1", "1", 100, "A", "G", 1, "ENSEMBL", "rs1b", "1", 170, ""),
        ("rs2", "2", 100, "A", "", 1, "Unknown", "", "", "", ""),
        ("rs3", "3", 5, "C", "", 1, "ENSEMBL", "rs3", "3", 7, "T"),
    ]
    read = scoring(tmp_path, rows, columns, more="#HmPOS_build=GRCh38\n")
    assert read.build == "GRCh38"
    assert read.rsid == ("rs1b", "rs2", "rs3")
    assert read.position.tolist() == [170, 0, 7]
    assert read.other == ("G", "", "T")
    assert scoring(tmp_path, rows, columns).build == ""  # no file states the build


@pytest.mark.parametrize(("text", "build"), [("hg19", "GRCh37"), ("GRCh38.p14", "GRCh38"), ("NCBI36", "NCBI36"), ("NR", ""), ("", "")])
def test_builds_have_one_name(text: str, build: str) -> None:
    assert known_build(text) == build


FLAG = [*COLUMNS, "is_interaction", "is_haplotype", "is_dominant", "is_recessive", "dosage_1_weight"]
GOOD: Row = ("rs1", 1, 5, "A", "G", 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no weight"),
        (scoring_text([]), "has no weight"),
        (scoring_text([], ["rsID", "effect_allele", "beta"]), "line 8: has no column effect_weight"),
        (scoring_text([], ["rsID", "effect_alele", "effect_weight"]), r'has no column effect_allele \(did you mean "effect_alele"\?\)'),
        (scoring_text([], ["chr_name", "effect_allele", "effect_weight"]), "has neither rsID nor chr_name and chr_position"),
        (scoring_text([GOOD, ("rs2", 1, 6, "A", "G", "x")]), 'line 10: effect_weight is "x", not a finite number'),
        (scoring_text([("rs2", 1, 6, "A", "G", "inf")]), 'line 9: effect_weight is "inf"'),
        (scoring_text([("rs2", 1, 6, "A", "G")]), 'line 9: effect_weight is ""'),
        (scoring_text([("rs2", 1, "6.5", "A", "G", 1)]), 'line 9: the position is "6.5"'),
        (scoring_text([("rs2", 1, 6, "", "G", 1)]), "line 9: names no effect allele"),
        (scoring_text([(*GOOD, 1.5)], [*COLUMNS, "allelefrequency_effect"]), 'allelefrequency_effect is "1.5", not a number from 0 to 1'),
        (scoring_text([(*GOOD, "True")], FLAG), "line 9: is an interaction of variants, which cannot be scored from single variants"),
        (scoring_text([(*GOOD, "", "TRUE")], FLAG), "line 9: is a haplotype"),
        (scoring_text([(*GOOD, "maybe")], FLAG), 'line 9: is_interaction is "maybe", neither True nor False'),
        (scoring_text([(*GOOD, "", "", "True", "True")], FLAG), "line 9: is both dominant and recessive"),
        (scoring_text([(*GOOD, "", "", "", "", 0.3)], FLAG), r"line 9: has one weight per genotype \(dosage_0_weight"),
        (scoring_text([GOOD], more="#intercept=much\n"), 'intercept is "much", not a number'),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "score.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence) as reported:
        read_scoring(path)
    assert str(reported.value).startswith(str(path))
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        read_scoring(tmp_path / "none.txt")


@given(st.binary(max_size=80) | st.text(alphabet="#=\t\n01.AGers_ID", max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.txt").write_bytes(content)
    with pytest.raises(InputError):  # no such text has all the columns
        read_scoring(tmp_path / "s.txt")


# --- matching

KEYS = (
    Variant("chr1", 100, "rs1", "A", "G"),
    Variant("1", 200, "rs2", "C", "T"),
    Variant("1", 300, "rs3", "A", "T"),  # the same on both strands
    Variant("1", 400, "rs4", "C", "A"),  # one record with two ALTs
    Variant("1", 400, "rs4", "C", "T"),
    Variant("1", 500, "rs5;rs55", "G", "GA"),
    Variant("1", 600, ".", "G", "C"),
)


@pytest.mark.parametrize(
    ("row", "where", "how"),
    [
        (("rs1", 1, 100, "G", "A", 1), (0, False), "same"),
        (("rs1", 1, 100, "A", "G", 1), (0, True), "same"),
        (("rs1", 1, 100, "C", "T", 1), (0, False), "strand"),
        (("rs1", 1, 100, "T", "C", 1), (0, True), "strand"),
        (("rs1", 1, 100, "G", "C", 1), None, "differ"),
        (("rs1", 1, 100, "G", "", 1), (0, False), "same"),
        (("rs1", 1, 100, "A", "", 1), (0, True), "same"),
        (("rs1", 1, 100, "C", "", 1), None, "differ"),  # the strand cannot be determined from one allele
        (("rs4", 1, 400, "T", "C", 1), (4, False), "same"),
        (("rs4", 1, 400, "A", "C", 1), (3, False), "same"),
        (("rs4", 1, 400, "C", "T", 1), (4, True), "same"),
        (("rs4", 1, 400, "C", "", 1), None, "differ"),  # REF with two ALTs
        (("rs55", 1, 500, "GA", "G", 1), (5, False), "same"),
        (("rs5", 1, 500, "CT", "C", 1), None, "differ"),
        (("rs9", 1, 999, "A", "C", 1), None, "absent"),
    ],
)
@pytest.mark.parametrize("by", ["position", "rsid"])
def test_the_effect_allele_is_found_as_alt_or_ref_on_either_strand(
    tmp_path: Path, row: Row, where: tuple[int, bool] | None, how: str, by: Any
) -> None:
    matched = match(scoring(tmp_path, [row]), KEYS, "hg19", by)
    assert list(zip(matched.at, matched.swapped, strict=True)) == ([] if where is None else [where])
    expected = {"matched": where is not None, "swapped": where is not None and where[1], "strand": how == "strand"}
    rest = {k: k == how for k in ("ambiguous", "differ", "duplicate", "absent")}
    assert matched.counts == {**expected, **rest}


def test_letters_that_are_their_own_complement_need_a_place_and_a_build(tmp_path: Path) -> None:
    rows = [("rs3", 1, 300, "T", "A", 1), ("", 1, 600, "G", "C", 1)]
    both = scoring(tmp_path, rows)
    assert match(both, KEYS, "GRCh37").at.tolist() == [2, 6]
    assert match(both, KEYS, "GRCh37").swapped.tolist() == [False, True]
    assert match(both, KEYS).counts["ambiguous"] == 2
    assert match(both, KEYS, "GRCh37", "rsid").counts["ambiguous"] == 1
    assert match(scoring(tmp_path, rows, build="NR"), KEYS, "GRCh37").counts["ambiguous"] == 2


def test_the_first_of_two_weights_for_one_allele_is_taken(tmp_path: Path) -> None:
    columns = [*COLUMNS, "is_recessive"]
    rows = [
        ("rs1", 1, 100, "G", "A", 1, ""),
        ("rs1", 1, 100, "C", "T", 2, ""),
        ("rs1", 1, 100, "A", "G", 4, ""),
        ("rs1", 1, 100, "G", "A", 8, 1),
    ]
    matched = match(scoring(tmp_path, rows, columns), KEYS, "GRCh37")
    assert matched.weight.tolist() == [1, 4, 8]  # another allele's, and one for two copies, are weights of their own
    assert (matched.counts["matched"], matched.counts["duplicate"]) == (3, 1)
    twice = match(scoring(tmp_path, rows[:1], columns), (*KEYS, KEYS[0]), "GRCh37")
    assert twice.at.tolist() == [0]


def test_places_of_another_build_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the positions are of GRCh37, the cohort's of GRCh38; use the file harmonised to GRCh38"):
        match(scoring(tmp_path, [GOOD]), KEYS, "GRCh38")
    match(scoring(tmp_path, [GOOD]), KEYS, "GRCh38", "rsid")
    with pytest.raises(InputError, match="PGS000117: has no positions; match by rsid"):
        match(scoring(tmp_path, [("rs1", "A", 1)], ["rsID", "effect_allele", "effect_weight"]), KEYS)
    with pytest.raises(InputError, match="PGS000117: has no rsIDs; match by position"):
        match(scoring(tmp_path, [(1, 5, "A", 1)], ["chr_name", "chr_position", "effect_allele", "effect_weight"]), KEYS, by="rsid")


# --- scoring


def by_hand(dosage: Any, keys: Sequence[Variant], rows: Sequence[Row], alt: Mapping[int, float]) -> list[float]:
    """A loop over persons and rows of (variant, is the effect allele REF, weight, model), missing by the rule of PLINK."""
    out = []
    for person in dosage:
        total = 0.0
        for variant, ref, weight, model in rows:
            d, frequency = person[variant], 1 - alt[variant] if ref else alt[variant]
            copies = 2 - d if ref else d
            if d < 0:
                counted = 0.0 if np.isnan(frequency) else frequency * (1 if model else 2)
            else:
                counted = {0: copies, DOMINANT: min(copies, 1), RECESSIVE: max(copies - 1, 0)}[model]
            total += weight * counted
        out.append(total)
    return out


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 12), st.booleans(), st.booleans())
def test_a_score_is_the_sum_over_variants(tmp_path: Path, seed: int, persons: int, variants: int, stated: bool, fortran: bool) -> None:
    rng = np.random.default_rng(seed)
    dosage = rng.integers(-1, 3, (persons, variants)).astype(np.int8)
    keys = [Variant("1", v + 1, f"rs{v}", "A", "G") for v in range(variants)]
    chosen = [(v, bool(rng.integers(2)), float(rng.normal()), int(rng.integers(3))) for v in rng.permutation(variants)[: variants // 2 + 1]]
    columns = [*COLUMNS, "is_dominant", "is_recessive"]
    lines = [("", 1, v + 1, *("AG" if ref else "GA"), repr(w), model == DOMINANT, model == RECESSIVE) for v, ref, w, model in chosen]
    matched = match(scoring(tmp_path, lines, columns), keys, "GRCh37")
    given_ = rng.random(variants)
    given_[rng.random(variants) < 0.3] = np.nan
    alt = {}
    for v in range(variants):
        known = dosage[dosage[:, v] >= 0, v]
        own = float(known.mean() / 2) if len(known) else float("nan")
        alt[v] = float(given_[v]) if stated and not np.isnan(given_[v]) else own
    found = score(np.asfortranarray(dosage) if fortran else dosage, matched, given_ if stated else None)
    np.testing.assert_allclose(found.total, by_hand(dosage, keys, chosen, alt), rtol=0, atol=1e-12)
    assert found.used.tolist() == [sum(row[v] >= 0 for v, *_ in chosen) for row in dosage]


def test_blocks_of_variants_add_up_and_packed_dosages_are_dosages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    keys = [Variant("1", v + 1, ".", "A", "G") for v in range(50)]
    weights = scoring(tmp_path, [("", 1, v + 1, "AG"[v % 2], "GA"[v % 2], repr(float(rng.normal()))) for v in range(50)])
    dosage = rng.integers(-1, 3, (20, 50)).astype(np.int8)
    whole = score(dosage, match(weights, keys))
    parts = [score(dosage[:, b : b + 7], match(weights, keys[b : b + 7])) for b in range(0, 50, 7)]
    monkeypatch.setattr("fedml.cohort.scores.scores._TABLE", 300)
    monkeypatch.setattr("fedml.cohort.scores.scores._CELLS", 100)
    matched = match(weights, keys)
    for other in (
        score(dosage, matched),
        score(Packed.of(dosage), matched),
        Scores(sum(p.total for p in parts), sum(p.used for p in parts)),
    ):
        np.testing.assert_allclose(other.total, whole.total, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(other.used, whole.used)


def test_a_genotype_of_more_than_two_alleles_is_refused(tmp_path: Path) -> None:
    matched = match(scoring(tmp_path, [("rs1", 1, 100, "A", "G", 1)]), KEYS)
    with pytest.raises(InputError, match="variant 1 of the file: a person has more than two ALT alleles; delete the variant"):
        score(np.array([[0] * 7, [3] + [0] * 6], dtype=np.int8), matched)


def plink_scores(bed: Path, rows: Sequence[tuple[str, str, float]], *options: str) -> tuple[Any, Any]:
    """((persons,) score sums, as precise as they are printed; (persons,) genotypes used) of ``plink2 --score``."""
    if shutil.which("plink2") is None:
        pytest.skip("plink2 is not on this machine")
    (bed.parent / "weights.txt").write_text("".join(f"{name}\t{allele}\t{weight!r}\n" for name, allele, weight in rows))
    command = ["plink2", "--bfile", str(bed.with_suffix("")), "--score", str(bed.parent / "weights.txt"), "1", "2", "3", *options]
    subprocess.run([*command, "cols=+scoresums", "--out", str(bed.parent / "plink")], check=True, capture_output=True)
    with (bed.parent / "plink.sscore").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    return np.array([float(r["SCORE1_SUM"]) for r in table]), np.array([int(r["ALLELE_CT"]) // 2 for r in table])


@pytest.mark.parametrize("model", ["additive", "dominant", "recessive"])
def test_scores_are_those_of_plink(tmp_path: Path, model: str) -> None:
    """Weights are multiples of 64 and 64 persons have each genotype: every sum is a whole number, which PLINK prints in full."""
    rng = np.random.default_rng(2)
    persons, variants = 80, 60
    dosage = rng.binomial(2, rng.uniform(0.05, 0.95, variants), (persons, variants)).astype(np.int8)
    for v in range(variants):
        dosage[rng.permutation(persons)[:16], v] = -1
    letters = [("A", "G"), ("C", "T"), ("A", "C"), ("G", "T")]
    keys = [Variant(str(1 + v // 3), 1000 + v, f"rs{v}", *letters[v % 4]) for v in range(variants)]
    bed = write_bed(tmp_path / "cohort.bed", [f"p{k}" for k in range(persons)], keys, dosage)
    ref, weight = rng.random(variants) < 0.4, (64 * rng.integers(-20, 21, variants)).astype(float).tolist()
    flags = (model == "dominant", model == "recessive")
    sides = [(k.ref, k.alt) if r else (k.alt, k.ref) for k, r in zip(keys, ref, strict=True)]
    ours = [(k.id, k.contig, k.position, *side, w, *flags) for k, side, w in zip(keys, sides, weight, strict=True)]
    turned = str.maketrans("ACGT", "TGCA")  # every third variant is written on the other strand
    ours = [(*row[:3], *(a.translate(turned) if v % 3 == 0 else a for a in row[3:5]), *row[5:]) for v, row in enumerate(ours)]
    theirs = [(k.id, effect, w) for k, (effect, _), w in zip(keys, sides, weight, strict=True)]
    matched = match(scoring(tmp_path, ours, [*COLUMNS, "is_dominant", "is_recessive"]), keys, "GRCh37")
    assert (matched.counts["matched"], matched.counts["strand"], matched.counts["swapped"]) == (60, 20, ref.sum())
    found = score(dosage, matched)
    sums, used = plink_scores(bed, theirs, *([] if model == "additive" else [model]))
    np.testing.assert_allclose(found.total, sums, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.used, used)


def test_scores_of_real_genotypes_are_those_of_plink(tmp_path: Path) -> None:
    from bed_reader import open_bed

    source = public_data("genotypes_hapmap3_1kg") / "HM3_thinned_autosomal_overlap.bed"
    rng = np.random.default_rng(3)
    bed = tmp_path / "cohort.bed"
    for ending in (".bed", ".bim", ".fam"):
        bed.with_suffix(ending).symlink_to(source.with_suffix(ending))
    with open_bed(source, num_threads=1) as file:
        dosage = np.maximum(file.read(dtype="int8"), -1)
        keys = [Variant(*f) for f in zip(file.chromosome, map(int, file.bp_position), file.sid, file.allele_2, file.allele_1, strict=True)]
    ambiguous = ({"A", "T"}, {"C", "G"})
    chosen = [keys[v] for v in rng.permutation(len(keys))[:2000] if {keys[v].ref, keys[v].alt} not in ambiguous]
    sides = [(k, bool(rng.integers(2)), float(rng.normal())) for k in chosen]
    rows = [(k.id, k.contig, k.position, *((k.ref, k.alt) if r else (k.alt, k.ref)), repr(w)) for k, r, w in sides]
    matched = match(scoring(tmp_path, rows), keys, by="rsid")
    assert matched.counts["matched"] == len(rows) > 1000
    sums, used = plink_scores(bed, [(k.id, k.ref if r else k.alt, w) for k, r, w in sides])
    found = score(dosage, matched)
    np.testing.assert_allclose(found.total, sums, rtol=5e-6, atol=0)  # six digits are printed
    np.testing.assert_array_equal(found.used, used)


# --- a linear model as a scoring file


def trained(task: str, variants: int, seed: int) -> CohortModel:
    """A linear model on variants with weights and constants as after training: some large, one variant constant."""
    model = build_model(make_study(("variants",), model__task=task), Layout(variants=variants)).eval()
    rng = np.random.default_rng(seed)
    frequency = rng.uniform(0.02, 0.98, variants)
    std = np.sqrt(2 * frequency * (1 - frequency))
    std[variants // 2] = 0.0
    values = {"preprocess.variants.mean": 2 * frequency, "preprocess.variants.std": std}
    if task == "regression":
        values |= {"target.mean": np.array([140.0]), "target.std": np.array([17.0])}
    load(constants(model), {name: torch.from_numpy(v).float() for name, v in values.items()})
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(p.shape))))
    return model


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_a_linear_model_comes_back_from_its_scoring_file(tmp_path: Path, task: str, ending: str) -> None:
    variants = 40
    model, rng = trained(task, variants, 4), np.random.default_rng(5)
    letters = [("A", "G"), ("C", "T"), ("A", "T"), ("G", "GA")]
    keys = [Variant("chr7", 10 + v, f"rs{v}" if v % 3 else ".", *letters[v % 4]) for v in range(variants)]
    mean, std = (model.get_buffer(f"preprocess.variants.{name}").double().numpy() for name in ("mean", "std"))
    weight, intercept = linear_score(model)
    path = tmp_path / f"model.{ending}"
    write_scoring(path, LinearModel(keys, weight, mean, std, intercept), name="toy", build="GRCh38", header={"weight_type": "log(OR)"})
    read = read_scoring(path)
    assert (read.name, read.build, read.header["weight_type"]) == ("toy", "GRCh38", "log(OR)")
    assert read.weight[variants // 2] == 0
    matched = match(read, [k._replace(contig="7") for k in keys], "GRCh38")
    assert matched.counts["matched"] == variants
    dosage = rng.integers(-1, 3, (30, variants)).astype(np.int8)
    with torch.no_grad():
        output = model({"variants": torch.from_numpy(dosage), "variants_present": torch.ones(30)}).double().numpy()
    expected = output[:, 0] if task == "regression" else output[:, 1] - output[:, 0]
    found = score(dosage, matched, matched.alt_frequency(variants))
    np.testing.assert_allclose(found.total, expected, rtol=2e-6, atol=2e-5)  # the model's own float32
    # Also by a program that knows nothing of the intercept, and by another cohort that has REF and ALT the other way round.
    turned = [k._replace(ref=k.alt, alt=k.ref) for k in keys]
    again = match(read, turned, "GRCh38")
    assert again.swapped.all()
    other = np.where(dosage < 0, -1, 2 - dosage).astype(np.int8)
    np.testing.assert_allclose(score(other, again, again.alt_frequency(variants)).total, found.total, rtol=1e-12, atol=1e-10)


def test_equal_scores_are_equal_bytes_and_bad_numbers_are_refused(tmp_path: Path) -> None:
    numbers = np.array([1.0, -2.0]), np.array([0.3, 1.2]), np.array([0.5, 0.6])
    for name in ("a.txt.gz", "b.txt.gz"):
        write_scoring(tmp_path / name, LinearModel(KEYS[:2], *numbers), name="toy")
    assert (tmp_path / "a.txt.gz").read_bytes() == (tmp_path / "b.txt.gz").read_bytes()
    with pytest.raises(ValueError, match="finite, one per variant"):
        write_scoring(tmp_path / "c.txt", LinearModel(KEYS[:2], numbers[0] * np.nan, *numbers[1:]), name="toy")
    with pytest.raises(ValueError, match="finite, one per variant"):
        write_scoring(tmp_path / "c.txt", LinearModel(KEYS, *numbers), name="toy")
    with pytest.raises(ValueError, match="printable"):
        write_scoring(tmp_path / "c.txt", LinearModel(KEYS[:2], *numbers), name="toy\n#intercept=3")
    assert not (tmp_path / "c.txt").exists()


@pytest.mark.parametrize(
    "changes",
    [{"model__variants": {"net": "mlp", "hidden": [3]}}, {"inputs": ("variants", "clinical")}, {"cohort__classes": ["a", "b", "c"]}],
)
def test_a_model_that_is_no_score_is_refused(changes: dict[str, Any]) -> None:
    model = build_model(make_study(**{"inputs": ("variants",), **changes}), Layout(variants=3))
    with pytest.raises(InputError, match=r"the study's model is no score: .* needs \[cohort\] inputs"):
        linear_score(model)


# --- elastic net


def descend(model: nn.Module, x: Any, y: Any, task: str, *, l1: float, decay: float, steps: int, lr: float, sites: int = 1) -> nn.Module:
    """Proximal gradient descent: a full-batch step of SGD at each of ``sites``, their mean, then ``shrink``. The bias has no penalty."""
    loss = make_task(make_study(("variants",), model__task=task)).loss
    start = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(steps):
        found = []
        for part in range(sites):
            model.load_state_dict(start)
            groups = [{"params": [model.weight], "weight_decay": decay}, {"params": [model.bias], "weight_decay": 0.0}]
            optimizer = torch.optim.SGD(groups, lr=lr)
            optimizer.zero_grad()
            loss(model(x[part::sites]), y[part::sites]).backward()
            optimizer.step()
            found.append({k: v.clone() for k, v in model.state_dict().items()})
        start = {k: torch.stack([f[k] for f in found]).mean(0) for k in start}
        model.load_state_dict(start)
        shrink(dict(model.named_parameters()), {"weight": lr * l1})
        start = {k: v.clone() for k, v in model.state_dict().items()}
    return model


def standardised(persons: int, variants: int, seed: int) -> tuple[Any, Any]:
    """(persons, variants) standardised dosages in linkage, and a trait of five of them."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(persons, variants))
    base[:, 1::2] = 0.6 * base[:, ::2] + 0.8 * base[:, 1::2]
    dosage = np.digitize(base, [-0.5, 0.8]).astype(float)
    x = (dosage - dosage.mean(0)) / dosage.std(0)
    return x, x[:, :5] @ [1.0, -0.7, 0.5, 0.4, -0.3] + rng.normal(size=persons)


@pytest.mark.parametrize("sites", [1, 2])
def test_a_linear_model_converges_to_scikit_learns_elastic_net(sites: int) -> None:
    x, y = standardised(300, 20, 6)
    l1, decay = 0.2, 0.3
    # Ours: mean squared error + l1 |w| + decay / 2 w^2; theirs is half of it: 1/(2n) + alpha (ratio |w| + (1 - ratio) / 2 w^2).
    alpha = l1 / 2 + decay / 2
    theirs = ElasticNet(alpha=alpha, l1_ratio=l1 / 2 / alpha, tol=1e-10, max_iter=100_000).fit(x, y)
    model = nn.Linear(20, 1, dtype=torch.float64)
    descend(model, torch.from_numpy(x), torch.from_numpy(y), "regression", l1=l1, decay=decay, steps=250, lr=0.1, sites=sites)
    np.testing.assert_allclose(model.weight.detach().numpy()[0], theirs.coef_, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(model.weight.detach().numpy()[0] == 0, theirs.coef_ == 0)
    assert 3 <= (theirs.coef_ != 0).sum() <= 17
    assert abs(float(model.bias.detach()) - theirs.intercept_) < 1e-3


def test_two_classes_converge_to_scikit_learns_logistic_regression() -> None:
    x, trait = standardised(300, 20, 7)
    y = (trait > 0.4).astype(int)
    l1, decay = 0.02, 0.05
    # Two outputs, of opposite weights at the minimum: their penalties are l1 |v| + decay / 4 v^2 of the difference v.
    ratio = l1 / (l1 + decay / 2)
    strength = ratio / (len(y) * l1)
    theirs = LogisticRegression(C=strength, l1_ratio=ratio, solver="saga", tol=1e-10, max_iter=100_000, random_state=0).fit(x, y)
    model = nn.Linear(20, 2, dtype=torch.float64)
    descend(model, torch.from_numpy(x), torch.from_numpy(y), "classification", l1=l1, decay=decay, steps=400, lr=1.0)
    weight = (model.weight[1] - model.weight[0]).detach().numpy()
    np.testing.assert_allclose(weight, theirs.coef_[0], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(weight == 0, theirs.coef_[0] == 0)
    assert 3 <= (theirs.coef_ != 0).sum() <= 17
    assert abs(float((model.bias[1] - model.bias[0]).detach()) - theirs.intercept_[0]) < 1e-3


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=10), st.floats(0, 3))
def test_shrink_brings_towards_zero_and_no_further(values: list[float], amount: float) -> None:
    p, other = nn.Parameter(torch.tensor(values, dtype=torch.float64)), nn.Parameter(torch.ones(2))
    shrink({"p": p, "other": other}, {"p": amount})
    expected = np.sign(values) * np.maximum(np.abs(values) - amount, 0)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-15)
    assert torch.equal(other, torch.ones(2))


@pytest.mark.parametrize("amounts", [{"q": 0.1}, {"p": -0.1}, {"p": float("nan")}, {"p": float("inf")}])
def test_shrink_refuses_other_names_and_amounts(amounts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cannot threshold"):
        shrink({"p": nn.Parameter(torch.ones(2))}, amounts)
