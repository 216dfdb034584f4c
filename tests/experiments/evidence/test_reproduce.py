"""A bundle's study run again: every bit, or the place where it parts first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedml.clients.site.manifest import find_sites
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.reproduce import Reproduced, reproduce
from fedml.experiments.evidence.verify import summary, verify
from fedml.runs.log import STUDY
from fedml.study.study import parse_study
from tests.command import quick as command
from tests.conftest import clinical_site, make_study
from tests.evidence import KEY, finished, private


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run.zip`` and its sites."""
    folder = tmp_path_factory.mktemp("plain")
    for i, name in enumerate("ab"):
        clinical_site(folder / "sites" / name, name, 120, i)
    write_bundle(finished(make_study(federation__rounds=3), folder), folder / "run.zip", KEY)
    return folder


def again(bundle: Path, sites: Path, runs: Path) -> Reproduced:
    found = verify(bundle)
    assert found.ok, summary(found)
    study = parse_study(found.files[STUDY].decode())
    return reproduce(found.files, find_sites(sites, study.federation.sites)[0], runs, lambda _: None)


def test_a_run_comes_out_again_bit_by_bit(bundled: Path, tmp_path: Path) -> None:
    done = command("fedml", "reproduce", bundled / "run.zip", "--sites", bundled / "sites", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)
    assert reported["equal"]
    assert not reported["private"]
    assert reported["differences"] == []
    assert "bitwise equal" in done.stderr
    final = next(json.loads(line) for line in unpack(bundled / "run.zip")["events.jsonl"].splitlines() if b'"final"' in line)
    assert reported["weights_sha256"] == final["weights_sha256"]


def test_one_cell_of_one_site_is_named_and_so_is_where_the_runs_part(bundled: Path, tmp_path: Path) -> None:
    shutil.copytree(bundled / "sites", tmp_path / "sites")
    table = tmp_path / "sites" / "b" / "clinical.csv"
    lines = table.read_text().splitlines()
    first = lines[1].split(",")
    first[-1] = "77.5"
    table.write_text("\n".join([lines[0], ",".join(first), *lines[2:]]) + "\n")
    found = again(bundled / "run.zip", tmp_path / "sites", tmp_path / "runs")
    assert not found.equal
    assert [d.where for d in found.differences][:2] == ["data", "round"]
    assert found.differences[0].text.startswith("b read other data")
    assert "round 1 is the first that differs" in found.differences[1].text
    assert "arrays of the model differ" in next(d.text for d in found.differences if d.where == "model")
    done = command("fedml", "reproduce", bundled / "run.zip", "--sites", tmp_path / "sites", cwd=tmp_path)
    assert done.returncode == 1
    assert "b read other data" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_that_was_changed_is_not_run(bundled: Path, tmp_path: Path) -> None:
    raw = bytearray((bundled / "run.zip").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "run.zip").write_bytes(raw)
    done = command("fedml", "reproduce", "run.zip", "--sites", bundled / "sites", cwd=tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "fedml-runs").exists()


@pytest.mark.long
def test_of_a_private_run_all_but_the_noise_is_compared(tmp_path: Path) -> None:
    run, sites = private(tmp_path)
    write_bundle(run, tmp_path / "run.zip", KEY)
    found = again(tmp_path / "run.zip", sites, tmp_path / "again")
    assert found.equal
    assert found.private
    assert "cannot be reproduced bit by bit" in found.sentence()
    assert {d.where for d in found.differences} == {"data", "metrics"}, "the metrics of both runs are listed"
    assert "a: a run has no digest of this site's data" in found.differences[0].text, "under privacy of a patient no site tells one"
    final = next(json.loads(line) for line in unpack(tmp_path / "run.zip")["events.jsonl"].splitlines() if b'"final"' in line)
    assert found.weights_sha256 != final["weights_sha256"], "the noise was sampled again"
