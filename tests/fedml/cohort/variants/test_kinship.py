"""Kinship within a site is PLINK 2's, on families and on real genotypes; whom an analysis of unrelated persons leaves out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.cohort.variants import kinship
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.kinship import Pairs, left_out, related, relative_lines
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.packed import Packed
from tests.conftest import DATA, write_bed
from tests.families import families

PLINK = pytest.mark.skipif(shutil.which("plink2") is None, reason="PLINK 2 is not installed")
SNPS = 4000


def family_genotypes(seed: int = 1) -> Any:
    """40 families with three children, a pair of twins, a half sibling and a cousin by construction, and a hundred unrelated persons."""
    random = np.random.default_rng(seed)
    frequency = random.uniform(0.1, 0.5, SNPS)
    dosage, _ = families(random, frequency, 40, 3)
    alone = random.binomial(2, frequency, (100, SNPS)).astype(np.int8)
    whole = np.concatenate([dosage, alone, dosage[:1]])
    whole[random.random(whole.shape) < 0.01] = -1
    return whole


def keys_of(count: int) -> list[tuple[str, int, str, str, str]]:
    return [(str(1 + at * 22 // count), 1000 + 10 * at, f"rs{at}", "A", "G") for at in range(count)]


def own(dosage: Any) -> Dosages:
    return Dosages(tuple(Variant(*key) for key in keys_of(dosage.shape[1])), Packed.of(dosage), np.ones(len(dosage), bool))


def table_of_plink(folder: Path, bed: str, *words: str) -> pd.DataFrame:
    command = ["plink2", "--bfile", bed, "--make-king-table", "--threads", "1", "--out", "king", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return pd.read_csv(folder / "king.kin0", sep=r"\s+", dtype={"IID1": str, "IID2": str, "ID1": str, "ID2": str})


def every_pair(genotypes: Dosages) -> Any:
    """(persons, persons): from the pairs that ``related`` finds, of all persons."""
    rows = np.arange(len(genotypes.present))
    found = related(genotypes, rows, -np.inf)
    assert found is not None
    out = np.full((len(rows), len(rows)), np.nan)
    out[found.first, found.second] = out[found.second, found.first] = found.kinship
    return out


def check_against(table: pd.DataFrame, ids: list[str], phi: Any) -> float:
    place = {name: at for at, name in enumerate(ids)}
    i, j = (table[name].map(place).to_numpy() for name in ("IID1", "IID2"))
    theirs = table.KINSHIP.to_numpy()
    assert len(theirs) == len(ids) * (len(ids) - 1) // 2
    # PLINK prints six significant digits.
    digits = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(theirs), 1e-12))) - 5)
    return float((np.abs(phi[i, j] - theirs) / digits).max())


@PLINK
def test_families_have_the_kinship_of_plink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dosage = family_genotypes()
    ids = [f"p{at}" for at in range(len(dosage))]
    write_bed(tmp_path / "all.bed", ids, keys_of(SNPS), dosage)
    monkeypatch.setattr(kinship, "_PERSONS", 64)  # several blocks of persons, the last one smaller
    table = table_of_plink(tmp_path, "all")
    assert check_against(table, ids, every_pair(own(dosage))) < 0.51
    assert (table.KINSHIP > 0.35).sum() == 1


@PLINK
def test_real_persons_have_the_kinship_of_plink(tmp_path: Path) -> None:
    folder = DATA / "genotypes_hapmap3_1kg"
    if not folder.is_dir():
        pytest.skip(f"the public data are not at {folder}")
    from bed_reader import open_bed

    bed = open_bed(next(folder.glob("HM3*.bed")))
    names = [str(name) for name in bed.iid]
    keys = tuple(
        Variant(str(c), int(p), str(i), str(r), str(a))
        for c, p, i, r, a in zip(bed.chromosome, bed.bp_position, bed.sid, bed.allele_2, bed.allele_1, strict=True)
    )
    real = Dosages(keys, Packed.of(np.maximum(bed.read(dtype="int8"), -1)), np.ones(len(names), bool))
    chosen = kinship.panel(real, np.arange(len(names)))
    assert len(chosen) > 10_000
    (tmp_path / "panel").write_text("\n".join(keys[at].id for at in chosen))
    source = str(Path(bed.location).with_suffix("").resolve())
    table = table_of_plink(tmp_path, source, "--extract", "panel")
    phi = every_pair(real)
    assert check_against(table, names, phi) < 0.51
    assert (phi > 0.177).sum() > 50, "the HapMap3 data hold trios"


@PLINK
def test_no_more_persons_are_left_out_than_by_plink(tmp_path: Path) -> None:
    dosage = family_genotypes(2)
    ids = [f"p{at}" for at in range(len(dosage))]
    write_bed(tmp_path / "all.bed", ids, keys_of(SNPS), dosage)
    subprocess.run(["plink2", "--bfile", "all", "--king-cutoff", "0.0884", "--out", "cut"], cwd=tmp_path, check=True, capture_output=True)
    kept = len((tmp_path / "cut.king.cutoff.in.id").read_text().splitlines()) - 1
    found = related(own(dosage), np.arange(len(ids)), 0.0884)
    assert found is not None
    gone = left_out(found, ids, len(ids))
    assert (~gone).sum() == kept == 40 * 2 + 100
    assert not ((~gone)[found.first] & (~gone)[found.second]).any()


def test_who_is_left_out_does_not_depend_on_the_order_of_the_table() -> None:
    random = np.random.default_rng(3)
    first, second = np.triu_indices(60, 1)
    some = random.random(len(first)) < 0.05
    pairs, ids = Pairs(first[some], second[some], np.full(int(some.sum()), 0.25)), [f"p{at}" for at in range(60)]
    gone = {ids[at] for at in np.flatnonzero(left_out(pairs, ids, 60))}
    order = random.permutation(60)  # new place of each person
    i, j = order[pairs.first], order[pairs.second]
    moved = Pairs(np.minimum(i, j), np.maximum(i, j), pairs.kinship)
    names = [ids[at] for at in np.argsort(order)]
    assert {names[at] for at in np.flatnonzero(left_out(moved, names, 60))} == gone
    assert 0 < len(gone) < 60


def test_the_sites_screen_names_pairs_by_degree() -> None:
    dosage = family_genotypes()
    lines = list(relative_lines([f"p{at}" for at in range(len(dosage))], own(dosage)))
    assert lines[0].startswith("relatives: 1 pairs, duplicates or twins: p0 and p300 (")
    # Each family: six pairs of a parent and a child, three of siblings; the twin of a father adds his three children.
    assert lines[1].startswith(f"relatives: {40 * 9 + 3} pairs, first degree: ")
    assert len(lines) == 2  # of the third degree 4,000 variants tell too little
    assert "50 more" not in lines[0]
    few = own(dosage[:, : kinship.fewest(0.3536) - 1])
    assert next(relative_lines([], few)).startswith("relatives: not known, fewer than 200 ")


def test_unrelated_persons_are_as_far_from_a_limit_as_stated() -> None:
    random = np.random.default_rng(4)
    frequency = random.uniform(0.05, 0.5, kinship.fewest(0.0884))
    phi = every_pair(own(random.binomial(2, frequency, (400, len(frequency))).astype(np.int8)))[np.triu_indices(400, 1)]
    assert 4.5 < (0.0884 - phi.mean()) / phi.std() < 6.5
    assert related(own(random.binomial(2, frequency[1:], (400, len(frequency) - 1)).astype(np.int8)), np.arange(400), 0.0884) is None
