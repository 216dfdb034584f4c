"""A whole-genome regression on a real federation on loopback gives the table of the local engine, byte for byte."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fedml.clients.gate.journal import entries
from tests.command import command

pytestmark = pytest.mark.long

SITES = ("oslo", "porto", "utrecht")
STUDY = """
[study]
name = "disease-poly"
question = "Which variants go with the disease?"
purpose = "DUO:0000042"
seed = 2
[cohort]
inputs = ["variants", "clinical"]
target = "disease"
[cohort.clinical]
columns = ["age", "sex"]
[gwas]
covariates = ["age"]
components = 0
min_mac = 0
block = 70
[gwas.polygenic]
block = 20
folds = 2
ridge = [0.1, 0.5]
min_maf = 0.1
[federation]
sites = ["oslo", "porto", "utrecht"]
rounds = 1
timeout = 120
"""


def test_deployed_the_table_is_that_of_the_local_engine(tmp_path: Path) -> None:
    (tmp_path / "disease.toml").write_text(STUDY)
    assert command("fedml", "synth", "sites", "--persons", "240", cwd=tmp_path).returncode == 0
    try:
        done = command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for name in SITES:
            reported = command("fedml-site", "approve", "disease.toml", "--site", f"sites/{name}", "--yes", cwd=tmp_path)
            assert reported.returncode == 0, reported.stderr
            assert "whole-genome regression ([gwas.polygenic])" in reported.stdout
        words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json")
        done = command("fedml", "gwas", "disease.toml", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        real = json.loads(done.stdout.strip().splitlines()[-1])
        local = command("fedml", "gwas", "disease.toml", "--sites", "sites", "--no-track", "--json", cwd=tmp_path)
        assert local.returncode == 0, local.stderr
        in_process = json.loads(local.stdout.strip().splitlines()[-1])
        tables = [gzip.decompress((tmp_path / reported["folder"] / "gwas.tsv.gz").read_bytes()) for reported in (real, in_process)]
        assert tables[0] == tables[1]
        assert tables[0].count(b"\n") > 50
        for name in SITES:
            told = [e for e in entries(tmp_path / "sites" / name / ".fedml" / "journal.jsonl") if e.direction == "out"]
            assert all(e.verdict == "accepted" for e in told)
            assert {"folds", "blocks", "level", "ridge", "null", "association"} <= {e.phase for e in told}
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)
