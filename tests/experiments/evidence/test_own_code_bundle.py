"""A bundle of a study with own code and a pinned start: both are in it and compared, and nothing of it is run by who verifies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fedml.clients.site.manifest import find_sites
from fedml.errors import InputError
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.reproduce import reproduce
from fedml.experiments.evidence.verify import verify
from fedml.study.read import read_study
from fedml.study.study import Study
from tests.conftest import clinical_site, make_plan, to_toml
from tests.evidence import KEY, finished, signed
from tests.experiments.studies.test_own_code import LOSS, METRIC, NET

FILES = {"my_net": NET, "my_loss": LOSS, "my_metric": METRIC}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Study]:
    """(bundle, sites, study): each file of the code leaves a mark where it is loaded."""
    folder = tmp_path_factory.mktemp("own")
    for seed, name in enumerate("ab"):
        clinical_site(folder / "sites" / name, name, 60, seed)
    plan: dict[str, Any] = make_plan(
        model__clinical={"net": "my_net:Wide", "hidden": [3]}, training__loss="my_loss:focal", evaluation__metrics=["my_metric:f2"]
    )
    plan["code"] = {"files": [f"{name}.py" for name in FILES]}
    (folder / "first.toml").write_text(to_toml(plan))
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(f"import sys\nsys.own_code_was_loaded = True\n{text}")
    first = finished(read_study(folder / "first.toml"), folder)
    plan["model"]["start"] = str(first / "model.safetensors")
    (folder / "study.toml").write_text(to_toml(plan))
    study = read_study(folder / "study.toml")
    run = finished(study, folder)
    out = folder / "own.zip"
    write_bundle(run, out, KEY)
    return out, folder / "sites", study


def test_the_bundle_holds_the_code_and_verify_does_not_run_it(made: tuple[Path, Path, Study]) -> None:
    out, _, _ = made
    assert {"code/my_net.py", "code/my_loss.py", "code/my_metric.py", "start.safetensors"} <= unpack(out).keys()
    vars(sys).pop("own_code_was_loaded", None)
    for name in [name for name in sys.modules if name.startswith("fedml_own_")]:
        del sys.modules[name]
    found = verify(out)
    assert [check for check in found.checks if not check.ok] == []
    assert not hasattr(sys, "own_code_was_loaded")
    texts = {check.name: check.text for check in found.checks}
    assert "f2 of the last evaluation is not recomputed" in texts["own code"]
    assert "SHA-256 that the study pins" in texts["start"]


@pytest.mark.parametrize(
    ("name", "change", "check", "said"),
    [
        ("code/my_net.py", lambda data: data + b"\n", "own code", "is not the file that the study pins"),
        ("code/my_loss.py", None, "own code", "is missing from the bundle"),
        ("code/other.py", lambda data: b"x = 1\n", "own code", "is no file of the study's"),
        ("start.safetensors", lambda data: data[:-1] + b"\1", "start", "is not the file that the study pins"),
        ("start.safetensors", None, "start", "is missing from the bundle"),
    ],
)
def test_changed_code_or_start_is_caught_for_any_signer(
    made: tuple[Path, Path, Study], tmp_path: Path, name: str, change: Any, check: str, said: str
) -> None:
    files = unpack(made[0])
    files |= {name: b"" if change is None else change(files.get(name, b""))}
    found = verify(signed({k: v for k, v in files.items() if k != name or change is not None}, tmp_path / "forged.zip"))
    assert any(c.name == check and not c.ok and c.file == name and said in c.text for c in found.checks)


def test_a_bundles_code_is_run_only_when_that_is_asked_for(made: tuple[Path, Path, Study], tmp_path: Path) -> None:
    out, sites, study = made
    found = find_sites(sites, study.federation.sites)[0]
    with pytest.raises(InputError, match=r"code of its own \(code/my_net.py, .*then add --run-code"):
        reproduce(unpack(out), found, tmp_path, lambda _: None)
    assert reproduce(unpack(out), found, tmp_path, lambda _: None, run_code=True).equal
