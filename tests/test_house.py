"""The import contracts in pyproject.toml hold, and one more arrow that points up or closes a circle breaks them, however it is written."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

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


def product() -> list[Path]:
    """Every file of the product's code, once."""
    return sorted(path for name in FLOORS for path in (ROOT / name).rglob("*.py") if path.resolve() == path)


def test_files_are_short() -> None:
    """None has more than 400 lines, unless docs/architecture.md gives the reason under "Long files"."""
    lines = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in product()}
    assert len(lines) > 200
    assert median(lines.values()) <= 150
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    reasons = set(re.findall(r"^- `([\w/]+\.py)`: ", page.partition("## Long files")[2], re.MULTILINE))
    assert {name for name, count in lines.items() if count > 400} == reasons


def parameters(text: str) -> list[tuple[str, int]]:
    """(function, number of its parameters without self and cls), functions within functions and classes too."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            names = [one.arg for one in given if one is not None]
            found.append((getattr(node, "name", "lambda"), len([name for name in names if name not in ("self", "cls")])))
    return found


def test_no_function_has_more_than_seven_parameters() -> None:
    assert parameters("class A:\n def f(self, a, b, /, c, *d, e=1, **g): return lambda x: x") == [("f", 6), ("lambda", 1)]
    long = [(path.name, *found) for path in product() for found in parameters(path.read_text(encoding="utf-8")) if found[1] > 7]
    assert long == []
