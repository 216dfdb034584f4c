"""NRRD: voxels and geometry as other writers mean them, and files that do not hold what their header says."""

from __future__ import annotations

import base64
import gzip
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from fedml.clients.desk.doctor import examine
from fedml.clients.site import quarantine
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.images.formats import FORMATS, NAMES
from fedml.cohort.images.nrrd import read_nrrd
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.one_image import read_one
from fedml.errors import InputError
from tests.command import ROOT
from tests.conftest import make_study, write_csv, write_manifest, write_picture
from tests.inputs import images_of

# Written by ITK 5.4 (SimpleITK 2.5.7) from this array, with the spacing (0.7, 1.25, 3) mm; AFFINE is that of the NIfTI that ITK wrote.
ITK = base64.b64decode(
    "TlJSRDAwMDQKIyBDb21wbGV0ZSBOUlJEIGZpbGUgZm9ybWF0IHNwZWNpZmljYXRpb24gYXQ6CiMgaHR0cDovL3RlZW0uc291cmNlZm9yZ2UubmV0L25ycmQvZm9ybWF0Lmh0"
    "bWwKdHlwZTogc2hvcnQKZGltZW5zaW9uOiAzCnNwYWNlOiBsZWZ0LXBvc3Rlcmlvci1zdXBlcmlvcgpzaXplczogMyA0IDIKc3BhY2UgZGlyZWN0aW9uczogKC0wLjM0OTk5"
    "OTk5OTk5OTk5OTkyLDAuNjA2MjE3NzgyNjQ5MTA3MDgsMCkgKDAsMCwxLjI1KSAoMi41OTgwNzYyMTEzNTMzMTYsMS40OTk5OTk5OTk5OTk5OTk4LDApCmtpbmRzOiBkb21h"
    "aW4gZG9tYWluIGRvbWFpbgplbmRpYW46IGxpdHRsZQplbmNvZGluZzogZ3ppcApzcGFjZSBvcmlnaW46ICgxMi41LC00MC4yNSw3KQoKH4sIAAAAAAAAAwEwAM//bwLD/H79"
    "8f2C/VoC4gKkAGb81Pyw/nr/8gDW/yn+V/1+AdUBWfz7/KD/Jv8HAyEAuS8DfzAAAAA="
)
VOXELS = np.array(
    [
        [[623, -829, -642], [-527, -638, 602], [738, 164, -922], [-812, -336, -134]],
        [[242, -42, -471], [-681, 382, 469], [-935, -773, -96], [-218, 775, 33]],
    ],
    np.int16,
).T
AFFINE = [[0.35, 0, -2.598076, -12.5], [-0.606218, 0, -1.5, 40.25], [0, 1.25, 0, 7], [0, 0, 0, 1]]
TURNED = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 3], [0, 0, -2.5, 9], [0, 0, 0, 1]])
SPACES = {"RAS": (1, 1, 1), "LPS": (-1, -1, 1), "left-anterior-superior": (-1, 1, 1)}


def test_itks_file_reads_as_itk_meant_it(tmp_path: Path) -> None:
    (tmp_path / "p.nrrd").write_bytes(ITK)
    voxels, affine = read_nrrd(tmp_path / "p.nrrd")
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)


def write(path: Path, voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any], space: str = "LPS", **fields: Any) -> Path:
    """By pynrrd, with a geometry in RAS+, written in ``space``."""
    signs = np.array(SPACES[space], float)
    rows = [signs * affine[:3, axis] for axis in range(3)]
    spatial = [*([np.full(3, np.nan)] if voxels.ndim == 4 else []), *rows]
    header = {"space": space, "space directions": np.array(spatial), "space origin": signs * affine[:3, 3], **fields}
    nrrd.write(str(path), voxels, header)
    return path


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("kind", ["<i2", ">i2", "u1", "<f4", ">f8"])
def test_a_volume_is_the_nifti_of_the_same_voxels(tmp_path: Path, space: str, encoding: str, kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 200, (5, 4, 3)).astype(kind)
    write(tmp_path / "p.nrrd", values, TURNED, space, encoding=encoding)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), TURNED), tmp_path / "p.nii.gz")
    voxels, affine = FORMATS["nrrd"].read(tmp_path / "p.nrrd")
    expected, place = FORMATS["nifti"].read(tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(affine, place, atol=1e-6)


def test_channels_come_last_wherever_their_axis_is(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 255, (3, 5, 4, 2), dtype=np.uint8)  # channels first, as ITK writes colours
    voxels, affine = read_nrrd(write(tmp_path / "p.nrrd", values, TURNED, kinds=["RGB-color", "domain", "domain", "domain"]))
    np.testing.assert_array_equal(voxels, np.moveaxis(values, 0, -1))
    np.testing.assert_allclose(affine, TURNED)


def test_without_an_anatomical_space_nothing_is_said_of_where_voxels_are(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "p.nrrd"), np.arange(24, dtype=np.uint8).reshape(4, 3, 2), {"spacings": [1.0, 2.0, 3.0]})
    assert read_nrrd(tmp_path / "p.nrrd")[1] is None
    with pytest.raises(InputError, match="has no affine"):
        read_one(tmp_path / "p.nrrd", make_study(("image",), cohort__image={"size": [4, 3, 2], "orientation": "RAS"}).cohort.image)


def site(folder: Path, format_: str, persons: int = 8) -> Path:
    """Volumes of several sizes and turned, with masks, as NRRD or as NIfTI; the label is the brightness."""
    rng, ids = np.random.default_rng(7), [f"a{k:02d}" for k in range(persons)]
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    y = np.arange(persons) % 2
    write_csv(folder / "persons.csv", ids, {"y": y})
    for k, person in enumerate(ids):
        voxels = (rng.normal(40, 30, (7 + k % 3, 12, 6)) + 60 * y[k]).astype(np.int16)
        affine = TURNED @ np.diag([1 + 0.1 * (k % 2), 1, 1, 1])
        for place, values in (("images", voxels), ("masks", (voxels > 60).astype(np.uint8))):
            if format_ == "nrrd":
                write(folder / place / f"{person}.nrrd", values, affine)
            else:
                nibabel.save(nibabel.Nifti1Image(values, affine), folder / place / f"{person}.nii.gz")
    return write_manifest(folder, "a", image=f'{{ path = "images", format = "{format_}", masks = "masks" }}')


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_site_of_nrrd_is_the_site_of_nifti(tmp_path: Path, task: str) -> None:
    shape = {"size": [10, 8, 6], "orientation": "RAS", "spacing_mm": [1.5, 2.0, 2.5], "window": [-100, 200]}
    changes: dict[str, Any] = {"model__segmentation": {"channels": [4, 8]}} if task == "segmentation" else {}
    study = make_study(("image",), ("a",), cohort__image=shape, model__task=task, **changes)
    cohorts = {name: read_cohort(read_site(site(tmp_path / name, name)), study) for name in ("nrrd", "nifti")}
    one, other = (cohort.batch(range(8)) for cohort in cohorts.values())
    assert one.keys() == other.keys()
    assert ("mask" in one) == (task == "segmentation")
    for key, values in one.items():
        if key == "original":
            assert all((a.mask() == b.mask()).all() and (a.lost == b.lost).all() for a, b in zip(values, other[key], strict=True))
        else:
            np.testing.assert_allclose(values, other[key], atol=2e-3, err_msg=key)
    raw = read_one(tmp_path / "nrrd" / "images" / "a03.nrrd", study.cohort.image)
    np.testing.assert_allclose(raw, one["image"][3], atol=1e-6, err_msg="a saved model is given the same")


# --- files that do not hold what their header says


HEADER = (
    b"NRRD0005\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n"
    b"endian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
)
DATA = np.arange(24, dtype="<i2").tobytes()
PACKED = HEADER.replace(b"raw", b"gzip")


def replaced(old: bytes, new: bytes, data: bytes = DATA) -> bytes:
    assert old in HEADER
    return HEADER.replace(old, new) + data


BROKEN: dict[str, tuple[bytes, Unusable]] = {
    "empty": (b"", Unusable.TRUNCATED),
    "no header's end": (HEADER[:-1], Unusable.TRUNCATED),
    "header without end, large": (HEADER[:-1] + b"x" * 2**21, Unusable.UNREADABLE),
    "another file": (b"\x89PNG\r\n\x1a\n" + bytes(100), Unusable.NOT_AN_IMAGE),
    "cut voxels": (HEADER + DATA[:-1], Unusable.TRUNCATED),
    "voxels more": (HEADER + DATA + b"\x01\x00", Unusable.WRONG_LENGTH),
    "many zeros more": (HEADER + DATA + bytes(4096), Unusable.WRONG_LENGTH),
    "more promised": (replaced(b"4 3 2", b"400 300 200"), Unusable.TRUNCATED),
    "far more promised": (replaced(b"4 3 2", b"4000 3000 2000"), Unusable.TOO_LARGE),
    "no voxels": (replaced(b"4 3 2", b"4 0 2"), Unusable.WRONG_LENGTH),
    "sizes of other axes": (replaced(b"dimension: 3", b"dimension: 4"), Unusable.WRONG_LENGTH),
    "gzip cut": (PACKED + gzip.compress(DATA)[:-9], Unusable.TRUNCATED),
    "gzip checksum cut": (PACKED + gzip.compress(DATA)[:-4], Unusable.TRUNCATED),
    "gzip of less": (PACKED + gzip.compress(DATA[:-2]), Unusable.TRUNCATED),
    "gzip of more": (PACKED + gzip.compress(DATA + DATA), Unusable.WRONG_LENGTH),
    "gzip damaged": (PACKED + gzip.compress(DATA)[:12] + b"\xff\xff" + gzip.compress(DATA)[14:], Unusable.UNREADABLE),
    "gzip, another checksum": (PACKED + gzip.compress(DATA)[:-8] + bytes(8), Unusable.UNREADABLE),
    "gzip, something behind": (PACKED + gzip.compress(DATA) + b"more", Unusable.WRONG_LENGTH),
    "gzip bomb by its header": (
        PACKED.replace(b"4 3 2", b"512 512 512") + gzip.compress(bytes(2 * 512**3 // 64)), Unusable.TOO_LARGE,
    ),
    "no gzip": (PACKED + DATA, Unusable.UNREADABLE),
    "text": (replaced(b"raw", b"ascii", b"1 " * 24), Unusable.COMPRESSED),
    "voxels elsewhere": (replaced(b"encoding", b"data file: ../../secret.raw\nencoding"), Unusable.UNREADABLE),
    "bytes to skip": (replaced(b"encoding", b"byte skip: 8\nencoding"), Unusable.UNREADABLE),
    "lines to skip": (replaced(b"encoding", b"line skip: 1\nencoding"), Unusable.UNREADABLE),
    "a field twice": (replaced(b"encoding", b"sizes: 4 3 2\nencoding"), Unusable.UNREADABLE),
    "no sizes": (replaced(b"sizes: 4 3 2\n", b""), Unusable.UNREADABLE),
    "no endian": (replaced(b"endian: little\n", b""), Unusable.UNREADABLE),
    "blocks": (replaced(b"short", b"block"), Unusable.NOT_AN_IMAGE),
    "singular directions": (replaced(b"(0,1,0)", b"(2,0,0)"), Unusable.GEOMETRY),
    "infinite directions": (replaced(b"(0,1,0)", b"(0,inf,0)"), Unusable.GEOMETRY),
    "infinite origin": (replaced(b"origin: (0,0,0)", b"origin: (0,nan,0)"), Unusable.GEOMETRY),
    "a space of no body": (replaced(b"left-posterior-superior", b"scanner-xyz"), Unusable.GEOMETRY),
    "inches": (replaced(b"encoding", b'space units: "in" "in" "in"\nencoding'), Unusable.GEOMETRY),
    "two axes that are not in space": (replaced(b"(0,1,0) (0,0,2)", b"none none"), Unusable.GEOMETRY),
    "a picture of colours": (replaced(b"(0,1,0)", b"none"), Unusable.GEOMETRY),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_has_its_reason(tmp_path: Path, case: str) -> None:
    data, reason = BROKEN[case]
    path = tmp_path / "p.nrrd"
    path.write_bytes(data)
    with pytest.raises(ItemError, match=re.escape(str(path))) as refused:
        read_nrrd(path)
    assert refused.value.reason is reason
    assert "secret" not in str(refused.value)


def test_the_header_alone_is_fine(tmp_path: Path) -> None:
    for data in (HEADER + DATA, HEADER + DATA + bytes(100), PACKED + gzip.compress(DATA), HEADER.replace(b"\n", b"\r\n") + DATA):
        (tmp_path / "p.nrrd").write_bytes(data)
        voxels, affine = read_nrrd(tmp_path / "p.nrrd")
        np.testing.assert_array_equal(voxels, np.arange(24).reshape(4, 3, 2, order="F"))
        np.testing.assert_array_equal(affine, np.diag([-1, -1, 2, 1]))


def test_a_bomb_is_never_unpacked(tmp_path: Path) -> None:
    bomb = zlib.compressobj(9, wbits=31)
    packed = b"".join([*(bomb.compress(bytes(2**24)) for _ in range(16)), bomb.flush()])  # 256 MB of zeros
    (tmp_path / "p.nrrd").write_bytes(PACKED + packed)
    tracemalloc.start()
    with pytest.raises(ItemError) as refused:
        read_nrrd(tmp_path / "p.nrrd")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.reason is Unusable.WRONG_LENGTH
    assert peak < 16 * 2**20


@pytest.mark.parametrize("whole", [HEADER + DATA, PACKED + gzip.compress(DATA, mtime=0)], ids=["raw", "gzip"])
@given(data=st.data())
def test_a_changed_file_is_read_or_excluded_and_a_cut_one_excluded(whole: bytes, data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("changed") / "p.nrrd"
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at])
    with pytest.raises(ItemError):
        read_nrrd(path)
    path.write_bytes(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
    try:
        voxels, _ = read_nrrd(path)
    except ItemError:
        return
    assert voxels.size <= len(whole)


def test_a_broken_file_is_excluded_with_its_reason_and_the_others_are_read(tmp_path: Path) -> None:
    manifest = site(tmp_path / "a", "nrrd", 20)
    path = tmp_path / "a" / "images" / "a07.nrrd"
    path.write_bytes(path.read_bytes()[:-20])
    cohort = read_cohort(read_site(manifest), make_study(("image",), cohort__image={"size": [8, 8, 6], "crop": True}))
    assert cohort.excluded_images == {"truncated": 1}
    assert len(images_of(cohort).person) == 19
    (entry,) = quarantine.read(tmp_path / "a" / ".fedml")
    assert (entry["person"], entry["reason"]) == ("a07", "truncated")


# --- the table of formats


def test_a_manifest_takes_the_formats_of_the_table_and_no_other(tmp_path: Path) -> None:
    for name in NAMES:
        manifest = write_manifest(tmp_path, "a", image=f'{{ path = "images", format = "{name}" }}')
        image = read_site(manifest).manifest.data.image
        assert image is not None
        assert image.format == name
    with pytest.raises(InputError, match=r'"nifty" is not a format of images \(did you mean "nifti"\?\)'):
        read_site(write_manifest(tmp_path, "a", image='{ path = "images", format = "nifty" }'))


def write_metaimage(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    size = " ".join(map(str, pixels.shape))
    head = f"ObjectType = Image\nNDims = {pixels.ndim}\nDimSize = {size}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    path.write_bytes(head.encode() + pixels.tobytes(order="F"))


WRITERS: dict[str, Callable[[Path, np.ndarray[Any, Any]], object]] = {
    **dict.fromkeys(("png", "jpeg", "npy", "nifti"), write_picture),
    "bmp": write_picture,
    "nrrd": lambda path, pixels: nrrd.write(str(path), pixels),
    "mha": write_metaimage,
    "tiff": tifffile.imwrite,
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_read_by_a_site_and_by_a_saved_model_and_looked_at_by_the_doctor(tmp_path: Path, name: str) -> None:
    assert WRITERS.keys() == FORMATS.keys()
    ids = [f"a{k}" for k in range(6)]
    write_csv(tmp_path / "persons.csv", ids, {"y": [0, 1] * 3})
    pixels = {person: (20 * k + np.arange(64).reshape(8, 8) // 8).astype(np.uint8) for k, person in enumerate(ids)}
    (tmp_path / "images").mkdir()
    for ending in FORMATS[name].endings:
        for person, values in pixels.items():
            WRITERS[name](tmp_path / "images" / f"{person}{ending}", values)
        study = make_study(("image",), ("a",), cohort__image={"size": [8, 8]}, cohort__split={"train": 1.0, "val": 0.0, "test": 0.0})
        place = read_site(write_manifest(tmp_path, "a", image=f'{{ path = "images", format = "{name}" }}'))
        cohort = read_cohort(place, study)
        tolerance = 3 if name == "jpeg" else 0
        for k, person in enumerate(cohort.ids):
            np.testing.assert_allclose(cohort.batch([k])["image"][0, 0], pixels[person], atol=tolerance)
            one = read_one(tmp_path / "images" / f"{person}{ending}", study.cohort.image)
            np.testing.assert_array_equal(one, cohort.batch([k])["image"][0])
        assert next(f for f in examine(place) if f.what == "image").state == "ok"
        for path in (tmp_path / "images").iterdir():
            path.unlink()
        found = next(f for f in examine(place) if f.what == "image")
        assert (found.state, f"has no file with the extension {FORMATS[name].endings[0]}" in found.text) == ("fail", True)


def test_the_documents_name_every_format() -> None:
    for file in ("docs/join-a-federation.md", "docs/images.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        missing = [name for name in NAMES if not re.search(rf"\b{name}\b", text)]
        assert not missing, f"{file} does not name {', '.join(missing)}"
