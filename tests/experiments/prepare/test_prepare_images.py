"""Public and synthetic images become site folders: what is in them, and that a study reads of them what was there."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.images.transforms import prepared
from fedml.errors import InputError
from fedml.experiments.prepare import adrenal, lesions, prepare
from fedml.study.imaging import Preprocess
from fedml.study.read import read_study
from tests.command import STUDIES
from tests.conftest import public_data


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes]:
    """The prepared files, without the state that a site keeps after a study has read them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".fedml" not in p.parts}


# --- adrenal


@pytest.mark.long
def test_adrenal_keeps_the_official_parts_and_every_gland(tmp_path: Path) -> None:
    original = public_data("medmnist") / adrenal.FILE
    said: list[str] = []
    sites = prepare("adrenal", tmp_path / "sites", data=original.parent, say=said.append)
    assert any(line.startswith("licence: CC BY 4.0") for line in said)
    assert not any("warning" in line for line in said)
    with np.load(original) as arrays:
        images = {part: arrays[f"{part}_images"] for part in adrenal.PARTS}
        labels = {part: arrays[f"{part}_labels"][:, 0] for part in adrenal.PARTS}
    dealt, sizes, rates = [], [], []
    for site in sites:
        persons, split = read(site / "persons.csv"), read(site / "split.csv")
        with np.load(site / "images.npz", allow_pickle=False) as arrays:
            ids, shapes = arrays["ids"].tolist(), arrays["images"]
        assert [p["id"] for p in persons] == [s["id"] for s in split] == ids
        for person, row, shape in zip(persons, split, shapes, strict=True):
            _, part, number = person["id"].split("-")
            assert part == row["part"]
            assert int(person["abnormal"]) == labels[part][int(number)]
            if int(number) % 40 == 0:
                # a voxel of 4 mm is the mean of the 64 voxels of 1 mm in it, summed here axis by axis
                blocks = images[part][int(number)].astype(np.int64)
                for axis in range(3):
                    blocks = np.add.reduceat(blocks, np.arange(0, 64, 4), axis=axis)
                assert np.abs(blocks / 64 - shape).max() <= 0.5
            dealt.append((part, int(number)))
        train = [int(p["abnormal"]) for p, s in zip(persons, split, strict=True) if s["part"] == "train"]
        assert min(np.bincount(train, minlength=2)) >= 20
        sizes.append(len(ids))
        rates.append(np.mean([int(p["abnormal"]) for p in persons]))
    assert sorted(dealt) == sorted((part, k) for part in adrenal.PARTS for k in range(len(labels[part])))
    assert {part: sum(p == part for p, _ in dealt) for part in adrenal.PARTS} == {"train": 1188, "val": 98, "test": 298}
    assert max(sizes) > 2 * min(sizes)
    assert max(rates) - min(rates) > 0.2
    cohort = read_cohort(read_site(sites[0]), read_study(STUDIES / "adrenal.toml"))
    assert len(cohort) == sizes[0]
    assert cohort.batch([0])["image"].shape == (1, 1, 16, 16, 16)


def glands(path: Path, persons: int, **changes: Any) -> Path:
    """A made-up file of the same form: balls, larger where not normal."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(64) - 31.5] * 3, indexing="ij"))
    distance = np.linalg.norm(grid, axis=0)
    arrays: dict[str, Any] = {}
    for part in adrenal.PARTS:
        labels = rng.integers(0, 2, persons)
        arrays[f"{part}_images"] = np.stack([255 * (distance < 10 + 5 * y) for y in labels]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels[:, None].astype(np.uint8)
    np.savez_compressed(path, **(arrays | changes))
    return path


def test_adrenal_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for changes, word in (
        ({}, "no partition"),  # 20 glands are too few for four hospitals
        ({"test_images": np.zeros((20, 28, 28, 28), np.uint8)}, "64 voxels"),
        ({"val_labels": np.full((20, 1), 2, np.uint8)}, "other than 0 and 1"),
    ):
        glands(data / adrenal.FILE, 20, **changes)
        with pytest.raises(InputError, match=word) as caught:
            prepare("adrenal", tmp_path / "sites", data=data, say=lambda _: None)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == [data]


def test_the_seed_decides_who_is_where() -> None:
    labels = {part: np.arange(400) % 4 // 3 for part in adrenal.PARTS}
    one, again, other = ([s.tolist() for s in adrenal.partition(labels, seed, lambda _: None)["train"]] for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert sorted(k for site in one for k in site) == list(range(400))


# --- lesions


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sites with eight persons each."""
    out = tmp_path_factory.mktemp("lesions") / "sites"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesions, "SCANNERS", {k: dataclasses.replace(s, persons=8) for k, s in lesions.SCANNERS.items()})
        prepare("lesions", out, say=lambda _: None)
    return out


def test_lesions_are_as_each_scanner_sees_them(few: Path) -> None:
    import nibabel
    from nibabel.orientations import aff2axcodes

    for name, scanner in lesions.SCANNERS.items():
        for person in read(few / name / "persons.csv"):
            image, mask = (nibabel.load(few / name / kind / f"{person['id']}.nii.gz") for kind in ("images", "masks"))
            assert "".join(aff2axcodes(image.affine)) == scanner.orientation
            assert np.allclose(image.header.get_zooms(), scanner.spacing)
            assert np.array_equal(image.affine, mask.affine)
            hounsfield, inside = np.asarray(image.dataobj), np.asarray(mask.dataobj)
            assert hounsfield.dtype == np.int16
            assert set(np.unique(inside)) == {0, 1}
            assert float(person["lesion_ml"]) == pytest.approx(inside.sum() * np.prod(scanner.spacing) / 1000, abs=1e-3)
            organ = lesions.ORGAN + scanner.offset
            assert hounsfield[inside == 1].mean() < organ - 10 + max(scanner.shading, 0)  # darker than the organ
            assert hounsfield.min() < -900  # air


def test_the_study_brings_them_to_one_grid(few: Path) -> None:
    study = read_study(STUDIES / "lesions.toml")
    for name in lesions.SCANNERS:
        site = read_site(few / name)
        cohort = read_cohort(site, study)
        stated = {p["id"]: float(p["lesion_ml"]) for p in read(few / name / "persons.csv")}
        batch = cohort.batch(range(len(cohort)))
        assert batch["image"].shape == (8, 1, 32, 32, 32)
        assert 0 <= float(batch["image"].min()) < float(batch["image"].max()) <= 1
        millilitres = batch["mask"].sum((1, 2, 3, 4)).numpy() * 8 / 1000
        assert millilitres.sum() == pytest.approx(sum(stated[i] for i in cohort.ids), rel=0.12)  # little is cropped or lost
        assert np.allclose(batch["image_spacing"].numpy(), 2)


def test_all_scanners_see_the_same_body() -> None:
    """One person, without noise, offset and shading, on every scanner: after the study's preprocessing the volumes are the same but for
    interpolation. Turn one of them by the wrong orientation and they are not."""
    spec = Preprocess(orientation="RAS", spacing_mm=(2.0, 2.0, 2.0), window=(-100.0, 250.0), size=(32, 32, 32))
    person = lesions.draw(np.random.default_rng(3))

    class Middle:
        """In the place of a generator: no shift, no extra voxels."""

        def integers(self, low: int, high: int) -> int:
            return low

        def uniform(self, low: float, high: float, size: int) -> Any:
            return np.zeros(size)

    seen = {}
    for name, scanner in lesions.SCANNERS.items():
        still = dataclasses.replace(scanner, noise=0.0, offset=0.0, shading=0.0)
        size, affine = lesions.geometry(still, Middle())  # type: ignore[arg-type]
        image, mask = lesions.scan(person, still, size, affine, np.random.default_rng(0))
        seen[name] = prepared(spec, image[None].astype(np.float32), affine, mask[None])
    first, drawn = seen["north"]
    assert drawn is not None
    for name, (image, mask) in seen.items():
        assert mask is not None
        together = np.corrcoef(image.ravel(), first.ravel())[0, 1]
        dice = 2 * (mask & drawn).sum() / (mask.sum() + drawn.sum())
        mirrored = 2 * (mask[:, ::-1] & drawn).sum() / (mask.sum() + drawn.sum())
        assert together > 0.9, name
        assert dice > 0.65 > mirrored, name


def test_a_ball_has_the_volume_of_a_ball() -> None:
    ball = lesions.Ellipsoid(np.zeros(3), np.array([9.0, 6.0, 7.0]), np.eye(3))
    grid = np.stack(np.meshgrid(*[np.arange(-12, 12.1, 0.5)] * 3, indexing="ij"), axis=-1)
    assert (ball.depth(grid) > 0).sum() / 8 == pytest.approx(4 / 3 * np.pi * 9 * 6 * 7, rel=0.02)


def test_lesions_come_from_the_seed_alone(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesions, "SCANNERS", {"west": dataclasses.replace(lesions.SCANNERS["west"], persons=8)})
    prepare("lesions", tmp_path / "again", say=lambda _: None)
    prepare("lesions", tmp_path / "other", seed=2, say=lambda _: None)
    assert tree(tmp_path / "again" / "west") == tree(few / "west")
    assert tree(tmp_path / "other" / "west") != tree(few / "west")
