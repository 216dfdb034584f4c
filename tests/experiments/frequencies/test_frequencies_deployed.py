"""`fedml frequencies` on a real federation on loopback: byte for byte the local table, every step in the journals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fedml.clients.gate.journal import entries, verify
from tests.command import command
from tests.experiments.frequencies.sites import PERSONS, drawn, study_file, written

pytestmark = pytest.mark.long


def test_deployed_the_table_is_that_of_the_local_engine_and_of_the_simulation(tmp_path: Path) -> None:
    written(tmp_path / "sites", drawn())
    file = study_file(tmp_path, block=20)
    try:
        done = command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for name in PERSONS:
            shown = command("fedml-site", "approve", file, "--site", f"sites/{name}", "--yes", cwd=tmp_path)
            assert shown.returncode == 0, shown.stderr
            assert "allele frequencies (`fedml frequencies`) of each variant" in shown.stdout
        found = []
        engines = (("--engine", "deployment", "--superlink", "sites"), ("--sites", "sites"), ("--engine", "simulation", "--sites", "sites"))
        for words in engines:
            done = command("fedml", "frequencies", file, *words, "--no-track", "--json", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        tables = [gzip.decompress((tmp_path / one["folder"] / "frequencies.tsv.gz").read_bytes()) for one in found]
        assert tables[0] == tables[1] == tables[2]
        assert tables[0].count(b"\n") > 50
        for name in PERSONS:
            journal = tmp_path / "sites" / name / ".fedml" / "journal.jsonl"
            events = (tmp_path / found[0]["folder"] / "events.jsonl").read_text().splitlines()
            head, count = next(json.loads(line) for line in events if '"frequencies"' in line[:30])["sites"][name]["journal"]
            assert verify(journal, head, count) == []
            sent = [e for e in entries(journal) if e.direction == "out"]
            assert all(e.verdict == "accepted" for e in sent)
            assert [e.phase for e in sent] == ["describe", "genotypes", "frequencies", "frequencies", "frequencies"]
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)
