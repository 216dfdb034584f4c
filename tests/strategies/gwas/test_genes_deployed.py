"""Tests of genes on a real federation on loopback: TLS SuperLink, registered node keys, one gated process a site."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fedml.clients.gate.journal import entries, verify
from tests.command import command

pytestmark = pytest.mark.long

SITES = ("oslo", "porto", "utrecht")
STUDY = """
[study]
name = "rare"
question = "Which genes go with severity?"
purpose = "DUO:0000042"
seed = 2
[cohort]
inputs = ["variants", "clinical"]
target = "severity"
[cohort.clinical]
columns = ["age", "sex"]
[model]
task = "regression"
[gwas]
covariates = ["age"]
components = 0
[gwas.genes]
file = "annotation.tsv"
max_maf = 0.05
min_alleles = 10
block = 7
[federation]
sites = ["oslo", "porto", "utrecht"]
rounds = 1
timeout = 60
"""


def write_annotation(folder: Path) -> None:
    """Ten consecutive variants of the synthetic sites are a gene; every third is a loss of function."""
    with gzip.open(folder / "sites" / "oslo" / "cohort.vcf.gz", "rt") as file:
        names = [line.split("\t", 3)[2] for line in file if not line.startswith("#")]
    rows = [f"{name}\tGENE{at // 10}\t{'missense_variant' if at % 3 else 'stop_gained'}" for at, name in enumerate(names)]
    (folder / "annotation.tsv").write_text("\n".join(["variant\tgene\tconsequence", *rows]) + "\n")


def test_deployed_the_table_is_that_of_the_local_engine_and_every_step_is_in_the_journals(tmp_path: Path) -> None:
    (tmp_path / "rare.toml").write_text(STUDY)
    assert command("fedml", "synth", "sites", "--persons", "200", cwd=tmp_path).returncode == 0
    write_annotation(tmp_path)
    try:
        done = command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for name in SITES:
            approved = command("fedml-site", "approve", "rare.toml", "--site", f"sites/{name}", "--yes", cwd=tmp_path)
            assert approved.returncode == 0, approved.stderr
            assert "tests of genes (`fedml genes`) with severity, adjusted for age" in approved.stdout
        words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json")
        done = command("fedml", "genes", "rare.toml", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        real = json.loads(done.stdout.strip().splitlines()[-1])
        local = command("fedml", "genes", "rare.toml", "--sites", "sites", "--no-track", "--json", cwd=tmp_path)
        assert local.returncode == 0, local.stderr
        in_process = json.loads(local.stdout.strip().splitlines()[-1])
        tables = [gzip.decompress((tmp_path / found["folder"] / "genes.tsv.gz").read_bytes()) for found in (real, in_process)]
        assert tables[0] == tables[1]
        assert tables[0].count(b"\n") > 5
        assert real["checks"] == in_process["checks"]
        assert real["metrics"]["left_out"] == in_process["metrics"]["left_out"]
        for name in SITES:
            journal = tmp_path / "sites" / name / ".fedml" / "journal.jsonl"
            events = (tmp_path / real["folder"] / "events.jsonl").read_text().splitlines()
            head, count = next(json.loads(line) for line in reversed(events) if '"genes"' in line[:20])["sites"][name]["journal"]
            assert verify(journal, head, count) == []
            answered = [e for e in entries(journal) if e.direction == "out"]
            assert all(e.verdict == "accepted" for e in answered)
            assert list(dict.fromkeys(e.phase for e in answered)) == ["describe", "genotypes", "covariates", "null", "genes"]
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)
