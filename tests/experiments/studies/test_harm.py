"""One clean cohort with the errors of real files, at one site or at all: the result is that of the clean cohort, or the run is refused
with a message that says how to fix it, or the table of checks counts the losses with reasons. The result never changes silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml.clients.site.manifest import find_sites
from fedml.clients.site.read import load_aligned
from fedml.cohort.variants.builds import LENGTHS, Build
from fedml.cohort.variants.checks import counts_checks
from fedml.cohort.variants.genotypes import Genome, read_variants, shared_panel
from fedml.cohort.variants.harmonise import align
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.normalise import NOTES, fingerprint
from fedml.cohort.variants.reference import left_align
from fedml.errors import InputError, RunError
from fedml.experiments.runs.association import read_table
from fedml.experiments.runs.run import read_all, run_nodes
from fedml.runs.log import STUDY, load_model, read_events
from fedml.study.cohort_section import Variants
from fedml.study.study import Study, validate
from fedml.tracking.scoring import restore
from tests.conftest import make_plan, write_bed, write_csv, write_manifest

SITES = ("a", "b", "c")
COMPLEMENT = str.maketrans("ACGT", "TGCA")
Ints = npt.NDArray[np.int8]


@dataclass(frozen=True)
class File:
    """A site's genotype file before it is written: ``dosage`` (variants, persons) of ALT."""

    keys: tuple[Variant, ...]
    dosage: Ints
    reference: bool = False
    bed: bool = False
    header: Build | None = "GRCh38"  # whose contig lengths the header gives
    manifest: Build = "GRCh38"


def is_snp(key: Variant) -> bool:
    return len(key.ref) == len(key.alt) == 1


def is_palindrome(key: Variant) -> bool:
    return is_snp(key) and key.ref.translate(COMPLEMENT) == key.alt


# --- the clean cohort


def make_genome(rng: np.random.Generator) -> str:
    """200 kb, with a dinucleotide repeat in every 500 bases of its last third."""
    letters = rng.choice(list("ACGT"), 200_000)
    for at in range(140_000, 199_000, 500):
        letters[at : at + 12] = list("CA" * 6)
    return "".join(letters)


GENOME = make_genome(np.random.default_rng(1))


def base(_contig: str, position: int) -> str:
    return GENOME[position - 1]


def make_keys(rng: np.random.Generator, snps: int, indels: int) -> tuple[Variant, ...]:
    """SNPs, a third of them A/T and C/G; insertions and deletions, every other one in a repeat, as far to the left as they go."""
    keys = []
    for k in range(snps):
        at = 300 + 500 * k
        ref = base("", at)
        others = [b for b in "ACGT" if b not in (ref, ref.translate(COMPLEMENT))]
        keys.append(Variant("chr22", at, f"rs{k}", ref, ref.translate(COMPLEMENT) if k % 3 == 0 else others[k % 2]))
    for k in range(indels):
        at, letters = 140_001 + 1000 * k + (300 if k % 2 else 4), "CA" if k % 2 == 0 else "".join(rng.choice(list("ACGT"), 3))
        ref, alt = (base("", at), base("", at) + letters) if k % 4 < 2 else (GENOME[at - 1 : at + len(letters)], base("", at))
        keys.append(left_align(Variant("chr22", at, f"indel{k}", ref, alt), base))
    return tuple(sorted(keys, key=lambda key: key[1:2]))


def genotypes(rng: np.random.Generator, keys: Sequence[Variant], persons: int) -> dict[str, Ints]:
    """Frequencies from 5 to 95 %, a little different at each site; 2 % of the calls missing."""
    common = rng.uniform(0.05, 0.95, len(keys))
    out = {}
    for name in SITES:
        here = rng.beta(common * 60, (1 - common) * 60)
        dosage = rng.binomial(2, here[:, None], (len(keys), persons)).astype(np.int8)
        dosage[rng.random(dosage.shape) < 0.02] = -1
        out[name] = dosage
    return out


@dataclass(frozen=True)
class Clean:
    """The clean files and each person's clinical columns, and where the reference is."""

    files: dict[str, File]
    tables: dict[str, dict[str, npt.NDArray[np.float64]]]
    fasta: Path


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    import pysam

    rng = np.random.default_rng(2)
    fasta = tmp_path_factory.mktemp("reference") / "ref.fa"
    fasta.write_text(f">chr22\n{GENOME}\n")
    pysam.faidx(str(fasta))
    keys = make_keys(rng, 270, 40)
    files, tables = {}, {}
    for name, dosage in genotypes(rng, keys, 150).items():
        files[name] = File(keys, dosage)
        age, sex, g = rng.uniform(20, 80, 150), rng.integers(0, 2, 150), np.maximum(dosage, 0)
        height = 0.3 * g[7] - 0.2 * g[12] + 0.25 * g[275] + 0.1 * sex + age / 200 + rng.normal(0, 0.4, 150)
        tables[name] = {"age": age, "sex": sex, "height": height, "disease": (height > np.median(height)).astype(np.float64)}
    return Clean(files, tables, fasta)


# --- writing and running


def write_file(folder: Path, file: File, ids: Sequence[str]) -> str:
    """The genotype file; its name."""
    import pysam

    if file.bed:
        write_bed(folder / "cohort.bed", ids, list(file.keys), file.dosage.T)
        return "cohort.bed"
    lengths = f",length={LENGTHS[file.header]['22']}" if file.header else ""
    contigs = "".join(f"##contig=<ID={name}{lengths}>\n" for name in dict.fromkeys(key.contig for key in file.keys))
    lines = ["##fileformat=VCFv4.2\n", contigs, '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n']
    lines.append("\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *ids]) + "\n")
    calls = np.array(["0/0", "0/1", "1/1", "./."])  # a missing one is -1, the last
    for key, row in zip(file.keys, file.dosage, strict=True):
        lines.append("\t".join([key.contig, str(key.position), key.id, key.ref, key.alt, ".", ".", ".", "GT", *calls[row]]) + "\n")
    with pysam.BGZFile(str(folder / "cohort.vcf.gz"), "wb") as out:
        out.write("".join(lines).encode())
    return "cohort.vcf.gz"


def write_sites(folder: Path, clean: Clean, files: dict[str, File]) -> Path:
    for name, file in files.items():
        reference = f', reference = "{clean.fasta}"' if file.reference else ""
        ids = [f"{name}{k:03d}" for k in range(file.dosage.shape[1])]
        (folder / name).mkdir(parents=True)
        path = write_file(folder / name, file, ids)
        variants = f'{{ path = "{path}", build = "{file.manifest}"{reference} }}'
        manifest = write_manifest(folder / name, name, variants=variants, clinical='{ path = "clinical.csv" }')
        manifest.write_text(manifest.read_text() + "[policy]\nmin_count = 1\n")
        write_csv(folder / name / "persons.csv", ids, {k: clean.tables[name][k] for k in ("height", "disease")})
        write_csv(folder / name / "clinical.csv", ids, {k: clean.tables[name][k] for k in ("age", "sex")})
    return folder


def gwas_study() -> Study:
    plan = make_plan(
        ["variants", "clinical"], SITES, cohort__target="height", cohort__clinical={"columns": ["age", "sex"]}, model__task="regression",
        cohort__variants={"max_palindromic_maf": 0.5}, gwas={"covariates": ["age", "sex"], "components": 2, "pca_tolerance": 1e-11},
    )  # fmt: skip
    return validate(Study, plan, "study.toml")


def training_study(**changes: object) -> Study:
    plan = make_plan(["variants"], SITES, cohort__target="disease", training__lr=0.01, federation__rounds=3, **changes)
    return validate(Study, plan, "study.toml")


@dataclass(frozen=True)
class Ended:
    """The table of an association study, or why there is none; the last matrix of checks as (site, check) -> (value, verdict)."""

    table: pd.DataFrame
    refused: str
    checks: dict[tuple[str, str], tuple[str, str]]

    @property
    def excluded(self) -> int:
        """Variants that the matrix says are missing for all sites."""
        return sum(int(value) for (site, check), (value, _) in self.checks.items() if site == "all sites" and check.startswith("excluded"))


def associate(folder: Path, clean: Clean, files: dict[str, File]) -> Ended:
    study, sites, run = gwas_study(), write_sites(folder / "sites", clean, files), folder / "run"
    run.mkdir()
    refused, table = "", pd.DataFrame()
    try:
        found, _ = find_sites(sites, SITES)
        read_all(study, found, job="gwas")
        run_nodes(study, [{"manifest": str(site.file)} for site in found.values()], run, "gwas")
        table = read_table(run)
    except (InputError, RunError) as error:
        refused = str(error)
    events = read_events(run)[0]
    reported = next((e["checks"] for e in reversed(events) if e["event"] == "checks"), [])
    return Ended(table, refused, {(c["site"], c["check"]): (c["value"], c["verdict"]) for c in reported})


def by_place(table: pd.DataFrame, other_strand: bool = False) -> dict[tuple[int, frozenset[str]], tuple[float, float, int, int]]:
    """(position, pair of alleles) -> beta of the first allele in the alphabet, standard error, persons, sites."""
    out = {}
    for row in table.itertuples():
        effect, other = row.effect_allele, row.other_allele
        if other_strand and len(effect) == len(other) == 1:
            effect, other = effect.translate(COMPLEMENT), other.translate(COMPLEMENT)
        sign = 1 if effect < other else -1
        out[row.base_pair_location, frozenset((effect, other))] = (sign * row.beta, row.standard_error, row.n, row.sites)
    assert len(out) == len(table)
    return out


def without(files: dict[str, File], lost: set[tuple[int, frozenset[str]]]) -> dict[str, File]:
    """The clean files without the variants that are missing from a harmed result."""
    some = next(iter(files.values()))
    kept = [at for at, key in enumerate(some.keys) if (key.position, frozenset((key.ref, key.alt))) not in lost]
    return {name: replace(file, keys=tuple(file.keys[at] for at in kept), dosage=file.dosage[kept]) for name, file in files.items()}


Read = tuple[dict[tuple[int, frozenset[str]], npt.NDArray[np.int8]], dict[str, int]]


def read_panel(folder: Path, clean: Clean, files: dict[str, File]) -> Read:
    """What sites share of written files: (position, pair of alleles) -> dosage of the first allele in the alphabet of all persons, site by
    site; and reason -> variants that are dropped. As a run reads and matches them, without the run."""
    sites, own = write_sites(folder, clean, files), {}
    for name, site in find_sites(sites, SITES)[0].items():
        data = site.manifest.data.variants
        assert data is not None
        ids = [f"{name}{k:03d}" for k in range(files[name].dosage.shape[1])]
        reference = None if data.reference is None else site.folder / data.reference
        own[name] = read_variants(site.folder / data.path, ids, genome=Genome(data.build, reference), cache=site.state / "cache")
    spec = Variants(min_call_rate=0.01, max_palindromic_maf=0.5)  # so that genotypes are counted, and palindromes kept
    panel = shared_panel(own, spec)
    dosage = np.vstack([np.asarray(align(own[name], panel.keys, panel.flips[name], spec.match).dosage) for name in SITES])
    found = {}
    for key, column in zip(panel.keys, dosage.T, strict=True):
        first = np.where(column < 0, -1, 2 - column).astype(np.int8) if key.ref < key.alt else column
        found[key.position, frozenset((key.ref, key.alt))] = first
    assert len(found) == len(panel.keys)
    return found, dict(panel.dropped)


def assert_same_genotypes(harmed: Read, right: Read) -> None:
    """Every variant that the harmed files share is the clean ones', person by person."""
    for place, column in harmed[0].items():
        np.testing.assert_array_equal(column, right[0][place], err_msg=str(place))


def assert_same(harmed: Ended, expected: Ended, other_strand: bool = False) -> None:
    own, right = by_place(harmed.table, other_strand), by_place(expected.table)
    assert set(own) == set(right)
    for place, (beta, error, persons, sites) in own.items():
        assert (persons, sites) == right[place][2:], place
        # 1e-9, and the ninth digit, in which the table may round the other way
        assert beta == pytest.approx(right[place][0], abs=1e-9, rel=2e-9), place
        assert error == pytest.approx(right[place][1], abs=1e-9, rel=2e-9), place


@pytest.fixture(scope="module")
def right(clean: Clean, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    ended = associate(tmp_path_factory.mktemp("clean"), clean, clean.files)
    assert not ended.refused
    assert ended.excluded == 0
    assert len(ended.table) == len(clean.files["a"].keys)
    return ended


@pytest.fixture(scope="module")
def right_panel(clean: Clean, tmp_path_factory: pytest.TempPathFactory) -> Read:
    found, dropped = read_panel(tmp_path_factory.mktemp("clean-panel") / "sites", clean, clean.files)
    assert len(found) == len(clean.files["a"].keys)
    assert not dropped
    return found, dropped


# --- harms: a clean file, harmed


def renamed(file: File) -> File:
    return replace(file, keys=tuple(k._replace(contig="22") for k in file.keys))


def shuffled(file: File) -> File:
    order = np.random.default_rng(3).permutation(len(file.keys))
    return replace(file, keys=tuple(file.keys[at] for at in order), dosage=file.dosage[order])


def other_names(file: File) -> File:
    return replace(file, keys=tuple(k._replace(id=f"rs{9000 + at}") for at, k in enumerate(file.keys)))


def _swapped(file: File, chosen: Callable[[Variant], bool]) -> File:
    """As PLINK does it: the rarer allele is ALT."""
    keys, dosage = list(file.keys), file.dosage.copy()
    for at, key in enumerate(keys):
        called = dosage[at][dosage[at] >= 0]
        if chosen(key) and called.mean() > 1:
            keys[at] = key._replace(ref=key.alt, alt=key.ref)
            dosage[at] = np.where(dosage[at] < 0, -1, 2 - dosage[at])
    return replace(file, keys=tuple(keys), dosage=dosage)


def swapped_snps(file: File) -> File:
    return _swapped(file, is_snp)


def swapped(file: File) -> File:
    return _swapped(file, lambda _: True)


def padded(file: File) -> File:
    """Indels with three more letters before and two after."""

    def longer(key: Variant) -> Variant:
        if is_snp(key):
            return key
        before, end = GENOME[key.position - 4 : key.position - 1], key.position - 1 + len(key.ref)
        after = GENOME[end : end + 2]
        return key._replace(position=key.position - 3, ref=before + key.ref + after, alt=before + key.alt + after)

    return replace(file, keys=tuple(longer(key) for key in file.keys))


def spellings(key: Variant) -> Iterator[Variant]:
    """The variant, and of an indel the same change one base to the right each time, as far as it goes."""
    yield key
    while not is_snp(key):
        following, first = GENOME[key.position - 1 + len(key.ref)], max(key.ref, key.alt, key=len)[1]
        if following != first:
            return
        ref, alt = (allele[1:] + following if len(allele) > 1 else first for allele in (key.ref, key.alt))
        key = key._replace(position=key.position + 1, ref=ref, alt=alt)
        yield key


def shifted(file: File) -> File:
    return replace(file, keys=tuple(list(spellings(key))[-1] for key in file.keys))


def _flipped(file: File, chosen: Callable[[int, Variant], bool]) -> File:
    keys = [
        k._replace(ref=k.ref.translate(COMPLEMENT), alt=k.alt.translate(COMPLEMENT)) if is_snp(k) and chosen(at, k) else k
        for at, k in enumerate(file.keys)
    ]
    return replace(file, keys=tuple(keys))


def flipped(file: File) -> File:
    return _flipped(file, lambda *_: True)


def half_flipped(file: File) -> File:
    return _flipped(file, lambda at, _: at % 2 == 0)


def half_of_the_palindromes_flipped(file: File) -> File:
    """As where SNPs were put on the forward strand one by one, by their letters."""
    return _flipped(file, lambda at, key: at % 2 == 0 and is_palindrome(key))


def with_reference(harm: Callable[[File], File]) -> Callable[[File], File]:
    def both(file: File) -> File:
        return replace(harm(file), reference=True)

    both.__name__ = f"{harm.__name__}_with_reference"
    return both


def as_bed(harm: Callable[[File], File]) -> Callable[[File], File]:
    def both(file: File) -> File:
        made = harm(file)
        return replace(made, bed=True, keys=tuple(k._replace(contig="22") for k in made.keys))

    both.__name__ = f"{harm.__name__}_as_bed"
    return both


def nothing(file: File) -> File:
    return file


HARMLESS = [
    renamed, shuffled, other_names, swapped_snps, padded, flipped, with_reference(nothing), with_reference(padded), with_reference(shifted),
    with_reference(flipped), with_reference(swapped_snps), as_bed(swapped_snps), as_bed(with_reference(flipped)),
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMLESS, ids=lambda f: f.__name__)
def test_recognised_errors_change_no_result(harm: Callable[[File], File], clean: Clean, right: Ended, tmp_path: Path) -> None:
    harmed = associate(tmp_path, clean, clean.files | {"a": harm(clean.files["a"])})
    assert not harmed.refused
    assert harmed.excluded == 0
    assert_same(harmed, right)


@pytest.mark.parametrize("at", ["a", "c"])
@pytest.mark.parametrize("harm", HARMLESS, ids=lambda f: f.__name__)
def test_recognised_errors_change_no_genotype(
    harm: Callable[[File], File], at: str, clean: Clean, right_panel: Read, tmp_path: Path
) -> None:  # fmt: skip
    harmed = read_panel(tmp_path / "sites", clean, clean.files | {at: harm(clean.files[at])})
    assert harmed[0].keys() == right_panel[0].keys()
    assert not harmed[1]
    assert_same_genotypes(harmed, right_panel)


def lost_indels(before: File, after: File) -> set[int]:
    """Places in the clean file of swapped indels whose longer allele is the reference's: nothing tells them from the other change."""
    return {
        at for at, (own, made) in enumerate(zip(before.keys, after.keys, strict=True))
        if (own.ref, own.alt) == (made.alt, made.ref) and not is_snp(own)
        and (not after.reference or GENOME[own.position - 1 :].startswith(max(own.ref, own.alt, key=len)))
    }  # fmt: skip


def moved_indels(before: File, after: File) -> set[int]:
    return {at for at, (own, made) in enumerate(zip(before.keys, after.keys, strict=True)) if own.position != made.position}


def no_clear_palindrome(before: File, _: File) -> set[int]:
    return {at for at, key in enumerate(before.keys) if is_palindrome(key)}


LOSING = [
    (swapped, lost_indels, "not at every site"),
    (with_reference(swapped), lost_indels, "not at every site"),
    (as_bed(swapped), lost_indels, "not at every site"),
    (shifted, moved_indels, "not at every site"),
    (half_flipped, no_clear_palindrome, "A/T or C/G of unknown strand"),
    (with_reference(half_flipped), no_clear_palindrome, "A/T or C/G of unknown strand"),
    (half_of_the_palindromes_flipped, no_clear_palindrome, "A/T or C/G of unknown strand"),
]


def expected_losses(clean: Clean, at: str, harm: Callable[[File], File], may_lose: Callable[[File, File], set[int]]) -> set[Any]:
    keys = clean.files[at].keys
    return {(keys[i].position, frozenset((keys[i].ref, keys[i].alt))) for i in may_lose(clean.files[at], harm(clean.files[at]))}


@pytest.mark.parametrize(("harm", "may_lose", "why"), LOSING, ids=lambda f: getattr(f, "__name__", "-"))
def test_ambiguous_variants_are_missing_and_counted(
    harm: Callable[[File], File], may_lose: Callable[[File, File], set[int]], why: str, clean: Clean, right: Ended, tmp_path: Path
) -> None:
    harmed = associate(tmp_path / "harmed", clean, clean.files | {"a": harm(clean.files["a"])})
    assert not harmed.refused
    lost = set(by_place(right.table)) - set(by_place(harmed.table))
    expected = expected_losses(clean, "a", harm, may_lose)
    if may_lose is no_clear_palindrome:
        assert lost < expected, "frequencies tell the strand of some"
    else:
        assert lost == expected
    assert lost
    assert harmed.checks["all sites", f"excluded: {why}"] == (str(len(lost)), "warn")
    assert harmed.excluded == len(lost)
    assert_same(harmed, associate(tmp_path / "rest", clean, without(clean.files, lost)))


@pytest.mark.parametrize("at", ["a", "c"])
@pytest.mark.parametrize(("harm", "may_lose", "why"), LOSING, ids=lambda f: getattr(f, "__name__", "-"))
def test_ambiguous_variants_are_in_no_panel_and_the_others_are_unchanged(
    harm: Callable[[File], File],
    may_lose: Callable[[File, File], set[int]],
    why: str,
    at: str,
    clean: Clean,
    right_panel: Read,
    tmp_path: Path,
) -> None:
    harmed = read_panel(tmp_path / "sites", clean, clean.files | {at: harm(clean.files[at])})
    lost, expected = right_panel[0].keys() - harmed[0].keys(), expected_losses(clean, at, harm, may_lose)
    if may_lose is no_clear_palindrome:
        assert lost < expected, "frequencies tell the strand of some"
    else:
        assert lost == expected
    assert lost
    assert not harmed[0].keys() - right_panel[0].keys()
    assert harmed[1] == {why: len(lost)}
    assert_same_genotypes(harmed, right_panel)


def honest_grch37(file: File) -> File:
    moved = tuple(k._replace(position=k.position + 4321) for k in file.keys)
    return replace(file, keys=moved, header="GRCh37", manifest="GRCh37")


def lying_grch37(file: File) -> File:
    return replace(honest_grch37(file), manifest="GRCh38")


def silent_grch37(file: File) -> File:
    return replace(honest_grch37(file), manifest="GRCh38", header=None)


def exchanged(file: File) -> File:
    """A .bim whose two allele columns were exchanged: the .bed counts the other allele."""
    return replace(file, bed=True, keys=tuple(k._replace(ref=k.alt, alt=k.ref) for k in file.keys))


def another_genome(file: File) -> File:
    """The letters and frequencies of another genome at the same places."""
    rng = np.random.default_rng(9)
    there = "".join(rng.choice(list("ACGT"), len(GENOME)))

    def key(k: Variant) -> Variant:
        ref = there[k.position - 1 : k.position - 1 + len(k.ref)]
        if len(k.alt) > len(k.ref):
            return k._replace(ref=ref, alt=ref + k.alt[1:])
        alt = ref[0] if len(k.ref) > 1 else ref.translate(COMPLEMENT) if is_palindrome(k) else "ACGT"["ACGT".index(ref) - 2]
        return k._replace(ref=ref, alt=alt if alt != ref else "ACGT"["ACGT".index(ref) - 1])

    return replace(file, keys=tuple(key(k) for k in file.keys), dosage=rng.permutation(file.dosage))


REFUSED = [
    (honest_grch37, "{site}: genome build is GRCh37; lift the file of {site} over to GRCh38"),
    (lying_grch37, "contig lengths are those of GRCh37, but site.toml says GRCh38; correct data.variants build"),
    (silent_grch37, "compare builds"),
    (exchanged, "{site}: allele frequencies against the other sites is r = -"),
    (with_reference(exchanged), "{site}: allele frequencies against the other sites is r = -"),
    (with_reference(another_genome), "do not match {fasta}; the two files are of different builds"),
    (another_genome, "allele frequencies against the other sites"),
]


@pytest.mark.parametrize("at", ["a", "c"])
@pytest.mark.parametrize(("harm", "sentence"), REFUSED, ids=lambda f: getattr(f, "__name__", "-"))
def test_a_changed_meaning_is_refused_with_the_fix(
    harm: Callable[[File], File], sentence: str, at: str, clean: Clean, tmp_path: Path
) -> None:  # fmt: skip
    ended = associate(tmp_path, clean, clean.files | {at: harm(clean.files[at])})
    assert len(ended.table) == 0
    assert sentence.format(site=at, fasta=clean.fasta) in ended.refused
    if "frequencies" in sentence:
        assert ended.checks[at, "allele frequencies against the other sites"][1] == "fail"


@pytest.mark.parametrize("at", SITES)
def test_of_ten_variants_exchanged_alleles_are_reported_at_the_right_site(at: str, clean: Clean) -> None:
    counts = {}
    for name, file in clean.files.items():
        own = np.array([(file.dosage[:10] == d).sum(1) for d in (0, 1, 2, -1)])
        counts[name] = own[[2, 1, 0, 3]] if name == at else own
    bad = [check.site for check in counts_checks(counts, {}) if check.verdict == "fail"]
    assert bad == [at]


def counted(frequency: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    dosage = rng.binomial(2, frequency[:, None], (len(frequency), 200))
    return np.array([(dosage == d).sum(1) for d in (0, 1, 2, -1)])


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.02), (0.3, 0.5), (0.45, 0.55)])
def test_populations_that_have_nothing_in_common_are_not_refused_for_it(low: float, high: float) -> None:
    rng = np.random.default_rng(8)
    counts = {name: counted(rng.uniform(low, high, 300), rng) for name in SITES}
    assert not [check for check in counts_checks(counts, {}) if check.verdict == "fail"]


def test_alleles_exchanged_in_every_other_variant_are_refused_and_in_a_few_counted() -> None:
    rng = np.random.default_rng(8)
    frequency = rng.uniform(0.02, 0.5, 300)
    counts = {name: counted(frequency, rng) for name in SITES}
    for every, verdict in ((2, "fail"), (30, "ok")):
        wrong = np.arange(300) % every == 0
        harmed = counts | {"b": np.where(wrong, counts["b"][[2, 1, 0, 3]], counts["b"])}
        reported = {(c.site, c.check): c for c in counts_checks(harmed, {})}
        assert reported["b", "allele frequencies against the other sites"].verdict == verdict
        few = int(reported["b", "minor allele is the major allele elsewhere"].value)
        assert 0 < few <= wrong.sum()


def test_a_model_is_not_trained_on_exchanged_alleles_if_the_study_asks_for_counts(clean: Clean, tmp_path: Path) -> None:
    sites = write_sites(tmp_path / "sites", clean, clean.files | {"b": exchanged(clean.files["b"])})
    nodes = [{"manifest": str(sites / name / "site.toml")} for name in SITES]
    for name in ("counted", "plain"):
        (tmp_path / name).mkdir()
    with pytest.raises(RunError, match="b: allele frequencies against the other sites is r = -"):
        run_nodes(training_study(cohort__variants={"min_call_rate": 0.5}), nodes, tmp_path / "counted")
    run_nodes(training_study(), nodes, tmp_path / "plain")
    reported = next(e["checks"] for e in read_events(tmp_path / "plain")[0] if e["event"] == "checks")
    [said] = [c for c in reported if c["check"] == "allele frequencies"]
    assert said["value"] == "not compared"
    assert "exchanged alleles would not be detected" in said["fix"]


def test_all_harms_together_change_no_number(clean: Clean, right: Ended, tmp_path: Path) -> None:
    files = {
        "a": replace(renamed(shuffled(other_names(padded(flipped(swapped_snps(clean.files["a"])))))), reference=True),
        "b": shuffled(half_flipped(swapped(clean.files["b"]))),
        "c": as_bed(swapped)(replace(shifted(clean.files["c"]), reference=True)),
    }
    harmed = associate(tmp_path / "harmed", clean, files)
    assert not harmed.refused
    lost = set(by_place(right.table)) - set(by_place(harmed.table))
    assert 0 < len(lost) == harmed.excluded < len(right.table) / 2
    assert_same(harmed, associate(tmp_path / "rest", clean, without(clean.files, lost)))


def test_where_no_two_sites_agree_on_the_strand_the_table_is_on_one_of_them(clean: Clean, right: Ended, tmp_path: Path) -> None:
    files = clean.files | {"a": flipped(clean.files["a"]), "b": half_flipped(clean.files["b"])}
    harmed = associate(tmp_path / "harmed", clean, files)
    assert not harmed.refused
    lost = set(by_place(right.table)) - set(by_place(harmed.table, other_strand=True))
    assert len(lost) == harmed.excluded
    assert harmed.checks["c", "matched: strand"][1] == "warn", "who reads the matrix sees that the strand is the first site's"
    assert_same(harmed, associate(tmp_path / "rest", clean, without(clean.files, lost)), other_strand=True)


def test_a_deletion_and_an_insertion_of_the_same_letters_never_change_places(clean: Clean, tmp_path: Path) -> None:
    """Both stand at one place of a repeat, and one site wrote both the other way round."""
    deletion = Variant("chr22", 20_000, ".", GENOME[19_999] + "GT", GENOME[19_999])
    insertion = deletion._replace(ref=deletion.alt, alt=deletion.ref)
    rng, files = np.random.default_rng(4), {}
    for name, file in clean.files.items():
        two = rng.binomial(2, [[0.4], [0.55]], (2, 150)).astype(np.int8)
        own, keys = (swapped_snps(file), (insertion, deletion)) if name == "b" else (file, (deletion, insertion))
        files[name] = replace(own, keys=(*own.keys, *keys), dosage=np.vstack([own.dosage, 2 - two if name == "b" else two]))
    ended = associate(tmp_path, clean, files)
    assert not ended.refused
    assert 20_000 not in set(ended.table.base_pair_location)
    assert ended.excluded == 2


# --- training


def predictions(folder: Path, clean: Clean, files: dict[str, File]) -> npt.NDArray[np.float64]:
    """Probability of disease of every person, sites in the roster's order."""
    import torch

    study, sites, run = training_study(), write_sites(folder / "sites", clean, files), folder / "run"
    run.mkdir()
    (run / STUDY).write_text(study.canonical)
    run_nodes(study, [{"manifest": str(sites / name / "site.toml")} for name in SITES], run)
    _, model = restore(run)
    out = []
    with torch.inference_mode():
        for name in SITES:
            cohort = load_aligned((str(sites / name / "site.toml"),), study, load_model(run)[2])
            out.append(torch.softmax(model(cohort.batch(range(len(cohort)))).double(), 1).numpy()[:, 1])
    return np.concatenate(out)


@pytest.fixture(scope="module")
def right_predictions(clean: Clean, tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.float64]:
    made = predictions(tmp_path_factory.mktemp("clean-training"), clean, clean.files)
    assert np.ptp(made) > 0.1
    return made


@pytest.mark.parametrize("harm", [swapped_snps, with_reference(shifted), as_bed(with_reference(flipped))], ids=lambda f: f.__name__)
def test_a_model_trained_on_harmed_files_predicts_the_same(
    harm: Callable[[File], File], clean: Clean, right_predictions: npt.NDArray[np.float64], tmp_path: Path
) -> None:
    """One of each kind; that the genotypes are the same whatever the harm is asserted above, for either site."""
    made = predictions(tmp_path, clean, clean.files | {"c": harm(clean.files["c"])})
    np.testing.assert_allclose(made, right_predictions, rtol=0, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("at", ["a", "c"])
@pytest.mark.parametrize("harm", HARMLESS, ids=lambda f: f.__name__)
def test_a_model_trained_on_any_harmed_file_predicts_the_same(
    harm: Callable[[File], File], at: str, clean: Clean, right_predictions: npt.NDArray[np.float64], tmp_path: Path
) -> None:
    made = predictions(tmp_path, clean, clean.files | {at: harm(clean.files[at])})
    np.testing.assert_allclose(made, right_predictions, rtol=0, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("harm", HARMLESS, ids=lambda f: f.__name__)
def test_recognised_errors_of_the_last_site_change_no_result(
    harm: Callable[[File], File], clean: Clean, right: Ended, tmp_path: Path
) -> None:  # fmt: skip
    harmed = associate(tmp_path, clean, clean.files | {"c": harm(clean.files["c"])})
    assert not harmed.refused
    assert harmed.excluded == 0
    assert_same(harmed, right)


# --- any harms at any sites, without files


@dataclass(frozen=True)
class Plan:
    """Of a small cohort: what to make, and what to do to it."""

    seed: int
    snps: int
    indels: int
    checked: frozenset[str]
    harms: dict[str, list[Callable[[File], File]]]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any harms at any sites; strands at one site at most, or at two where some site has a reference."""
    strand = st.sampled_from([flipped, half_flipped])
    any_harm = st.sampled_from([renamed, shuffled, other_names, swapped_snps, swapped, padded, shifted])
    checked = draw(st.frozensets(st.sampled_from(SITES)))
    on_strands = draw(st.sets(st.sampled_from(SITES), max_size=2 if checked else 1))
    harms = {}
    for name in SITES:
        others = sorted(draw(st.lists(any_harm, max_size=4, unique=True)), key=lambda f: f not in (padded, shifted))
        harms[name] = ([draw(strand)] if name in on_strands else []) + others
    return Plan(draw(st.integers(0, 2**32)), draw(st.integers(45, 120)), draw(st.integers(0, 12)), checked, harms)


@given(plan=plans())
@settings(max_examples=25)
def test_no_combination_of_harms_gives_a_person_another_genotype(plan: Plan, clean: Clean) -> None:
    rng = np.random.default_rng(plan.seed)
    keys = make_keys(rng, plan.snps, plan.indels)
    before = {name: File(keys, dosage) for name, dosage in genotypes(rng, keys, 60).items()}
    spec = Variants(min_call_rate=0.01, max_palindromic_maf=0.5)  # so that genotypes are counted, and palindromes kept
    sites = {}
    for name, file in before.items():
        for harm in plan.harms[name]:
            file = harm(file)
        file = replace(file, reference=name in plan.checked)
        own = fingerprint(file.keys, {}, "GRCh38", where="x.vcf", reference=clean.fasta if file.reference else None)
        dosage = file.dosage[own.columns].T.copy()
        dosage = np.where((dosage >= 0) & own.flip, 2 - dosage, dosage).astype(np.int8)
        notes = np.array([own.notes[n] for n in NOTES])
        sites[name] = Dosages(own.keys, dosage, np.ones(len(dosage), bool), notes, own.build, file.reference)
    panel = shared_panel(sites, spec)
    truth = {(k.position, frozenset((k.ref, k.alt))): at for at, key in enumerate(keys) for k in spellings(key)}
    for name in SITES:
        own_dosage = np.asarray(align(sites[name], panel.keys, panel.flips[name], "position").dosage)
        for column, key in enumerate(panel.keys):
            at = truth[key.position, frozenset((key.ref, key.alt))]
            right = before[name].dosage[at]
            if len(key.alt) - len(key.ref) != len(keys[at].alt) - len(keys[at].ref) or (is_snp(key) and key.alt != keys[at].alt):
                right = np.where(right < 0, -1, 2 - right)
            np.testing.assert_array_equal(own_dosage[:, column], right, err_msg=f"{name} {key}")
