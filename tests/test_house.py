"""The import contracts in pyproject.toml hold, and one more arrow that points up or closes a circle breaks them, however it is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT

FLOORS = ("fedml", "strategies", "clients", "experiments")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product's source in a folder of its own."""
    folder = tmp_path_factory.mktemp("house")
    for name in FLOORS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """``lint-imports`` over the packages in ``folder``."""
    words = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False)


def test_the_contracts_are_kept(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("fedml/study/contigs.py", "from fedml.cohort.table import read_table as _up", "Imports point down"),
        ("fedml/wire/records.py", "def _up() -> None:\n    import fedml.strategies.rounds as _  # noqa", "Imports point down"),
        ("strategies/exchange.py", "if TYPE_CHECKING:\n    import fedml.clients.gate.gate as _up", "Imports point down"),
        (
            "fedml/cohort/variants/regions.py",
            "def _up() -> None:\n    import fedml.cohort.variants.open as _  # noqa",
            "No folder has a circle",
        ),
        ("clients/site/manifest.py", "import fedml.clients.gate.gate as _up", "No folder has a circle"),
    ],
)
def test_one_more_arrow_breaks_them(copy: Path, file: str, line: str, contract: str) -> None:
    text = (copy / file).read_text()
    head = "from typing import TYPE_CHECKING\n" if "TYPE_CHECKING" in line else ""
    (copy / file).write_text(f"{text}\n\n{head}{line}\n")
    try:
        done = lint(copy)
    finally:
        (copy / file).write_text(text)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout


def test_a_folder_that_no_layer_names_is_refused(copy: Path) -> None:
    (copy / "fedml" / "annex").mkdir()
    (copy / "fedml" / "annex" / "__init__.py").write_text('"""Not in the list of layers."""\n')
    try:
        done = lint(copy)
    finally:
        shutil.rmtree(copy / "fedml" / "annex")
    assert done.returncode == 1
    assert "fedml.annex" in done.stdout
