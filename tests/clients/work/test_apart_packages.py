"""A site with a study whose own code is an installed distribution: approved, rehearsed and answered with its files, refused with others."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fedml.clients.work.confine import missing
from fedml.study import packages
from fedml.study.study import Study
from tests.clients.gate.centre import Centre, real_site
from tests.command import command
from tests.conftest import make_plan
from tests.experiments.studies.test_own_packages import PLAN, packaged
from tests.packages import FILES, unpacked

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine cannot confine a process: {missing()}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = unpacked(tmp_path / "path", FILES)
    monkeypatch.syspath_prepend(str(found))
    monkeypatch.setattr(packages, "_KNOWN", {})
    return found


def a_study(tmp_path: Path) -> Study:
    return packaged(tmp_path / "study", make_plan(sites=("a",), federation__timeout=200, **PLAN))


def test_a_site_answers_with_the_pinned_files_and_refuses_others(
    tmp_path: Path, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedml.clients.gate import code_store
    from fedml.clients.service import prepare_state
    from fedml.clients.site.manifest import read_site

    folder, study = real_site(tmp_path / "a"), a_study(tmp_path)
    assert study.code is not None
    code_store.keep(prepare_state(read_site(folder)), study.code)
    centre = Centre(study, folder, trust="this test's own centre")
    agreed = centre.agree(1)
    assert centre.ask("round", 1, 1, agreed, centre.first(agreed)) == ""
    assert {name for name in centre.answered[-1][1] if name.startswith("arrays/")} == {
        "arrays/encoder.clinical.weight", "arrays/encoder.clinical.bias",
    }  # fmt: skip
    centre.gate.close()
    file = place / "my_pkg" / "parts" / "layers.py"
    file.write_text(file.read_text().replace("import os\n", "import os, socket\n"))
    monkeypatch.setattr(packages, "_KNOWN", {})  # the site's service was started again
    centre.restart()
    caplog.set_level(logging.ERROR, "fedml.site")
    with pytest.raises(Exception, match="own-code"):
        centre.agree(2)
    assert "my_pkg==1.2.0: its files here have the SHA-256" in caplog.text
    centre.gate.close()


@pytest.mark.long
def test_the_commands_show_and_rehearse_it(tmp_path: Path, place: Path) -> None:
    real_site(tmp_path / "a")
    a_study(tmp_path)
    words = ["approve", "study/study.toml", "--site", "a", "--code", "study", "--yes", "--trust-centre", "our own"]
    absent = command("fedml-site", *words, cwd=tmp_path)
    assert absent.returncode == 2
    assert "my_pkg==1.2.0: is not installed here; run pip install --no-deps" in absent.stderr
    assert "Traceback" not in absent.stderr
    done = command("fedml-site", *words, cwd=tmp_path, PYTHONPATH=str(place))
    assert done.returncode == 0, done.stderr
    assert "my_pkg 1.2.0, installed here, 8 files" in done.stdout
    assert "my_pkg/parts/layers.py, line 1: import os  (processes)" in done.stdout
    played = command("fedml-site", "start", "--dry-run", "--site", "a", cwd=tmp_path, PYTHONPATH=str(place))
    assert played.returncode == 0, played.stderr
    assert "own code ran in confined processes: my_loss.py, my_pkg 1.2.0" in played.stdout
