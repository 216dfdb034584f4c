"""Own code that is an installed distribution: pinned by its files, the same results as built-in parts, refused where it is another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedml.clients.gate.code_store import show
from fedml.code.load import check, resolve
from fedml.errors import InputError
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.verify import verify
from fedml.study import packages
from fedml.study.packages import package_files, read_packages
from fedml.study.read import read_study
from fedml.study.study import Study, parse_study
from tests.conftest import clinical_site, make_plan, make_study, to_toml
from tests.evidence import KEY, finished
from tests.packages import FILES, installed, unpacked

LOSS = """
from torch.nn import functional
from my_pkg import VERSION

def entropy(output, label):
    assert VERSION == "1.2.0"
    return functional.cross_entropy(output, label.long())
"""
PLAN: dict[str, Any] = {"model__clinical": {"net": "my_pkg.nets:linear"}, "training__loss": "my_loss:entropy"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the distribution."""
    place = unpacked(tmp_path / "site", FILES, entry="[console_scripts]\nmy = my_pkg.plots:main\n")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(packages, "_KNOWN", {})
    return place


def packaged(folder: Path, plan: dict[str, Any] | None = None) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    code = {"files": ["my_loss.py"], "packages": ["my_pkg==1.2.0"]}
    text = to_toml({**(plan or make_plan(**PLAN)), "code": code})
    (folder / "study.toml").write_text(text.replace('{"name": ', '{"name" = '))
    (folder / "my_loss.py").write_text(LOSS)
    return read_study(folder / "study.toml")


def test_a_package_that_does_what_a_built_in_part_does_gives_the_same_bits(site: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        clinical_site(tmp_path / "sites" / name, name, 60, seed)
    study = packaged(tmp_path / "study")
    check(study)
    assert parse_study(study.canonical) == study
    run = finished(study, tmp_path)
    built_in = finished(make_study(), tmp_path)
    assert (run / "model.safetensors").read_bytes() == (built_in / "model.safetensors").read_bytes()
    assert "my_pkg" not in sys.modules, "it is not imported from the path"
    out = tmp_path / "run.zip"
    write_bundle(run, out, KEY)
    assert not [name for name in unpack(out) if "my_pkg" in name]
    shutil.rmtree(site)
    found = verify(out)
    assert found.ok, [c for c in found.checks if not c.ok]
    assert study.code is not None
    digest = study.code.packages[0].sha256[:12]
    assert f"my_pkg 1.2.0, SHA-256 {digest}, is pinned, not in the bundle" in next(c.text for c in found.checks if c.name == "own code")


def test_the_digest_is_that_of_sha256sum_over_the_wheels_files(site: Path, tmp_path: Path) -> None:
    (entry,) = read_packages(["my_pkg==1.2.0"], "study.toml")
    paths = sorted([*FILES, *(f"my_pkg-1.2.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt"))])
    lines = subprocess.run(["sha256sum", *paths], cwd=site, check=True, capture_output=True).stdout
    whole = subprocess.run(["sha256sum"], input=lines, check=True, capture_output=True).stdout
    assert entry["sha256"] == whole.decode().split()[0]
    assert entry["modules"] == ["my_pkg"]
    (site / "my_pkg" / "unlisted.py").write_text("raise SystemExit('not of the wheel')\n")
    assert read_packages(["my_pkg==1.2.0"], "study.toml") == [entry]
    study = packaged(tmp_path / "study")
    with pytest.raises(InputError, match=r"has no module my_pkg\.unlisted"):
        resolve(study.code, "my_pkg.unlisted:x")


def test_what_pip_installs_has_the_digest_of_the_wheel(site: Path, tmp_path: Path) -> None:
    (entry,) = read_packages(["my_pkg==1.2.0"], "study.toml")
    place = installed(tmp_path / "pip", FILES, entry="[console_scripts]\nmy = my_pkg.plots:main\n")
    assert list(place.rglob("__pycache__")), "pip compiled it, and wrote INSTALLER and a script"
    code = 'import json; from fedml.study.packages import read_packages; print(json.dumps(read_packages(["my_pkg==1.2.0"], "")))'
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(place)}, check=True, capture_output=True)
    assert json.loads(done.stdout) == [entry]


def test_other_files_or_none_are_one_sentence(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = packaged(tmp_path / "study")
    assert study.code is not None
    (pinned,) = study.code.packages
    file = site / "my_pkg" / "parts" / "layers.py"
    file.write_text(file.read_text() + "# changed\n")
    assert b"changed" not in package_files(pinned)["my_pkg/parts/layers.py"], "what was read is what runs"
    monkeypatch.setattr(packages, "_KNOWN", {})
    with pytest.raises(InputError, match=r"its files here have the SHA-256 .*, the study pins .*; install the wheel"):
        package_files(pinned)
    assert packaged(tmp_path / "again").sha256 != study.sha256
    shutil.rmtree(site)
    monkeypatch.setattr(packages, "_KNOWN", {})
    with pytest.raises(InputError, match=r"my_pkg==1.2.0: is not installed here"):
        package_files(pinned)


def test_a_study_of_files_alone_keeps_its_identity(tmp_path: Path) -> None:
    from tests.experiments.studies.test_own_code import NET, own_study

    study = own_study(tmp_path, make_plan(model__clinical={"net": "my_net:linear"}), my_net=NET)
    assert '"code":{"modules":[{"module":"my_net","sha256":"' in study.canonical
    assert "packages" not in study.canonical


def test_a_person_who_approves_sees_what_it_is_and_opens(site: Path, tmp_path: Path) -> None:
    study = packaged(tmp_path / "study")
    assert study.code is not None
    text = show(tmp_path / "state", study.code)
    assert f"--- my_pkg 1.2.0, installed here, 9 files, {sum((site / p).stat().st_size for p in _hashed(site)):,} bytes, SHA-256 " in text
    assert study.code.packages[0].sha256 in text
    assert "    my_pkg/parts/layers.py, line 1: import os  (processes)" in text
    assert "pip show --files my_pkg" in text


def _hashed(site: Path) -> list[str]:
    return [p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file() and p.name != "RECORD"]


def _file(path: str, data: str | bytes = "x = 1\n") -> Callable[[], dict[str, str | bytes]]:
    return lambda: {**FILES, path: data}


@pytest.mark.parametrize(
    ("files", "text", "said"),
    [
        (_file("my_pkg/fast.cpython-311-x86_64-linux-gnu.so", b"\x7fELF"), "my_pkg==1.2.0", "fast.*.so is compiled"),
        (_file("my_pkg/weights.bin", b"\x7fELF\2"), "my_pkg==1.2.0", r"weights.bin is compiled"),
        (_file("my_pkg.pth", "import my_pkg\n"), "my_pkg==1.2.0", r"my_pkg.pth, which Python runs at every start"),
        (_file("my_pkg/loose/tools.py"), "my_pkg==1.2.0", r"loose/tools.py is in a folder without __init__.py"),
        (_file("google/own/__init__.py"), "my_pkg==1.2.0", r"google/own/__init__.py is in a folder without __init__.py"),
        (_file("torch/__init__.py"), "my_pkg==1.2.0", r"torch/__init__.py has the name of a module that this software needs"),
        (_file("my_loss.py"), "my_pkg==1.2.0", "two of files and packages are imported by the same name"),
        (_file("my_pkg/old.py", "print 1\n"), "my_pkg==1.2.0", r"my_pkg/old.py, line 1: is not valid Python"),
        (_file("my_pkg/data.csv", "1" * 5_000_001), "my_pkg==1.2.0", "more than 500 files or 5,000,000 bytes"),
        (dict, "my_pkg==1.2.0", "has no Python file"),
        (_file("my_pkg/x.py"), "my_pkg==1.3.0", "version 1.2.0 is installed here"),
        (_file("my_pkg/x.py"), "my_pkg>=1.2.0", 'write names with exact versions, such as "my_pkg==1.2.0"'),
        (_file("my_pkg/x.py"), "your_pkg==1.2.0", "your_pkg==1.2.0: is not installed here"),
        (_file("my_pkg/x.py"), "fedml_cohorts==0.1.0", "is this software itself"),
    ],
)
def test_what_cannot_be_own_code_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[[], dict[str, str | bytes]], text: str, said: str
) -> None:
    monkeypatch.syspath_prepend(str(unpacked(tmp_path / "site", files())))
    monkeypatch.setattr(packages, "_KNOWN", {})
    code = {"files": ["my_loss.py"], "packages": [text]}
    (tmp_path / "study.toml").write_text(to_toml({**make_plan(**PLAN), "code": code}))
    (tmp_path / "my_loss.py").write_text(LOSS)
    with pytest.raises(InputError, match=said):
        check(read_study(tmp_path / "study.toml"))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"model__clinical": {"net": "your_pkg.nets:linear"}, "training__loss": "my_loss:entropy"}, "packages has no your_pkg"),
        ({"training__loss": "my_loss:entropy", "model__clinical": {"net": "my_pkg.absent:linear"}}, "has no module my_pkg.absent"),
        ({"training__loss": "my_pkg.plots:loss"}, r"my_pkg/plots.py cannot be loaded \(ImportError: a_library_that_no_site_has"),
        ({"training__loss": "my_pkg.nets:los"}, r'my_pkg/nets.py has no "los"'),
    ],
)
def test_a_name_that_no_package_has_is_told(site: Path, tmp_path: Path, plan: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(packaged(tmp_path / "study", make_plan(**plan)))


def test_transforms_are_files(site: Path, tmp_path: Path) -> None:
    image = {"size": [4, 4], "transforms": [{"name": "my_pkg.nets:linear"}]}
    with pytest.raises(InputError, match=r'transforms: "my_pkg.nets:linear" is in a package; name a file'):
        packaged(tmp_path / "study", make_plan(("image",), cohort__image=image))
