"""``fedml prs``: clumps equal PLINK 1.9's and own loops, and a score of an association is read back by another hospital."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.cohort.scores.clump import Ranked, Rule, clump, haplotype_r2
from fedml.cohort.scores.scoring_file import read_scoring
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from tests.command import quick
from tests.conftest import make_plan, public_data, to_toml, write_bed, write_csv, write_manifest

PLINK = os.environ.get("FEDML_PLINK19") or shutil.which("plink1.9")
Key = tuple[str, int, str, str, str]


def linked(random: np.random.Generator, persons: int, variants: int, *, missing: float = 0.02) -> Any:
    """(variants, persons) genotypes whose haplotypes change their founder now and then."""
    founders = (random.random((12, variants)) < random.uniform(0.1, 0.9, variants)).astype(int)
    copies = []
    for _ in range(2 * persons):
        founder, row = int(random.integers(12)), np.empty(variants, int)
        for v in range(variants):
            founder = int(random.integers(12)) if random.random() < 0.1 else founder
            row[v] = founders[founder, v]
        copies.append(row)
    dosage = (np.array(copies[::2]) + np.array(copies[1::2])).T.astype(np.int8)
    dosage[random.random(dosage.shape) < missing] = -1
    return dosage


def by_em(x: Any, y: Any) -> float:
    """r2 of haplotypes by expectation and maximisation, from several starts."""
    both = (x >= 0) & (y >= 0)
    x, y = x[both], y[both]
    best = (-np.inf, 0.0)
    for start in (0.01, 0.5, 0.99):
        share = start
        for _ in range(20_000):
            f = np.zeros((2, 2))
            for a in range(3):
                for b in range(3):
                    n = float(((x == a) & (y == b)).sum())
                    if a == b == 1:
                        f += n * np.array([[share, 1 - share], [1 - share, share]])
                    else:
                        for i, j in ((a // 2, b // 2), ((a + 1) // 2, (b + 1) // 2)):
                            f[i, j] += n
            f /= f.sum()
            new = f[0, 0] * f[1, 1] / max(f[0, 0] * f[1, 1] + f[0, 1] * f[1, 0], 1e-300)
            if abs(new - share) < 1e-13:
                break
            share = new
        known = [
            (((x == a) & (y == b)).sum(), a, b) for a in range(3) for b in range(3)
        ]  # fmt: skip
        chance = {
            (a, b): sum(f[i, j] * f[a - i, b - j] for i in (0, 1) for j in (0, 1) if 0 <= a - i <= 1 and 0 <= b - j <= 1)
            for a in range(3) for b in range(3)
        }  # fmt: skip
        log = sum(n * np.log(max(chance[a, b], 1e-300)) for n, a, b in known if n)
        p, q = f[1].sum(), f[:, 1].sum()
        r2 = (f[1, 1] - p * q) ** 2 / (p * (1 - p) * q * (1 - q)) if 0 < p < 1 and 0 < q < 1 else 0.0
        best = max(best, (log, r2), key=lambda pair: pair[0] if np.isfinite(pair[0]) else -np.inf)
    return best[1]


def test_ld_is_that_of_expectation_and_maximisation() -> None:
    random = np.random.default_rng(1)
    dosage = linked(random, 60, 12)
    dosage[4] = np.where(dosage[3] >= 0, 2 - dosage[3], -1)  # the other allele counted
    dosage[5] = 0
    for at in (0, 3, 5, 7):
        np.testing.assert_allclose(haplotype_r2(dosage[at], dosage), [by_em(dosage[at], other) for other in dosage], rtol=2e-5, atol=1e-6)
    assert haplotype_r2(dosage[3], dosage)[4] == pytest.approx(1, abs=1e-9)
    assert not haplotype_r2(dosage[5], dosage).any()


@pytest.mark.parametrize("r2", [0.05, 0.3, 0.8])
def test_clumps_are_those_of_a_loop_over_pairs(r2: float) -> None:
    random = np.random.default_rng(2)
    dosage, count = linked(random, 150, 80), 80
    contig = np.array(["1"] * 50 + ["2"] * 30)
    position = np.concatenate([random.integers(1, 400_000, 50), random.integers(1, 400_000, 30)])
    log10_p = np.log10(random.random(count))
    free, first = set(range(count)), set()
    for at in sorted(range(count), key=lambda v: log10_p[v]):
        if at in free:
            first.add(at)
            near = [v for v in free if contig[v] == contig[at] and abs(int(position[v] - position[at])) <= 100_000]
            free -= {v for v in near if haplotype_r2(dosage[at], dosage[[v]])[0] > r2} | {at}
    found = clump(Ranked(contig, position, log10_p), dosage, Rule(100, r2))
    assert set(np.flatnonzero(found).tolist()) == first
    assert 2 < len(first) <= count


def test_by_distance_alone_no_two_of_a_score_are_near() -> None:
    random = np.random.default_rng(3)
    position = np.sort(random.integers(1, 1_000_000, 200))
    found = clump(Ranked(np.array(["1"] * 200), position, np.log10(random.random(200))), None, Rule(50))
    assert np.diff(position[found]).min() > 50_000


@pytest.mark.skipif(PLINK is None, reason="PLINK 1.9 is not installed (FEDML_PLINK19, or plink1.9 in PATH)")
@pytest.mark.parametrize(("r2", "kb"), [(0.8, 250), (0.5, 250), (0.1, 250), (0.1, 5), (0.02, 5000)])
def test_clumps_of_real_genotypes_are_those_of_plink(tmp_path: Path, r2: float, kb: int) -> None:
    text = gzip.decompress((public_data("vcf_1kg_chr21") / "1kg_phase3_chr21_start.vcf.gz").read_bytes())  # is not bgzipped
    (tmp_path / "panel.vcf").write_bytes(text)
    source = open_source(tmp_path / "panel.vcf")
    blocks = list(source.blocks(range(len(source.samples)), Selection(), 256))
    read = [pair for block in blocks for pair in zip(block.keys, block.dosage, strict=True) if len(pair[0].ref + pair[0].alt) == 2]
    once = {key.id: (key, row) for key, row in read if key.id.startswith("rs") and 20 < row.sum() < 2 * len(row) - 20}
    keys, dosage = [key for key, _ in once.values()], np.stack([row for _, row in once.values()])
    dosage[np.random.default_rng(6).random(dosage.shape) < 0.02] = -1
    write_bed(tmp_path / "panel.bed", [f"s{k}" for k in range(dosage.shape[1])], keys, dosage.T)
    p = np.random.default_rng(4).random(len(keys)) ** 3
    (tmp_path / "a.assoc").write_text("SNP P\n" + "".join(f"{key.id} {x!r}\n" for key, x in zip(keys, p.tolist(), strict=True)))
    options = {"p1": 0.3, "p2": 1, "r2": r2, "kb": kb}
    words = [str(PLINK), "--bfile", "panel", "--clump", "a.assoc", "--allow-no-sex", "--threads", "1", "--out", "own"]
    words += [word for name, value in options.items() for word in (f"--clump-{name}", str(value))]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    theirs = {line.split()[2] for line in (tmp_path / "own.clumped").read_text().splitlines()[1:] if line.strip()}
    ranked = Ranked(np.array([k.contig for k in keys]), np.array([k.position for k in keys]), np.log10(p))
    ours = {key.id for key, first, x in zip(keys, clump(ranked, dosage, Rule(kb, r2)), p, strict=True) if first and x <= 0.3}
    assert ours == theirs
    assert len(ours) < (p <= 0.3).sum()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sites, a third hospital and a reference, and a finished association of a trait with three causes."""
    folder, random = tmp_path_factory.mktemp("prs"), np.random.default_rng(5)
    keys: list[Key] = [("1", 1000 + 2000 * v, f"rs{v}", "A", "G" if v % 2 else "C") for v in range(60)]
    dosage = linked(random, 700, 60, missing=0.0)
    trait = dosage[[10, 30, 50]].sum(0) * 0.8 + random.normal(size=700)
    parts = {"sites/a": (0, 250), "sites/b": (250, 500), "third/c": (500, 600), "panel": (600, 700)}
    for name, (begin, end) in parts.items():
        place, ids = folder / name, [f"p{k}" for k in range(begin, end)]
        place.mkdir(parents=True)
        some = keys if name != "panel" else [key for key in keys if key[2] != "rs30"]
        rows = [v for v, key in enumerate(keys) if key in some]
        write_bed(place / "g.bed", ids, some, dosage[rows, begin:end].T)
        write_csv(place / "persons.csv", ids, {"y": trait[begin:end].tolist()})
        write_manifest(place, name[-1], variants='{ path = "g.bed", build = "GRCh38" }')
    np.save(folder / "third.npy", dosage[:, 500:600])
    plan = make_plan(("variants",), model__task="regression", gwas={"components": 0}, cohort__variants={"build": "GRCh38"})
    (folder / "study.toml").write_text(to_toml(plan))
    done = quick("fedml", "gwas", "study.toml", "--sites", "sites", "--no-track", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def run_of(folder: Path) -> str:
    return next(str(path) for path in (folder / "fedml-runs").iterdir() if path.name.startswith("toy-"))


def test_a_score_of_the_federated_table_is_read_back_by_a_hospital(ran: Path) -> None:
    thresholds = [word for p in ("1e-6", "0.5", "1e-250") for word in ("--p", p)]
    done = quick("fedml", "prs", run_of(ran), "--reference", "panel/g.bed", "--r2", "0.2", *thresholds, "--out", "scores", cwd=ran)
    assert done.returncode == 0, done.stderr
    assert "1 of" in done.stdout
    assert "are not in g.bed, so their LD is not known: they are left out" in done.stdout
    assert [path.name for path in sorted((ran / "scores").iterdir())] == ["toy_p0.5.txt.gz", "toy_p1e-06.txt.gz"]
    few, many = (read_scoring(ran / "scores" / f"toy_p{p}.txt.gz") for p in ("1e-06", "0.5"))
    assert {"rs10", "rs50"} <= set(few.rsid) <= set(many.rsid)
    assert "rs30" not in many.rsid
    assert (few.build, few.intercept, few.header["weight_type"]) == ("GRCh38", 0.0, "beta")
    assert len(few.header["ld_reference_sha256"]) == 64
    done = quick("fedml-site", "score", "scores/toy_p0.5.txt.gz", "--site", "third/c", "--out", "c.csv", cwd=ran)
    assert done.returncode == 0, done.stderr
    assert f"matched    {len(many)} (100.0%)" in done.stdout
    with (ran / "c.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    at = [int(name.removeprefix("rs")) for name in many.rsid]
    np.testing.assert_allclose(scores, many.weight @ np.load(ran / "third.npy")[at], rtol=1e-12, atol=1e-12)


def test_by_distance_alone_is_asked_for_and_said(ran: Path) -> None:
    done = quick("fedml", "prs", run_of(ran), "--no-ld", "--kb", "30", "--p", "0.5", "--out", "far", cwd=ran)
    assert done.returncode == 0, done.stderr
    assert "by distance alone" in done.stdout
    read = read_scoring(ran / "far" / "toy_p0.5.txt.gz")
    assert np.diff(np.sort(read.position)).min() > 30_000
    assert read.header["method"] == "clumping and thresholding, 30 kb, by distance alone"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either --reference FILE"),
        (["--no-ld", "--reference", "panel/g.bed"], "give either --reference FILE"),
        (["--reference", "nowhere.bed"], "nowhere"),
        (["--no-ld", "--p", "1e-290"], "no variant has p up to 1e-290, the smallest is"),
        (["--reference", "third/other.bed"], r"has 0 of the"),
    ],
)
def test_what_cannot_be_is_one_sentence(ran: Path, words: list[str], said: str) -> None:
    keys: list[Key] = [("7", 5 + v, f"rs9{v}", "A", "G") for v in range(3)]
    write_bed(ran / "third" / "other.bed", ["q1", "q2"], keys, np.ones((2, 3), np.int8))
    done = quick("fedml", "prs", run_of(ran), *words, cwd=ran)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_a_table_is_refused(ran: Path, tmp_path: Path) -> None:
    done = quick("fedml", "prs", tmp_path, "--no-ld", cwd=ran)
    assert done.returncode == 2
    assert "is not a run's folder" in done.stderr
