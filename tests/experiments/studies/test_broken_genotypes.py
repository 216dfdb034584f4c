"""Broken genotype files, references and association studies, from the command line: exit code 2, one sentence that names the file and the
fix, and no partial output. Single bad variants are excluded and counted, and the run continues."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pysam
import pytest

from tests.command import quick as command
from tests.conftest import make_plan, to_toml, write_bed, write_csv, write_manifest

PERSONS, VARIANTS = 40, 60
GENOME = "".join(np.random.default_rng(5).choice(list("ACGT"), 70_000))
HEADER = '##fileformat=VCFv4.2\n##contig=<ID=22,length=50818468>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'


def write_vcf(path: Path, lines: list[str], samples: list[str], header: str = HEADER) -> None:
    """Bgzipped and indexed."""
    names = "#" + "\t".join(["CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples])
    with pysam.BGZFile(str(path), "wb") as out:
        out.write("".join(f"{line}\n" for line in [*header.splitlines(), names, *lines]).encode())
    if header:
        pysam.tabix_index(str(path), preset="vcf", force=True)


def line_of(position: int, calls: list[str], info: str = ".", name: str = "") -> str:
    ref = GENOME[position - 1]
    alt = {"A": "G", "G": "A", "C": "T", "T": "C"}[ref]
    return "\t".join(["22", str(position), name or f"rs{position}", ref, alt, ".", ".", info, "GT", *calls])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good sites with a reference, and a study of them, in one folder."""
    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(6)
    (folder / "ref.fa").write_text(f">22\n{GENOME}\n")
    pysam.faidx(str(folder / "ref.fa"))
    for name in ("oslo", "porto"):
        site = folder / "sites" / name
        site.mkdir(parents=True)
        ids = [f"{name}{k}" for k in range(PERSONS)]
        dosage = rng.binomial(2, rng.uniform(0.3, 0.7, (VARIANTS, 1)), (VARIANTS, PERSONS))
        calls = np.array(["0/0", "0/1", "1/1"])[dosage].tolist()
        write_vcf(site / "cohort.vcf.gz", [line_of(1000 * k + 500, row) for k, row in enumerate(calls)], ids)
        write_bed(site / "cohort.bed", ids, [("22", 1000 * k + 500, f"rs{k}", "A", "G") for k in range(VARIANTS)], dosage.T)
        write_csv(site / "persons.csv", ids, {"disease": rng.integers(0, 2, PERSONS)})
        write_csv(site / "clinical.csv", ids, {"age": rng.integers(20, 80, PERSONS), "sex": rng.integers(0, 2, PERSONS)})
        manifest = write_manifest(
            site, name, variants='{ path = "cohort.vcf.gz", build = "GRCh38", reference = "../../ref.fa" }',
            clinical='{ path = "clinical.csv" }',
        )  # fmt: skip
        manifest.write_text(manifest.read_text() + "[policy]\nmin_count = 1\nmin_persons = 5\n")
    plan = make_plan(
        ["variants", "clinical"], ("oslo", "porto"), cohort__target="disease", cohort__clinical={"columns": ["age", "sex"]},
        gwas={"covariates": ["age", "sex"], "components": 0},
    )  # fmt: skip
    (folder / "study.toml").write_text(to_toml(plan))
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """The same where it may be broken."""
    return Path(shutil.copytree(whole, tmp_path / "place"))


def replace(path: Path, old: str, new: str) -> None:
    """Changes one thing in a text file that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def read_lines(path: Path) -> tuple[list[str], list[str]]:
    """(header, records) of a bgzipped VCF."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [line for line in lines if line.startswith("#")], [line for line in lines if not line.startswith("#")]


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    header, records = read_lines(path)
    write_vcf(path, change(records), header[-1].split("\t")[9:])


def ask(place: Path, selection: str) -> None:
    """Has the study ask for some variants only."""
    replace(place / "study.toml", '"target" = "disease"', f'"target" = "disease"\n"variants" = {{ {selection} }}')


# --- what is refused: place -> parts of the sentence


def truncated(place: Path) -> list[str]:
    vcf = place / "sites/porto/cohort.vcf.gz"
    vcf.write_bytes(vcf.read_bytes()[: vcf.stat().st_size // 2])
    return ["porto/cohort.vcf.gz", "truncated", "copy the file again"]


def no_index(place: Path) -> list[str]:
    (place / "sites/porto/cohort.vcf.gz.tbi").unlink()
    ask(place, 'regions = ["22:1-30000"]')
    return ["porto/cohort.vcf.gz", "has no index", "bcftools index"]


def headerless(place: Path) -> list[str]:
    vcf = place / "sites/porto/cohort.vcf.gz"
    _, records = read_lines(vcf)
    with pysam.BGZFile(str(vcf), "wb") as out:
        out.write("".join(f"{line}\n" for line in records).encode())
    return ["porto/cohort.vcf.gz", "no valid VCF header", "zgrep -v '^#' ", "cohort.vcf.gz) | bgzip > NEW.vcf.gz"]


def no_such_contig(place: Path) -> list[str]:
    ask(place, 'regions = ["21"]')
    return ["oslo/cohort.vcf.gz", "has no contig 21, only 22", "correct [cohort.variants] regions"]


def strangers(place: Path) -> list[str]:
    vcf = place / "sites/porto/cohort.vcf.gz"
    _, records = read_lines(vcf)
    write_vcf(vcf, records, [f"sample{k}" for k in range(PERSONS)])
    return ["porto/cohort.vcf.gz", "names none of the 40 persons", "write ids alike in every file"]


def junk(place: Path) -> list[str]:
    rng = np.random.default_rng(7)
    letters = "".join(map(chr, rng.integers(33, 127, 5_000_000)))
    vcf = place / "sites/porto/cohort.vcf.gz"
    header, records = read_lines(vcf)
    with pysam.BGZFile(str(vcf), "wb") as out:
        out.write("\n".join([*header, *records[:5], letters, *records[5:], ""]).encode())
    return ["porto/cohort.vcf.gz", f"line {len(header) + 6} ", "5,000,000 bytes", "copy it again"]


def plain_gzip(place: Path) -> list[str]:
    vcf = place / "sites/porto/cohort.vcf.gz"
    vcf.write_bytes(gzip.compress(gzip.decompress(vcf.read_bytes())))
    return ["porto/cohort.vcf.gz", "not bgzip", "compress it with bgzip"]


def empty(place: Path) -> list[str]:
    (place / "sites/porto/cohort.vcf.gz").write_bytes(b"")
    return ["porto/cohort.vcf.gz", "is empty and has no header", "copy the file again"]


def a_folder(place: Path) -> list[str]:
    (place / "sites/porto/cohort.vcf.gz").unlink()
    (place / "sites/porto/cohort.vcf.gz").mkdir()
    return ["porto/cohort.vcf.gz", "Is a directory", "data.variants in site.toml"]


def missing_file(place: Path) -> list[str]:
    (place / "sites/porto/cohort.vcf.gz").unlink()
    return ["porto/cohort.vcf.gz", "no such file", "site.toml"]


def little_memory(place: Path) -> list[str]:
    replace(place / "sites/porto/site.toml", 'build = "GRCh38"', 'build = "GRCh38", memory_mb = 4')
    return ["porto/site.toml", "[data.variants] memory_mb", "16"]


def memory_in_words(place: Path) -> list[str]:
    replace(place / "sites/porto/site.toml", 'build = "GRCh38"', 'build = "GRCh38", memory_mb = "plenty"')
    return ["porto/site.toml", "[data.variants] memory_mb", "integer"]


def build_misspelt(place: Path) -> list[str]:
    replace(place / "sites/porto/site.toml", '"GRCh38"', '"GRCh83"')
    return ["porto/site.toml", "[data.variants] build", 'did you mean "GRCh38"']


def other_build(place: Path) -> list[str]:
    replace(place / "sites/porto/site.toml", '"GRCh38"', '"GRCh37"')
    return ["porto/cohort.vcf.gz", "are those of GRCh38, but site.toml says GRCh37", "correct data.variants build"]


def no_reference(place: Path) -> list[str]:
    (place / "ref.fa").unlink()
    return ["ref.fa", "no such file", "data.variants reference"]


def reference_without_index(place: Path) -> list[str]:
    (place / "ref.fa.fai").unlink()
    return ["ref.fa", "has no index", "samtools faidx"]


def truncated_reference(place: Path) -> list[str]:
    (place / "ref.fa").write_text((place / "ref.fa").read_text()[:40_000])
    return ["ref.fa", "contig 22", "copy the file and its index again"]


def other_reference(place: Path) -> list[str]:
    (place / "ref.fa").write_text(f">21\n{GENOME}\n")
    (place / "ref.fa.fai").unlink()
    pysam.faidx(str(place / "ref.fa"))
    return ["oslo/cohort.vcf.gz", "60 of 60 variants do not match", "correct data.variants reference or build"]


def _as_bed(place: Path) -> Path:
    replace(
        place / "sites/porto/site.toml", '"cohort.vcf.gz", build = "GRCh38", reference = "../../ref.fa"', '"cohort.bed", build = "GRCh38"'
    )
    return place / "sites/porto/cohort.bed"


def bed_without_bim(place: Path) -> list[str]:
    _as_bed(place).with_suffix(".bim").unlink()
    return ["porto/cohort.bim", "no such file", "put the .bim and .fam of a .bed in the same folder"]


def short_bed(place: Path) -> list[str]:
    bed = _as_bed(place)
    bed.write_bytes(bed.read_bytes()[:-5])
    return ["porto/cohort.bed", "does not match its .bim and .fam", "copy the three files again"]


def no_region(place: Path) -> list[str]:
    ask(place, 'regions = ["22:here-there"]')
    return ['region "22:here-there"', "not of the form", "[cohort.variants] regions"]


def no_person_has_it(place: Path) -> list[str]:
    ask(place, 'listed = ["rs1"]')
    return ["oslo/cohort.vcf.gz", "has none of the study's variants", "or [cohort.variants] in the study"]


def no_column(place: Path) -> list[str]:
    replace(place / "study.toml", '"covariates" = ["age", "sex"]', '"covariates" = ["age", "sx"]')
    return ["study.toml", '[gwas] covariates names "sx"', 'did you mean "sex"']


def three_classes(place: Path) -> list[str]:
    replace(place / "study.toml", '"target" = "disease"', '"target" = "disease"\n"classes" = [0, 1, 2]')
    return ["study.toml", "[gwas] compares two classes", "lists 3"]


FILES = [
    truncated, no_index, headerless, no_such_contig, strangers, junk, plain_gzip, empty, a_folder, missing_file, little_memory,
    memory_in_words, build_misspelt, other_build, no_reference, reference_without_index, truncated_reference, other_reference,
    bed_without_bim, short_bed, no_region, no_person_has_it, no_column, three_classes,
]  # fmt: skip


def what_is_there(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if ".fedml" not in path.parts}


def assert_refused(done: CompletedProcess[str], expected: list[str], place: Path, before: set[Path]) -> None:
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    sentences = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(sentences) == 1, done.stderr
    assert sentences[0].startswith("error: ")
    assert len(sentences[0]) < 1000
    for part in expected:
        assert part in sentences[0]
    assert "Traceback" not in done.stderr
    assert what_is_there(place) == before
    for cache in place.glob("sites/*/.fedml/cache"):
        for entry in cache.iterdir():  # a good site's file may have been packed by then, whole
            assert entry.name == "digests.json" or (entry / "meta.json").exists(), entry


@pytest.mark.parametrize("break_it", FILES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("job", ["preflight", "check"])
def test_one_sentence_and_nothing_written(break_it: Callable[[Path], list[str]], job: str, place: Path) -> None:
    expected = break_it(place)
    before = what_is_there(place)
    if job == "preflight":
        done = command("fedml", "preflight", "study.toml", "--sites", "sites", cwd=place)
    else:
        name = "oslo" if any("oslo" in part for part in expected) else "porto"
        done = command("fedml-site", "check", "study.toml", "--site", f"sites/{name}", cwd=place)
    assert_refused(done, expected, place, before)


GWAS: list[tuple[str, list[str], list[str]]] = [
    ("truncated", ["--sites", "sites"], ["porto/cohort.vcf.gz", "truncated"]),
    ("no_gwas", ["--sites", "sites"], ["study.toml", "has no [gwas] section", "add one"]),
    ("", ["--meta", "--superlink", "127.0.0.1:9", "--engine", "deployment"], ["--meta needs the sites' data", "give --sites"]),
    ("", ["--sites", "nowhere"], ["nowhere", "no such folder"]),
    ("", ["--sites", "sites", "--set", "gwas.components=-1"], ["study.toml", "[gwas] components"]),
    ("", ["--sites", "sites", "--set", "gwas.covariate=age"], ["study.toml", "[gwas] covariate", 'did you mean "covariates"']),
]


@pytest.mark.parametrize(("broken", "words", "expected"), GWAS, ids=lambda x: "-".join(x) if isinstance(x, list) else x or "whole")
def test_gwas_says_what_is_wrong(broken: str, words: list[str], expected: list[str], place: Path) -> None:
    if broken == "truncated":
        truncated(place)
    elif broken == "no_gwas":
        text = (place / "study.toml").read_text()
        (place / "study.toml").write_text(text[: text.index("[gwas]") if "[gwas]" in text else text.index('["gwas"]')])
    before = what_is_there(place)
    assert_refused(command("fedml", "gwas", "study.toml", *words, cwd=place), expected, place, before)


# --- what is left out, said, and the run goes on


def preflight(place: Path) -> dict[str, Any]:
    done = command("fedml", "preflight", "study.toml", "--sites", "sites", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    reported: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    reported["cells"] = {(c["site"], c["check"]): c["value"] for c in reported["checks"]}
    return reported


def test_a_variant_that_stands_twice_is_excluded_and_counted(place: Path) -> None:
    rewrite(place / "sites/porto/cohort.vcf.gz", lambda records: [*records[:3], records[2], *records[3:]])
    reported = preflight(place)
    assert reported["variants"] == VARIANTS - 1
    assert reported["cells"]["porto", "matched: twice"] == "2"
    assert reported["cells"]["all sites", "excluded: not at every site"] == "1"


def test_a_variant_that_is_missing_in_all_persons_is_excluded_with_the_reason(place: Path) -> None:
    for name in ("oslo", "porto"):
        rewrite(
            place / f"sites/{name}/cohort.vcf.gz",
            lambda records: [*records[:7], "\t".join([*records[7].split("\t")[:9], *["./."] * PERSONS]), *records[8:]],
        )
    reported = preflight(place)
    assert reported["variants"] == VARIANTS - 1
    assert reported["cells"]["porto", "no genotype called"] == "1"
    [count] = [
        v for (site, check), v in reported["cells"].items() if site == "all sites" and check.startswith("excluded: no counts reported")
    ]
    assert count == "1"


def test_a_line_of_five_megabytes_is_read(place: Path) -> None:
    info = "X=" + "z" * 5_000_000

    def longer(records: list[str]) -> list[str]:
        fields = records[4].split("\t")
        return [*records[:4], "\t".join([*fields[:7], info, *fields[8:]]), *records[5:]]

    before = preflight(place)
    rewrite(place / "sites/porto/cohort.vcf.gz", longer)
    after = preflight(place)
    assert after["variants"] == before["variants"] == VARIANTS
    assert after["checks"] == before["checks"]


def test_persons_without_genotypes_are_said_and_the_others_analysed(place: Path) -> None:
    vcf = place / "sites/porto/cohort.vcf.gz"
    header, records = read_lines(vcf)
    write_vcf(vcf, records, [f"stranger{k}" if k < 5 else name for k, name in enumerate(header[-1].split("\t")[9:])])
    done = command("fedml", "gwas", "study.toml", "--sites", "sites", "--json", "--no-track", cwd=place)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    assert reported["metrics"]["persons"] == {"oslo": PERSONS, "porto": PERSONS - 5}
    assert reported["metrics"]["tested"] == VARIANTS
