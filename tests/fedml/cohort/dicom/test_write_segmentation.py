"""A segmentation that is written lies on the right voxels of the patient: read back by highdicom, SimpleITK and this software."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from fedml.cohort.dicom.files import open_dataset
from fedml.cohort.dicom.segmentation import read_seg
from fedml.cohort.dicom.series import read_series
from fedml.cohort.dicom.write_segmentation import PRIVATE, Author, Segment, referable, segmentation
from fedml.cohort.images.reasons import ItemError
from tests.seg_geometries import COLUMNS, GEOMETRIES, PATIENT, ROWS, Geometry, Made, two_balls, write

AUTHOR = Author("spleen", hashlib.sha256(b"study").hexdigest(), hashlib.sha256(b"weights").hexdigest(), "0.1.0")
SEGMENTS = (Segment("spleen", ("SCT:78961009",)), Segment("odd thing"))


def made(folder: Path, of: Geometry, only: int | None = None) -> tuple[Made, Path, Any]:
    """A series, and a segmentation whose classes are what the pixels of the series say (of class ``only``, if given)."""
    source = write(folder / "series", of, two_balls(of))
    volume = read_series(sorted((folder / "series").iterdir()))
    mask = np.where(volume.voxels >= 2000, 2, np.where(volume.voxels >= 1000, 1, 0)).astype(np.uint8)
    segments = SEGMENTS
    if only is not None:
        mask, segments = (mask == only).astype(np.uint8), (SEGMENTS[only - 1],)
    path = folder / "seg.dcm"
    path.write_bytes(segmentation(mask, volume, segments, AUTHOR))
    return source, path, volume


def points_of(found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows in one order, for comparison as a set."""
    found = np.round(found, 3) + 0.0
    return found[np.lexsort(found.T)]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_highdicom_and_this_software_find_each_class_where_it_is_in_the_patient(tmp_path: Path, name: str) -> None:
    of = GEOMETRIES[name]
    source, path, volume = made(tmp_path, of)
    seg = highdicom.seg.segread(path)
    assert seg.number_of_segments == 2
    classes = source.classes.reshape(of.slices, ROWS, COLUMNS)
    if of.enhanced:  # slice by slice, by the references to the source
        frames = [frame for _, frame in source.sources]
        found = seg.get_pixels_by_source_frame(source.sources[0][0], frames, combine_segments=True, assert_missing_frames_are_empty=True)
    else:
        uids = [uid for uid, _ in source.sources]
        found = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(found, classes)
    for number in (1, 2):  # and by the positions of the frames themselves
        frames = [k for k, g in enumerate(seg.PerFrameFunctionalGroupsSequence) if _segment(g) == number]
        points = np.concatenate([_frame_points(seg, k) for k in frames])
        np.testing.assert_allclose(points_of(points), points_of(source.points[source.classes == number]), atol=2e-3)
    if not of.tilt:  # highdicom's volume has axes at right angles
        whole = seg.get_volume(combine_segments=True, allow_missing_positions=True)
        index = np.argwhere(whole.array == 1)
        at = whole.map_indices_to_reference(index)
        np.testing.assert_allclose(points_of(at), points_of(source.points[source.classes == 1]), atol=2e-3)
    values = read_seg(path, volume)[0]
    np.testing.assert_array_equal(values, np.where(volume.voxels >= 2000, 2, np.where(volume.voxels >= 1000, 1, 0)))


def _segment(group: Any) -> int:
    return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _frame_points(seg: Any, k: int) -> np.ndarray[Any, Any]:
    """(voxels, 3) LPS mm of what a frame marks, by the standard's formula."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64).reshape(2, 3)
    down, across = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    corner = np.array(seg.PerFrameFunctionalGroupsSequence[k].PlanePositionSequence[0].ImagePositionPatient, np.float64)
    rows, columns = np.nonzero(seg.get_stored_frame(k + 1))
    out: np.ndarray[Any, Any] = corner + rows[:, None] * down * axes[1] + columns[:, None] * across * axes[0]
    return out


@pytest.mark.parametrize("name", GEOMETRIES)
def test_simpleitk_finds_a_class_where_it_is_in_the_patient(tmp_path: Path, name: str) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install simpleitk)")
    of = GEOMETRIES[name]
    source, path, _ = made(tmp_path, of, only=1)
    image = sitk.ReadImage(str(path))
    index = np.argwhere(sitk.GetArrayFromImage(image) > 0)[:, ::-1]
    truth = source.points[source.classes == 1]
    if of.tilt:  # an ITK image cannot be sheared: it has the place of its first frame and right pixels in each
        assert len(index) == len(truth)
        first = index[:, 2] == 0
        at = np.array([image.TransformIndexToPhysicalPoint([int(v) for v in i]) for i in index[first]])
        distance = np.abs(at[:, None] - truth[None]).max(-1).min(1)
        assert distance.max() < 2e-3
        return
    at = np.array([image.TransformIndexToPhysicalPoint([int(v) for v in i]) for i in index])
    np.testing.assert_allclose(points_of(at), points_of(truth), atol=2e-3)


def test_what_is_written_refers_to_the_source_and_says_who_drew_it(tmp_path: Path) -> None:
    source, path, _ = made(tmp_path, GEOMETRIES["oblique"])
    seg = pydicom.dcmread(path)
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (source.study, source.reference)
    assert seg.SeriesInstanceUID != source.series
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.series
    assert sorted(i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence) == sorted(uid for uid, _ in source.sources)
    first, second = seg.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("spleen", "odd thing")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Spleen"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == PRIVATE
    assert second.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Spatial and Relational Concept"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert AUTHOR.weights_sha256 in str(algorithm.AlgorithmParameters)
    assert seg.DeviceSerialNumber == AUTHOR.weights_sha256
    assert not list(tmp_path.glob(".*"))


def test_of_the_patient_only_what_names_patient_and_study_is_copied(tmp_path: Path) -> None:
    _, path, _ = made(tmp_path, Geometry(more={"PatientAge": "061Y", "PatientComments": "told Mary", "InstitutionAddress": "1 Main St"}))
    seg = pydicom.dcmread(path)
    assert {keyword: str(seg[keyword].value) for keyword in PATIENT} == PATIENT
    text = str(seg)
    for other in ("Saint Elsewhere", "Tech^Nician", "thorax", "Main St"):
        assert other not in text


def test_of_an_enhanced_file_the_frame_is_named(tmp_path: Path) -> None:
    source, path, _ = made(tmp_path, GEOMETRIES["enhanced, frames shuffled"])
    seg = pydicom.dcmread(path)
    (instance,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == source.sources[0][0]
    assert instance.ReferencedSOPClassUID == pydicom.uid.EnhancedMRImageStorage
    assert {e.value for e in seg.iterall() if e.keyword == "ReferencedSOPClassUID"} == {pydicom.uid.EnhancedMRImageStorage}
    named = {int(g.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber) for g in seg.PerFrameFunctionalGroupsSequence}
    classes = source.classes.reshape(9, -1)
    assert named == {frame for (_, frame), of in zip(source.sources, classes, strict=True) if of.any()}


def test_a_series_without_a_frame_of_reference_and_a_radiograph_are_refused_in_words(tmp_path: Path) -> None:
    write(tmp_path / "series", GEOMETRIES["axial"], two_balls(GEOMETRIES["axial"]))
    for drop in (("FrameOfReferenceUID",), ("ImagePositionPatient", "ImageOrientationPatient")):
        dataset = open_dataset(sorted((tmp_path / "series").iterdir())[0])
        for keyword in drop:
            delattr(dataset, keyword)
        dataset.save_as(tmp_path / "one.dcm")
        volume = read_series([tmp_path / "one.dcm"])
        assert not referable(volume)
        with pytest.raises(ItemError, match="no position or frame of reference"):
            segmentation(np.zeros(volume.voxels.shape, np.uint8), volume, SEGMENTS, AUTHOR)


def test_an_empty_mask_has_a_segmentation_too(tmp_path: Path) -> None:
    write(tmp_path / "series", GEOMETRIES["axial"], two_balls(GEOMETRIES["axial"]))
    volume = read_series(sorted((tmp_path / "series").iterdir()))
    (tmp_path / "none.dcm").write_bytes(segmentation(np.zeros(volume.voxels.shape, np.uint8), volume, SEGMENTS, AUTHOR))
    assert not highdicom.seg.segread(tmp_path / "none.dcm").pixel_array.any()
