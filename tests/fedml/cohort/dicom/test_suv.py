"""Uptake values by body weight: analytic values for each way to state decay, a refusal for all that is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.sequence import Sequence as Items

from fedml.cohort.dicom.suv import suv_factor
from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.reasons import ItemError, TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from tests.dicom_files import item, write_slice

F18, DOSE, WEIGHT = 6586.2, 3.5e8, 70.0
SIZE = (5, 6, 3)
RNG = np.random.default_rng(5)
STORED = RNG.integers(0, 30_000, (3, 6, 5)).astype(np.int16)
TRACER: dict[str, Any] = {
    "RadionuclideTotalDose": DOSE, "RadionuclideHalfLife": F18, "RadiopharmaceuticalStartTime": "100000",
    "RadionuclideCodeSequence": Items([item(CodeValue="C-111A1", CodingSchemeDesignator="SRT", CodeMeaning="^18^Fluorine")]),
}  # fmt: skip
SERIES: dict[str, Any] = {
    "Modality": "PT", "Units": "BQML", "CorrectedImage": ["DECY", "ATTN", "SCAT"], "DecayCorrection": "START", "PatientWeight": WEIGHT,
    "SeriesDate": "20200101", "SeriesTime": "110000", "AcquisitionDate": "20200101", "AcquisitionTime": "110010.5",
    "PatientIdentityRemoved": "YES", "PatientID": "p", "LongitudinalTemporalInformationModified": "MODIFIED", "RescaleIntercept": 0,
}  # fmt: skip
SLOPES = (0.5, 1.25, 2.0)


def write(folder: Path, tracer: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **changes: Any) -> list[Path]:
    about = {**SERIES, **changes}
    told = {key: value for key, value in {**TRACER, **(tracer or {})}.items() if value is not None}
    paths = []
    for k, plane in enumerate(STORED):
        more = {key: value[k] if key == "PatientWeight" and isinstance(value, list) else value for key, value in about.items()}
        more.setdefault("RescaleSlope", SLOPES[k])
        path = folder / "i" / "p" / f"{k}.dcm"
        tracers = {"RadiopharmaceuticalInformationSequence": Items([item(**told)])}
        paths.append(write_slice(path, plane, (-5.0, 7.0, 10 + 3.0 * k), drop=drop, **{**tracers, **more}))
    return paths


def read(folder: Path, units: Any = "SUVbw") -> Any:
    return read_images(folder / "i", "dicom", ["p"], ImageShape(size=SIZE, units=units), rules=ImageRules(max_quarantined=0.0))


def test_values_of_a_series_corrected_to_its_start(tmp_path: Path) -> None:
    """Stored value x slope of its slice x weight in g / dose at the start of the scan, one hour after the injection."""
    write(tmp_path)
    concentration = STORED * np.array(SLOPES)[:, None, None]
    expected = concentration * 1000 * WEIGHT / (DOSE * 2 ** (-3600 / F18))
    found = read(tmp_path)
    np.testing.assert_allclose(found.pixels[0, 0].transpose(2, 1, 0), expected, rtol=5e-7)
    assert found.units == (("SUVbw", 1),)
    plain = read(tmp_path, "")
    np.testing.assert_array_equal(plain.pixels[0, 0].transpose(2, 1, 0), concentration.astype(np.float32))
    assert plain.units == (("BQML", 1),)


@pytest.mark.parametrize(
    ("tracer", "about", "seconds"),
    [
        ({}, {"DecayCorrection": "ADMIN"}, 0.0),  # the dose is that of the injection
        ({"RadiopharmaceuticalStartDateTime": "20200101093000.5"}, {}, None),
        ({"RadiopharmaceuticalStartTime": None, "RadiopharmaceuticalStartDateTime": "20200101093000.5"}, {}, 5399.5),
        ({"RadiopharmaceuticalStartTime": "233000"}, {"SeriesTime": "003000", "AcquisitionTime": "003000"}, 3600.0),  # over midnight
        ({"RadionuclideHalfLife": 1221.8, "RadionuclideCodeSequence": None}, {}, 3600.0),
    ],
)
def test_times_and_nuclides(tmp_path: Path, tracer: dict[str, Any], about: dict[str, Any], seconds: float | None) -> None:
    files = write(tmp_path, tracer, **about)
    if seconds is None:
        with pytest.raises(ItemError, match="two times of the injection"):
            suv_factor(files)
        return
    half_life = tracer.get("RadionuclideHalfLife", F18)
    assert suv_factor(files) == pytest.approx(1000 * WEIGHT / (DOSE * 2 ** (-seconds / half_life)), rel=1e-12)


def test_values_that_are_uptake_already_and_the_factor_of_philips(tmp_path: Path) -> None:
    assert suv_factor(write(tmp_path / "a", Units="GML")) == 1.0
    files = write(tmp_path / "b", Units="CNTS")
    with pytest.raises(ItemError, match="factor that Philips writes"):
        suv_factor(files)
    import pydicom

    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.000321")
        dataset.save_as(path)
    assert suv_factor(files) == pytest.approx(0.000321, rel=1e-12)


def test_ge_states_the_scan_of_a_series_that_was_made_later(tmp_path: Path) -> None:
    import pydicom

    files = write(tmp_path, SeriesTime="150000")
    with pytest.raises(ItemError, match="begins after its first acquisition"):
        suv_factor(files)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200101110000.00")
        dataset.save_as(path)
    assert suv_factor(files) == pytest.approx(1000 * WEIGHT / (DOSE * 2 ** (-3600 / F18)), rel=1e-12)


@pytest.mark.parametrize(
    ("word", "tracer", "about", "drop"),
    [
        ("weight in kg .* is missing", {}, {}, ("PatientWeight",)),
        ("weight in kg .* is not from", {}, {"PatientWeight": 0}, ()),
        ("weight in kg .* is not from", {}, {"PatientWeight": 70_000}, ()),
        ("dose in Bq .* is missing", {"RadionuclideTotalDose": None}, {}, ()),
        ("dose in Bq .* is not from", {"RadionuclideTotalDose": 350.0}, {}, ()),  # MBq
        ("half-life in s .* is missing", {"RadionuclideHalfLife": None}, {}, ()),
        ("half-life is 4062.6 s", {"RadionuclideHalfLife": 4062.6}, {}, ()),
        ("time of the injection is missing", {"RadiopharmaceuticalStartTime": None}, {}, ()),
        ("time of the injection is missing, or is no time", {"RadiopharmaceuticalStartTime": "1000"}, {}, ()),
        ("injection is after the scan", {"RadiopharmaceuticalStartTime": "120000"}, {}, ()),
        ("date and time of its series", {}, {}, ("SeriesTime",)),
        ("date and time of its series", {}, {}, ("AcquisitionTime",)),
        ("does not list DECY", {}, {"CorrectedImage": ["ATTN"]}, ()),
        ("does not list ATTN", {}, {"CorrectedImage": ["DECY"]}, ()),
        ("Decay Correction is NONE", {}, {"DecayCorrection": "NONE"}, ()),
        ("Units are PROPCPS", {}, {"Units": "PROPCPS"}, ()),
        ("Units are not stated", {}, {}, ("Units",)),
        (r"another kind \(LBM\)", {}, {"Units": "GML", "SUVType": "LBM"}, ()),
        ("modality is MR", {}, {"Modality": "MR"}, ()),
        ("states 0 radiopharmaceuticals", {}, {"RadiopharmaceuticalInformationSequence": Items([])}, ()),
        ("different weights", {}, {"PatientWeight": [70.0, 70.0, 71.0]}, ()),
    ],
)
def test_what_is_missing_or_inconsistent_is_refused(tmp_path: Path, word: str, tracer: Any, about: Any, drop: Any) -> None:
    write(tmp_path, tracer, drop, **about)
    with pytest.raises(TooManyExcluded, match=word) as caught:
        read(tmp_path)
    assert [one.reason for one in caught.value.excluded] == [Unusable.RESCALE]


def test_other_formats_state_no_dose(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="computed from DICOM headers"):
        read_images(tmp_path, "nifti", ["p"], ImageShape(size=SIZE, units="SUVbw"))
