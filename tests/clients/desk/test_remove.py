"""``fedml-site remove``, as a process: what it deletes, keeps, refuses, and finishes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fedml.clients.gate.journal import entries, verify
from fedml.clients.service import claim_site
from fedml.flower.keys import write_node_key
from tests.command import quick as command
from tests.conftest import clinical_site, make_plan, to_toml

DATA = ("clinical.csv", "persons.csv")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with a key, an approval, a cache, logs and a ledger, and files that only the hospital knows."""
    folder = tmp_path / "a"
    clinical_site(folder, "a", 60, seed=1)
    with (folder / "site.toml").open("a") as file:
        file.write('[connection]\nsuperlink = "localhost:1"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')
    write_node_key(folder / "node.key")
    (folder / "ca.pem").write_text("x")
    (folder / "notes.txt").write_text("of the hospital")
    (tmp_path / "study.toml").write_text(to_toml(make_plan()))
    assert command("fedml-site", "approve", "study.toml", "--site", "a", "--yes", cwd=tmp_path).returncode == 0
    state = folder / ".fedml"
    for name in ("ledger.db", "released.db", "site.log", "site.log.1", "supernode.log", "runtime.secret", "site.pid", "proxy", "own.txt"):
        (state / name).write_text(name)
    for name in ("cache/x/y.npy", "course/r/1.safetensors", "pins/r.json"):
        (state / name).parent.mkdir(parents=True)
        (state / name).write_text(name)
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


KEPT = {"journal.head", "journal.jsonl", "ledger.db", "released.db", "own.txt"}


def test_what_is_deleted_and_what_is_kept(site: Path) -> None:
    before = {name: (site / name).read_bytes() for name in (*DATA, "site.toml", "ca.pem", "notes.txt")}
    done = command("fedml-site", "remove", "--site", "a", "--yes", cwd=site.parent)
    assert done.returncode == 0, done.stderr
    assert {name for name in names(site / ".fedml") if not name.startswith("studies/")} == KEPT
    assert len(list((site / ".fedml" / "studies").iterdir())) == 1
    assert {path.name for path in site.iterdir()} == {*before, ".fedml"}
    assert {name: (site / name).read_bytes() for name in before} == before
    assert verify(site / ".fedml" / "journal.jsonl") == []
    assert [entry.reason for entry in entries(site / ".fedml" / "journal.jsonl")] == ["approve", "remove"]
    for text in ("node.key: the node key", "keeps (--with-journal", "own.txt: not written by this program", "fedml federation remove a"):
        assert text in done.stdout
    again = command("fedml-site", "remove", "--site", "a", "--yes", cwd=site.parent)
    assert again.returncode == 0
    assert "removed already" in again.stdout


def test_with_the_journal_nothing_of_the_program_stays(site: Path) -> None:
    (site / ".fedml" / "own.txt").unlink()
    done = command("fedml-site", "remove", "--site", "a", "--yes", "--with-journal", cwd=site.parent)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in site.iterdir()} == {*DATA, "site.toml", "ca.pem", "notes.txt"}


@pytest.mark.parametrize(("answer", "code"), [("n\n", 0), ("", 1)], ids=["no", "no terminal"])
def test_without_a_yes_nothing_happens(site: Path, answer: str, code: int) -> None:
    before = names(site)
    from fedml.flower.superlink import command_path

    words = [command_path("fedml-site"), "remove", "--site", "a"]
    done = subprocess.run(words, cwd=site.parent, input=answer, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code
    assert "node.key" in done.stdout
    assert names(site) == before


def test_a_running_site_is_not_removed(site: Path) -> None:
    before = names(site)
    claim = claim_site(site / ".fedml")
    try:
        done = command("fedml-site", "remove", "--site", "a", "--yes", cwd=site.parent)
    finally:
        claim.close()
    assert done.returncode == 2
    assert "is running" in done.stderr
    assert "stop the service first" in done.stderr
    assert names(site) == before


def test_a_removal_that_was_interrupted_is_finished(site: Path) -> None:
    (site / "node.key").unlink()
    (site / ".fedml" / "approvals.json").unlink()
    shutil.rmtree(site / ".fedml" / "cache" / "x")
    done = command("fedml-site", "remove", "--site", "a", "--yes", cwd=site.parent)
    assert done.returncode == 0, done.stderr
    assert {name for name in names(site / ".fedml") if not name.startswith("studies/")} == KEPT
    assert not (site / "node.key.pub").exists()


@pytest.mark.long
def test_a_removal_that_is_killed_is_finished_by_the_next(site: Path) -> None:
    from fedml.flower.superlink import command_path

    for k in range(3000):
        (site / ".fedml" / "cache" / f"{k}").mkdir()
    process = subprocess.Popen([command_path("fedml-site"), "remove", "--site", "a", "--yes"], cwd=site.parent, stdout=subprocess.DEVNULL)
    while (site / "node.key").exists() and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert (site / ".fedml" / "course").exists(), "it was killed on its way"
    done = command("fedml-site", "remove", "--site", "a", "--yes", cwd=site.parent)
    assert done.returncode == 0, done.stderr
    assert {name for name in names(site / ".fedml") if not name.startswith("studies/")} == KEPT


def test_data_in_the_state_folder_stop_a_removal(site: Path) -> None:
    (site / "clinical.csv").rename(site / ".fedml" / "cache" / "clinical.csv")
    text = (site / "site.toml").read_text().replace('"clinical.csv"', '".fedml/cache/clinical.csv"')
    (site / "site.toml").write_text(text)
    before = names(site)
    done = command("fedml-site", "remove", "--site", "a", "--yes", cwd=site.parent)
    assert done.returncode == 2
    assert "move your data out" in done.stderr
    assert names(site) == before


def test_a_link_is_deleted_and_not_what_it_leads_to(site: Path) -> None:
    elsewhere = site.parent / "disk"
    shutil.move(site / ".fedml" / "cache", elsewhere)
    (site / ".fedml" / "cache").symlink_to(elsewhere)
    done = command("fedml-site", "remove", "--site", "a", "--yes", cwd=site.parent)
    assert done.returncode == 0, done.stderr
    assert f"{elsewhere} stays" in done.stdout
    assert not (site / ".fedml" / "cache").is_symlink()
    assert (elsewhere / "x" / "y.npy").read_text() == "cache/x/y.npy"
