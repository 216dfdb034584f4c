"""A bundle runs in MONAI alone, and its network gives the scores, its masks the voxels, of this software."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from fedml.cohort.one_image import read_one
from fedml.runs.restore import restore
from tests.command import quick, quick_json
from tests.conftest import make_study, to_toml
from tests.lesions import MIDDLE, lesion_site, plan

WINDOW = {"orientation": "LPS", "spacing_mm": [1.25, 1.0, 1.0], "window": [-100.0, 250.0]}
PATCHES: dict[str, Any] = {**WINDOW, "patches": {"size": [8, 8, 8], "foreground": 0.7}}
NETS = [
    ("unet", {}, PATCHES),
    pytest.param("dynunet", {"channels": [4, 8, 16]}, PATCHES, marks=pytest.mark.long),
    pytest.param("dynunet", {"channels": [4, 8, 16], "deep_supervision": 1}, PATCHES, marks=pytest.mark.long),
    pytest.param("segresnet", {}, {**WINDOW, "size": [16, 24, 12]}, marks=pytest.mark.long),
]


def trained(folder: Path, net: str, options: dict[str, Any], image: dict[str, Any], **changes: Any) -> Path:
    for name in ("a", "b"):
        lesion_site(folder / "sites" / name, name, [MIDDLE] * 16)
    network = {"channels": [4, 8], "distances": False, "net": net, **options}
    study = make_study(("image",), **plan((), cohort__image=image, model__segmentation=network, federation__rounds=4, **changes))
    text = to_toml(study.model_dump(mode="json", exclude_none=True))
    (folder / "study.toml").write_text(f'{text}\n[[cohort.image.transforms]]\nname = "GaussianSmoothd"\nsigma = 0.5\n')
    done = quick_json(folder / "study.toml", "--sites", folder / "sites", "--runs", folder / "runs", "--no-track", cwd=folder)
    return Path(done["folder"])


@pytest.mark.parametrize(("net", "options", "image"), NETS)
def test_a_bundle_gives_equal_scores_and_masks(tmp_path: Path, net: str, options: dict[str, Any], image: dict[str, Any]) -> None:
    run, bundle, images = trained(tmp_path, net, options, image), tmp_path / "bundle", tmp_path / "sites" / "a" / "images"
    done = quick("fedml", "export-bundle", run, "--out", bundle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    study, model = restore(run)
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"], parser["dataset_dir"] = str(bundle), str(images)
    item = parser.get_parsed_content("dataset")[0]
    network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    with torch.inference_mode():
        theirs = inferer(item["image"][None].as_tensor(), network)
        ours = model({"image": torch.from_numpy(read_one(images / "a000.nii.gz", study.cohort.image))[None]})
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    given = {"config_file": str(bundle / "configs" / "inference.json"), "bundle_root": str(bundle), "dataset_dir": str(images)}
    line = [sys.executable, "-c", f"import monai.bundle; monai.bundle.run(**{given!r})"]
    ran = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    quick("fedml-site", "predict", run, "--images", images, "--out", tmp_path / "masks", cwd=tmp_path)
    same = []
    for path in sorted((tmp_path / "masks").iterdir()):
        own, other = nib.load(path), nib.load(bundle / "eval" / path.name)
        np.testing.assert_allclose(own.affine, other.affine, atol=1e-5)
        same.append((np.asarray(own.dataobj) == np.asarray(other.dataobj)).mean())
    assert len(same) == 16
    assert min(same) > 0.99


def test_what_a_bundle_cannot_say_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path, "unet", {"norm": "group"}, PATCHES)
    done = quick("fedml", "export-bundle", run, "--out", tmp_path / "bundle", cwd=tmp_path)
    assert done.returncode == 2
    assert 'train with norm = "instance"' in done.stderr
    assert not (tmp_path / "bundle").exists()
