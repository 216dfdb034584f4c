"""Segmentation: networks for any size, counts that add to those of all persons, equal to MONAI's metrics; windows; precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss
from monai.metrics import DiceHelper, DiceMetric, HausdorffDistanceMetric
from torch import nn

from fedml.errors import InputError
from fedml.models.device import autocast, pick_device, scaler
from fedml.models.inference import infer
from fedml.networks.segmentation import SEGMENTATION_NETWORKS, build_segmentation_network
from fedml.seeds import torch_seed
from fedml.tasks.counts import add_counts
from fedml.tasks.mask_losses import deeply_supervised
from fedml.tasks.registry import make_task
from fedml.tasks.segmentation import dice_ce
from fedml.tasks.segmentation_counts import DISTANCE_BINS, Truth, hd95, histogram_median
from fedml.tasks.task import Task
from tests.conftest import make_study, public_data
from tests.lesions import plan

CLASSES = ("background", "liver", "spleen")


def task_of(classes: Sequence[str], *, distances: bool = True) -> Task:
    return make_task(
        make_study(("image",), cohort__classes=list(classes), model__task="segmentation", model__segmentation={"distances": distances})
    )


TASK = task_of(CLASSES)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def blobs(images: int, size: tuple[int, ...], seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks of boxes that half agree; often a class is in one of both only, or in neither."""
    rng = np.random.default_rng(seed)
    both = np.zeros((2, images, *size), dtype=np.uint8)
    for k in range(images):
        for c in range(1, classes):
            corner = [int(rng.integers(0, n - 2)) for n in size]
            for side in (0, 1):
                if rng.random() < 0.65:
                    box = tuple(slice(max(a + int(rng.integers(-1, 2)), 0), a + int(rng.integers(2, 6))) for a in corner)
                    both[(side, k, *box)] = c
    logits = 3 * np.moveaxis(np.eye(classes)[both[1]], -1, 1) + rng.normal(0, 0.3, (images, classes, *size))
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(both[0])


def one_hot(labels: torch.Tensor, classes: int = 3) -> torch.Tensor:
    return torch.movedim(nn.functional.one_hot(labels.long(), classes), -1, 1).float()


# --- counts and metrics


@st.composite
def split_persons(draw: st.DrawFn) -> tuple[int, list[int], list[int], int]:
    """Images, the person of each, the site of each person, a seed."""
    persons = draw(st.integers(1, 7))
    extra = draw(st.lists(st.integers(0, persons - 1), max_size=4))
    rows = draw(st.permutations([*range(persons), *extra]))
    return len(rows), list(rows), draw(st.lists(st.integers(0, 3), min_size=persons, max_size=persons)), draw(st.integers(0, 9999))


@settings(max_examples=30)
@given(split_persons(), st.sampled_from([(9, 8), (6, 7, 5)]), st.booleans())
def test_counts_of_sites_add_up_to_those_of_all_persons(made: Any, size: tuple[int, ...], spaced: bool) -> None:
    images, rows, sites, seed = made
    logits, mask = blobs(images, size, seed)
    person = torch.tensor(rows)
    spacing = torch.rand(images, len(size), generator=torch.Generator().manual_seed(seed)) + 0.5 if spaced else None
    together = TASK.counts(logits, Truth(mask, person, spacing))
    parts = []
    for site in range(4):
        own = torch.tensor([sites[r] == site for r in rows])
        parts.append(TASK.counts(logits[own], Truth(mask[own], person[own], None if spacing is None else spacing[own])))
    added = add_counts(parts)
    assert added.keys() == together.keys()
    for key, value in together.items():
        assert (added[key].dtype, added[key].shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(added[key], value, rtol=0 if value.dtype.kind == "i" else 1e-12, err_msg=key)
    for key, number in TASK.metrics(together).items():
        np.testing.assert_allclose(TASK.metrics(added)[key], number, rtol=1e-12, err_msg=key)


@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class")
@pytest.mark.parametrize("size", [(14, 11), (9, 8, 7)])
def test_metrics_equal_a_direct_computation_and_monais(size: tuple[int, ...]) -> None:
    persons = 30
    logits, mask = blobs(persons, size, seed=5)
    spacing = torch.from_numpy(np.random.default_rng(6).uniform(0.4, 3, (persons, len(size))))
    counts = TASK.counts(logits, Truth(mask, torch.arange(persons), spacing))
    m = TASK.metrics(counts)
    guess = logits.argmax(1)
    each = DiceMetric(include_background=False, reduction="none", ignore_empty=False)(one_hot(guess), one_hot(mask)).numpy()
    only_true = DiceMetric(include_background=False, reduction="none")(one_hot(guess), one_hot(mask)).numpy()
    far = HausdorffDistanceMetric(percentile=95, reduction="none")(one_hot(guess), one_hot(mask), spacing=spacing.tolist()).numpy()
    pooled = DiceHelper(include_background=False, reduction="mean_batch", get_not_nans=False, num_classes=3)(
        torch.cat(list(guess), -1)[None, None], torch.cat(list(mask), -1)[None, None]
    )
    states = set()
    for at, name in enumerate(CLASSES[1:]):
        t, p = (mask == at + 1).flatten(1).numpy(), (guess == at + 1).flatten(1).numpy()
        there, found = t.any(1), p.any(1)
        states |= set(zip(there.tolist(), found.tolist(), strict=True))
        direct = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(t, p, strict=True) if a.any() or b.any()]
        assert m[f"dice_mean_person/{name}"] == pytest.approx(np.mean(direct), abs=1e-12)
        assert m[f"dice_mean_person/{name}"] == pytest.approx(each[there | found, at].mean(), abs=1e-6)
        # MONAI's own two conventions follow from the same counts.
        assert counts["dice_sum"][at] / counts["occurs"][at] == pytest.approx(np.nanmean(only_true[:, at]), abs=1e-6)
        assert (counts["dice_sum"][at] + persons - counts["scored"][at]) / persons == pytest.approx(each[:, at].mean(), abs=1e-6)
        assert m[f"dice/{name}"] == pytest.approx(2 * (t & p).sum() / (t.sum() + p.sum()), abs=1e-12)
        assert m[f"dice/{name}"] == pytest.approx(float(pooled[at]), abs=1e-6)
        assert m[f"persons/{name}"] == there.sum()
        defined = far[there & found, at].astype(np.float64)
        assert m[f"hd95_mean_mm/{name}"] == pytest.approx(defined.mean(), rel=1e-6)
        assert m[f"missed/{name}"] == (there ^ found).sum()
        with_missed = np.concatenate([defined, np.full((there ^ found).sum(), np.inf)])
        assert m[f"hd95_median_mm/{name}"] == pytest.approx(np.median(with_missed), rel=0.01)
    assert states == {(a, b) for a in (False, True) for b in (False, True)}  # every row of the module's table was met
    assert m["dice"] == pytest.approx(np.mean([m[f"dice/{c}"] for c in CLASSES[1:]]), abs=1e-12)


def test_empty_masks_keep_to_the_stated_conventions() -> None:
    """One person each: both masks empty, false alarm, missed, and a perfect one."""
    mask, guess = torch.zeros(4, 6, 6, dtype=torch.uint8), torch.zeros(4, 6, 6, dtype=torch.long)
    guess[1, 1:3, 1:3] = 1
    mask[2, 1:3, 1:3] = 1
    mask[3, 2:5, 2:5] = guess[3, 2:5, 2:5] = 1
    seen = [TASK.metrics(TASK.counts(one_hot(guess[k : k + 1]), Truth(mask[k : k + 1], torch.zeros(1).long()))) for k in range(4)]
    dice = [m["dice_mean_person/liver"] for m in seen]
    assert math.isnan(dice[0])
    assert dice[1:] == [0, 0, 1]
    assert [m["missed/liver"] for m in seen] == [0, 1, 1, 0]
    assert [m["hd95_median_voxels/liver"] for m in seen[1:]] == [math.inf, math.inf, 0]
    assert [math.isnan(m["hd95_mean_voxels/liver"]) for m in seen] == [True, True, True, False]
    m = TASK.metrics(TASK.counts(one_hot(guess), Truth(mask, torch.arange(4))))
    assert m["dice_mean_person/liver"] == pytest.approx(1 / 3)
    assert m["dice/liver"] == pytest.approx(2 * 9 / (13 + 13))
    assert math.isnan(m["dice/spleen"])
    assert m["dice"] == m["dice/liver"]  # a class that no person has is not in the mean
    no_person = TASK.counts(torch.zeros(0, 3, 6, 6), Truth(torch.zeros(0, 6, 6), torch.zeros(0).long()))
    assert TASK.metrics(no_person) == {"persons": 0.0}


def test_a_person_with_several_images_is_one_person() -> None:
    """Dice of all voxels together, not the mean of the images' Dice; HD95 the mean of those defined."""
    mask, guess = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.long)
    mask[0, 0:4, 0:4] = guess[0, 0:4, 0:4] = 1
    mask[1, 0, 0] = guess[1, 0, 3] = 1
    mask[2, 0, 0] = 1
    m = TASK.metrics(TASK.counts(one_hot(guess), Truth(mask, torch.tensor([7, 7, 7]), torch.full((3, 2), 2.0))))
    assert m["persons"] == 1
    assert m["dice_mean_person/liver"] == pytest.approx(2 * 16 / (18 + 17))
    assert m["hd95_mean_mm/liver"] == (0 + 6) / 2
    assert m["missed/liver"] == 0


def test_mm_and_voxels_are_never_added() -> None:
    logits, mask = blobs(2, (9, 9), 8)
    spaced = Truth(mask[:1], torch.zeros(1).long(), torch.ones(1, 2))
    unspaced = Truth(mask[1:], torch.zeros(1).long(), torch.full((1, 2), math.nan))
    parts = [TASK.counts(logits[:1], spaced), TASK.counts(logits[1:], unspaced)]
    names = [{k.split("/")[0] for k in TASK.metrics(c) if k.startswith("hd95")} for c in (*parts, add_counts(parts))]
    assert names == [{"hd95_mean_mm", "hd95_median_mm"}, {"hd95_mean_voxels", "hd95_median_voxels"}, set()]


@given(st.lists(st.one_of(st.just(0.0), st.floats(2e-4, 9e3), st.just(math.inf)), min_size=1, max_size=30))
def test_a_median_of_the_histogram_is_within_one_percent(values: list[float]) -> None:
    from fedml.tasks.segmentation_counts import _place

    finite = np.array([v for v in values if v < math.inf])
    place = [*_place(finite), *[DISTANCE_BINS - 1] * (len(values) - len(finite))]
    found = histogram_median(np.bincount(place, minlength=DISTANCE_BINS))
    assert found == pytest.approx(np.median(values), rel=0.01)
    assert math.isnan(histogram_median(np.zeros(DISTANCE_BINS)))


def test_what_does_not_fit_is_refused() -> None:
    logits, mask = blobs(2, (6, 6), 0)
    truth = Truth(mask, torch.arange(2))
    with pytest.raises(FloatingPointError):
        TASK.counts(torch.where(mask[:, None] >= 0, math.nan, logits), truth)
    with pytest.raises(ValueError, match="holds 5"):
        TASK.counts(logits, Truth(mask + 3, torch.arange(2)))
    with pytest.raises(ValueError, match="masks are"):
        TASK.counts(logits, Truth(mask[:, :5], torch.arange(2)))
    batch = {"mask": mask[:, None], "image_person": torch.arange(2)}
    assert TASK.counts(logits, TASK.truth(batch)).keys() == TASK.counts(logits, truth).keys()
    with pytest.raises(ValueError, match="masks are"):  # one mask a class is not one mask
        TASK.counts(logits, TASK.truth(batch | {"mask": mask[:, None].expand(-1, 2, -1, -1)}))
    without = task_of(CLASSES, distances=False)
    assert not [k for k in without.metrics(without.counts(logits, truth)) if "hd95" in k or "missed" in k]


def test_hd95_of_a_real_mask_moved_by_known_millimetres() -> None:
    """The spleen of a CT moved by two voxels along each axis in turn; the header's spacing differs by axis."""
    import nibabel

    path = public_data("nifti") / "spleen_ct/derivatives/labels/sub-spleen2/ct/sub-spleen2_ct_seg-manual.nii.gz"
    image: Any = nibabel.load(path)  # type: ignore[attr-defined]
    spacing = [float(z) for z in image.header.get_zooms()[:3]]
    mask = np.asarray(image.dataobj) > 0
    mask = mask[::2, ::2]  # half of the voxels in the plane: enough for the test, a quarter of the time
    spacing = [2 * spacing[0], 2 * spacing[1], spacing[2]]
    assert hd95(mask, mask, spacing) == 0
    for axis, step in enumerate(spacing):
        moved = np.roll(mask, 2, axis)
        distance = hd95(moved, mask, spacing)
        assert distance is not None
        assert 0 < distance <= 2 * step + 1e-5
        whole = HausdorffDistanceMetric(percentile=95)(
            torch.from_numpy(np.stack([~moved, moved]))[None], torch.from_numpy(np.stack([~mask, mask]))[None], spacing=spacing
        )
        assert distance == pytest.approx(float(whole), rel=1e-6)  # cutting to the box changes nothing


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hd95_of_a_plate_moved_along_one_axis_is_voxels_times_that_axiss_spacing(axis: int) -> None:
    """A flat plate, one voxel thick, moved by three voxels along its normal: the distance is 3 * spacing[axis]."""
    spacing = (0.5, 2.0, 7.0)
    mask = np.zeros((9, 9, 9), dtype=bool)
    np.moveaxis(mask, axis, 0)[2] = True
    moved = np.roll(mask, 3, axis)
    assert hd95(moved, mask, spacing) == pytest.approx(3 * spacing[axis], rel=1e-6)
    assert hd95(moved, mask, None) == pytest.approx(3.0, rel=1e-6)
    logits = torch.from_numpy(np.stack([~moved, moved])[None].astype(np.float32))
    task = task_of(["background", "plate"])
    truth = Truth(torch.from_numpy(mask[None].astype(np.int64)), torch.tensor([0]), torch.tensor([spacing]))
    assert task.counts(logits, truth)["hd95_sum"] == pytest.approx([3 * spacing[axis]], rel=1e-6)
    assert task.metrics(task.counts(logits, truth))["hd95_mean_mm/plate"] == pytest.approx(3 * spacing[axis], rel=1e-6)


# --- loss


@pytest.mark.parametrize("size", [(12, 10), (6, 8, 5)])
def test_the_loss_is_monais_and_that_of_parts_adds_up(size: tuple[int, ...]) -> None:
    logits, mask = blobs(6, size, 3)
    whole = dice_ce(logits, Truth(mask, torch.arange(6)))
    peer = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    assert float(whole) == pytest.approx(float(peer(logits, mask[:, None])), rel=1e-6)
    parts = [(2, slice(0, 2)), (4, slice(2, 6))]
    assert float(whole) == pytest.approx(
        sum(n * float(dice_ce(logits[s], Truth(mask[s], torch.arange(n)))) for n, s in parts) / 6, rel=1e-6
    )
    # Two persons, of one and of five images: each counts the same.
    uneven = dice_ce(logits, Truth(mask, torch.tensor([1, 0, 0, 0, 0, 0])))
    each = [float(peer(logits[s], mask[s, None])) for s in (slice(0, 1), slice(1, 6))]
    assert float(uneven) == pytest.approx(sum(each) / 2, rel=1e-6)


# --- networks


@pytest.mark.parametrize("norm", ["group", pytest.param("instance", marks=pytest.mark.long)])
@pytest.mark.parametrize("net", SEGMENTATION_NETWORKS)
@pytest.mark.parametrize("size", [(17, 30), (4, 4), (9, 13, 6)])
def test_every_network_takes_any_size(net: str, norm: str, size: tuple[int, ...]) -> None:
    if net == "swin_unetr":
        pytest.importorskip("einops")
    channels = (12, 24, 48, 96, 192) if net == "swin_unetr" else (4, 8, 16)
    network = build_segmentation_network(net, (2, *size), 3, channels=channels, norm=norm)
    kind = nn.GroupNorm if norm == "group" else (nn.InstanceNorm2d, nn.InstanceNorm3d)
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm | nn.InstanceNorm2d | nn.InstanceNorm3d)]
    assert norms
    assert all(isinstance(m, kind) for m in norms)
    assert not [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len({v.data_ptr() for v in network.state_dict().values()}) == len(network.state_dict())  # each weight is sent once
    # In double precision: of a few voxels an instance norm divides by next to nothing.
    network, x = network.double(), torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = network.train()(x)
    assert out.shape == (2, 3, *size)
    out.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    assert network(x[:0]).shape == (0, 3, *size)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=1e-4, atol=1e-5)  # no norm mixes persons


@pytest.mark.parametrize("size", [(17, 30), (9, 13, 6)])
def test_deep_supervision_trains_the_coarser_levels_and_answers_without_them(size: tuple[int, ...]) -> None:
    options: Any = {"channels": (4, 8, 8, 16), "norm": "instance"}
    network = build_segmentation_network("dynunet", (1, *size), 3, supervised=2, **options)
    plain = build_segmentation_network("dynunet", (1, *size), 3, **options)
    own, more = plain.state_dict(), network.state_dict()
    assert own.keys() < more.keys()
    assert len({v.data_ptr() for v in more.values()}) == len(more)  # each weight is sent once
    plain.load_state_dict({name: more[name] for name in own})
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network.eval()(x), plain.eval()(x))
    out = network.train()(x)
    assert out.shape == (2, 9, *size)
    torch.testing.assert_close(out[:, :3], plain.train()(x))
    truth = Truth(torch.randint(0, 3, (2, *size), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1]))
    parts = [dice_ce(out[:, k : k + 3], truth) for k in (0, 3, 6)]
    total = deeply_supervised(dice_ce, 3)(out, truth)
    torch.testing.assert_close(total, (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75)
    torch.testing.assert_close(deeply_supervised(dice_ce, 3)(out[:, :3], truth), parts[0])
    total.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


@pytest.mark.parametrize(
    ("segmentation", "training", "message"),
    [
        ({"net": "unet", "deep_supervision": 1}, {}, 'deep_supervision is for net = "dynunet"; net is "unet"'),
        ({"net": "dynunet", "channels": [4, 8, 8], "deep_supervision": 2}, {}, "3 channels have 1 coarser outputs"),
        ({"net": "dynunet", "channels": [4, 8, 8], "deep_supervision": 5}, {}, "less than or equal to 4"),
    ],
)
def test_deep_supervision_is_of_a_network_that_has_levels(segmentation: Any, training: Any, message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        make_study(("image",), **plan((8, 8, 8), model__segmentation=segmentation, **training))


def test_the_padding_is_cut_back_to_the_same_place() -> None:
    """A size that fits goes through untouched, and where it does not, the logits stay at their voxel."""
    network = build_segmentation_network("unet", (1, 16, 16), 2, channels=(4, 8, 8), strides=(2, 2)).eval()
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(x), network.network(x))
        network.network = nn.Identity()
        odd = torch.randn(1, 1, 13, 5)
        assert torch.equal(network(odd), odd)


def test_strides_may_differ_by_axis() -> None:
    network = build_segmentation_network("unet", (1, 20, 20, 3), 2, channels=(4, 8, 8), strides=((2, 2, 1), (2, 2, 1)))
    assert network.factors == (4, 4, 1)
    assert network(torch.randn(1, 1, 20, 21, 3)).shape == (1, 2, 20, 21, 3)


@pytest.mark.parametrize(
    ("net", "shape", "options", "message"),
    [
        ("unnet", (1, 8, 8), {"channels": (4, 8)}, 'did you mean "unet"'),
        ("unet", (1, 8, 8), {"channels": (4,)}, "two or more channels"),
        ("unet", (1, 8, 8), {"channels": (4, 8, 8), "strides": (2,)}, "one stride between"),
        ("unet", (1, 8, 8), {"channels": (4, 8), "strides": ((2, 2, 2),)}, "each of 2 axes"),
        ("unet", (1, 8), {"channels": (4, 8)}, "two or three dimensions"),
        ("segresnet", (1, 8, 8), {"channels": (4, 8, 12)}, "twice the one before"),
        ("segresnet", (1, 8, 8), {"channels": (4, 8), "strides": (3,)}, "strides of 2"),
        ("dynunet", (1, 8, 8), {"channels": (4, 8)}, "three or more channels"),
        ("attention_unet", (1, 8, 8), {"channels": (4, 8, 8), "strides": (2,)}, "one stride between"),
        ("swin_unetr", (1, 8, 8), {"channels": (16, 32, 64, 128, 256)}, "the first a multiple of 12"),
        ("swin_unetr", (1, 8, 8), {"channels": (12, 24, 48, 96, 192), "strides": (2, 2, 2, 3)}, "leave strides out"),
    ],
)
def test_an_impossible_network_is_reported(net: str, shape: tuple[int, ...], options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_segmentation_network(net, shape, 2, **options)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_learns_to_find_bright_discs(precision: Any) -> None:
    """Trained on eight noisy pictures, tested on eight others; the same seed gives the same bits."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    centre, radius = rng.uniform(7, 17, (16, 2)), rng.uniform(3, 6, 16)
    mask = torch.from_numpy(
        np.stack([(y - a) ** 2 + (x - b) ** 2 < r**2 for (a, b), r in zip(centre, radius, strict=True)]).astype(np.uint8)
    )
    images = mask[:, None] + torch.from_numpy(rng.normal(0, 0.5, (16, 1, 24, 24))).float()
    task = task_of(("background", "disc"))

    def learned() -> nn.Module:
        with torch_seed(1):
            network = build_segmentation_network("unet", (1, 24, 24), 2, channels=(8, 16), norm="instance")
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(25):
            optimizer.zero_grad()
            with autocast(CPU, precision):
                out = network(images[:8])
            loss = task.loss(out, Truth(mask[:8], torch.arange(8)))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return network.eval()

    network = learned()
    counts = task.counts(infer(network, images[8:], precision=precision), Truth(mask[8:], torch.arange(8)))
    assert task.metrics(counts)["dice_mean_person"] > 0.85
    assert all(p.dtype == torch.float32 for p in network.parameters())
    again = learned()
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))


# --- inference and devices


def test_windows_are_used_only_where_the_image_is_larger() -> None:
    network = build_segmentation_network("unet", (1, 20, 20), 2, channels=(4, 8)).eval()
    images = torch.randn(3, 1, 20, 17)
    sizes: list[tuple[int, ...]] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape))
        out: torch.Tensor = network(x)
        return out

    whole = infer(counted, images)
    assert sizes == [(1, 1, 20, 17)] * 3
    with torch.no_grad():
        assert torch.equal(whole, torch.cat([network(images[k : k + 1]) for k in range(3)]))
    assert torch.equal(infer(counted, images, window=(32, 17)), whole)
    sizes.clear()
    windowed = infer(counted, images, window=(8, 64), windows=2)
    assert windowed.shape == whole.shape
    assert {s[2:] for s in sizes} == {(8, 17)}
    assert max(s[0] for s in sizes) == 2
    assert infer(network, images[:0], window=(8, 8)).shape == (0, 2, 20, 17)


@pytest.mark.parametrize("size", [(21, 18), (9, 14, 11)])
def test_windows_give_the_whole_result_where_a_voxel_stands_alone(size: tuple[int, ...]) -> None:
    """Without neighbours there is nothing that a window cuts off: what is left is the stitching, which must be exact."""
    pointwise = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, 3, 1)
    images = torch.randn(2, 1, *size)
    torch.testing.assert_close(infer(pointwise, images, window=[8] * len(size)), infer(pointwise, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_near_and_really_lower(precision: Any) -> None:
    network = build_segmentation_network("unet", (1, 16, 16), 2, channels=(4, 8)).eval()
    images = torch.randn(2, 1, 24, 16)
    full = infer(network, images, window=(16, 16))
    low = infer(network, images, window=(16, 16), precision=precision)
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.1)


def test_float16_training_steps_through_the_scaler() -> None:
    """Gradients come back to their size; an overflow is skipped, not taken; the other precisions pass everything through."""
    layer = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x, scale = torch.ones(1, 4), scaler(CPU, "float16")
    before = layer.weight.detach().clone()
    with autocast(CPU, "float16"):
        out = layer(x)
    scale.scale(out.float().sum() / 4).backward()  # type: ignore[no-untyped-call]
    assert float(layer.weight.grad.max()) > 1000  # type: ignore[union-attr]
    scale.step(optimizer)
    scale.update()
    torch.testing.assert_close(before - layer.weight, torch.full((1, 4), 0.25), rtol=1e-3, atol=1e-3)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.full((1, 4), math.inf)
    scale.scale(torch.zeros(()))
    scale.step(optimizer)
    scale.update()
    assert torch.equal(layer.weight, before)
    assert not scaler(CPU, "bfloat16").is_enabled()
    assert float(scaler(CPU, "float32").scale(torch.ones(()))) == 1


def test_a_missing_device_is_reported() -> None:
    assert pick_device("cpu") == CPU
    assert torch.ones(2, device=pick_device()).sum() == 2
    assert (pick_device().type == "cpu") == (not torch.accelerator.is_available())
    for unknown in ("cuda:99", "tpu", "xpu:7"):
        with pytest.raises(InputError, match="does not exist on this machine"):
            pick_device(unknown)


# --- real photographs


def white_cells(folder: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 3, 60, 60) photographs from 0 to 1 and masks: 0 background, 1 cytoplasm, 2 nucleus."""
    from PIL import Image

    pictures, masks = [], []
    for path in sorted(folder.glob("*.bmp"))[:count]:
        pictures.append(np.asarray(Image.open(path).convert("RGB").resize((60, 60))).transpose(2, 0, 1) / 255)
        grey = np.asarray(Image.open(path.with_suffix(".png")).convert("L").resize((60, 60), Image.Resampling.NEAREST))
        masks.append(np.where(grey > 192, 2, np.where(grey > 64, 1, 0)).astype(np.uint8))
    return torch.from_numpy(np.stack(pictures)).float(), torch.from_numpy(np.stack(masks))


def test_cells_of_two_laboratories_are_scored_as_one_cohort() -> None:
    """Real photographs: the nucleus found by a threshold; the two laboratories' counts give the metrics of all photographs together."""
    root = public_data("wbc_two_labs")
    labs = [white_cells(root / f"Dataset {k}", 12) for k in (1, 2)]
    task = task_of(("background", "cytoplasm", "nucleus"))

    def guessed(images: torch.Tensor) -> torch.Tensor:
        dark = images[:, 1] < images[:, 1].flatten(1).quantile(0.2, dim=1)[:, None, None]
        return one_hot(dark * 2)

    parts = [task.counts(guessed(x), Truth(y, torch.arange(len(y)))) for x, y in labs]
    images, masks = torch.cat([x for x, _ in labs]), torch.cat([y for _, y in labs])
    pooled = task.metrics(task.counts(guessed(images), Truth(masks, torch.arange(len(masks)))))
    merged = task.metrics(add_counts(parts))
    assert merged.keys() == pooled.keys()
    for key, value in pooled.items():
        np.testing.assert_allclose(merged[key], value, rtol=1e-12, err_msg=key)
    assert 0.5 < merged["dice/nucleus"] < 1
    assert merged["dice/cytoplasm"] == 0
    assert merged["missed/cytoplasm"] == merged["persons/cytoplasm"] > 0
