"""Bundles of analyses: what a forger changes is found, whoever signs it, or named as resting on the signer's word."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load, save

from fedml.clients.site.manifest import find_sites
from fedml.errors import InputError
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.recompute import differs
from fedml.experiments.evidence.verify import Verified, summary, verify
from fedml.experiments.runs.run import new_run, run
from fedml.flower.grid import InProcessGrid
from fedml.flower.keys import key_fingerprint, read_public_key, write_node_key
from fedml.runs.log import STEPS, SUMS
from fedml.strategies.agreement import recorded
from fedml.strategies.server import app as server_app
from fedml.study.read import read_study
from fedml.study.study import Study
from tests.command import STUDIES
from tests.evidence import KEY, events, rebuilt, signed
from tests.outcomes import COVARIATES, Drawn, gates_of, study_of, write_sites
from tests.trait import prepared

DRAWN = Drawn(persons=(150, 120))
KINDS: dict[str, tuple[str, Study]] = {
    "survival": ("survival", study_of(DRAWN, curves={"groups": "arm"}, cox={"covariates": COVARIATES})),
    "glm": (
        "glm",
        study_of(
            DRAWN, task="classification", target="b", glm={"covariates": ["age", "arm"], "standardise": "arm"}, more={"classes": [0, 1]}
        ),
    ),
    "describe": ("describe", study_of(DRAWN, task="regression", target="y", describe={"groups": "arm"})),
    "treatment": ("glm", study_of(DRAWN, task="regression", target="y", treatment={"column": "arm", "covariates": ["age", "stage"]})),
    "weighted curves": ("survival", study_of(DRAWN, treatment={"column": "arm", "covariates": ["age", "stage"]})),
    "weighted cox": ("survival", study_of(DRAWN, cox={"covariates": ["age", "arm"], "weights": "w"}, columns=["w"])),
    "fine and gray": (
        "survival",
        study_of(replace(DRAWN, causes=2), cox={"covariates": ["age", "arm"], "hazard": "subdistribution", "baseline": "site"}),
    ),
}


def _finished(job: str, study: Study, folder: Path) -> Path:
    made = new_run(study, folder / "runs", None, engine="local", job=job)
    assert run(study, find_sites(folder / "sites", study.federation.sites)[0], made, job=job).status == "finished"  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder, out = tmp_path_factory.mktemp("analyses"), {}
    write_sites(folder, DRAWN)
    write_sites(folder / "two", replace(DRAWN, causes=2))
    for name, (job, study) in KINDS.items():
        write_bundle(_finished(job, study, folder / "two" if name == "fine and gray" else folder), folder / f"{name}.zip", KEY)
        out[name] = unpack(folder / f"{name}.zip")
    return out


def _verify(files: dict[str, bytes], folder: Path) -> Verified:
    return verify(signed(files, folder / "forged.zip"))


@pytest.mark.parametrize("name", KINDS)
def test_a_bundle_of_an_analysis_verifies_and_each_number_of_its_tables_is_checked(
    name: str, bundles: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    files = bundles[name]
    assert _verify(files, tmp_path).ok
    tables = [file for file in files if file.endswith((".tsv", ".csv"))]
    assert tables
    for file in [*tables, "outcomes.json", "report.html", "outcomes.html"]:
        text = files[file].decode()
        digit = next(i for i in range(len(text) // 2, len(text)) if text[i] in "12345678" and text[i - 1] in ".0123456789")
        changed = text[:digit] + str(int(text[digit]) + 1) + text[digit + 1 :]
        found = _verify(files | {file: changed.encode()}, tmp_path)
        near = any(c.file == file for c in found.checks if not c.ok)
        assert near or abs(len(text[: digit + 1].split(".")[-1])) > 8, f"{file} at {digit} was changed unnoticed"


def _final(change: Callable[[dict[str, Any]], None]) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: change(next(row for row in rows if row["event"] == "outcomes"))


EVENTS: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "persons": _final(lambda row: row["persons"].update(s0=999)),
    "bytes": _final(lambda row: row["sites"]["s0"].update(bytes_in=1)),
    "another key": _final(lambda row: row.update(verdict="safe")),
    "a coefficient": _final(lambda row: row["found"]["cox"]["coefficients"][0].update(estimate=1.5)),
    "a p value": _final(lambda row: row["found"]["cox"]["coefficients"][0]["model"].update(p=1e-30)),
    "a step less": lambda rows: rows.remove(next(row for row in rows if row["event"] == "step")),
    "a step named otherwise": lambda rows: next(row for row in rows if row["event"] == "step").update(doing="score, step 9"),
    "another job": lambda rows: rows[0].update(job="describe"),
    "sites in another order": lambda rows: next(row for row in rows if row["event"] == "agreed").update(sites=["s1", "s0"]),
    "a deployment": lambda rows: rows[0].update(engine="deployment"),
    "in the future": lambda rows: rows[-1].update(time=rows[-1]["time"] * 2),
}


@pytest.mark.parametrize("name", EVENTS)
def test_a_changed_log_is_found_whoever_signs(name: str, bundles: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    files = bundles["survival"]
    found = _verify(files | {"events.jsonl": events(files, EVENTS[name])}, tmp_path)
    assert not found.ok, f"{name} was not found"


def test_steps_and_sums_are_closed(bundles: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    files = bundles["survival"]
    lines = files[STEPS].splitlines(keepends=True)
    assert not _verify(files | {STEPS: b"".join(lines[:-1])}, tmp_path).ok
    assert not _verify(files | {STEPS: b"".join([*lines, lines[-1]])}, tmp_path).ok
    assert not _verify(files | {SUMS: files[SUMS] + b"\0" * 9}, tmp_path).ok
    assert not _verify(files | {SUMS: files[SUMS][:-3]}, tmp_path).ok
    assert not _verify(files | {"examples/a.png": b"x"}, tmp_path).ok


def _forged_sums(files: dict[str, bytes]) -> bytes:
    """One event more at the first site."""
    data, at, out = files[SUMS], 0, b""
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        arrays = load(data[at + 8 : at + 8 + size])
        if "s0/counts" in arrays:
            arrays["s0/counts"] = arrays["s0/counts"].copy()
            first = np.argmax(arrays["s0/counts"][0, -1] > arrays["s0/counts"][0, 1])
            arrays["s0/counts"][0, 1, first] += 1
        frame = save(arrays)
        out, at = out + len(frame).to_bytes(8, "little") + frame, at + 8 + size
    return out


def test_changed_sums_with_all_made_again_rest_on_the_signers_word(bundles: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    """The figures of the log stay: they contradict the sums. A forger who also writes them anew is stopped only by a site's key."""
    files = bundles["survival"]
    found = verify(rebuilt(files, tmp_path / "forged.zip", {SUMS: _forged_sums(files)}))
    assert [c.name for c in found.checks if not c.ok] == ["results"]
    assert "took part and sent these sums" in verify(signed(files, tmp_path / "honest.zip")).word


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, str]]:
    """A bundle of curves through the gates of two sites with node keys, and the fingerprints of the keys."""
    folder, study = tmp_path_factory.mktemp("deployed"), study_of(DRAWN, curves={"groups": "arm"})
    write_sites(folder, DRAWN)
    keys = {}
    for site in study.federation.sites:
        write_node_key(folder / "sites" / site / "node.key")
        keys[site] = key_fingerprint(read_public_key(folder / "sites" / site / "node.key.pub"))
        with (folder / "sites" / site / "site.toml").open("a") as file:
            file.write('[connection]\nsuperlink = "localhost:9092"\nroot_certificates = "ca.pem"\nkey = "node.key"\n')
    gates = gates_of(study, folder)
    made = new_run(study, folder / "runs", None, engine="deployment", job="survival")
    config: dict[str, Any] = {"study": study.canonical, "run": str(made), "job": "survival"}
    grid = InProcessGrid(lambda message, context: gates[context.node_id - 1](message, context), [{} for _ in gates], config)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config))
    write_bundle(made, folder / "deployed.zip", KEY)
    return unpack(folder / "deployed.zip"), keys


def test_sites_sign_each_step_and_a_change_of_theirs_is_found(deployed: tuple[dict[str, bytes], dict[str, str]], tmp_path: Path) -> None:
    files, keys = deployed
    found = verify(signed(files, tmp_path / "honest.zip"), keys=keys)
    assert found.ok, summary(found)
    assert "that the sites exist" not in found.word
    assert any("signed by 2 of 2 sites' keys" in check.text for check in found.checks)
    forged = verify(rebuilt(files, tmp_path / "sums.zip", {SUMS: _forged_sums(files)}))
    assert any(c.name == "witnesses" and "other sums" in c.text for c in forged.checks if not c.ok)
    rows = [json.loads(line) for line in files[STEPS].splitlines()]
    for row in rows:
        row["sites"]["s0"].pop("witness")
    bare = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert not verify(rebuilt(files, tmp_path / "bare.zip", {STEPS: bare}), keys=keys).ok
    rows = [json.loads(line) for line in files[STEPS].splitlines()]
    rows[-1]["sites"]["s0"]["journal"][1] += 1
    moved = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert not verify(rebuilt(files, tmp_path / "moved.zip", {STEPS: moved})).ok


def test_a_run_of_tests_of_genes_is_no_bundle(tmp_path: Path) -> None:
    made = new_run(KINDS["glm"][1], tmp_path, None, engine="local", job="genes")
    with pytest.raises(InputError, match="is not the folder of"):
        write_bundle(made, tmp_path / "x.zip", KEY)


@pytest.mark.long
@pytest.mark.parametrize("name", ["tall", "height"])
def test_a_bundle_of_an_association_study_verifies_and_a_changed_table_is_found(name: str, tmp_path: Path) -> None:
    prepared(tmp_path)
    made = _finished("gwas", read_study(STUDIES / f"{name}.toml", overrides={"gwas.components": 2}), tmp_path)
    write_bundle(made, tmp_path / "gwas.zip", KEY)
    files = unpack(tmp_path / "gwas.zip")
    assert _verify(files, tmp_path).ok
    lines = gzip.decompress(files["gwas.tsv.gz"]).decode().split("\n")
    cells, heads = lines[5].split("\t"), lines[0].split("\t")
    cells[heads.index("p_value")] = "1.0e-30"
    changed = gzip.compress("\n".join([*lines[:5], "\t".join(cells), *lines[6:]]).encode())
    assert not _verify(files | {"gwas.tsv.gz": changed}, tmp_path).ok
    forged = events(files, lambda rows: next(row for row in rows if row["event"] == "gwas").update(hits=77))
    assert not _verify(files | {"events.jsonl": forged}, tmp_path).ok
    assert "genotype counts" in verify(tmp_path / "gwas.zip").word


def test_tiny_p_values_are_compared_relative_to_themselves() -> None:
    assert differs("cox.tsv", b"term\tmodel_p\nage\t1e-40\n", b"term\tmodel_p\nage\t1e-30\n")
    assert not differs("cox.tsv", b"term\tmodel_p\nage\t1.00000001e-30\n", b"term\tmodel_p\nage\t1e-30\n")
    assert differs("outcomes.json", b'{"a": {"p": 1e-40}}', b'{"a": {"p": 1e-30}}')
    assert not differs("cox.tsv", b"term\testimate\nage\t0.50000000001\n", b"term\testimate\nage\t0.5\n")
    assert differs("cox.tsv", b"term\testimate\nage\t0.500001\n", b"term\testimate\nage\t0.5\n")


def test_a_run_with_more_sums_than_a_bundle_takes_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST_BYTES", 2_000)
    write_sites(tmp_path, DRAWN)
    made = _finished("survival", KINDS["survival"][1], tmp_path)
    assert not (made / SUMS).exists()
    with pytest.raises(InputError, match="larger than a bundle may be"):
        write_bundle(made, tmp_path / "x.zip", KEY)
