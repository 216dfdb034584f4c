"""A real federation in which one hospital only tests the final model: SuperLink, SuperNodes, gates; equal to the local engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedml.clients.gate.journal import entries, verify
from tests.command import command, run_json
from tests.experiments.federation.test_federation import STUDY, make_site

pytestmark = pytest.mark.long

NAMES = ("oslo", "porto", "rotterdam")
TRIAL = STUDY.replace('sites = ["oslo", "porto", "utrecht"]', 'sites = ["oslo", "porto", "rotterdam"]\nevaluate_only = ["rotterdam"]')


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("external")
    for number, name in enumerate(NAMES):
        make_site(folder / "sites" / name, name, number)
    manifest = folder / "sites" / "rotterdam" / "site.toml"  # persons who are not declared public, at a site that is curious about nothing
    manifest.write_text(manifest.read_text().replace("public = true\n", "") + 'centre = "curious"\n')
    (folder / "trial.toml").write_text(TRIAL)
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=folder)
    try:
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        command("fedml", "federation", "down", "--sites", "sites", cwd=folder)


def approve(work: Path, name: str, *more: str) -> str:
    done = command("fedml-site", "approve", "trial.toml", "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", *more, cwd=work)
    assert done.returncode == 0, done.stderr
    return done.stdout


def deploy(work: Path) -> dict[str, object]:
    words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json")
    done = command("fedml", "run", "trial.toml", *words, cwd=work)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def test_a_site_that_only_tests_in_a_real_federation(work: Path) -> None:
    for name in ("oslo", "porto"):
        approve(work, name)
    shown = approve(work, "rotterdam")
    assert "external validation: rotterdam" in shown
    assert "every request will be refused" in shown
    without = deploy(work)
    assert "external" not in without["metrics"]  # type: ignore[operator]
    path = work / "sites" / "rotterdam" / ".fedml" / "journal.jsonl"
    assert {e.reason for e in entries(path) if e.verdict == "refused"} == {"centre-distrusted"}

    approve(work, "rotterdam", "--trust-centre", "we run it")
    found = deploy(work)
    local = run_json("trial.toml", "--sites", "sites", "--no-track", cwd=work)
    assert found["weights_sha256"] == local["weights_sha256"] == without["weights_sha256"]
    assert found["metrics"] == local["metrics"]
    assert found["metrics"]["external"]["persons"] == 60  # type: ignore[index]
    assert verify(path) == []
    answered = [e.phase for e in entries(path) if (e.direction, e.verdict) == ("out", "accepted")]
    assert answered == ["describe", "evaluate"]
