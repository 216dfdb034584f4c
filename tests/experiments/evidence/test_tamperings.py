"""Over 120 tamperings, made to fit and signed by another key: each is found, or the verdict says that it rests on the signer's word."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from fedml.contract.witness import fingerprint as key_mark
from fedml.experiments.evidence.archive import pack, unpack
from fedml.experiments.evidence.bundle import files_of, manifest_of, write_bundle
from fedml.experiments.evidence.contents import MANIFEST, SIGNATURE, is_source
from fedml.experiments.evidence.signing import signature
from fedml.experiments.evidence.verify import summary, verify
from fedml.experiments.evidence.words import ALWAYS
from tests.evidence import KEY, OTHER, local, private, witnessed
from tests.experiments.evidence.tamperings import CASES, FOUND, Case, Files

QUICK = 26  # every so many-th case is in the default set
MAKE = {"local": local, "deployed": witnessed, "private": private}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """Kind of run -> files of its bundle, which is made when it is first asked for."""

    @cache
    def files(kind: str) -> Files:
        if kind == "stranger":
            return files("deployed")
        folder = tmp_path_factory.mktemp(kind)
        write_bundle(MAKE[kind](folder)[0], folder / "run.zip", KEY)
        return unpack(folder / "run.zip")

    return files


def marks(files: Files) -> dict[str, str]:
    """Site -> fingerprint of its key, as the site tells it."""
    final = next(row for row in map(json.loads, files["events.jsonl"].splitlines()) if row["event"] == "final")
    return {site: key_mark(row["witness"]["key"]) for site, row in final["sites"].items()}


def forged(case: Case, files: Files, out: Path) -> Path:
    """The bundle after the case's change, with derived files, manifest and signature made to fit as far as they can be made."""
    changed = {name: data for name, data in {**files, **case.change(dict(files))}.items() if data or (name in files and files[name] == b"")}
    if case.rederive:
        with suppress(Exception):  # of a log that cannot be read nothing can be derived: the files stay as they were
            changed = files_of({name: data for name, data in changed.items() if is_source(name)})
    own = {name: data for name, data in changed.items() if name not in (MANIFEST, SIGNATURE)}
    try:
        run = json.loads(own["events.jsonl"].splitlines()[0])["run_id"]
    except (ValueError, KeyError, IndexError):
        run = json.loads(files[MANIFEST])["run"]
    manifest = manifest_of(run, own)
    out.write_bytes(pack(own | {MANIFEST: manifest, SIGNATURE: signature(OTHER, manifest, MANIFEST)}))
    return out


def check(case: Case, bundles: Callable[[str], Files], folder: Path) -> None:
    files = bundles(case.of)
    keys = marks(files) if case.of == "deployed" else None
    found = verify(forged(case, files, folder / "run.zip"), keys=keys)
    if case.expected == FOUND:
        assert not found.ok, f"{case.name}: every check passed"
        # The forger could derive files with software of their own: a change of a source is found in the sources.
        assert not case.rederive or {c.name for c in found.checks if not c.ok} != {"recomputed"}, f"{case.name}: only in derived files"
    else:
        assert found.ok, f"{case.name}: {summary(found)}"
        assert case.expected in found.word, found.word


def test_the_honest_bundles_pass(bundles: Callable[[str], Files], tmp_path: Path) -> None:
    for name in (*MAKE, "stranger"):
        files = bundles(name)
        (tmp_path / "run.zip").write_bytes(pack(files))
        found = verify(tmp_path / "run.zip", keys=marks(files) if name == "deployed" else None)
        assert found.ok, f"{name}: {summary(found)}"
        assert all(phrase in found.word for phrase in ALWAYS)


def test_the_quick_tamperings_are_found(bundles: Callable[[str], Files], tmp_path: Path) -> None:
    """One of each main kind, on one bundle: the rest is in the long tests."""
    names = (
        "two variants exchanged",
        "ten times the test persons",
        "engine local to deployment",
        "an invented event",
        "AUROC 1.7 of a round",
    )
    chosen = [case for case in CASES if case.of == "local" and case.name in names]
    assert len(chosen) == len(names)
    for case in chosen:
        check(case, bundles, tmp_path)


def test_there_are_120_cases_of_each_kind() -> None:
    assert len(CASES) >= 120
    assert len({(case.name, case.of) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.of}: {case.name}") for case in CASES[::QUICK]])
def test_a_tampering_is_found_or_named(case: Case, bundles: Callable[[str], Files], tmp_path: Path) -> None:
    check(case, bundles, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.of}: {case.name}") for case in CASES])
def test_every_tampering_is_found_or_named(case: Case, bundles: Callable[[str], Files], tmp_path: Path) -> None:
    check(case, bundles, tmp_path)
