"""Preprocessing against numpy, nibabel and what can be worked out by hand; masks stay with their image; a seed gives the same draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.transforms import deterministic, digest, prepared, random, windowed
from fedml.study.imaging import Augment, Preprocess
from tests.conftest import public_data

Volume = np.ndarray[Any, Any]


def blob(shape: tuple[int, ...], seed: int = 0) -> tuple[Volume, Volume]:
    """An image (1, *shape) and its mask of labels 0 to 2, both of the same structure."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside = (grid**2).sum(0) < 0.5
    mask = inside.astype(np.uint8) + (inside & (grid[0] > 0.2))
    noise = np.random.default_rng(seed).normal(0, 10, shape)
    return (100.0 * mask + noise)[None].astype(np.float32), mask[None].astype(np.uint8)


def spleen() -> tuple[Path, Path]:
    """A CT and its mask."""
    root = public_data("nifti") / "spleen_ct"
    mask = root / "derivatives/labels/sub-spleen2/ct/sub-spleen2_ct_seg-manual.nii.gz"
    return root / "sub-spleen2/ct/sub-spleen2_ct.nii.gz", mask


def test_an_empty_spec_changes_nothing() -> None:
    image, mask = blob((5, 6, 7))
    out, labels = prepared(Preprocess(), image, None, mask)
    assert labels is not None
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(labels, mask)
    assert (out.dtype, labels.dtype) == (np.float32, np.uint8)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "ASR", "IPL", "PIR"])
def test_any_orientation_becomes_ras_as_nibabel_says(codes: str) -> None:
    import nibabel

    image, mask = blob((5, 6, 7))
    canonical = nibabel.Nifti1Image(image[0], np.diag([2.0, 3.0, 4.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes))
    turned = canonical.as_reoriented(turn)
    labels = nibabel.Nifti1Image(mask[0], canonical.affine).as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    arrays = np.asarray(turned.dataobj)[None], turned.affine, np.asarray(labels.dataobj)[None]
    out, out_mask = prepared(Preprocess(orientation="RAS"), *arrays)
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(out_mask, mask)


def test_spacing_is_in_millimetres_and_linear() -> None:
    """A ramp over millimetres stays that ramp: the voxels stand where the first stood and then each spacing_mm."""
    steps, wanted = np.array([0.8, 1.5, 5.0]), (1.2, 1.5, 2.5)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (20, 10, 6)], indexing="ij"), -1)
    slope = np.array([3.0, -2.0, 1.0])
    image = (index * steps) @ slope
    out, _ = prepared(Preprocess(spacing_mm=wanted), image[None], np.diag([*steps, 1.0]))
    # From centre to centre there are 19, 9 and 5 steps; what lies beyond the last voxel repeats it.
    assert out.shape == (1, 14, 10, 11)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in out.shape[1:]], indexing="ij"), -1) * wanted
    inside = (at <= np.array([19, 9, 5]) * steps).all(-1)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(out[0][inside], (at @ slope)[inside], atol=1e-3)


def test_a_mask_s_labels_are_never_mixed() -> None:
    image, mask = blob((16, 16, 16))
    out, labels = prepared(Preprocess(spacing_mm=(0.7, 0.9, 1.3)), image, np.eye(4), 100 * mask)
    assert labels is not None
    assert labels.shape == out.shape
    assert set(np.unique(labels)) == {0, 100, 200}
    assert np.corrcoef(out.ravel(), labels.ravel())[0, 1] > 0.9


@given(st.floats(-2000, 2000), st.floats(1, 3000), st.integers(0, 9))
@settings(max_examples=20)
def test_window_becomes_zero_to_one(low: float, wide: float, seed: int) -> None:
    image = np.random.default_rng(seed).uniform(-3000, 3000, (1, 4, 5)).astype(np.float32)
    out, _ = prepared(Preprocess(window=(low, low + wide)), image)
    np.testing.assert_allclose(out, np.clip((image - low) / wide, 0, 1), atol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=3))
@settings(max_examples=30)
def test_size_is_cropped_and_padded_around_the_centre(pairs: list[tuple[int, int]]) -> None:
    have, want = tuple(h for h, _ in pairs), tuple(w for _, w in pairs)
    image = np.random.default_rng(0).uniform(1, 2, (2, *have)).astype(np.float32)
    out, mask = prepared(Preprocess(size=want), image, None, np.ones((1, *have), np.uint8))
    assert out.shape == (2, *want)
    assert mask is not None
    np.testing.assert_array_equal(mask[0] > 0, out[0] > 0)
    assert (out > 0).sum() == 2 * np.prod([min(h, w) for h, w in pairs])
    where = np.nonzero(out[0])
    for axis, (h, w) in enumerate(pairs):
        before, after = where[axis].min(), w - 1 - where[axis].max()
        assert abs(before - after) <= 1, (h, w)
    kept = tuple(slice((h - min(h, w)) // 2, (h - min(h, w)) // 2 + min(h, w)) for h, w in pairs)
    if all((h - w) % 2 == 0 for h, w in pairs):
        np.testing.assert_array_equal(out[out > 0], image[(slice(None), *kept)].ravel())


def test_a_real_ct_and_its_mask() -> None:
    """The spleen keeps its volume in millilitres, its place and its intensity."""
    import nibabel

    ct, seg = (nibabel.load(path) for path in spleen())
    raw, labels = np.asarray(ct.dataobj, np.float32)[None], np.asarray(seg.dataobj)[None]
    spec = Preprocess(orientation="RAS", spacing_mm=(1.5, 1.5, 2.0), window=(-57.0, 164.0))
    out, mask = prepared(spec, raw, ct.affine, labels)
    assert mask is not None
    assert out.shape == mask.shape
    assert (out.min(), out.max()) == (0.0, 1.0)
    before = labels.sum() * np.prod(ct.header.get_zooms()) / 1000
    assert mask.sum() * 1.5 * 1.5 * 2.0 / 1000 == pytest.approx(before, rel=0.03)
    inside = np.clip((raw[labels > 0].mean() + 57) / 221, 0, 1)
    assert out[mask > 0].mean() == pytest.approx(inside, abs=0.02)


def test_pictures_of_two_axes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    out, _ = prepared(Preprocess(window=(0.0, 255.0), size=(16, 32)), image)
    np.testing.assert_allclose(out[:, :, 1:31], image[:, 2:18] / 255, atol=1e-6)
    radiograph, _ = prepared(Preprocess(spacing_mm=(2.0, 2.0)), np.ones((1, 21, 31), np.float32), np.eye(4))
    assert radiograph.shape == (1, 11, 16)  # 20 and 30 mm from the first to the last


def test_what_an_item_must_be() -> None:
    image, mask = blob((5, 6, 7))
    spaced, nan = Preprocess(spacing_mm=(1.0, 1.0, 1.0)), np.full((1, 5, 6, 7), np.nan, np.float32)
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    cases: list[tuple[Unusable, Preprocess, tuple[Any, ...]]] = [
        (Unusable.GEOMETRY, spaced, (image,)),
        (Unusable.GEOMETRY, spaced, (image, flat)),
        (Unusable.GEOMETRY, spaced, (image, np.full((4, 4), np.nan))),
        (Unusable.GEOMETRY, Preprocess(size=(8, 8)), (image,)),
        (Unusable.GEOMETRY, Preprocess(), (image[0, 0],)),
        (Unusable.NON_FINITE, Preprocess(), (nan,)),
        (Unusable.NOT_AN_IMAGE, Preprocess(), (np.array([[["a"]]]),)),
        (Unusable.NOT_AN_IMAGE, Preprocess(), (np.zeros((1, 0, 5, 5)),)),
        (Unusable.MASK_MISMATCH, Preprocess(), (image, None, mask[:, 1:])),
        (Unusable.MASK_MISMATCH, Preprocess(), (image, None, mask + 0.5)),
        (Unusable.MASK_MISMATCH, Preprocess(), (image, None, mask - 1.0)),
        (Unusable.TOO_LARGE, Preprocess(spacing_mm=(1e-3, 1e-3, 1e-3)), (image, np.eye(4))),
    ]
    for reason, spec, arguments in cases:
        with pytest.raises(ItemError) as reported:
            prepared(spec, *arguments)
        assert reported.value.reason == reason, (reason, spec)


@pytest.mark.parametrize(
    "plan",
    [
        {"orientation": "RAX"},
        {"orientation": "RLS"},
        {"orientation": "ras"},
        {"spacing_mm": (1.0,)},
        {"spacing_mm": (1.0, 1.0, 0.0)},
        {"spacing_mm": (1.0, 1.0, float("inf"))},
        {"spacing_mm": (1.0, 1.0), "size": (8, 8, 8)},
        {"orientation": "RAS", "size": (8, 8)},
        {"window": (1.0, 1.0)},
        {"window": (0.0, 1.0), "percentiles": (1.0, 99.0)},
        {"percentiles": (99.0, 1.0)},
        {"percentiles": (0.0, 101.0)},
        {"size": (0, 8)},
        {"zoom": 2},
    ],
)
def test_specs_that_cannot_be(plan: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocess(**plan)


def test_percentiles_wait_for_the_server() -> None:
    spec = Preprocess(percentiles=(1.0, 99.0), size=(8, 8))
    with pytest.raises(ValueError, match="server computes the window"):
        deterministic(spec)
    assert windowed(spec, 5, 250) == Preprocess(window=(5.0, 250.0), size=(8, 8))
    with pytest.raises(ValidationError):
        windowed(spec, 7, 7)


def test_a_digest_is_of_what_decides() -> None:
    read = Preprocess.model_validate_json('{"window": [0, 255], "size": [8, 8]}')
    assert digest(read) == digest(Preprocess(window=(0.0, 255.0), size=(8, 8)))
    specs = [Preprocess(), read, Preprocess(window=(0.0, 254.0), size=(8, 8)), Preprocess(size=(8, 8)), Preprocess(orientation="LPS")]
    specs += [Preprocess(orientation="RAS"), Preprocess(spacing_mm=(1.0, 1.0)), Preprocess(spacing_mm=(1.0, 1.0, 1.0))]
    assert len({digest(spec) for spec in specs}) == len(specs)


AUGMENT = Augment(flip=(0, 1, 2), rotate_degrees=10, scale=0.1, shift=0.1, noise=0.02)


def drawn(compose: Any, image: Volume, mask: Volume) -> tuple[Volume, Volume]:
    out = compose({"image": torch.from_numpy(image), "mask": torch.from_numpy(mask)})
    return np.asarray(out["image"]), np.asarray(out["mask"])


def test_a_seed_gives_the_same_draw_and_another_does_not() -> None:
    image, mask = blob((12, 12, 12))
    first, again = (random(AUGMENT, ("image", "mask"), seed=3) for _ in range(2))
    draws = [drawn(first, image, mask) for _ in range(3)]
    assert not np.array_equal(draws[0][0], draws[1][0])
    for one, other in zip(draws, [drawn(again, image, mask) for _ in range(3)], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    first.set_random_state(3)
    np.testing.assert_array_equal(drawn(first, image, mask)[0], draws[0][0])
    assert not np.array_equal(drawn(random(AUGMENT, ("image", "mask"), seed=4), image, mask)[0], draws[0][0])


def test_the_global_generators_are_left_alone() -> None:
    image, mask = blob((8, 8, 8))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 - that it is not touched
    drawn(random(AUGMENT, ("image", "mask"), seed=0), image, mask)
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_mask_turns_with_its_image_and_keeps_its_labels() -> None:
    image, mask = blob((24, 24, 24))
    compose, moved = random(Augment(flip=(0, 1, 2), rotate_degrees=25), ("image", "mask"), seed=1), 0
    for _ in range(6):
        turned, labels = drawn(compose, image, mask)
        assert set(np.unique(labels)) <= {0, 1, 2}
        assert np.corrcoef(turned.ravel(), labels.ravel())[0, 1] > 0.9
        moved += not np.array_equal(labels, mask)
    assert moved == 6


def test_intensity_is_changed_in_the_image_alone_and_within_bounds() -> None:
    image, mask = np.full((1, 8, 8), 0.5, np.float32), np.ones((1, 8, 8), np.uint8)
    compose = random(Augment(scale=0.1, shift=0.2), ("image", "mask"), seed=5)
    values = []
    for _ in range(50):
        out, labels = drawn(compose, image, mask)
        np.testing.assert_array_equal(labels, mask)
        values.append(float(out.mean()))
    assert 0.5 * 0.9 - 0.2 <= min(values) < 0.45
    assert 0.55 < max(values) <= 0.5 * 1.1 + 0.2


def test_nothing_random_asked_is_nothing_done() -> None:
    image, mask = blob((6, 6, 6))
    out, labels = drawn(random(Augment(), ("image", "mask"), seed=0), image, mask)
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(labels, mask)
