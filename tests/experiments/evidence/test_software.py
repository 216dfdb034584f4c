"""A run says by which code of this software it was made, and an edited file of it is noticed wherever runs meet."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedml.clients.site.manifest import find_sites
from fedml.experiments.compare.train import _differences, _recorded
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.reproduce import reproduce
from fedml.experiments.evidence.verify import verify
from fedml.experiments.report.page import render
from fedml.experiments.runs.record import read_record
from fedml.experiments.runs.run import new_run, run
from fedml.runs import software
from fedml.runs.log import EVENTS
from fedml.tracking.pages import code_tags
from tests.command import ROOT
from tests.conftest import clinical_site, make_study
from tests.evidence import KEY, events, finished, rebuilt

FOLDERS = ("fedml", "clients", "strategies", "experiments")
PRINT = "import json; from fedml.runs.software import software; print(json.dumps(software()))"


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def told(folder: Path) -> dict[str, str]:
    """What a process says whose ``fedml`` lies in ``folder``."""
    done = subprocess.run([sys.executable, "-B", "-c", PRINT], cwd=folder, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_checkout_with_an_edited_file_is_noticed(tmp_path: Path) -> None:
    here = tmp_path / "checkout"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, here / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (here / "README.md").write_text("before\n")
    bare = told(here)
    assert (bare["commit"], bare["version"]) == ("none", "0.1.0")
    git(here, "init", "-q")
    git(here, "add", "README.md")
    git(here, "commit", "-qm", "not the code")
    assert told(here) == bare, "the tree is git's, the code in it is not"
    git(here, "add", ".")
    git(here, "commit", "-qm", "code")
    clean = told(here)
    assert clean == {**bare, "commit": git(here, "rev-parse", "HEAD")}
    (here / "README.md").write_text("after\n")
    assert told(here) == clean, "a text that is no code"
    file = here / "clients" / "work" / "frames.py"  # beneath a folder that is a link in the package
    file.write_text(file.read_text() + "\n# edited\n")
    edited = told(here)
    assert edited["commit"] == clean["commit"] + "+changes"
    assert edited["sha256"] != clean["sha256"]
    git(here, "checkout", "-q", "--", "clients")
    assert told(here)["sha256"] == clean["sha256"]
    (here / "fedml" / "runs" / "extra.py").write_text("x = 1\n")
    assert told(here)["commit"] == clean["commit"] + "+changes"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run.zip``, its run in ``runs`` and its sites."""
    folder = tmp_path_factory.mktemp("software")
    for seed, name in enumerate("ab"):
        clinical_site(folder / "sites" / name, name, 120, seed)
    write_bundle(finished(make_study(), folder), folder / "run.zip", KEY)
    return folder


def test_a_run_its_report_its_bundle_and_its_tags_name_the_code(made: Path) -> None:
    (folder,) = (made / "runs").iterdir()
    record = read_record(folder)
    code = record.start.code
    assert code is not None
    assert code == told(ROOT)
    assert {site.policy["code_sha256"] for site in record.sites if site.policy} == {code["sha256"]}
    page = render(record)
    assert f"Made by fedml-cohorts {code['version']}, files {code['sha256'][:12]}" in page
    assert page.count(code["sha256"]) >= 2, "one for each site"
    assert (code["commit"].endswith("+changes")) == ("with uncommitted changes: no published version has it" in page)
    assert code_tags(record.start)["fedml.code.sha256"] == code["sha256"]
    assert f"sha256:{code['sha256']}" in unpack(made / "run.zip")["ro-crate-metadata.json"].decode()
    found = verify(made / "run.zip")
    assert found.ok
    assert next(c.text for c in found.checks if c.name == "software") == f"the run was made by {software.words(code)}"


def other(made: Path, out: Path, site: str = "") -> Path:
    """The bundle of the same run by code that was edited; ``site``: only this site's code was."""

    def change(rows: list[dict[str, Any]]) -> None:
        if site:
            next(r for r in rows if r["event"] == "agreed")["disclosed"][site]["policy"]["code_sha256"] = "1" * 64
        else:
            rows[0]["code"] = {"version": "0.1.0", "sha256": "0" * 64, "commit": "f" * 40 + "+changes"}

    files = unpack(made / "run.zip")
    return rebuilt(files, out, {EVENTS: events(files, change)})


def test_verify_says_who_used_other_code(made: Path, tmp_path: Path) -> None:
    def text(bundle: Path) -> str:
        found = verify(bundle)
        assert found.ok, [c for c in found.checks if not c.ok]
        return next(c.text for c in found.checks if c.name == "software")

    said = text(other(made, tmp_path / "centre.zip"))
    assert "files 000000000000, git commit ffffffffffff with uncommitted changes" in said
    assert "this verification is by other code" in said
    said = text(other(made, tmp_path / "site.zip", site="b"))
    assert said.endswith("b answered by other code, 111111111111")


def test_reproduce_and_compare_say_when_the_code_was_another(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    sites = find_sites(made / "sites", study.federation.sites)[0]
    found = reproduce(unpack(other(made, tmp_path / "o.zip")), sites, tmp_path / "again", lambda _: None)
    assert found.equal, "the code is told, the bits decide"
    (line,) = found.differences
    assert line.where == "software"
    assert "made by other code of this software" in line.text
    (folder,) = (made / "runs").iterdir()
    first = read_record(folder)
    assert _differences(first, read_record(found.run)) == []
    data = {site.name: str(site.dataset) for site in first.sites}
    assert _recorded(study, data, made / "runs") == folder
    monkeypatch.setattr(software, "code_digest", lambda: "2" * 64)  # the files were edited between the two runs
    assert _recorded(study, data, made / "runs") is None, "a comparison does not take a run of other code for its own"
    edited = new_run(study, tmp_path / "edited", None, engine="local", job="train")
    assert run(study, sites, edited).status == "finished"
    (said,) = _differences(first, read_record(edited))
    assert "files 222222222222" in said


def test_a_run_from_before_is_read_and_says_nothing(made: Path, tmp_path: Path) -> None:
    files = unpack(made / "run.zip")
    old = rebuilt(files, tmp_path / "old.zip", {EVENTS: events(files, lambda rows: rows[0].pop("code"))})
    found = verify(old)
    assert found.ok
    assert "the run does not say by which code" in next(c.text for c in found.checks if c.name == "software")
