"""Predictions come back to the file's voxels as MONAI's inverse brings them; crops are exact; what masks lose is counted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import label, map_coordinates
from scipy.spatial.transform import Rotation

from fedml.cohort.images.items import Raw
from fedml.cohort.images.originals import _unpack, folded, grid_after, matrix_of, pack
from fedml.cohort.images.transforms import deterministic, prepared
from fedml.study.imaging import Preprocess
from fedml.tasks.counts import add_counts
from fedml.tasks.lost import implausible, lost_counts, lost_grouped, lost_notes, without_lost
from fedml.tasks.original import labels_at, lost_of, nearest_at
from fedml.tasks.segmentation_counts import Truth, grouped, segmentation_counts, segmentation_fields

warnings.filterwarnings("ignore", module="monai")
GEOMETRIES = range(20)


def geometry(seed: int, *, sheared: bool = False) -> tuple[Preprocess, tuple[int, ...], np.ndarray]:
    """A spec, a size and an affine: oblique, flipped, some with axes that are not at right angles (a tilted gantry)."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    axes = Rotation.random(random_state=seed).as_matrix() @ np.diag(rng.uniform(0.6, 3, 3))
    if sheared:
        axes = axes @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
    affine[:3, :3], affine[:3, 3] = axes * [1, -1 if seed % 2 else 1, 1], rng.uniform(-90, 90, 3)
    spec = Preprocess(
        orientation=("RAS", "LPS", "AIL", "")[seed % 4],
        spacing_mm=(1.5, 1.0, 2.0) if seed % 3 else (),
        size=(16, 22, 12) if seed % 5 else (),
    )
    return spec, tuple(int(n) for n in rng.integers(9, 30, 3)), affine


@pytest.mark.parametrize("seed", GEOMETRIES)
@pytest.mark.parametrize("sheared", [False, True])
def test_the_grid_after_preprocessing_is_that_of_monai(seed: int, sheared: bool) -> None:
    spec, size, affine = geometry(seed, sheared=sheared)
    out = deterministic(spec)({"image": MetaTensor(torch.zeros(1, *size), affine=affine)})["image"]
    after, where = grid_after(spec, size, affine)
    assert after == tuple(out.shape[1:])
    np.testing.assert_allclose(where, out.affine.numpy(), atol=1e-9)


@pytest.mark.parametrize("seed", GEOMETRIES)
@pytest.mark.parametrize("sheared", [False, True])
def test_labels_are_those_of_monais_inverse(seed: int, sheared: bool) -> None:
    spec, size, affine = geometry(seed, sheared=sheared)
    compose, rng = deterministic(spec), np.random.default_rng(seed)
    out = compose({"image": MetaTensor(torch.zeros(1, *size), affine=affine)})["image"]
    logits = torch.from_numpy(rng.normal(size=(3, *out.shape[1:])).astype(np.float32))
    inverse = compose.inverse({"image": MetaTensor(logits, meta=out.meta, applied_operations=out.applied_operations)})["image"].numpy()
    matrix = matrix_of(spec, size, affine)
    found = labels_at(logits, matrix, size)
    at = np.einsum("ij,jxyz->ixyz", matrix[:3, :3], np.indices(size)) + matrix[:3, 3, None, None, None]
    last = np.array(out.shape[1:])[:, None, None, None] - 1
    inside, outside = ((at >= 0) & (at <= last)).all(0), ((at < -0.51) | (at > last + 0.51)).any(0)
    two = np.sort(inverse, 0)
    clear = inside & (two[-1] - two[-2] > 1e-3)  # where rounding does not decide
    assert clear.sum() > 0.9 * inside.sum()
    dense = np.stack([map_coordinates(values, at, order=1, mode="nearest") for values in logits.numpy()])
    np.testing.assert_array_equal(found[inside], dense.argmax(0)[inside])
    # MONAI drops the padding before it interpolates, so one voxel at its edge may differ; sheared grids it resamples twice.
    assert (found[clear] == inverse.argmax(0)[clear]).mean() > (0.9 if sheared else 0.985)
    assert not found[outside].any()


def test_a_crop_is_exact_and_what_is_outside_is_background() -> None:
    rng = np.random.default_rng(0)
    spec, logits = Preprocess(size=(10, 30)), torch.from_numpy(rng.normal(size=(4, 10, 30)).astype(np.float32))
    found = labels_at(logits, matrix_of(spec, (25, 21), None), (25, 21))
    whole = np.zeros((25, 21), np.uint8)
    whole[7:17] = logits.argmax(0).numpy()[:, 4:25]  # cropped along the first axis, padded by 4 and 5 along the second
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("seed", GEOMETRIES)
def test_what_masks_lose_is_counted_voxel_by_voxel(seed: int) -> None:
    spec, size, affine = geometry(seed, sheared=seed % 4 == 3)
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for k in range(6):
        corner = [int(rng.integers(0, n - 1)) for n in size]
        mask[tuple(slice(c, c + int(rng.integers(1, 4))) for c in corner)] = 1 + k % 2
    after = prepared(spec, np.zeros((1, *size), np.float32), affine, mask[None])[1]
    assert after is not None
    matrix = matrix_of(spec, size, affine)
    lost = lost_of(mask, after[0], matrix, 4)
    at = np.einsum("ij,jxyz->ixyz", matrix[:3, :3], np.indices(size)) + matrix[:3, 3, None, None, None]
    shape = np.array(after.shape[1:])[:, None, None, None]
    inside = ((at > -0.5 - 1e-4) & (at < shape - 0.5 + 1e-4)).all(0)
    near = np.clip(np.floor(at + 0.5), 0, shape - 1).astype(int)
    kept = np.where(inside, after[0][tuple(near)], 255)
    for c in (1, 2, 3):
        parts, lesions = label(mask == c, np.ones((3, 3, 3)))
        same = (mask == c) & (kept == c)
        dense = [
            (mask == c).sum(), ((mask == c) & ~inside).sum(), ((mask == c) & inside & (kept != c)).sum(), lesions,
            sum(not (same & (parts == k)).any() for k in range(1, lesions + 1)),
        ]  # fmt: skip
        # A voxel in the middle between two of the prepared image may go either way.
        np.testing.assert_allclose(lost[c - 1], dense, atol=0 if spec.spacing_mm == () else max(2, 0.05 * dense[0]))
    np.testing.assert_array_equal(lost[2], 0)


def test_an_original_survives_packing_and_counts_are_of_it() -> None:
    """A lesion in the middle, one that the crop cuts away: a perfect prediction of the prepared mask finds half of the voxels."""
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, 9:11, 9:11], mask[0, :2, :2] = 1, 1
    spec = Preprocess(size=(8, 8))
    after = prepared(spec, np.zeros((1, 20, 20), np.float32), None, mask)[1]
    assert after is not None
    original = _unpack(pack(spec, folded(Raw(np.zeros((1, 20, 20)), None, mask)), after[0], 2))
    np.testing.assert_array_equal(original.mask(), mask[0])
    assert original.lost.tolist() == [[8, 4, 0, 2, 1]]
    logits = torch.nn.functional.one_hot(torch.from_numpy(after[0]).long(), 2).movedim(-1, 0)[None].float()
    counts = segmentation_counts(logits, Truth(torch.from_numpy(after), torch.zeros(1, dtype=torch.long), None, [original]))
    assert (counts["true"][0], counts["predicted"][0], counts["intersection"][0], counts["occurs"][0]) == (8, 4, 4, 1)
    assert counts["dice_sum"][0] == pytest.approx(2 * 4 / 12)
    assert counts["lost"].tolist() == [[4, 0, 1, 0]]
    assert counts["lesions"].tolist() == [2]
    declared = segmentation_fields(2, moved=True)
    assert {name: (str(value.dtype), value.shape) for name, value in counts.items()} == declared


# --- what leaves a site


def counts_of(persons: int, cut: int, whole: int) -> dict[str, Any]:
    """Of so many persons with the class: ``cut`` lose a voxel, ``whole`` of these everything."""
    lost = np.zeros((persons, 1, 5), np.int64)
    lost[:, 0] = 10, 0, 0, 2, 0
    lost[:cut, 0, 1] = 3
    lost[:whole, 0] = 10, 10, 0, 2, 2
    found = lost_counts(lost, np.arange(persons), persons)
    return {**found, "occurs": np.array([persons]), "scored": np.array([persons]), "true": np.array([10 * persons])}


@pytest.mark.parametrize(
    ("persons", "cut", "whole"), [(20, 12, 3), (20, 18, 10), (20, 4, 0), (9, 9, 9), (20, 20, 17), (4, 2, 1), (20, 0, 0)]
)
def test_no_number_is_of_few_persons_or_of_all_but_few(persons: int, cut: int, whole: int) -> None:
    sent = counts_of(persons, cut, whole)
    few = (sent["occurs"] < 5) & (sent["occurs"] > 0)
    sent = lost_grouped(sent, few, 5)
    behind = [cut, 0, whole, whole]
    for kind, exact in enumerate(behind):
        hidden = bool(few[0]) or 0 < exact < 5 or (exact > 0 and 0 < persons - exact < 5)
        assert bool(sent["lost_withheld"][0, kind]) == hidden
        assert sent["lost_persons"][0, kind] == (0 if hidden else exact)
        assert bool(sent["lost"][0, kind]) == (not hidden and exact > 0)
    assert not implausible({**sent, "true": np.array([10 * persons])})


def test_withheld_numbers_are_told_as_unknown_not_as_none() -> None:
    sent = lost_grouped(counts_of(20, 12, 3), np.array([False]), 5)
    text = lost_notes({1: "lesion"}, {"a": sent, "b": lost_grouped(counts_of(30, 30, 12), np.array([False]), 5)})
    assert text == [
        "Lost by preprocessing, class lesion: at least 24 of 100 lesions, at least 231 of 500 voxels outside of the crop, the whole "
        "class of at least 12 of 50 persons. Measures count them as not found. 1 site(s) withhold a number of too few persons. A larger "
        "[cohort.image] size keeps them."
    ]
    assert lost_notes({1: "lesion"}, {"a": counts_of(20, 0, 0)}) == []


def test_subgroups_hold_none_of_it_and_a_part_grouped_for_release_none_of_few() -> None:
    fields = segmentation_fields(2, moved=True)
    counts = {**{name: np.zeros(shape, dtype) for name, (dtype, shape) in fields.items()}, **counts_of(20, 3, 3)}
    assert not without_lost(counts).keys() & {"lost", "lost_persons", "lost_withheld", "lesions"}
    assert grouped(counts, 5)["lost_withheld"].tolist() == [[1, 0, 1, 1]]
    assert grouped(counts, 1)["lost"].tolist() == counts["lost"].tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lost_persons", 21), ("lost", 201), ("lost_withheld", 1), ("lost_withheld", 2)],
)
def test_a_lying_site_is_found(name: str, value: int) -> None:
    counts = counts_of(20, 12, 8)
    assert not implausible(counts)
    counts[name][0, 0] = value
    assert implausible(counts)


def test_counts_of_sites_add_up() -> None:
    a, b = counts_of(20, 12, 3), counts_of(7, 5, 5)
    both = add_counts([a, b])
    assert both["lost"].tolist() == [[12 * 3 + 3 * 7 + 5 * 10, 0, 16, 8]]
    np.testing.assert_array_equal(nearest_at(np.ones((2, 2), np.uint8), np.eye(3), (3, 3), -1)[2], -1)
