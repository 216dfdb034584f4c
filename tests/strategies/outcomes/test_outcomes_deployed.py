"""`fedml survival` and `fedml describe` on a real federation on loopback: TLS SuperLink, registered node keys, one gated process a site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedml.clients.gate.journal import verify
from tests.command import command
from tests.outcomes import Drawn, study_of, write_sites

pytestmark = pytest.mark.long


def test_deployed_the_tables_are_those_of_the_local_engine_and_the_steps_are_in_the_journals(tmp_path: Path) -> None:
    drawn = Drawn(persons=(500, 400), step=150.0, policy='[policy]\ncentre = "curious"\nmin_count = 5\n')
    write_sites(tmp_path, drawn)
    cox = {"covariates": ["age", "sex"], "ties": "breslow"}
    study = study_of(drawn, curves={"groups": "arm"}, cox=cox, describe={"groups": "arm"})
    path = tmp_path / "trial.toml"
    path.write_text(toml_of(json.loads(study.canonical)))
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path)
    try:
        assert done.returncode == 0, done.stderr
        for name in study.federation.sites:
            approved = command("fedml-site", "approve", path.name, "--site", f"sites/{name}", "--yes", cwd=tmp_path)
            assert approved.returncode == 0, approved.stderr
            assert "Cox regression (`fedml survival`) on age, sex" in approved.stdout
        for job, files in (
            ("survival", ("outcomes.json", "curves.tsv", "cox.tsv", "meta.tsv", "outcomes.html")),
            ("describe", ("table1.csv",)),
        ):
            words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json")
            done = command("fedml", job, path.name, *words, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            real = json.loads(done.stdout.strip().splitlines()[-1])
            local = command("fedml", job, path.name, "--sites", "sites", "--no-track", "--json", cwd=tmp_path)
            assert local.returncode == 0, local.stderr
            here = json.loads(local.stdout.strip().splitlines()[-1])
            assert real["metrics"] == here["metrics"]
            for file in files:
                assert (tmp_path / real["folder"] / file).read_bytes() == (tmp_path / here["folder"] / file).read_bytes(), file
            events = (tmp_path / real["folder"] / "events.jsonl").read_text().splitlines()
            event = next(json.loads(line) for line in reversed(events) if json.loads(line)["event"] == "outcomes")
            for name in study.federation.sites:
                head, count = event["sites"][name]["journal"]
                assert verify(tmp_path / "sites" / name / ".fedml" / "journal.jsonl", head, count) == []
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)


def toml_of(plan: dict[str, object], prefix: str = "") -> str:
    """A study's plan as TOML: tables after the values of their section; null is left out."""
    values = {key: value for key, value in plan.items() if value is not None and not isinstance(value, dict)}
    lines = [f"[{prefix}]"] if prefix else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for key, value in plan.items():
        if isinstance(value, dict):
            lines.append(toml_of(value, f"{prefix}.{key}" if prefix else key))
    return "\n".join(lines)
