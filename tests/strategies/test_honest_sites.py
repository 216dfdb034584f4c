"""No honest site is called implausible, however small it and its parts are: 16 sites of real persons, of 24 to 60 persons each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedml.runs.events import Agreed, Final, Round
from fedml.runs.log import read_log
from tests.conftest import federate, make_study, write_csv, write_manifest

SITES = tuple(f"s{k:02d}" for k in range(16))


def real_site(folder: Path, name: str, seed: int, classes: int) -> Path:
    """Persons who are not declared public; classes are rare at some sites."""
    random = np.random.default_rng(seed)
    persons = int(random.integers(24, 60))
    x = random.normal(size=(persons, 3))
    shares = random.dirichlet(np.full(max(classes, 1), 2.0))
    y = random.choice(classes, persons, p=shares) if classes else x[:, 0] * 3 + random.normal(size=persons)
    folder.mkdir(parents=True)
    ids = [f"{name}-{k:03d}" for k in range(persons)]
    write_csv(folder / "persons.csv", ids, {"y": y})
    write_csv(folder / "clinical.csv", ids, {f"x{k + 1}": x[:, k] for k in range(3)})
    manifest = write_manifest(folder, name, clinical='{ path = "clinical.csv" }')
    manifest.write_text(manifest.read_text().replace("public = true\n", "") + "\n[policy]\nmin_persons = 5\n")
    return manifest


@pytest.mark.parametrize("classes", [2, 3, 0])
def test_all_are_answered_in_every_round(tmp_path: Path, classes: int) -> None:
    places = [real_site(tmp_path / name, name, 100 + seed, classes) for seed, name in enumerate(SITES)]
    task = {"cohort__classes": list(range(classes))} if classes else {"model__task": "regression"}
    study = make_study(sites=SITES, federation__rounds=6, training__lr=0.05, cohort__split={"train": 0.6, "val": 0.2, "test": 0.2}, **task)
    federate(study, places, tmp_path / "run")
    events = read_log(tmp_path / "run")[0]
    rounds = [event for event in events if isinstance(event, Round)]
    assert len(rounds) == 6
    assert not any(event.refused for event in (*rounds, *(e for e in events if isinstance(e, Final))))
    (agreed,) = (event for event in events if isinstance(event, Agreed))
    small = [n for parts in agreed.persons.values() for row in parts.values() for n in row if 0 < n < 5 <= sum(row)]
    assert not small, "a class of few persons is not described"
