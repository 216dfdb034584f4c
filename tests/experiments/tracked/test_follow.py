"""The process that records a run while it continues: what it loads, and that its record is the one that ``deliver`` makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedml.experiments.tracked.files import write_files, write_pages
from fedml.runs.log import study_of
from fedml.tracking import outbox
from fedml.tracking.deliver import deliver
from fedml.tracking.knowing import known_of, watched_of
from fedml.tracking.known import TESTED, Known
from tests.tracked import SITES, content, finished

# ``follow`` without the end of the process; then which libraries it has loaded, and not only set aside.
SCRIPT = """
import sys
from fedml.experiments.tracked.follow import follow
follow(sys.stdin)
heavy = ("torch", "pandas", "pyarrow.lib", "fastapi", "scipy", "sklearn", "matplotlib", "flwr", "mlflow.pyfunc", "mlflow.genai.evaluation")
loaders = {name: type(sys.modules[name].__spec__.loader).__name__ for name in heavy if name in sys.modules}
print("loaded:", *[name for name, loader in loaders.items() if loader != "_Deferred"])
print(len(sys.modules))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two sites."""
    return finished(tmp_path_factory.mktemp("follow"))[0]


def followed(run: Path, folder: Path, lines: list[str]) -> list[str]:
    """The lines that the process says, with its store in ``folder``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'own.db'}"}
    outbox.mark_again(run)
    words = [sys.executable, "-P", "-c", SCRIPT]
    done = subprocess.run(words, cwd=folder, env=env, input="\n".join([*lines, ""]), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def told(run: Path, pages: Path) -> list[str]:
    """What the command says of a run."""
    study, watched = study_of(run), watched_of(study_of(run))
    pages.mkdir()
    write_pages(run, pages)
    first = json.dumps({"run": str(run), "watched": watched.name, "higher": watched.higher, "files": True})
    known = pages.with_suffix(".json")
    known.write_text(known_of(run, study, TESTED).text())
    return [first, str(known), str(pages)]


def shown(folder: Path) -> dict[str, Any]:
    """All of the record, and the paths and bytes of its files but the times in the model's."""
    uri = f"sqlite:///{folder / 'own.db'}"
    files = sorted((folder / "mlruns").rglob("*"))
    names = [("/".join(path.parts[-2:]), path.read_bytes()) for path in files if path.is_file() and path.name != "MLmodel"]
    return {"runs": content(uri), "files": sorted(names)}


def test_it_loads_no_pytorch_and_its_record_is_the_same(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there, alone = (tmp_path / name for name in ("here", "there", "alone"))
    for folder in (here, there, alone):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here / 'own.db'}")
    outbox.mark_again(run)
    deliver(run, study_of(run), write=write_files)
    expected = shown(here)
    assert expected["runs"][run.name]["metrics"]["test/auroc_low"]
    assert any(name.startswith("plots/") and name.endswith(".png") for name, _ in expected["files"])

    lines = told(run, tmp_path / "pages")
    _, loaded, count = followed(run, there, lines)
    assert loaded == "loaded:"
    assert int(count) < 1800  # 1,530; with all of MLflow 2,200, with PyTorch 1,000 more
    assert shown(there) == expected

    _, loaded, _ = followed(run, alone, lines[:1])  # the command was killed after the run: what it has not said is computed
    assert "torch" in loaded
    assert shown(alone) == expected
    assert set(expected["runs"]) == {run.name, *(f"{run.name}/{site}" for site in SITES)}


def test_a_store_that_is_none_is_one_sentence(run: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    (tmp_path / "own.db").write_bytes(b"no database" * 1000)
    env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/own.db"}
    line = json.dumps({"run": str(run), "watched": "auroc", "higher": True, "files": True})
    words = [sys.executable, "-P", "-m", "fedml.experiments.tracked.follow"]
    done = subprocess.run(words, cwd=tmp_path, env=env, input=f"{line}\n", capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "MLflow reports an error" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own.db"]


def test_what_is_known_is_the_same_after_its_journey(run: Path) -> None:
    known = known_of(run, study_of(run), TESTED)
    assert known.limits["test"].keys() == {"", *SITES}
    assert Known.parse(known.text()) == known


@pytest.mark.long
def test_three_at_once_make_a_new_store(tmp_path: Path) -> None:
    runs = [finished(tmp_path)[0] for _ in range(3)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'own.db'}"}
    started = []
    for number, run in enumerate(runs):
        process = subprocess.Popen([sys.executable, "-P", "-c", SCRIPT], cwd=tmp_path, env=env, stdin=-1, stdout=-1, stderr=-1, text=True)
        started.append((process, told(run, tmp_path / f"pages-{number}")))
    ended = [(process.communicate("\n".join([*lines, ""]), timeout=400), process.returncode) for process, lines in started]
    assert [code for _, code in ended] == [0, 0, 0], ended
    there = content(f"sqlite:///{tmp_path / 'own.db'}")
    assert {name.partition("/")[0] for name in there} == {run.name for run in runs}
    assert {found["status"] for found in there.values()} == {"FINISHED"}
    assert not list(tmp_path.glob(".own.db*"))
