"""A cohort whose images are prepared: read once, kept on disk, and used as if they were in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml.clients.site.manifest import read_site
from fedml.clients.site.quarantine import read
from fedml.clients.site.read import read_cohort
from fedml.cohort import read_images as image
from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.formats import FORMATS
from fedml.cohort.images.mapped import Mapped, concat_images, select_images
from fedml.cohort.persons import Cohort, drop_unusable_persons, select
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.learning.augment import augmentation
from fedml.modalities.registry import pool
from fedml.study.cohort_section import ImageShape
from fedml.study.imaging import Augment
from fedml.study.study import Study
from tests.conftest import federate, make_study, write_csv, write_manifest
from tests.dicom_files import write_series
from tests.inputs import images_of

HALF = 2**-12  # half of the distance between neighbours just below 1
SIZE = (8, 7, 6)
SHAPE = {"size": list(SIZE), "orientation": "RAS", "window": [0, 200]}
MASKED: dict[str, Any] = {"cohort__classes": [0, 1], "model__task": "segmentation"}
NETWORK = {"channels": [4, 8], "window": [8, 8, 8]}


def volume_site(folder: Path, name: str, persons: int, seed: int = 0) -> Path:
    """NIfTI volumes of sizes of their own, with masks; every third person has two, and the axes run to the left."""
    rng, affine = np.random.default_rng(seed), np.diag([-1.0, 1.0, 2.0, 1.0])
    ids = [f"{name}{k:03d}" for k in range(persons)]
    for k, person in enumerate(ids):
        for part in ("1", "2")[: 1 + (k % 3 == 0)]:
            size = rng.integers(6, 10, 3)
            mask = (rng.random(size) < 0.3).astype(np.uint8)
            voxels = (rng.uniform(-20, 220, size) + 60 * mask).astype(np.float32)
            for kind, values in (("images", voxels), ("masks", mask)):
                (folder / kind / person).mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(values, affine), folder / kind / person / f"{part}.nii.gz")
    write_csv(folder / "persons.csv", ids, {"y": rng.integers(0, 2, persons)})
    return write_manifest(folder, name, image='{ path = "images", format = "nifti", masks = "masks" }')


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The NIfTI images that are read from their files, in order."""
    seen, form = list[Path](), FORMATS["nifti"]

    def counted(path: Path) -> Any:
        seen.append(path)
        return form.read(path)

    monkeypatch.setitem(FORMATS, "nifti", form._replace(read=counted))
    return seen


def segmentation(**changes: Any) -> Study:
    return make_study(("image",), cohort__image=SHAPE, **MASKED, model__segmentation=NETWORK, **changes)


def in_memory(manifest: Path, study: Study) -> Cohort:
    """The same cohort without a cache."""
    cohort = read_cohort(read_site(manifest), study)
    folder = manifest.parent
    ids = [line.split(",")[0] for line in (folder / "persons.csv").read_text().splitlines()[1:]]
    images = read_images(
        folder / "images", "nifti", ids, study.cohort.image, codes=study.cohort.classes, rules=ImageRules(folder / "masks")
    )
    parts = np.array([cohort.parts[cohort.ids.index(i)] for i in ids], np.int8)
    return drop_unusable_persons(Cohort(cohort.site, tuple(ids), np.zeros(len(ids)), parts, {"image": images}))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, values in one.items():
        if key == "original":
            assert values.digest == other[key].digest  # type: ignore[attr-defined]
            continue
        assert (values.dtype, values.shape) == (other[key].dtype, other[key].shape), key
        torch.testing.assert_close(values, other[key], rtol=0, atol=HALF if key == "image" else 0, equal_nan=True, msg=key)


def test_batches_are_those_of_images_in_memory(tmp_path: Path) -> None:
    manifests, study = [volume_site(tmp_path / n, n, 9, s) for s, n in enumerate("ab")], segmentation()
    cached, plain = ([load(m, study) for m in manifests] for load in (lambda m, s: read_cohort(read_site(m), s), in_memory))
    assert isinstance(images_of(cached[0]).pixels, Mapped)
    assert isinstance(images_of(plain[0]).pixels, np.ndarray)
    for one, other in (*zip(cached, plain, strict=True), (pool(cached, study), pool(plain, study))):
        rows = np.random.default_rng(1).permutation(len(one))
        same(one.batch(rows), other.batch(rows))
        few = np.sort(rows[:4])
        same(select(one, few).batch([3, 0, 1]), select(other, few).batch([3, 0, 1]))
        same(one.batch([]), other.batch([]))
    assert isinstance(images_of(pool(cached, study)).pixels, Mapped)
    mixed = pool([cached[0], plain[1]], study)  # one site's cache could not be written
    same(mixed.batch(range(len(mixed))), pool(plain, study).batch(range(len(mixed))))


def test_an_image_is_read_again_when_its_files_change(tmp_path: Path, reads: list[Path]) -> None:
    site, study = read_site(volume_site(tmp_path, "a", 9)), segmentation()
    read_cohort(site, study)
    assert len(reads) == len(set(reads)) == 12
    reads.clear()
    before = read_cohort(site, study)
    assert reads == []
    mask = tmp_path / "masks" / "a004" / "1.nii.gz"
    voxels = np.asarray(nibabel.load(mask).dataobj)
    nibabel.save(nibabel.Nifti1Image(1 - voxels, np.diag([-1.0, 1.0, 2.0, 1.0])), mask)
    row, after = before.ids.index("a004"), read_cohort(site, study)
    assert reads == [tmp_path / "images" / "a004" / "1.nii.gz"]
    assert not torch.equal(after.batch([row])["mask"], before.batch([row])["mask"])
    reads.clear()
    read_cohort(site, segmentation(study__seed=5, training__lr=0.5))  # another study of the same images
    assert reads == []
    read_cohort(site, make_study(("image",), cohort__image={**SHAPE, "window": [0, 100]}))
    assert len(reads) == 12


def test_exclusions_are_cached_with_their_text(tmp_path: Path, reads: list[Path]) -> None:
    site, study = read_site(volume_site(tmp_path, "a", 40)), segmentation()
    broken, moved = tmp_path / "images" / "a004" / "1.nii.gz", tmp_path / "masks" / "a007" / "1.nii.gz"
    broken.write_bytes(b"no volume")
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(moved).dataobj), np.eye(4)), moved)
    (tmp_path / "masks" / "a010" / "1.nii.gz").unlink()
    first, listed = read_cohort(site, study), read(site.state)
    assert first.excluded_images == {"unreadable": 1, "mask-mismatch": 1, "no-mask": 1}
    assert {e["person"]: e["file"] for e in listed}["a004"] == str(broken)
    assert all(e["file"] in e["text"] or str(moved) in e["text"] for e in listed)
    reads.clear()
    again = read_cohort(site, study)
    assert (reads, again.excluded_images, again.ids) == ([], first.excluded_images, first.ids)
    assert read(site.state) == listed
    for kind in ("images", "masks"):  # another person's files of the same bytes
        (tmp_path / kind / "a005" / "1.nii.gz").write_bytes((tmp_path / kind / "a004" / "1.nii.gz").read_bytes())
    read_cohort(site, study)
    # Read once for that person, too: whether a file is de-identified depends on whose it is.
    assert [path.parent.name for path in reads] == ["a005"]
    texts = {e["person"]: e["text"] for e in read(site.state)}
    assert texts["a005"] == texts["a004"].replace("a004", "a005")
    for k in range(12, 40):
        (tmp_path / "images" / f"a{k:03d}" / "1.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="max_quarantined"):
        read_cohort(site, study)
    assert len(read(site.state)) > 10


def test_a_slice_of_a_series_is_part_of_what_was_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    voxels = rng.integers(1000, 1200, (4, 6, 5)).astype(np.int16)
    for k in range(20):
        write_series(tmp_path / "images" / f"p{k:02d}", voxels + k)
    write_csv(tmp_path / "persons.csv", [f"p{k:02d}" for k in range(20)], {"y": [0, 1] * 10})
    site = read_site(write_manifest(tmp_path, "a", image='{ path = "images", format = "dicom" }'))
    study = make_study(("image",), cohort__image={"size": [5, 6, 4], "window": [-100, 300]})
    before = read_cohort(site, study)
    write_series(tmp_path / "images" / "p03", np.concatenate([voxels[:3] + 3, voxels[3:] + 60]))
    after = read_cohort(site, study)
    changed = [bool((before[k]["image"] != after[k]["image"]).any()) for k in range(20)]
    assert changed == [k == 3 for k in range(20)]
    np.testing.assert_allclose(after[3]["image"][0, 0, :, :, 3], ((voxels[3] + 60 - 1024 + 100) / 400).T, atol=HALF)
    (tmp_path / "images" / "p05" / "1.dcm").unlink()
    assert read_cohort(site, study).excluded_images == {"gap": 1}


def test_a_folder_that_cannot_be_written_leaves_the_images_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, study = volume_site(tmp_path, "a", 9), segmentation()
    (tmp_path / ".fedml").write_text("a file")
    with caplog.at_level(logging.WARNING, "fedml.site"):
        cohort = read_cohort(read_site(manifest), study)
    assert "cannot be written" in caplog.text
    assert isinstance(images_of(cohort).pixels, np.ndarray)
    monkeypatch.setattr(image, "_IN_MEMORY", 12 * 4 * 8 * 7 * 6 - 1)
    with pytest.raises(InputError, match="cannot be written"):
        read_cohort(read_site(manifest), study)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[Mapped]:
    """Two sites' images."""
    folder, study = tmp_path_factory.mktemp("views"), segmentation()
    cohorts = [read_cohort(read_site(volume_site(folder / n, n, 6, s)), study) for s, n in enumerate("ab")]
    found = [images_of(c).pixels for c in cohorts]
    assert all(isinstance(view, Mapped) for view in found)
    return found  # type: ignore[return-value]


@given(st.data())
@settings(max_examples=40)
def test_a_view_is_indexed_taken_and_joined_as_an_array_is(views: list[Mapped], data: st.DataObject) -> None:
    drawn: list[tuple[Any, Any]] = []
    for view in views:
        rows = data.draw(st.lists(st.integers(-len(view), len(view) - 1), min_size=1, max_size=6).map(lambda r: np.array(r, np.int64)))
        drawn.append((select_images(view, rows), view[:][rows]))
    one, other = concat_images([v for v, _ in drawn]), np.concatenate([a for _, a in drawn])
    one, other = concat_images([one, views[0]]), np.concatenate([other, views[0][:]])
    assert isinstance(one, Mapped)
    assert (one.shape, one.dtype, len(one)) == (other.shape, other.dtype, len(other))
    at = data.draw(st.integers(-len(other), len(other) - 1))
    np.testing.assert_array_equal(one[at], other[at])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(other), max_size=len(other))), bool)
    np.testing.assert_array_equal(one[mask], other[mask])
    np.testing.assert_array_equal(select_images(one, mask)[:], other[mask])
    np.testing.assert_array_equal(np.stack(list(one)), other)


# --- the random part


AUGMENT = {"flip": [0, 2], "rotate_degrees": 10, "scale": 0.1, "shift": 0.05, "noise": 0.02}


def test_a_draw_is_the_image_s_own(tmp_path: Path) -> None:
    """The same in any batch and order; another in the next epoch, for another seed, and for a person's second image."""
    cohort = read_cohort(read_site(volume_site(tmp_path, "a", 9)), segmentation())
    change = augmentation(Augment(flip=(0, 2), rotate_degrees=10.0, noise=0.02), seed=3)
    other = augmentation(Augment(flip=(0, 2), rotate_degrees=10.0, noise=0.02), seed=4)
    assert change is not None
    assert other is not None
    assert augmentation(Augment(), seed=3) is None

    def drawn(rows: list[int], epoch: int = 0, how: Callable[..., dict[str, torch.Tensor]] = change) -> dict[str, torch.Tensor]:
        return how(cohort.batch(rows), [cohort.ids[r] for r in rows], epoch)

    whole, alone = drawn([0, 1, 2, 3]), [drawn([k]) for k in (3, 2, 1, 0)][::-1]
    for key in ("image", "mask"):
        assert torch.equal(whole[key], torch.cat([one[key] for one in alone]))
        assert whole[key].dtype == cohort.batch([0])[key].dtype
    assert int(whole["mask"].max()) <= 1
    for otherwise in (drawn([0], 1), drawn([0], 0, other)):
        assert not torch.equal(otherwise["image"], alone[0]["image"])
    twin = {
        **cohort.batch([0]),
        "image": cohort.batch([0])["image"][:1].repeat(2, 1, 1, 1, 1),
        "mask": cohort.batch([0])["mask"][:1].repeat(2, 1, 1, 1, 1),
    }
    pair = change(twin, [cohort.ids[0]], 0)["image"]
    assert not torch.equal(pair[0], pair[1])


def test_masks_move_with_their_images(tmp_path: Path) -> None:
    mask = (torch.rand(4, 1, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    batch = {"image": mask.float(), "mask": mask, "image_person": torch.arange(4), "label": torch.ones(4)}
    change = augmentation(Augment(flip=(0, 1)), seed=1)
    assert change is not None
    out = [change(batch, list("abcd"), epoch) for epoch in range(8)]
    assert all(torch.equal(one["image"], one["mask"].float()) for one in out)
    assert any(not torch.equal(one["mask"], mask) for one in out)
    assert out[0]["label"] is batch["label"]


def test_a_run_with_random_changes_is_the_same_twice_and_tests_on_unchanged_images(tmp_path: Path) -> None:
    manifests = [volume_site(tmp_path / n, n, 10, s) for s, n in enumerate("ab")]
    plain, changed = segmentation(federation__rounds=1), segmentation(federation__rounds=1, training__augment=AUGMENT)
    first = federate(changed, manifests, tmp_path / "r1")
    assert federate(changed, manifests, tmp_path / "r2").sha256 == first.sha256
    assert federate(plain, manifests, tmp_path / "r3").sha256 != first.sha256
    still = {"training__lr": 1e-12, "training__optimizer": "sgd", "federation__rounds": 1}
    metrics = [
        federate(segmentation(**still, **how), manifests, tmp_path / f"still{k}").final["metrics"]["test"]["all"]
        for k, how in enumerate(({}, {"training__augment": AUGMENT}))
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"training__augment": {"flip": [3]}}, r"\[training.augment\] flip"),
        ({"cohort__image": {"size": [8, 8]}, "training__augment": {"flip": [2]}}, "flip names axis 2"),
        ({"cohort__image": {"size": [8, 8]}, "training__augment": {"noise": 0.1}}, "window"),
        ({"training__augment": {"flip": [0]}}, r"\[cohort.image\] size"),
        ({"training__augment": {"flop": [0]}}, "flop is not a known key"),
        (
            {"cohort__image": {"size": [8, 8]}, "training__augment": {"flip": [0]},
             "privacy": {"unit": "patient", "noise_multiplier": 1, "persons": {"a": 20, "b": 20}}},
            "unit = \"patient\"",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_at_random_is_one_sentence(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make_study(("image",), **plan)
    assert "\n" not in str(caught.value)


def test_a_stated_shape_alone_prepares_nothing() -> None:
    assert ImageShape(size=(8, 8)).preprocess is None


@pytest.mark.parametrize("window", [{"window": [0.0, 200.0]}, {"percentiles": [1.0, 99.0]}])
def test_the_digest_of_the_data_sees_a_mask_that_changes(tmp_path: Path, window: dict[str, list[float]]) -> None:
    """Also where only histograms are read before the sites have agreed on a window."""
    from tests.experiments.studies.test_segmentation_run import disc_site

    image = {"size": [16, 16], "crop": True, **window}
    study = make_study(("image",), sites=("a",), cohort__classes=[0, 1, 2], model__task="segmentation", cohort__image=image)
    site = read_site(disc_site(tmp_path / "a", "a", 20, 1))
    before = read_cohort(site, study).digest
    assert read_cohort(site, study).digest == before
    with np.load(tmp_path / "a" / "images.npz") as arrays:
        changed = {**arrays, "masks": arrays["masks"][:, ::-1]}
    np.savez(tmp_path / "a" / "images.npz", **changed)
    assert read_cohort(site, study).digest != before
