"""A study on patches: trained on parts, evaluated over each whole image, by the command, and the same twice and on another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from fedml.clients.site.read import load_aligned
from fedml.errors import InputError
from fedml.runs.log import load_counts
from fedml.runs.restore import restore
from fedml.study.study import Study
from tests.command import quick, quick_json
from tests.conftest import federate, make_study, to_toml
from tests.lesions import EDGE, MIDDLE, lesion_site, plan

SIZES = ((24, 24, 12), (28, 20, 14))
PATCHES = {"size": [8, 8, 8], "per_step": 2, "foreground": 0.7}
IMAGE: dict[str, Any] = {"orientation": "RAS", "spacing_mm": [1.0, 1.0, 1.0], "window": [-100.0, 250.0], "patches": PATCHES}


def study_of(**changes: Any) -> Study:
    return make_study(("image",), **{**plan((), cohort__image=IMAGE), **changes})


def test_lesions_at_the_edge_are_found_and_the_measures_are_those_of_monais_windows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lesion_site(tmp_path / "sites" / name, name, [MIDDLE, EDGE] * 12, sizes=SIZES)
    study = study_of(federation__rounds=8)
    file = tmp_path / "study.toml"
    file.write_text(to_toml(study.model_dump(mode="json", exclude_none=True)))
    check = quick("fedml", "check", file, cwd=tmp_path)
    assert "2 patch(es) of 8 x 8 x 8" in check.stdout, check
    done = quick_json(file, "--sites", tmp_path / "sites", "--runs", tmp_path / "runs", "--no-track", cwd=tmp_path)
    found = done["metrics"]["test"]
    assert (found["lost_lesions/1"], found["lost_voxels/1"]) == (0, 0)
    assert found["persons/1"] == found["persons"]
    assert found["dice_mean_person/1"] > 0.8
    run = Path(done["folder"])
    _, model = restore(run)
    model.eval()
    site = tmp_path / "sites" / "a" / "site.toml"
    cohort = load_aligned((str(site),), study, b"")
    both = true = guessed = 0
    for row in cohort.rows("test"):
        batch = cohort.batch([int(row)])
        with torch.inference_mode():
            x = model.preprocess["image"](batch["image"])
            logits = sliding_window_inference(x, (8, 8, 8), 4, model.encoder["image"], overlap=0.5, mode="gaussian")
        guess, mask = logits.argmax(1)[0].numpy(), batch["mask"][0, 0].numpy()
        # The files' axes are those of RAS and their spacing is 1 mm, so their voxels are those of the prepared image without its padding.
        both, true, guessed = both + (guess & mask).sum(), true + mask.sum(), guessed + guess.sum()
    counts = load_counts(run)["test"]["a"]
    assert [int(counts[k][0]) for k in ("intersection", "true", "predicted")] == [both, true, guessed]


def test_the_same_twice_and_another_seed_draws_others(tmp_path: Path) -> None:
    sites = [lesion_site(tmp_path / name, name, [MIDDLE] * 16, sizes=SIZES) for name in ("a", "b")]
    runs = [federate(study_of(study__seed=seed), sites, tmp_path / f"run{k}") for k, seed in enumerate((0, 0, 1))]
    assert runs[0].sha256 == runs[1].sha256
    assert runs[0].sha256 != runs[2].sha256


def test_persons_with_several_images_of_different_sizes(tmp_path: Path) -> None:
    site = lesion_site(tmp_path / "a", "a", [MIDDLE] * 24, sizes=SIZES)
    lines = [f"p{k}" for k in range(12)]
    for k, person in enumerate(lines):
        for kind in ("images", "masks"):
            (tmp_path / "a" / kind / person).mkdir()
            for j in range(2):
                (tmp_path / "a" / kind / f"a{2 * k + j:03d}.nii.gz").rename(tmp_path / "a" / kind / person / f"{j}.nii.gz")
    (tmp_path / "a" / "persons.csv").write_text("id\n" + "\n".join(lines))
    study = make_study(("image",), ("a",), **plan((), cohort__image=IMAGE))
    run = federate(study, [site], tmp_path / "run")
    found, counts = run.final["metrics"]["test"]["all"], load_counts(tmp_path / "run")["test"]["a"]
    assert found["persons"] == found["persons/1"]
    assert int(counts["true"][0]) == 2 * 33 * found["persons"]
    assert int(counts["lesions"][0]) == 2 * found["persons"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cohort__image": {**IMAGE, "crop": True}}, "patches keep the size of each image; remove size and crop"),
        ({"cohort__image": {**IMAGE, "size": [9, 9, 9]}}, "patches keep the size of each image; remove size and crop"),
        ({"cohort__image": {**IMAGE, "patches": {"size": [8, 8]}}}, "same number of values"),
        ({"cohort__image": {**IMAGE, "patches": {"size": [8, 8, 8], "foreground": 1.5}}}, "foreground"),
        ({"cohort__image": {**IMAGE, "patches": {"size": [1024, 1024, 64], "per_step": 64}}}, "the limit is"),
        ({"model__task": "classification", "model__segmentation": {}}, "patches are of images with masks"),
        ({"privacy": {"unit": "patient", "noise_multiplier": 1.0, "persons": {"a": 9, "b": 9}}}, "is not built for unit = \"patient\""),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_refused_in_one_sentence(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as found:
        study_of(**changes)
    assert "\n" not in str(found.value).strip()


def test_privacy_of_a_site_trains_on_patches(tmp_path: Path) -> None:
    sites = [lesion_site(tmp_path / name, name, [MIDDLE] * 16, sizes=SIZES) for name in ("a", "b")]
    privacy = {"unit": "site", "noise_multiplier": 0.1, "delta": 1e-5, "image_range": [0.0, 1.0]}
    run = federate(study_of(privacy=privacy, strategy__weighting="equal"), sites, tmp_path / "run")
    assert np.isfinite([float(v.abs().max()) for v in run.learned().values()]).all()
