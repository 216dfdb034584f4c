"""The wheel installs `fedml` and nothing else at the top level, and works in a folder that has an `experiments` of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.command import ROOT

GENERIC = ("clients", "strategies", "experiments")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the source with the tools that are installed."""
    if not (find_spec("pip") and find_spec("setuptools")):
        pytest.skip("pip and setuptools are not in this environment")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("fedml", *GENERIC):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--quiet",
    ]
    subprocess.run([*words, "--wheel-dir", str(folder), str(source)], check=True, cwd=folder)
    return next(folder.glob("*.whl"))


def test_only_fedml_is_at_the_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fedml"}
    data = {
        path.relative_to(ROOT).as_posix() for name in GENERIC for end in ("toml", "css", "bed") for path in (ROOT / name).rglob(f"*.{end}")
    }
    data = {name for name in data if "/bench/" not in name}
    assert {f"fedml/{name}" for name in data} <= set(names)
    code = {
        path.relative_to(ROOT).as_posix() for name in GENERIC for path in (ROOT / name).rglob("*.py") if "__pycache__" not in path.parts
    }
    assert {f"fedml/{name}" for name in code} <= set(names)


def test_commands_run_beside_folders_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    target, work = tmp_path / "installed", tmp_path / "work"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    for name in GENERIC:
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text('raise RuntimeError("a folder of the user was imported")')

    def run(module: str, *words: str) -> str:
        """The command's ``main``, with the user's folder first on the path, as a notebook has it."""
        code = f"import sys; from {module} import main; sys.exit(main())"
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(work), str(target))),
            "MLFLOW_TRACKING_URI": f"sqlite:///{work / 'mlflow.db'}",
        }
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=work, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "Usage" in run("fedml.experiments.cli", "--help")
    run("fedml.experiments.cli", "synth", "sites", "--sites", "2", "--persons", "40", "--seed", "1")
    study = target / "fedml" / "experiments" / "studies" / "demo.toml"
    changes = ("--set", 'federation.sites=["oslo","porto"]', "--set", "federation.rounds=1", "--set", "training.threads=1")
    assert '"status": "finished"' in run("fedml.experiments.cli", "run", str(study), "--sites", "sites", *changes, "--no-track", "--json")
    assert "would use" in run("fedml.clients.cli", "check", str(study), "--site", "sites/oslo")
    where = subprocess.run(
        [sys.executable, "-c", "import fedml.strategies; print(fedml.strategies.__file__)"],
        cwd=work, env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(target), "the wheel's code, not the checkout's"
