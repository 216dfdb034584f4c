"""Tests stand on the floor that they use: those of a wing of the ground floor import nothing above that wing."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import ROOT

HERE = ROOT / "tests"
# Of the helpers in tests/, what runs a whole study or a command: it is for the floors above.
WHOLE = {"tests.conftest": {"federate", "pooled", "Run"}, "tests.command": {"command", "quick", "run_json"}}
WHOLE |= {f"tests.{name}": {"*"} for name in ("evidence", "faulty_site", "report_runs", "tracked", "trait", "wire")}


def ranks() -> dict[str, int]:
    """Wing -> how far up it is, as import-linter has it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers" and c["containers"] == ["fedml"])
    return {wing.strip(): rank for rank, layer in enumerate(reversed(layers)) for wing in layer.split("|")}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, those within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "*") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def too_high(text: str, own: int, rank: dict[str, int]) -> list[str]:
    """What a test of a wing of rank ``own`` imports and should not."""
    wrong = []
    for module, name in imported(ast.parse(text)):
        parts = (module if module != "fedml" else f"fedml.{name}").split(".")
        if parts[0] == "fedml" and len(parts) > 1 and rank.get(parts[1], own + 1) > own:
            wrong.append(".".join(parts))
        elif parts[0] == "tests":
            whole = WHOLE.get(module, set())
            elsewhere = len(parts) > 2 and (parts[1] != "fedml" or rank.get(parts[2], own + 1) > own)
            if elsewhere or "*" in whole or name in whole:
                wrong.append(f"{module}:{name}")
    return wrong


GROUND = sorted((HERE / "fedml").rglob("*.py"))


@pytest.mark.parametrize("path", GROUND, ids=lambda path: path.relative_to(HERE).as_posix())
def test_a_test_of_the_ground_floor_imports_nothing_above_its_wing(path: Path) -> None:
    rank = ranks()
    first = path.relative_to(HERE / "fedml").parts[0]
    wing = first if first in rank else first.removeprefix("test_").removesuffix(".py")  # tests/fedml/test_seeds.py is of fedml/seeds.py
    if first == "__init__.py":
        wing = "errors"
    assert wing in rank, f"{path}: there is no such wing"
    assert too_high(path.read_text(encoding="utf-8"), rank[wing], rank) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("from fedml.models.fusion import build_model", True),
        ("import fedml.experiments.cli", True),
        ("from fedml import clients", True),
        ("def f():\n    from fedml.tracking import store", True),
        ("from tests.conftest import federate", True),
        ("from tests.strategies.test_strategies import model", True),
        ("from tests.fedml.privacy.test_dpsgd import wide", True),
        ("from tests.trait import run", True),
        ("from fedml.cohort.table import part_of", False),
        ("from fedml.study.study import Study", False),
        ("from tests.conftest import make_study", False),
        ("from tests.fedml.study.test_study import x", False),
    ],
)
def test_the_rule_finds_each_kind_of_import(line: str, wrong: bool) -> None:
    rank = ranks()
    assert bool(too_high(line, rank["cohort"], rank)) == wrong
