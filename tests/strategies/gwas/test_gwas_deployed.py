"""An association study on a real federation on loopback: TLS SuperLink, registered node keys, one gated process a site."""

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
name = "severity"
question = "Which variants go with severity?"
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
covariates = ["age", "sex"]
components = 2
block = 70
[federation]
sites = ["oslo", "porto", "utrecht"]
rounds = 1
timeout = 60
"""


def test_deployed_the_table_is_that_of_the_local_engine_and_every_step_is_in_the_journals(tmp_path: Path) -> None:
    (tmp_path / "severity.toml").write_text(STUDY)
    assert command("fedml", "synth", "sites", "--persons", "100", cwd=tmp_path).returncode == 0
    try:
        done = command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for name in SITES:
            reported = command("fedml-site", "approve", "severity.toml", "--site", f"sites/{name}", "--yes", cwd=tmp_path)
            assert reported.returncode == 0, reported.stderr
            assert "association (`fedml gwas`) of each variant with severity, adjusted for age, sex" in reported.stdout
        words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json")
        done = command("fedml", "gwas", "severity.toml", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        real = json.loads(done.stdout.strip().splitlines()[-1])
        local = command("fedml", "gwas", "severity.toml", "--sites", "sites", "--no-track", "--json", cwd=tmp_path)
        assert local.returncode == 0, local.stderr
        in_process = json.loads(local.stdout.strip().splitlines()[-1])
        tables = [gzip.decompress((tmp_path / reported["folder"] / "gwas.tsv.gz").read_bytes()) for reported in (real, in_process)]
        assert tables[0] == tables[1]
        assert tables[0].count(b"\n") > 50
        assert real["checks"] == in_process["checks"]
        phases = ["describe", "genotypes", "covariates", "subspace", "null", "association"]
        for name in SITES:
            journal = tmp_path / "sites" / name / ".fedml" / "journal.jsonl"
            events = (tmp_path / real["folder"] / "events.jsonl").read_text().splitlines()
            head, count = next(json.loads(line) for line in reversed(events) if '"gwas"' in line[:20])["sites"][name]["journal"]
            assert verify(journal, head, count) == []
            reported = [e for e in entries(journal) if e.direction == "out"]
            assert all(e.verdict == "accepted" for e in reported)
            assert list(dict.fromkeys(e.phase for e in reported)) == phases
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)
