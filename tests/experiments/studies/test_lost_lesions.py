"""Lesions that the crop cuts away are in every measure, and every command says them: real files, commands, and what leaves a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.runs.log import load_counts
from tests.command import quick, quick_json
from tests.conftest import federate, make_study, to_toml
from tests.lesions import EDGE, MIDDLE, SIZE, lesion_site, plan

SMALL = (12, 12, 12)  # an edge lesion is outside


def study_file(folder: Path, size: tuple[int, ...], **changes: Any) -> Path:
    file = folder / "study.toml"
    file.write_text(to_toml(make_study(("image",), **plan(size, **changes)).model_dump(mode="json", exclude_none=True)))
    return file


def test_a_run_and_a_check_tell_what_the_crop_takes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lesion_site(tmp_path / "sites" / name, name, [MIDDLE, EDGE] * 20)
    file = study_file(tmp_path, SMALL)
    done = quick_json(file, "--sites", tmp_path / "sites", "--runs", tmp_path / "runs", "--no-track", cwd=tmp_path)
    found = done["metrics"]["test"]
    study = make_study(("image",), **plan(SMALL))
    tested = [read_cohort(read_site(tmp_path / "sites" / name / "site.toml"), study) for name in ("a", "b")]
    ids = [c.ids[row] for c in tested for row in c.rows("test")]
    at_edge = sum(int(i[1:]) % 2 for i in ids)
    assert 0 < at_edge < len(ids)
    assert (found["persons/1"], found["lesions/1"], found["lost_lesions/1"], found["lost_persons/1"]) == (
        len(ids),
        len(ids),
        at_edge,
        at_edge,
    )
    assert found["lost_voxels/1"] == 33 * at_edge
    assert found["dice_mean_person/1"] <= 1 - at_edge / len(ids)
    assert f"{at_edge} of {len(ids)} lesions" in done["notes"][0]
    check = quick("fedml-site", "check", file, "--site", tmp_path / "sites" / "a" / "site.toml", cwd=tmp_path)
    assert "class 1: 20 of 40 lesions, 660 of 1,320 voxels outside of the crop, the whole class of 20 of 40 persons" in check.stdout, check
    both = quick("fedml", "check", file, "--sites", tmp_path / "sites", cwd=tmp_path)
    assert both.stdout.count("class 1: 20 of 40 lesions, 660 of 1,320 voxels outside of the crop") == 2, both
    report = quick("fedml", "report", done["folder"], cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "Lost by preprocessing, class 1" in next(tmp_path.rglob("report.html")).read_text()


def test_nothing_is_lost_by_a_crop_that_holds_everything(tmp_path: Path) -> None:
    sites = [lesion_site(tmp_path / name, name, [MIDDLE, EDGE] * 20) for name in ("a", "b")]
    run = federate(make_study(("image",), **plan(SIZE)), sites, tmp_path / "run")
    found = run.final["metrics"]["test"]["all"]
    assert (found["lost_lesions/1"], found["lost_voxels/1"], found["persons/1"]) == (0, 0, found["persons"])


@pytest.mark.parametrize("edge", [2, 12])
def test_a_site_of_real_persons_tells_no_loss_of_few(tmp_path: Path, edge: int) -> None:
    """``edge`` test persons lose their lesion; the site's default policy holds: numbers of fewer than 5 persons are withheld."""
    study = make_study(("image",), **plan(SMALL))
    probe = lesion_site(tmp_path / "probe", "a", [MIDDLE] * 120)
    cohort = read_cohort(read_site(probe), study)
    places = np.array([MIDDLE] * 120)
    places[[int(cohort.ids[row][1:]) for row in cohort.rows("test")[:edge]]] = EDGE
    real = lesion_site(tmp_path / "a", "a", [tuple(int(v) for v in p) for p in places], public=False)
    other = lesion_site(tmp_path / "b", "b", [MIDDLE] * 60, public=False)
    run = federate(study, [real, other], tmp_path / "run")
    sent = {key: value.tolist() for key, value in load_counts(tmp_path / "run")["test"]["a"].items() if key.startswith("lost")}
    tested = cohort.count("test")
    assert tested > 20
    if edge < 5:
        assert sent == {"lost": [[0] * 4], "lost_persons": [[0] * 4], "lost_withheld": [[1, 0, 1, 1]]}
        assert run.final["metrics"]["test"]["all"]["lost_lesions/1"] is None or np.isnan(
            run.final["metrics"]["test"]["all"]["lost_lesions/1"]
        )
    else:
        assert sent == {"lost": [[33 * edge, 0, edge, edge]], "lost_persons": [[edge, 0, edge, edge]], "lost_withheld": [[0] * 4]}
        assert run.final["metrics"]["test"]["all"]["lost_lesions/1"] == edge


def test_the_digest_of_the_data_covers_what_the_crop_cuts_away(tmp_path: Path) -> None:
    study = make_study(("image",), **plan(SMALL))
    site = lesion_site(tmp_path / "a", "a", [EDGE] * 30)
    first = read_cohort(read_site(site), study).digest
    assert read_cohort(read_site(site), study).digest == first
    moved = lesion_site(tmp_path / "c", "a", [(3, 4, 6), *[EDGE] * 29])
    assert read_cohort(read_site(moved), study).digest != first
