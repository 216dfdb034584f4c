"""The example study of slides: from slides to attention on features, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedml.study.read import read_study
from fedml.synthetic.slides import write_slides
from tests.command import ROOT
from tests.conftest import federate


@pytest.mark.long
def test_attention_on_features_finds_the_spots(tmp_path: Path) -> None:
    study = read_study(ROOT / "experiments" / "studies" / "slides.toml")
    sites = write_slides(tmp_path / "sites", 60)
    run = federate(study, sites, tmp_path / "run")
    found = run.final["metrics"]["test"]["all"]
    assert run.shape == (2940,)
    assert found["auroc"] > 0.9
    for site in sites:
        (place,) = (site / ".fedml" / "cache" / "features").iterdir()
        assert len(list(place.glob("*.npy"))) == 60


def test_the_slides_are_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_slides(tmp_path / name, 3)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 * 5
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)
