"""Studies of images reach what pooled data reach: the figures' own arithmetic (quick), and the figures (minutes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedml.experiments.bench.image_parity import Held, compared, parity
from fedml.experiments.prepare import prepare
from tests.command import STUDIES
from tests.conftest import image_site, public_data, to_toml


def held(truth: Any, output: Any, site: Any) -> Held:
    return Held(tuple(map(str, range(len(truth)))), np.asarray(site), np.asarray(truth), np.asarray(output, float))


def test_the_difference_is_of_the_mean_over_seeds_on_the_same_persons() -> None:
    rng = np.random.default_rng(5)
    truth, site = rng.integers(0, 2, 200), np.arange(200) % 2
    shared = truth + rng.normal(0, 1, 200)  # who is hard for one model is hard for the other
    found = {way: [held(truth, shared + rng.normal(0, 0.1, 200), site) for _ in range(3)] for way in ("federated", "pooled")}
    values, difference = compared("auroc", found, site >= 0)
    for way, runs in found.items():
        assert values[way] == pytest.approx([roc_auc_score(truth, run.output) for run in runs], abs=1e-12)
    assert difference.value == pytest.approx(np.mean(values["federated"]) - np.mean(values["pooled"]), abs=1e-12)
    assert difference.low < difference.value < difference.high
    assert difference.high - difference.low < 0.03  # paired: one AUROC of 200 persons alone is uncertain by 0.12
    of_one, _ = compared("auroc", found, site == 1)
    assert of_one["pooled"][0] == pytest.approx(roc_auc_score(truth[site == 1], found["pooled"][0].output[site == 1]), abs=1e-12)


def test_dice_is_a_mean_over_persons_who_have_one() -> None:
    one, other = [0.9, 0.8, np.nan, 0.7], [0.8, 0.8, np.nan, 0.8]
    found = {"federated": [held([0] * 4, one, [0, 0, 1, 1])], "pooled": [held([0] * 4, other, [0, 0, 1, 1])]}
    values, difference = compared("mean", found, np.ones(4, bool))
    assert values == {"federated": [pytest.approx(0.8)], "pooled": [pytest.approx(0.8)]}
    assert difference.value == pytest.approx(0)


def small(folder: Path, **cohort: Any) -> tuple[Path, Path]:
    """Two sites with images, and a study of them."""
    for k, name in enumerate("ab"):
        image_site(folder / "sites" / name, name, 60, k)
    plan = {
        "study": {"name": "toy"},
        "cohort": {"inputs": ["image"], "target": "y", "image": {"channels": 1, "size": [8, 8]}, **cohort},
        "model": {"image": {"channels": [4]}},
        "federation": {"sites": ["a", "b"], "rounds": 2},
    }
    (folder / "toy.toml").write_text(to_toml(plan))
    return folder / "toy.toml", folder / "sites"


def test_a_study_is_trained_both_ways_and_tested_on_the_same_persons(tmp_path: Path) -> None:
    study, sites = small(tmp_path, split_key="held")
    rows = list(parity(study, sites, [0, 1], "test", tmp_path / "runs"))
    assert [row["who"] for row in rows] == ["all", "a", "b"]
    assert rows[0]["persons"] == rows[1]["persons"] + rows[2]["persons"]
    assert all(len(row[way]) == 2 and 0 <= min(row[way]) <= max(row[way]) <= 1 for row in rows for way in ("federated", "pooled"))


def test_seeds_that_test_others_are_no_pairs(tmp_path: Path) -> None:
    study, sites = small(tmp_path)
    with pytest.raises(ValueError, match="split_key"):
        list(parity(study, sites, [0, 1], "test", tmp_path / "runs"))


# --- the studies: minutes each


def rows_of(name: str, seeds: list[int], tmp_path: Path) -> dict[str, dict[str, Any]]:
    """site (or all) -> a row of ``parity`` of the study ``name``."""
    data = None if name == "lesions" else public_data("wbc_two_labs" if name == "wbc" else "medmnist").parent
    prepare(name, tmp_path / name, data=data, say=lambda _: None)
    return {row["who"]: row for row in parity(STUDIES / f"{name}.toml", tmp_path / name, seeds, "test", tmp_path / "runs")}


@pytest.mark.long
def test_wbc_is_near_pooled_in_both_laboratories(tmp_path: Path) -> None:
    rows = rows_of("wbc", [0], tmp_path)
    for lab, least in {"tecom": 0.92, "cellavision": 0.89}.items():
        assert np.mean(rows[lab]["federated"]) >= least, rows[lab]
        assert rows[lab]["difference"].value >= -0.02, rows[lab]


@pytest.mark.long
def test_adrenal_is_near_pooled_over_three_seeds(tmp_path: Path) -> None:
    row = rows_of("adrenal", [0, 1, 2], tmp_path)["all"]
    assert row["persons"] == 298  # the official test glands, all of them
    assert np.mean(row["pooled"]) >= 0.8
    assert row["difference"].value >= -0.03, row
    assert row["difference"].low < row["difference"].value < row["difference"].high


@pytest.mark.long
def test_lesions_are_found_on_every_scanner(tmp_path: Path) -> None:
    rows = rows_of("lesions", [0], tmp_path)
    assert np.mean(rows["all"]["federated"]) >= 0.72
    assert rows["all"]["difference"].value >= -0.06, rows["all"]
    assert min(np.mean(rows[site]["federated"]) for site in rows) >= 0.6
