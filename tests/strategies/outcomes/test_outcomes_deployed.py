"""Analyses of outcomes on a real federation on loopback: TLS SuperLink, registered node keys, one gated process a site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_deployed_regressions_and_treatments_have_the_local_tables_and_verify(tmp_path: Path) -> None:
    drawn = Drawn(persons=(600, 500), step=300.0, policy='[policy]\ncentre = "curious"\nmin_count = 5\nmax_analyses = 6\n')
    write_sites(tmp_path, drawn)
    arms = {"column": "arm", "covariates": ["age", "sex"]}
    two: dict[str, Any] = {"task": "classification", "target": "b", "more": {"classes": [0, 1]}}
    weighed = {"covariates": ["age"], "ties": "breslow", "weights": "w"}
    of_times = ("outcomes.json", "curves.tsv", "tests.tsv", "outcomes.html")
    plans = {
        "glm": ("glm", study_of(drawn, name="glm", **two, glm={"covariates": ["age", "arm"], "standardise": "arm"}),
                ("outcomes.json", "glm.tsv", "meta.tsv", "standardised.tsv", "outcomes.html")),
        "treatment": ("glm", study_of(drawn, name="treatment", task="regression", target="y", treatment=arms),
                      ("outcomes.json", "treatment.tsv", "balance.tsv", "outcomes.html")),
        "curves": ("survival", study_of(drawn, name="curves", treatment=arms), of_times),
        "weighted": ("survival", study_of(drawn, name="weighted", cox=weighed, columns=["w"]),
                     ("outcomes.json", "cox.tsv", "meta.tsv")),
    }  # fmt: skip
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=tmp_path)
    try:
        assert done.returncode == 0, done.stderr
        for name, (job, study, files) in plans.items():
            (tmp_path / f"{name}.toml").write_text(toml_of(json.loads(study.canonical)))
            for site in study.federation.sites:
                approved = command("fedml-site", "approve", f"{name}.toml", "--site", f"sites/{site}", "--yes", cwd=tmp_path)
                assert approved.returncode == 0, approved.stderr
            words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json")
            done = command("fedml", job, f"{name}.toml", *words, cwd=tmp_path)
            assert done.returncode == 0, (name, done.stderr)
            real = json.loads(done.stdout.strip().splitlines()[-1])["folder"]
            local = command("fedml", job, f"{name}.toml", "--sites", "sites", "--no-track", "--json", cwd=tmp_path)
            assert local.returncode == 0, local.stderr
            here = json.loads(local.stdout.strip().splitlines()[-1])["folder"]
            for file in files:
                assert (tmp_path / real / file).read_bytes() == (tmp_path / here / file).read_bytes(), (name, file)
            assert command("fedml", "bundle", real, "--out", f"{name}.zip", cwd=tmp_path).returncode == 0
            verified = command("fedml", "verify", f"{name}.zip", cwd=tmp_path)
            assert verified.returncode == 0, verified.stdout + verified.stderr
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=tmp_path)
