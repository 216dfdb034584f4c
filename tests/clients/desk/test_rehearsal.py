"""``fedml-site start --dry-run``: a round on persons who do not exist, through the site's own gate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.errors import RunError
from tests.command import command as started
from tests.command import quick as command
from tests.conftest import clinical_site, image_site, make_plan, make_study, to_toml, write_bed, write_manifest


def test_the_command_shows_what_would_leave_and_touches_nothing(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    (tmp_path / "study.toml").write_text(to_toml(make_plan()))
    before = sorted(p.name for p in (tmp_path / "a").rglob("*"))
    done = command("fedml-site", "start", "--dry-run", "--site", "a", "--study", "study.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "60 placeholder persons" in done.stdout
    for phase, record in (("describe", "described"), ("statistics", "sums"), ("round", "arrays"), ("evaluate", "counts")):
        assert any(line.split()[0] == phase and record in line for line in done.stdout.splitlines() if line.startswith("  ")), phase
    assert sorted(p.name for p in (tmp_path / "a").rglob("*")) == before


def test_a_study_whose_keys_are_about_its_rounds_is_rehearsed_in_one_round(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 90, seed=1)
    training = {
        "keep": "best",
        "patience": 3,
        "schedule": {"kind": "cosine", "warmup": 2},
        "class_weights": "inverse",
        "keep_optimizer": True,
    }
    study = make_study(training=training, federation__rounds=9)
    played = rehearse(read_site(tmp_path / "a"), study)
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


def test_without_a_study_those_approved_are_rehearsed(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    (tmp_path / "study.toml").write_text(to_toml(make_plan()))
    none = command("fedml-site", "start", "--dry-run", "--site", "a", cwd=tmp_path)
    assert none.returncode == 2
    assert "approve a study first" in none.stderr
    assert command("fedml-site", "approve", "study.toml", "--site", "a", "--yes", cwd=tmp_path).returncode == 0
    done = command("fedml-site", "start", "--dry-run", "--site", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'study "toy"' in done.stdout
    entries = (tmp_path / "a" / ".fedml" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(e)["reason"] for e in entries] == ["approve"], "a rehearsal is no decision about real persons"


def test_images_and_variants_are_played_as_many_as_there_are(tmp_path: Path) -> None:
    image_site(tmp_path / "a", "a", 120, seed=2)
    ids = [f"a{k:04d}" for k in range(120)]
    keys = [("1", 100 + k, f"rs{k}", "A", "G") for k in range(7)]
    write_bed(tmp_path / "a" / "cohort.bed", ids[:110], keys, np.ones((110, 7), dtype=np.int8))
    write_manifest(
        tmp_path / "a", "a", image='{ path = "images.npz", format = "npz" }', variants='{ path = "cohort.bed", build = "GRCh38" }'
    )
    study = make_study(("image", "variants"))
    played = rehearse(read_site(tmp_path / "a"), study)
    assert played.persons == 120
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


def test_a_segmentation_is_played_with_masks(tmp_path: Path) -> None:
    image_site(tmp_path / "a", "a", 120, seed=2)
    masks = np.random.default_rng(1).choice([0, 255], (120, 8, 8)).astype(np.uint8)
    with np.load(tmp_path / "a" / "images.npz") as file:
        np.savez(tmp_path / "a" / "images.npz", ids=file["ids"], images=file["images"], masks=masks)
    study = make_study(("image",), cohort__classes=[0, 255], model__task="segmentation", model__segmentation={"channels": [4, 8]})
    played = rehearse(read_site(tmp_path / "a"), study)
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


def test_the_sites_own_policy_holds_in_a_rehearsal(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    with (tmp_path / "a" / "site.toml").open("a") as file:
        file.write("[policy]\nmin_persons = 59\n")
    with pytest.raises(RunError, match="too-few-persons"):
        rehearse(read_site(tmp_path / "a"), make_study())


def test_a_private_study_is_rehearsed_at_the_price_it_would_have(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 120, seed=1)
    ranges = {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}
    study = make_study(privacy={"unit": "patient", "epsilon": 3.0, "persons": {"a": 80, "b": 90}, "ranges": ranges, "metrics": "private"})
    with pytest.raises(RunError, match="privacy-budget"):
        rehearse(read_site(tmp_path / "a"), study)
    with (tmp_path / "a" / "site.toml").open("a") as file:
        file.write("[policy]\nmax_epsilon = 3.0\n")
    played = rehearse(read_site(tmp_path / "a"), study)
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "round", "evaluate"]
    assert not (tmp_path / "a" / ".fedml").exists(), "the site's own budget is not touched"


MARKER = """
import os, pathlib
pathlib.Path(os.environ["MARKER"]).write_text("imported")
from flwr.serverapp.strategy import FedAvg
class Own(FedAvg):
    pass
"""


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, str]:
    """A site ``a``, a study that names a strategy of its author, and an environment that can import it: it leaves a file."""
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    (tmp_path / "study.toml").write_text(to_toml(make_plan(strategy__name="foreign_strategy:Own")))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "foreign_strategy.py").write_text(MARKER)
    path = os.pathsep.join(filter(None, (str(tmp_path / "code"), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "MARKER": str(tmp_path / "marker")}


def test_a_site_imports_no_strategy_that_a_study_names(tmp_path: Path, foreign: dict[str, str]) -> None:
    done = started("fedml-site", "start", "--dry-run", "--site", "a", "--study", "study.toml", cwd=tmp_path, **foreign)
    assert done.returncode == 0, done.stderr
    assert "foreign_strategy:Own was not imported" in done.stdout
    assert any(line.split()[0] == "round" and "arrays" in line for line in done.stdout.splitlines() if line.startswith("  "))
    assert not (tmp_path / "marker").exists()


@pytest.mark.long
def test_no_command_of_a_site_imports_what_a_study_names(tmp_path: Path, foreign: dict[str, str]) -> None:
    for words in (
        ("check", "study.toml", "--site", "a"),
        ("approve", "study.toml", "--site", "a", "--yes"),
        ("doctor", "--site", "a", "--study", "study.toml"),
        ("start", "--dry-run", "--site", "a"),
        ("status", "--site", "a"),
        ("revoke", "toy", "--site", "a"),
    ):
        done = started("fedml-site", *words, cwd=tmp_path, **foreign)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert not (tmp_path / "marker").exists(), words
    started("fedml", "check", "study.toml", cwd=tmp_path, **foreign)
    assert (tmp_path / "marker").exists(), "the server imports it, so this test would notice"


@pytest.mark.parametrize("name", ["nowhere_module:Class", "flwr.serverapp.strategy:FedMedian", "os:system", "antigravity:x"])
def test_a_strategy_by_its_path_is_rehearsed_without_it(tmp_path: Path, name: str) -> None:
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    played = rehearse(read_site(tmp_path / "a"), make_study(strategy__name=name))
    assert played.replaced == name
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


def test_flowers_fedprox_is_rehearsed_with_its_value_for_the_sites(tmp_path: Path) -> None:
    clinical_site(tmp_path / "a", "a", 60, seed=1)
    study = make_study(strategy={"name": "flwr.serverapp.strategy:FedProx", "proximal_mu": 0.25})
    played = rehearse(read_site(tmp_path / "a"), study)
    assert played.replaced == "flwr.serverapp.strategy:FedProx"
    assert rehearse(read_site(tmp_path / "a"), make_study()).replaced == ""
