"""The digest of a site's data: golden values, so that the digest in an old run's record is that of the same data today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from tests.conftest import make_study, write_bed, write_csv, write_manifest
from tests.experiments.studies.test_slide_run import write_tiff

PERSONS = 9
IDS = [f"p{k}" for k in range(PERSONS)]
KEYS = [("1", 100 + k, f"rs{k}", "A", "G") for k in range(4)]
COLUMNS = {"x1": [k * 0.5 for k in range(PERSONS)], "x2": [None, *range(1, PERSONS)], "x3": [7] * PERSONS}


def files(folder: Path) -> dict[str, str]:
    """Every kind of input of nine persons, some lacking each; returns the entries of a manifest."""
    folder.mkdir(parents=True)
    write_csv(folder / "persons.csv", IDS, {"y": [k % 2 for k in range(PERSONS)], "sex": [k // 2 % 2 for k in range(PERSONS)]})
    write_csv(folder / "split.csv", IDS, {"part": ["train"] * 5 + ["val"] * 2 + ["test"] * 2})
    write_csv(folder / "clinical.csv", IDS, COLUMNS)
    write_bed(folder / "cohort.bed", IDS[1:], KEYS, (np.arange(32).reshape(8, 4) % 4 - 1).astype(np.int8))
    voxels = (np.arange(12 * 6 * 5) % 251).astype(np.uint8).reshape(12, 6, 5)
    np.savez(folder / "images.npz", ids=np.array(IDS[:8] + IDS[:4]), images=voxels, masks=voxels % 2)
    slides = folder / "slides"
    slides.mkdir()
    for k, person in enumerate(IDS[:3]):
        pixels = (np.arange(256 * 256 * 3).reshape(256, 256, 3) * (k + 3) % 90).astype(np.uint8) + np.array([160, 70, 130], np.uint8)
        write_tiff(slides / f"{person}.tif", pixels)
    return {
        "split": '"split.csv"',
        "clinical": '{ path = "clinical.csv" }',
        "variants": '{ path = "cohort.bed", build = "GRCh38" }',
        "image": '{ path = "images.npz", format = "npz" }',
    }


SLIDES = {"cohort__image": {"tiles": {"size_px": 64, "mpp": 0.5}}, "training": {"threads": 1}}
MASKED = {"model__task": "segmentation", "cohort__image": {"size": [6, 5]}, "model__segmentation": {"channels": [4, 8]}}
GOLDEN = {
    "clinical": (make_study(("clinical",)), "515783a1a6681f4c11eff10aa28aa220452121b25e53946c37b993401e2ab33c"),
    "clinical and groups": (
        make_study(("clinical",), evaluation={"subgroups": {"sex": [0, 1]}}),
        "e6fd3a27246f2887824b3b4cb8fdc79800663beb315c79b818427b2a34a80b14",
    ),
    "variants": (make_study(("variants",)), "4de3d0080ef1577637233c3715a7c1ac19e4d202202c81f1688538a3dca1ef47"),
    "images": (make_study(("image",), cohort__image={"size": [6, 5]}), "5cfac4acc101fcabb523955778190f4398c205f1e69fc22679d77834a60d157d"),
    "images with masks": (make_study(("image",), **MASKED), "97eca945f03ef68ab6956a8ac7c72d6de8d188c9bac150e45019ffa928ee0fa9"),
    "slides": (make_study(("image",), **SLIDES), "9ef4e61650c9328ef3dc097c2a4c75d72b07f7370b2fcafded63846fa27da18f"),
    "all": (make_study(("image", "variants", "clinical")), "81773e02270d734c6cf85b143f871c48b13dbb60fd989359783ce47ec76f0181"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_digest_of_the_same_data_stays(name: str, tmp_path: Path) -> None:
    study, golden = GOLDEN[name]
    data = {key: text for key, text in files(tmp_path / "a").items() if key in ("split", *study.cohort.inputs)}
    if name == "slides":
        data["image"] = '{ path = "slides", format = "slide" }'
    assert read_cohort(read_site(write_manifest(tmp_path / "a", "a", **data)), study).digest.hex() == golden
