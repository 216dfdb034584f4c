"""A private study states its variants: then no site says which variants its persons carry, and a centre that is not trusted is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.study.study import Study
from tests.clients.gate.centre import Centre
from tests.command import quick
from tests.conftest import make_study, to_toml, write_csv, write_manifest, write_vcf

VARIANTS, PERSONS = 12, 80
STATED = [f"21:{1000 + 10 * v}:A:G" for v in range(VARIANTS)]
CALLS = {0: "0/0", 1: "0/1", 2: "1/1", -1: "./."}


def plan(listed: list[str] = STATED, **changes: Any) -> Study:
    private = {"unit": "patient", "epsilon": 8.0, "delta": 1e-3, "persons": {"a": 48}, "metrics": "private"}
    settings = {"cohort__variants": {"listed": listed}, "federation__rounds": 2, "training__optimizer": "sgd", "training__lr": 0.5}
    return make_study(("variants",), sites=("a",), privacy=private, **{**settings, **changes})


def site(folder: Path, dosage: Any) -> Path:
    """A site of real persons with max_epsilon, whose file has the variants that anybody carries, as a cohort's own calls have them."""
    folder.mkdir()
    ids = [f"a{k:03d}" for k in range(len(dosage))]
    write_csv(folder / "persons.csv", ids, {"y": (dosage[:, 2] + dosage[:, 5] > 1).astype(int)})
    carried = [v for v in range(VARIANTS) if (dosage[:, v] > 0).any()]
    records = [("21", 1000 + 10 * v, f"rs{v}", "A", "G", [CALLS[int(d)] for d in dosage[:, v]]) for v in carried]
    write_vcf(folder / "cohort.vcf.gz", ids, records)
    manifest = write_manifest(folder, "a", variants='{ path = "cohort.vcf.gz", build = "GRCh38" }')
    manifest.write_text(manifest.read_text().replace("public = true\n", "") + "\n[policy]\nmax_epsilon = 100\nmax_runs = 100\n")
    return folder


@pytest.fixture
def dosage() -> Any:
    return np.random.default_rng(4).binomial(2, 0.3, (PERSONS, VARIANTS)).astype(np.int8)


@pytest.mark.parametrize("carriers", [0, 1])
def test_what_a_site_says_of_its_variants_is_the_same_with_and_without_a_carrier(tmp_path: Path, dosage: Any, carriers: int) -> None:
    dosage[:, 7] = 0
    dosage[:carriers, 7] = 1
    centre = Centre(plan(), site(tmp_path / "a", dosage))
    assert centre.ask("describe", 0, 1) == ""
    said = centre.answered[-1][1]
    assert said["described/panel"].tobytes().decode().splitlines() == [line.replace(":", "\t").replace("\tA", "\t.\tA") for line in STATED]
    assert not said["described/notes"].any()


@pytest.mark.parametrize(
    "listed", [[], [f"rs{v}" for v in range(VARIANTS)], [*STATED[:-1], "rs11"], [*STATED[:-1], "chr21:1110:A:G"], ["21:\u0661:A:G"]]
)
def test_a_list_of_the_sites_own_variants_is_refused(tmp_path: Path, dosage: Any, listed: list[str]) -> None:
    centre = Centre(plan(listed), site(tmp_path / "a", dosage))
    assert centre.ask("describe", 0, 1) == "centre-distrusted"


def test_a_run_is_answered_to_its_end(tmp_path: Path, dosage: Any) -> None:
    dosage[:, 7] = 0  # stated, and nobody has it
    centre = Centre(plan(), site(tmp_path / "a", dosage))
    agreed = centre.agree(1)
    assert len(agreed.panel.splitlines()) == VARIANTS
    weights = centre.first(agreed)
    for number in (1, 2):
        assert centre.ask("round", number, 1, agreed, weights) == ""
        weights = {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}
    assert centre.ask("evaluate", 2, 1, agreed, weights) == ""
    learned = weights["encoder.variants.weight"]
    assert learned.shape[1] == VARIANTS
    assert np.abs(learned).max() > 0


def test_check_names_stated_variants_that_the_file_lacks(tmp_path: Path, dosage: Any) -> None:
    dosage[:, 7] = 0
    folder = site(tmp_path / "a", dosage)
    (tmp_path / "study.toml").write_text(to_toml(plan().model_dump(mode="json", exclude_none=True)))
    found = quick("fedml-site", "check", "study.toml", "--site", folder, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert f"1 of {VARIANTS} stated variants are not in the file, such as {STATED[7]}: missing for every person" in found.stdout
    (tmp_path / "study.toml").write_text(to_toml(plan(STATED[:7] + STATED[8:]).model_dump(mode="json", exclude_none=True)))
    assert "stated variants" not in quick("fedml-site", "check", "study.toml", "--site", folder, cwd=tmp_path).stdout
