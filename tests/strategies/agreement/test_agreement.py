"""What sites agree on where one of the roster is absent: each still gets its own orientation of the variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fedml.cohort.variants.harmonise import Panel
from fedml.cohort.variants.keys import Variant
from fedml.strategies.agreement.agreement import Agreement
from tests.conftest import Run, federate, make_study, write_csv, write_manifest, write_vcf

KEYS = tuple(Variant("chr22", 100 * (k + 1), f"rs{k}", "A", "G" if k % 2 else "C") for k in range(6))
CALLS = np.array(["0/0", "0/1", "1/1"])


def variant_site(folder: Path, name: str, seed: int, *, swapped: Sequence[int] = ()) -> Path:
    """60 persons whose label follows from two of six SNPs; the alleles of ``swapped`` stand in the other order in this file."""
    rng = np.random.default_rng(seed)
    dosage = rng.integers(0, 3, (60, len(KEYS)))
    label = (dosage[:, 0] - dosage[:, 1] + rng.normal(0, 0.5, 60) > 0).astype(int)
    ids = [f"{name}{k:03d}" for k in range(60)]
    records = []
    for at, key in enumerate(KEYS):
        turned = at in swapped
        ref, alt = (key.alt, key.ref) if turned else (key.ref, key.alt)
        records.append(("chr21", key.position, key.id, ref, alt, CALLS[2 - dosage[:, at] if turned else dosage[:, at]].tolist()))
    folder.mkdir(parents=True)
    write_csv(folder / "persons.csv", ids, {"y": label})
    write_vcf(folder / "cohort.vcf.gz", ids, records)
    return write_manifest(folder, name, variants='{ path = "cohort.vcf.gz", build = "GRCh38" }')


@pytest.mark.parametrize("absent", ["a", "b", "c"])
def test_each_site_has_its_row_of_the_orientation_if_others_are_absent(absent: str) -> None:
    rows = {name: np.array([at == k for at in range(6)], dtype=np.uint8) for k, name in enumerate("abc")}
    there = {name: row for name, row in rows.items() if name != absent}
    agreement = Agreement(dict(enumerate(there)), shared=Panel(KEYS, there, {}, {}, {}), roster=("a", "b", "c"))
    sent = agreement.flips().reshape(3, 6)
    for place, name in enumerate("abc"):
        assert sent[place].tolist() == (rows[name].tolist() if name in there else [0] * 6)


def test_a_swapped_file_is_turned_where_the_first_site_of_the_roster_is_absent(tmp_path: Path) -> None:
    """Sites b and c of the roster a, b, c: c's file with three SNPs written the other way round trains the same model, bit by bit."""
    study = make_study(("variants",), "abc", federation__quorum=2, federation__timeout=2)

    def trained(name: str, swapped: Sequence[int]) -> Run:
        there = [
            variant_site(tmp_path / name / site, site, seed, swapped=swapped if site == "c" else ()) for site, seed in (("b", 1), ("c", 2))
        ]
        return federate(study, there, tmp_path / f"run-{name}")

    straight, turned = trained("straight", ()), trained("turned", (0, 1, 4))
    assert straight.panel == turned.panel
    assert all(torch.equal(value, turned.arrays[key]) for key, value in straight.arrays.items())
    assert straight.final["metrics"] == turned.final["metrics"]
