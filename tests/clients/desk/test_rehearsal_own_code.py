"""``fedml-site start --dry-run`` of a study with own code: it runs in confined processes, on persons who do not exist, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.clients.work.confine import missing
from fedml.study.read import read_study
from tests.clients.gate.centre import real_site
from tests.command import quick as command
from tests.conftest import clinical_site, image_site, make_plan, to_toml
from tests.experiments.studies.test_own_code import METRIC, NET, TRANSFORM, own_study

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine cannot confine a process: {missing()}")

# SITE and MARKER are the test's. Where the code is loaded it tries to leave a file; where it trains, to read a real person.
LOSS = """
import torch
from torch.nn import functional
try:
    open({marker!r}, "w").write("loaded without confinement")
except PermissionError:
    pass

def loss(output, label):
    try:
        open({site!r} + "/persons.csv").read()
    except PermissionError:
        {then}
        return functional.cross_entropy(output, label.long())
    raise RuntimeError("read real persons")
"""
PLAN: dict[str, Any] = {
    "model__clinical": {"net": "my_net:Wide", "hidden": [5]}, "training__loss": "my_loss:loss", "evaluation__metrics": ["my_metric:f2"],
}  # fmt: skip


def written(folder: Path, then: str = "pass") -> None:
    """``study/study.toml`` with a network, a loss and a measure of its own, for the site in ``a``."""
    loss = LOSS.format(marker=str(folder / "marker"), site=str(folder / "a"), then=then)
    own_study(folder / "study", make_plan(**PLAN), my_net=NET, my_loss=loss, my_metric=METRIC)


def dry_run(folder: Path, *words: str) -> Any:
    return command("fedml-site", "start", "--dry-run", "--site", "a", *words, cwd=folder)


def test_before_approval_the_code_runs_where_a_person_gives_its_folder(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    written(tmp_path)
    before = sorted(p.name for p in (tmp_path / "a").rglob("*"))
    refused = dry_run(tmp_path, "--study", "study/study.toml")
    assert refused.returncode == 2
    assert "(my_net.py, my_loss.py, my_metric.py) and is not approved here" in refused.stderr
    assert "give the folder of its files with --code DIR" in refused.stderr
    done = dry_run(tmp_path, "--study", "study/study.toml", "--code", "study")
    assert done.returncode == 0, done.stderr
    assert "60 placeholder persons" in done.stdout
    assert "own code ran in confined processes: my_net.py, my_loss.py, my_metric.py" in done.stdout
    sent = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert sent == ["describe", "statistics", "round", "evaluate"]
    assert not (tmp_path / "marker").exists()
    assert sorted(p.name for p in (tmp_path / "a").rglob("*")) == before


def test_an_error_of_the_code_is_told_with_its_line(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    written(tmp_path, then="raise ValueError(f'{len(output)} rows, \\x1b[31m')")
    failed = dry_run(tmp_path, "--study", "study/study.toml", "--code", "study")
    assert failed.returncode != 0
    assert "would not run at this site: out round: own-code" in failed.stderr
    assert 'own code "my_loss:loss" failed (ValueError: ' in failed.stderr
    assert " rows, " in failed.stderr
    assert "line 13" in failed.stderr
    assert "\x1b" not in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "marker").exists()


def test_an_approved_study_is_rehearsed_with_the_code_of_the_sites_store(tmp_path: Path) -> None:
    real_site(tmp_path / "a")
    written(tmp_path)
    unknown = dry_run(tmp_path, "--study", "study/study.toml", "--code", "study")
    assert unknown.returncode == 0, unknown.stderr
    assert "as if the centre were trusted. As it is, every request will be refused" in unknown.stdout
    words = ["approve", "study/study.toml", "--site", "a", "--code", "study", "--yes", "--trust-centre", "our own"]
    assert command("fedml-site", *words, cwd=tmp_path).returncode == 0
    for file in (tmp_path / "study").iterdir():
        file.unlink()
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "as if" not in done.stdout
    assert "own code ran in confined processes" in done.stdout
    stored = next((tmp_path / "a" / ".fedml" / "code").glob("*.py"))
    stored.write_bytes(stored.read_bytes() + b"\n# changed\n")
    changed = dry_run(tmp_path)
    assert changed.returncode != 0
    assert "was changed after it was approved" in changed.stderr
    assert not (tmp_path / "marker").exists()


def test_images_are_played_with_the_studys_own_transforms(tmp_path: Path) -> None:
    image_site(tmp_path / "a", "a", 60, 0, (6, 6))
    image = {"size": [4, 4], "window": [0, 200], "transforms": [{"name": "my_tf:inverted"}]}
    plan = make_plan(("image",), sites=("a",), cohort__image=image, code={"files": ["my_tf.py"]})
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.toml").write_text(to_toml(plan).replace('{"name": ', '{"name" = '))
    (tmp_path / "study" / "my_tf.py").write_text(TRANSFORM)
    study = read_study(tmp_path / "study" / "study.toml")
    played = rehearse(read_site(tmp_path / "a"), study, code=True)
    assert [e.phase for e in played.entries if e.direction == "out"][-2:] == ["round", "evaluate"]
