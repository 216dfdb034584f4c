"""The table of an association over a whole genome, and its metadata, by the GWAS Catalog's own validator (gwas-sumstats-tools, EBI)."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.cohort.variants.builds import LENGTHS
from fedml.experiments.runs.run import run_nodes
from fedml.study.study import Study, validate
from tests.conftest import write_bed, write_csv, write_manifest

pytestmark = pytest.mark.long

SITES, PERSONS, VARIANTS = ("oslo", "porto"), 120, 105_000
SPELLED = [("A", "G"), ("C", "T"), ("A", "C"), ("G", "T"), ("AT", "A"), ("C", "CGG")]
_MODEL = """
import sys, yaml
from gwas_sumstats_tools.schema.metadata import SumStatsMetadata
print(SumStatsMetadata.parse_obj(yaml.safe_load(open(sys.argv[1]))).json())
"""


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("FEDML_SSF_PYTHON")
    if not found:
        pytest.skip("FEDML_SSF_PYTHON names no Python with gwas-sumstats-tools; it needs pandas 1.5 and pydantic 1, so its own environment")
    return found


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, python: str) -> Path:
    """Every chromosome of GRCh38 to X, in proportion to its length."""
    folder, random = tmp_path_factory.mktemp("genome"), np.random.default_rng(5)
    lengths = {name: length for name, length in LENGTHS["GRCh38"].items() if name != "Y"}
    share = VARIANTS / sum(lengths.values())
    keys: list[tuple[str, int, str, str, str]] = []
    for name, length in lengths.items():
        first = 3_000_000 if name == "X" else 1  # after the pseudoautosomal region
        places = np.sort(random.choice((min(length, 155_000_000) - first) // 60, int(share * length) + 1, replace=False)) * 60 + first
        for place in places.tolist():
            keys.append((name, place, f"rs{len(keys) + 1}", *SPELLED[int(random.integers(len(SPELLED)))]))
    frequency, on_x = random.uniform(0.15, 0.5, len(keys)), np.array([key[0] == "X" for key in keys])
    for site in SITES:
        ids, man = [f"{site}-{at}" for at in range(PERSONS)], random.random(PERSONS) < 0.5
        dosage = random.binomial(2, frequency, (PERSONS, len(keys))).astype(np.int8)
        one = np.ix_(man, on_x)
        dosage[one] = 2 * (dosage[one] > 0)
        height = random.normal(size=PERSONS) + 1.2 * dosage[:, 10]
        here = folder / "sites" / site
        write_manifest(here, site, variants='{ path = "cohort.bed", build = "GRCh38" }')
        write_csv(here / "persons.csv", ids, {
            "height": height.round(3), "tall": (height > 0.5).astype(int), "sex": np.where(man, "M", "F"),
        })  # fmt: skip
        write_bed(here / "cohort.bed", ids, keys, dosage)
    return folder


def analysed(folder: Path, target: str, **cohort: Any) -> Path:
    """The run's folder, by the local engine."""
    plan = {
        "study": {"name": target, "question": f"Which variants go with {target}?", "purpose": "DUO:0000042"},
        "cohort": {"inputs": ["variants"], "target": target, **cohort},
        "model": {"task": "classification" if "classes" in cohort else "regression"},
        "gwas": {"components": 0}, "federation": {"sites": list(SITES)},
    }  # fmt: skip
    run = folder / target
    run.mkdir()
    nodes = [{"manifest": str((folder / "sites" / site / "site.toml").resolve())} for site in SITES]
    run_nodes(validate(Study, plan, target), nodes, run, "gwas")
    return run


def validated(python: str, table: Path, *words: str) -> tuple[int, str]:
    line = [str(Path(python).parent / "gwas-ssf"), "validate", str(table), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=1200, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_whole_genome_table_and_its_metadata_are_valid(python: str, sites: Path) -> None:
    """With the validator's own smallest number of rows, 100,000."""
    variants = {"build": "GRCh38", "sex": {"column": "sex", "male": "M", "female": "F"}}
    run = analysed(sites, "height", variants=variants)
    table = run / "gwas.tsv.gz"
    assert gzip.decompress(table.read_bytes()).count(b"\n") > 100_001
    for words in ((), ("--infer-from-metadata",)):
        code, said = validated(python, table, *words)
        assert code == 0, said
        assert "Data table is valid" in said
    checked = subprocess.run([python, "-c", _MODEL, f"{table}-meta.yaml"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    found = json.loads(checked.stdout)
    assert found["genome_assembly"] == "GRCh38"
    assert found["samples"][0]["sample_size"] == len(SITES) * PERSONS
    assert found["file_type"] == "GWAS-SSF v1.0"


def test_a_table_of_two_classes_is_valid_and_a_harmed_one_is_not(python: str, sites: Path, tmp_path: Path) -> None:
    variants = {"build": "GRCh38", "sex": {"column": "sex", "male": "M", "female": "F"},
                "regions": [f"{name}:1-9000000" for name in (*map(str, range(1, 23)), "X")]}  # fmt: skip
    run = analysed(sites, "tall", classes=[0, 1], variants=variants)
    code, said = validated(python, run / "gwas.tsv.gz", "--min-rows", "1000")
    assert code == 0, said
    assert "Data table is valid" in said
    lines = gzip.decompress((run / "gwas.tsv.gz").read_bytes()).decode().splitlines()
    column = lines[0].split("\t").index("p_value")
    for harm in ("1.7", "-0.1", "much"):
        cells = lines[5].split("\t")
        cells[column] = harm
        path = tmp_path / "gwas.tsv.gz"
        path.write_bytes(gzip.compress("\n".join([*lines[:5], "\t".join(cells), *lines[6:], ""]).encode()))
        code, said = validated(python, path, "--min-rows", "1000")
        assert "Data table is valid" not in said, harm
