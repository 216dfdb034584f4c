"""Mistakes that such code has been shipped with, made on purpose in a copy of the source: for each a named test must fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command import ROOT
from tests.mutants import centre, cohort, computed, privacy, site, trust

TABLES = (cohort.MUTANTS, computed.MUTANTS, privacy.MUTANTS, site.MUTANTS, centre.MUTANTS, trust.MUTANTS)
MUTANTS = {name: mutant for table in TABLES for name, mutant in table.items()}
FOLDERS = ("fedml", "strategies", "clients", "experiments", "tests", "docs")
# Imports what tests import from others, and then forks for each line of its input: {"tests": [...], "out": file}; answers pytest's code.
# What is ours is imported after the fork, from the copy in which a mistake was made.
WARM = '''
import importlib, json, os, sys
for name in """pytest hypothesis.extra.numpy torch pandas scipy.stats pysam nibabel pydicom monai.metrics monai.losses monai.transforms
    flwr.app flwr.serverapp.strategy flwr.clientapp sklearn.metrics statsmodels.api dp_accounting.pld safetensors.torch mlflow openslide
    cryptography.hazmat.primitives.asymmetric.ed25519 pydantic tifffile""".split():
    importlib.import_module(name)
assert not [name for name in sys.modules if name.split(".")[0] in ("fedml", "tests")]
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if not child:
        out = os.open(wanted["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        import pytest
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *wanted["tests"]]))
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''
Run = Callable[..., tuple[int, str]]


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


@pytest.fixture(scope="session")
def run(copy: Path) -> Iterator[Run]:
    """(exit code, output) of pytest in the copy, whose packages come before the installed ones: a process for each call."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    warm = subprocess.Popen([sys.executable, "-c", WARM], cwd=copy, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert warm.stdin is not None
    assert warm.stdout is not None
    send, answers = warm.stdin, warm.stdout

    def ask(*tests: str) -> tuple[int, str]:
        out = copy / "out.txt"
        send.write(json.dumps({"tests": [f"tests/{test}" for test in tests], "out": str(out)}) + "\n")
        send.flush()
        return int(answers.readline()), out.read_text(encoding="utf-8")

    yield ask
    send.close()
    warm.wait(60)


@pytest.fixture
def restored(copy: Path) -> Iterator[Path]:
    """The copy, which is as the source again after the test."""
    yield copy
    for file in {file for patches, _ in MUTANTS.values() for file, _, _ in patches}:
        shutil.copyfile(ROOT / file, copy / file)


def test_there_are_sixty_over_all_wings() -> None:
    assert len(MUTANTS) == sum(map(len, TABLES)) >= 60, "no two have one name"


@pytest.mark.parametrize("name", MUTANTS)
def test_its_place_and_its_test_are_there(name: str) -> None:
    patches, test = MUTANTS[name]
    for file, old, new in patches:
        assert old != new
        assert old in (ROOT / file).read_text(encoding="utf-8"), f"{file} no longer has: {old}"
    file, _, function = test.partition("::")
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert not function or f"def {function.partition('[')[0]}(" in text, f"{file} no longer has {function}"


@pytest.mark.long
def test_the_named_tests_pass_without_a_mistake(run: Run) -> None:
    code, said = run(*sorted({test for _, test in MUTANTS.values()}))
    assert code == 0, said[-3000:]


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_a_named_test_finds_it(name: str, restored: Path, run: Run) -> None:
    patches, test = MUTANTS[name]
    for file, old, new in patches:
        text = (restored / file).read_text(encoding="utf-8")
        assert old in text, f"{file} no longer has: {old}"
        (restored / file).write_text(text.replace(old, new), encoding="utf-8")
    code, said = run(test)
    assert code == 1, f"{test} does not find it: {code} {said[-2000:]}"  # 1: a test failed, and ran at all
