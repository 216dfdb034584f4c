"""The wheel: all that is installed lies under ``fedml``, and it runs where a user has packages named as the repository's other folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.command import ROOT

FOLDERS = ("fedml", "strategies", "clients", "experiments")
_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(hook: str, source: Path, into: Path) -> Path:
    """What setuptools' PEP 517 hook ``hook`` builds of ``source``, without a network."""
    into.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _BUILD, hook, str(into)], cwd=source, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return into / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packages are built from, links as links: building leaves files in the folder it builds."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("build_wheel", source, source / "dist")


def digests(wheel: Path) -> dict[str, str]:
    """SHA-256 of each of the wheel's files below ``fedml/``."""
    with zipfile.ZipFile(wheel) as archive:
        return {n: hashlib.sha256(archive.read(n)).hexdigest() for n in archive.namelist() if n.startswith("fedml/")}


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that an editable install of ``folder`` reaches as ``fedml/...``: code, studies, checklists, style sheets."""
    found = {}
    for at, folders, names in os.walk(folder / "fedml", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(at, name)
            if path.suffix in (".py", ".pyi", ".toml", ".bed", ".txt", ".css") or path.name == "py.typed":
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_the_wheel_holds_fedml_alone_and_all_of_it(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"fedml", "fedml_cohorts-0.1.0.dist-info"}
    held = digests(wheel)
    assert held == files_of(source)
    for name in ("clients/cli.py", "strategies/rounds.py", "experiments/studies/demo.toml", "experiments/studies/genes.bed"):
        assert f"fedml/{name}" in held
    for kind in ("fedml/experiments/checklists/*.toml", "fedml/experiments/report/*.css"):
        assert any(Path(name).match(kind) for name in held), kind


def test_a_wheel_from_the_source_archive_holds_the_same_files(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path)  # noqa: S202 - an archive of our own
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert digests(build("build_wheel", unpacked, tmp_path / "dist")) == digests(wheel)


@pytest.mark.long
def test_the_wheel_runs_next_to_folders_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    """Installed without dependencies in an environment of its own that finds the dependencies of this one, but not this checkout."""
    home, work = tmp_path / "environment", tmp_path / "work"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTHON"))}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, cwd=tmp_path, env=environment, check=True, timeout=300)  # no PYTHONPATH: pip would find this checkout installed
    packages = next((home / "lib").glob("python*/site-packages"))
    # A .pth file adds a folder to the path and reads no .pth file there, so an editable install of this checkout is not reached.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in ("experiments", "clients", "strategies"):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text(f'raise ImportError("the user\'s own {name} was imported")\n')

    def run(command: str, *words: str) -> str:
        env = environment | {"PYTHONPATH": str(work)}
        done = subprocess.run([home / "bin" / command, *words], cwd=work, env=env, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    where = run("python", "-P", "-c", "import fedml.clients, fedml.experiments, fedml.strategies as s; print(s.__file__)")
    assert Path(where.strip()) == packages / "fedml" / "strategies" / "__init__.py"
    assert "gwas" in run("fedml", "--help")
    run("fedml", "synth", "sites", "--sites", "3", "--persons", "120", "--seed", "1")
    demo = packages / "fedml" / "experiments" / "studies" / "demo.toml"
    run("fedml", "run", str(demo), "--sites", "sites", "--runs", "runs", "--no-track", "--set", "federation.rounds=1")
    (model,) = work.glob("runs/*/model.safetensors")
    assert model.stat().st_size > 1000
    site = sorted(work.glob("sites/*/site.toml"))[0]
    assert site.parent.name in run("fedml-site", "check", str(demo), "--site", str(site))
