"""RT structure sets on the voxels of their image: against matplotlib's polygons, analytic shapes, rt-utils; any direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from fedml.cohort.dicom.grid import RAS
from fedml.cohort.dicom.outlines import filled
from fedml.cohort.dicom.series import Volume, read_series
from fedml.cohort.dicom.structures import read_regions
from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.images import Images
from fedml.cohort.images.reasons import ItemError, TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.study.cohort_section import ImageShape
from tests.dicom_files import write_slice
from tests.structure_files import write_structures

RNG = np.random.default_rng(31)
ABOUT = {"PatientIdentityRemoved": "YES", "PatientID": "p"}
OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, -0.8)
DIRECTIONS = [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), OBLIQUE]
GRID = {"PixelSpacing": [0.9, 0.7]}  # of rows, of columns


def series(
    folder: Path, size: tuple[int, int, int], *, axes: Any = DIRECTIONS[0], step: float = 1.25, tilt: float = 0.0, **more: Any
) -> Volume:
    """(columns, rows, slices) of noise; ``tilt``: mm by which a gantry shifts each slice along its rows' direction."""
    columns, rows, count = size
    normal, down = np.cross(axes[:3], axes[3:]), np.array(axes[3:])
    for k in range(count):
        place = np.array([-30.0, 12.0, 5.0]) + k * (step * normal + tilt * down)
        plane = RNG.integers(0, 900, (rows, columns)).astype(np.int16)
        write_slice(folder / f"{k:03d}.dcm", plane, place.tolist(), axes=axes, **{**GRID, **ABOUT, **more})
    return read_series(sorted(folder.iterdir()))


def lps(volume: Volume, points: Any) -> np.ndarray[Any, Any]:
    """Voxel coordinates (n, 3) as mm in LPS."""
    affine = RAS @ volume.affine
    return np.asarray(points, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def outline(volume: Volume, slice_: float, points: Any) -> np.ndarray[Any, Any]:
    """(column, row) in a slice as mm in LPS."""
    flat = np.asarray(points, np.float64)
    return lps(volume, np.column_stack([flat, np.full(len(flat), slice_)]))


def box(low: tuple[float, float], high: tuple[float, float]) -> list[tuple[float, float]]:
    return [low, (high[0], low[1]), high, (low[0], high[1])]


def circle(centre: tuple[float, float], mm: float, volume: Volume, sides: int = 720) -> np.ndarray[Any, Any]:
    angle = np.arange(sides) / sides * 2 * math.pi
    pixel = np.array(volume.spacing_mm[:2])
    return np.array(centre) + mm * np.column_stack([np.cos(angle), np.sin(angle)]) / pixel


def refused(word: str, do: Callable[[], Any], reason: Unusable = Unusable.MASK_MISMATCH) -> None:
    with pytest.raises(ItemError, match=word) as caught:
        do()
    assert caught.value.reason is reason


def star(points: int, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A closed line without self-crossing around the middle of a matrix (rows, columns), of random radii."""
    angle = np.sort(RNG.uniform(0, 2 * math.pi, points))
    radius = RNG.uniform(0.1, 0.45, points)
    return np.column_stack([(0.5 + radius * np.cos(angle)) * shape[1], (0.5 + radius * np.sin(angle)) * shape[0]])


def distance(points: np.ndarray[Any, Any], centres: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each centre from the nearest edge, in pixels."""
    nearest = np.full(len(centres), np.inf)
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        along = b - a
        part = np.clip(((centres - a) @ along) / max(along @ along, 1e-30), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(centres - a - part[:, None] * along, axis=1))
    return nearest


@pytest.mark.parametrize("points", [3, 4, 7, 40, 300])
def test_pixels_of_polygons_are_those_of_matplotlib(points: int) -> None:
    shape = (61, 83)
    centres = np.array([(c, r) for r in range(shape[0]) for c in range(shape[1])], np.float64)
    compared = 0
    for _ in range(20):
        drawn = star(points, shape)
        part = filled(drawn, shape)
        own = np.zeros(shape, bool)
        own[part.box] = part.inside | part.edge
        clear = distance(drawn, centres) > 0.03  # centres on an edge are a matter of convention, below
        expected = Polygon(np.vstack([drawn, drawn[:1]]), closed=True).contains_points(centres)
        np.testing.assert_array_equal(own.ravel()[clear], expected[clear])
        compared += int(expected[clear].sum())
    assert compared > 1000


def test_a_centre_on_the_outline_is_inside_on_every_side() -> None:
    for drawn in (box((2, 3), (5, 7)), box((2.004, 2.996), (4.997, 7.003)), box((1.6, 2.6), (5.4, 7.4)), box((1.5, 2.5), (5.5, 7.5))):
        part = filled(np.array(drawn), (12, 10))
        own = np.zeros((12, 10), bool)
        own[part.box] = part.inside | part.edge
        expected = np.zeros((12, 10), bool)
        expected[3:8, 2:6] = True
        np.testing.assert_array_equal(own, expected)
    slanted = filled(np.array([(0.0, 0.0), (4.0, 4.0), (0.0, 4.0)]), (6, 6))
    assert (slanted.inside | slanted.edge).sum() == 15  # the diagonal and below
    point = filled(np.array([(2.0, 1.0)]), (6, 6))
    assert ((point.row, point.column), point.edge.tolist()) == ((1, 2), [[True]])


@pytest.mark.parametrize("axes", DIRECTIONS)
@pytest.mark.parametrize("tilt", [0.0, 0.4])
def test_sphere_box_and_torus_in_any_direction(tmp_path: Path, axes: Any, tilt: float) -> None:
    """Every voxel whose centre is in the solid, cut by the planes of the slices."""
    volume = series(tmp_path / "i", (64, 56, 24), axes=axes, tilt=tilt)
    affine = RAS @ volume.affine
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.voxels.shape), indexing="ij"), -1)
    where = index @ affine[:3, :3].T + affine[:3, 3]
    middle = lps(volume, [[31.3, 27.4, 12.0]])[0]
    normal = np.cross(axes[:3], axes[3:])
    beside = where - middle
    height = beside @ normal
    flat = np.linalg.norm(beside - height[..., None] * normal, axis=-1)
    ball, ring = np.linalg.norm(beside, axis=-1) <= 9.0, (flat - 11.0) ** 2 + height**2 <= 4.0**2
    sphere, torus, brick = [], [], []
    for k in range(24):
        centre = np.linalg.solve(affine[:3, :3], middle - affine[:3, 3] + (height[0, 0, k]) * normal)
        assert centre[2] == pytest.approx(k, abs=1e-6)
        h = float(height[0, 0, k])
        flat_centre = (float(centre[0]), float(centre[1]))
        if abs(h) < 9:
            sphere.append(outline(volume, k, circle(flat_centre, math.sqrt(81 - h * h), volume)))
        if abs(h) < 4:
            wide = math.sqrt(16 - h * h)
            torus += [outline(volume, k, circle(flat_centre, 11 + side * wide, volume)) for side in (1, -1)]  # the hole is an outline
        if 5 <= k < 9:
            brick.append(outline(volume, k, box((9.5, 19.5), (30.5, 44.5))))
    path = write_structures(tmp_path / "m.dcm", {"ball": sphere, "ring": torus, "brick": brick})
    for number, expected, gap in ((2, ball, np.abs(np.linalg.norm(beside, axis=-1) - 9)), (5, ring, None)):
        own = read_regions(path, volume, [number])
        near = gap if gap is not None else np.abs(np.hypot(flat - 11.0, height) - 4)
        clear = near > 0.02  # of 720 sides, the polygon leaves 0.0002 mm of the circle; written with nine digits
        np.testing.assert_array_equal(own[clear], expected[clear])
        assert own.sum() > 1500
    solid = np.zeros(volume.voxels.shape, bool)
    solid[10:31, 20:45, 5:9] = True
    np.testing.assert_array_equal(read_regions(path, volume, [8]), solid)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return series(tmp_path / "i" / "p", (20, 16, 6))


def region(tmp_path: Path, volume: Volume, outlines: list[Any], **changes: Any) -> np.ndarray[Any, Any]:
    return read_regions(write_structures(tmp_path / "m.dcm", {"GTV": outlines}, **changes), volume, [2])


def test_holes_as_keyhole_nested_and_exclusive_or_are_one(tmp_path: Path, volume: Volume) -> None:
    outer, inner = box((2.5, 2.5), (14.5, 12.5)), box((5.5, 5.5), (9.5, 9.5))
    keyhole = [*outer, outer[0], *inner[::-1][-1:], *inner[::-1], inner[0], outer[0]]
    expected = np.zeros((20, 16), bool)
    expected[3:15, 3:13] = True
    expected[6:10, 6:10] = False
    xor = [{"points": outline(volume, 2, one), "ContourGeometricType": "CLOSEDPLANAR_XOR"} for one in (outer, inner)]
    for drawn in ([outline(volume, 2, outer), outline(volume, 2, inner)], [outline(volume, 2, keyhole)], xor):
        own = region(tmp_path, volume, drawn)
        np.testing.assert_array_equal(own[:, :, 2], expected)
        assert own.sum() == expected.sum()
    island = region(tmp_path, volume, [outline(volume, 2, one) for one in (outer, inner, box((6.5, 6.5), (7.5, 7.5)))])
    assert island.sum() == expected.sum() + 1
    assert region(tmp_path, volume, [outline(volume, 2, one) for one in (box((0.5, 0.5), (3.5, 3.5)), box((7, 7), (9, 9)))]).sum() == 18


def test_what_a_structure_set_leaves_open_is_refused(tmp_path: Path, volume: Volume) -> None:
    square = box((2.5, 2.5), (9.5, 9.5))
    here = outline(volume, 2, square)

    def no(word: str, outlines: list[Any], reason: Unusable = Unusable.MASK_MISMATCH, **changes: Any) -> None:
        refused(word, lambda: region(tmp_path, volume, outlines, **changes), reason)

    assert region(tmp_path, volume, [here]).sum() == 49
    assert region(tmp_path, volume, [outline(volume, 2.2, square)])[:, :, 2].sum() == 49
    no("0.30 slices off its slice", [outline(volume, 2.3, square)])
    no("across slices", [lps(volume, [(2, 2, 1), (9, 2, 1), (9, 9, 3), (2, 9, 3)])])
    no("beyond the first or last slice", [outline(volume, -1, square)])
    no("beyond the rows or columns", [outline(volume, 2, box((2, 2), (25, 9)))])
    assert region(tmp_path, volume, [outline(volume, 2, box((-0.9, -0.9), (19.9, 15.9)))]).sum() == 320
    no('type "POINT"', [{"points": here[:1], "ContourGeometricType": "POINT"}])
    no('type "OPEN_PLANAR"', [{"points": here, "ContourGeometricType": "OPEN_PLANAR"}])
    no("states 5 points", [{"points": here, "NumberOfContourPoints": 5}])
    no("not finite", [{"points": np.where(here == here[0, 0], np.nan, here)}], Unusable.MASK_MISMATCH)
    no("cross or repeat", [here, outline(volume, 2, box((5.5, 5.5), (14.5, 12.5)))])
    no("cross or repeat", [here, here])
    no("of two planes", [outline(volume, 1.9, square), outline(volume, 2.1, box((12, 2), (14, 9)))])
    no("coarser series", [outline(volume, k, square) for k in (0, 2, 4)])
    no("smaller than a voxel", [outline(volume, 2, box((2.2, 2.2), (2.8, 2.8)))])
    no("no outlines", [])
    no("another series", [here], series="1.2.3")
    no("another frame of reference", [here], reference="1.2.3")
    assert region(tmp_path, volume, [{"points": here, "source": volume.instances[2]}]).sum() == 49
    no("another slice than the slice", [{"points": here, "source": volume.instances[3]}])


@pytest.mark.long
def test_a_huge_outline_is_refused_before_it_is_drawn(tmp_path: Path, volume: Volume) -> None:
    zigzag = np.column_stack([np.tile([0.3, 18.7], 600_000), np.linspace(0, 15, 1_200_000)])
    path = write_structures(tmp_path / "m.dcm", {"GTV": [{"points": outline(volume, 2, zigzag), "NumberOfContourPoints": None}]})
    refused("more than", lambda: read_regions(path, volume, [2]), Unusable.TOO_LARGE)


def read(folder: Path, segments: dict[str, tuple[str, ...]]) -> Images:
    shape = ImageShape(size=(20, 16, 6), segments=segments)
    return read_images(folder / "i", "dicom", ["p"], shape, codes=(0, 1, 2), rules=ImageRules(folder / "m", max_quarantined=0.0))


def test_regions_by_name_and_code_are_classes_of_the_study(tmp_path: Path, volume: Volume) -> None:
    drawn = {"GTV-1": [outline(volume, 2, box((2.5, 2.5), (4.5, 4.5)))], "Lung": [outline(volume, 3, box((6.5, 6.5), (9.5, 9.5)))]}
    write_structures(tmp_path / "m" / "p.dcm", drawn, codes={"Lung": "39607008"}, **ABOUT)
    images = read(tmp_path, {"1": ("gtv*",), "2": ("SCT:39607008",)})
    assert images.masks is not None
    mask = images.masks[:][0, 0]
    assert [(int((mask == k).sum()), set(np.argwhere(mask == k)[:, 2].tolist())) for k in (1, 2)] == [(4, {2}), (9, {3})]
    for rules, word in (({}, "states? in|names in"), ({"1": ("bladder",)}, "none of its segments")):
        with pytest.raises(TooManyExcluded, match=word):
            read(tmp_path, rules)


@pytest.mark.parametrize("axes", DIRECTIONS)
def test_masks_that_rt_utils_writes_come_back(tmp_path: Path, axes: Any) -> None:
    """rt-utils draws outlines through the centres of the outermost pixels; what it fills is what is read, voxel by voxel."""
    rt_utils = pytest.importorskip("rt_utils", reason="rt-utils is not installed (pip install rt-utils)")
    study = dict.fromkeys(("StudyDate", "StudyTime", "StudyID", "PatientName", "PatientSex", "PatientBirthDate", "AccessionNumber"), "")
    # rt-utils takes spacing in the wrong order where pixels are not square
    volume = series(tmp_path / "i", (40, 40, 8), axes=axes, PixelSpacing=[0.75, 0.75], StudyInstanceUID="1.2.3", **study)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.voxels.shape), indexing="ij"), -1)
    ball = np.linalg.norm((index - [19.2, 21.0, 3.4]) * [1, 1, 3], axis=-1) < 11
    hole = ball & (np.linalg.norm((index - [17.0, 20.0, 3.4]) * [1, 1, 3], axis=-1) > 5)
    two = ball & (index[..., 0] != 20)
    made = rt_utils.RTStructBuilder.create_new(dicom_series_path=str(tmp_path / "i"))
    for name, mask in (("ball", ball), ("hole", hole), ("two", two)):
        made.add_roi(mask=np.ascontiguousarray(mask.transpose(1, 0, 2)), name=name)
    made.save(str(tmp_path / "m.dcm"))
    back = rt_utils.RTStructBuilder.create_from(dicom_series_path=str(tmp_path / "i"), rt_struct_path=str(tmp_path / "m.dcm"))
    for number, (name, mask) in enumerate((("ball", ball), ("hole", hole), ("two", two)), start=1):
        own = read_regions(tmp_path / "m.dcm", volume, [number])
        np.testing.assert_array_equal(own, back.get_roi_mask_by_name(name).transpose(1, 0, 2))
        np.testing.assert_array_equal(own, mask)
