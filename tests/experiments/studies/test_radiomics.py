"""A study of radiomics and mutations at three hospitals finds the texture that was planted, and nothing where nothing was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.study.read import read_study
from fedml.study.study import Study, validate
from fedml.synthetic.nodules import SITES, write_nodules
from tests.command import STUDIES
from tests.conftest import Run, federate, write_csv

pytestmark = pytest.mark.long

PERSONS, NULLS = 60, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("nodules") / "sites"
    write_nodules(place, PERSONS, seed=3)
    return place


def study(**changes: Any) -> Study:
    return read_study(STUDIES / "radiomics.toml", overrides=changes)


def run(folder: Path, out: Path, **changes: Any) -> Run:
    return federate(study(**changes), [folder / name / "site.toml" for name in SITES], out)


def away(found: Run, folder: Path, seed: int) -> tuple[float, float]:
    """The AUROC of all test persons, and its distance from 0.5 in standard errors (Hanley and McNeil 1982, of no effect)."""
    measured = found.final["metrics"]["test"]["all"]
    plan = study(**{"study.seed": seed})
    labels = [read_cohort(read_site(folder / name / "site.toml"), plan) for name in SITES]
    tested = np.concatenate([one.labels[one.rows("test")] for one in labels])
    assert len(tested) == measured["persons"]
    ones = int(tested.sum())
    error = ((len(tested) + 1) / (12 * ones * (len(tested) - ones))) ** 0.5
    return measured["auroc"], (measured["auroc"] - 0.5) / error


def test_the_planted_texture_is_found_and_the_size_tells_nothing(folder: Path, tmp_path: Path) -> None:
    texture, size = run(folder, tmp_path / "texture"), {"cohort.inputs": ["radiomics"], "cohort.radiomics.families": ["shape"]}
    found, errors = away(texture, folder, 1)
    assert found > 0.7
    assert errors > 3
    plan = study().model_dump(mode="json", exclude_none=True)
    plan["cohort"] = {key: value for key, value in plan["cohort"].items() if key != "omics"} | {"inputs": size["cohort.inputs"]}
    plan["cohort"]["radiomics"]["families"] = size["cohort.radiomics.families"]
    plan["model"].pop("omics")
    alone = federate(validate(Study, plan, "size"), [folder / name / "site.toml" for name in SITES], tmp_path / "size")
    assert abs(away(alone, folder, 1)[1]) < 2.5


def test_labels_that_follow_from_nothing_are_predicted_as_often_as_chance_allows(folder: Path, tmp_path: Path) -> None:
    """Of eight draws of labels, at most two are beyond 1.96 standard errors: more has a probability of 0.6 %."""
    beyond = []
    for draw in range(NULLS):
        for at, name in enumerate(SITES):
            ids = [row.split(",")[0] for row in (folder / name / "persons.csv").read_text().splitlines()[1:]]
            write_csv(folder / name / "persons.csv", ids, {"response": np.random.default_rng([draw, at]).integers(0, 2, len(ids))})
        seed = 100 + draw
        beyond.append(away(run(folder, tmp_path / str(draw), **{"study.seed": seed}), folder, seed)[1])
    assert sum(abs(z) > 1.96 for z in beyond) <= 2, beyond
    assert abs(np.mean(beyond)) < 2.6 / NULLS**0.5
