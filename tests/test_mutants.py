"""Mistakes that such code has been shipped with, made on purpose in a copy of the source: for each a named test must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import ROOT
from tests.mutants import centre, cohort, computed, privacy, site

pytestmark = pytest.mark.long
TABLES = (cohort.MUTANTS, computed.MUTANTS, privacy.MUTANTS, site.MUTANTS, centre.MUTANTS)
MUTANTS = {name: mutant for table in TABLES for name, mutant in table.items()}
FOLDERS = ("fedml", "strategies", "clients", "experiments", "tests", "docs")


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, once a worker; its byte code goes by the source's hash, so that a file of the same size and time is compiled again."""
    folder = tmp_path_factory.mktemp("mutants")
    for part in FOLDERS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    words = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *FOLDERS[:-1]]
    subprocess.run(words, cwd=folder, check=True, timeout=300)
    return folder


@pytest.fixture
def restored(copy: Path) -> Iterator[Path]:
    """The copy, which is as the source again after the test."""
    yield copy
    for file in {file for patches, _ in MUTANTS.values() for file, _, _ in patches}:
        shutil.copyfile(ROOT / file, copy / file)


def test_there_are_sixty_over_all_wings() -> None:
    assert len(MUTANTS) == sum(map(len, TABLES)) >= 60, "no two have one name"


def test_the_named_tests_pass_without_a_mistake(copy: Path) -> None:
    done = run(copy, *sorted({test for _, test in MUTANTS.values()}))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_named_test_finds_it(name: str, restored: Path) -> None:
    patches, test = MUTANTS[name]
    for file, old, new in patches:
        text = (restored / file).read_text(encoding="utf-8")
        assert old in text, f"{file} no longer has: {old}"
        (restored / file).write_text(text.replace(old, new), encoding="utf-8")
    done = run(restored, test)
    assert done.returncode == 1, f"{test} does not find it: {done.returncode} {done.stdout[-2000:]}"  # 1: a test failed, and ran at all


def run(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """pytest in the copy, whose packages come before the installed ones."""
    line = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *(f"tests/{test}" for test in tests)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)
