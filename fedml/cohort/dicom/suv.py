"""Standardised uptake values of PET by body weight (SUVbw, g/ml), from what the headers of a series say.

    factor = suv_factor(files)              # multiplies the values as the file has them (after rescaling)

SUVbw is the activity concentration divided by the injected dose per gram of body weight, both at one time (QIBA FDG-PET/CT Profile, and its
vendor-neutral pseudo-code for SUV). The voxels of a file are corrected for decay to the start of the series (Decay Correction START) or to
the injection (ADMIN); the dose is decayed to the same time. Whatever is missing or contradicts itself is refused: nothing is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedml.cohort.dicom.files import open_dataset, reading
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UNIT = "SUVbw"
_WEIGHT_KG, _DOSE_BQ, _HALF_LIFE_S = (0.5, 500.0), (1e5, 1e11), (30.0, 1e6)  # plausible
_HALF_LIVES = {  # code of the radionuclide (PS3.16 CID 4020) -> half-life in s, to check what the file states
    "C-111A1": 6586.2, "77004003": 6586.2, "C-105A1": 1221.8, "40565002": 1221.8, "C-107A1": 597.9, "21576001": 597.9,
    "C-B1038": 122.2, "C-128A2": 45_721.0, "C-131A3": 4062.6, "80751004": 4062.6, "C-159A2": 76.4, "C-168A4": 282_276.0,
}  # fmt: skip
_TOLERANCE = 0.02  # of a half-life
_LONGEST = timedelta(hours=24)  # from injection to scan
_OVERNIGHT = timedelta(hours=6)  # the same, if the injection's time of day is after the scan's, so it was on the day before
_SAME = 1e-6  # two factors of one series, relative


class _File(NamedTuple):
    header: Dataset
    path: Path

    def refuse(self, why: str) -> ItemError:
        return ItemError(Unusable.RESCALE, f"{self.path}: has no {UNIT}: {why}; [cohort.image] units asks for it.")

    def number(self, place: Dataset, keyword: str, what: str, limits: tuple[float, float]) -> float:
        """A number of ``place`` within ``limits``."""
        value = place.get(keyword)
        if value is None or value == "":
            raise self.refuse(f"{what} ({keyword}) is missing")
        if not limits[0] <= float(value) <= limits[1]:
            raise self.refuse(f"{what} ({keyword}) is not from {limits[0]:g} to {limits[1]:g}")
        return float(value)


def suv_factor(files: Sequence[Path]) -> float:
    """What the values of a PET series are multiplied by: g/ml per unit of the file.

    Raises:
        ItemError: rescale: a statement is missing or contradicts another; the files of the series do not agree.
    """
    opened = []
    for path in files:
        with reading(path):
            opened.append(_File(open_dataset(path, pixels=False), path))
    acquired = [when for one in opened if (when := _time(one.header, "AcquisitionDate", "AcquisitionTime")) is not None]
    factors = []
    for one in opened:
        with reading(one.path):
            factors.append(_factor(one, min(acquired, default=None)))
    if max(factors) - min(factors) > _SAME * max(factors):
        raise opened[0].refuse("its files state different weights, doses or times")
    return factors[0]


def _factor(file: _File, acquired: datetime | None) -> float:
    header = file.header
    if str(header.get("Modality") or "") != "PT":
        raise file.refuse(f"its modality is {header.get('Modality') or 'not stated'}, not PT")
    units = str(header.get("Units") or "")
    if units == "GML":
        kind = str(header.get("SUVType") or "BW")
        if kind != "BW":
            raise file.refuse(f"its values are SUV of another kind ({kind})")
        return 1.0
    if units == "CNTS":
        return _philips(file)
    if units != "BQML":
        raise file.refuse(f"its Units are {units or 'not stated'}, not BQML, GML or CNTS")
    corrected = {str(value).strip() for value in np.atleast_1d(header.get("CorrectedImage") or [])}
    if lacking := [name for name in ("ATTN", "DECY") if name not in corrected]:
        raise file.refuse(f"Corrected Image does not list {lacking[0]}")
    tracers = list(header.get("RadiopharmaceuticalInformationSequence") or [])
    if len(tracers) != 1:
        raise file.refuse(f"it states {len(tracers)} radiopharmaceuticals, and one is needed")
    weight = file.number(header, "PatientWeight", "the weight in kg", _WEIGHT_KG)
    dose = file.number(tracers[0], "RadionuclideTotalDose", "the injected dose in Bq", _DOSE_BQ)
    half_life = file.number(tracers[0], "RadionuclideHalfLife", "the half-life in s", _HALF_LIFE_S)
    for code in tracers[0].get("RadionuclideCodeSequence") or []:
        known = _HALF_LIVES.get(str(code.get("CodeValue") or ""))
        if known is not None and abs(half_life - known) > _TOLERANCE * known:
            raise file.refuse(f"its half-life is {half_life:g} s, that of its radionuclide is {known:g} s")
    correction = str(header.get("DecayCorrection") or "")
    if correction == "ADMIN":
        decayed = dose
    elif correction == "START":
        waited = _waited(file, tracers[0], _start(file, acquired))
        decayed = dose * 2.0 ** (-waited.total_seconds() / half_life)
    else:
        raise file.refuse(f"Decay Correction is {correction or 'not stated'}, not START or ADMIN")
    return 1000.0 * weight / decayed


def _philips(file: _File) -> float:
    """The factor that Philips writes for counts."""
    found: Any = None
    for element in range(0x10, 0x100):
        owner = file.header.get((0x7053, element))
        if owner is not None and str(owner.value).strip() == "Philips PET Private Group":
            found = file.header.get((0x7053, element << 8))
    if found is None or not 0 < float(found.value) < math.inf:
        raise file.refuse("its Units are CNTS, and the factor that Philips writes to (7053,xx00) is not there")
    return float(found.value)


def _start(file: _File, acquired: datetime | None) -> datetime:
    """When the scan began, to which the voxels are corrected: the series' time, or GE's private time of the scan. A series that is
    stated to begin after its first acquisition was made of it later."""
    series = _time(file.header, "SeriesDate", "SeriesTime")
    if series is not None and acquired is not None and series <= acquired:
        return series
    owner, scan = file.header.get((0x0009, 0x0010)), file.header.get((0x0009, 0x100D))
    if owner is not None and str(owner.value).strip() == "GEMS_PETD_01" and scan is not None and acquired is not None:
        value = scan.value.decode("ascii") if isinstance(scan.value, bytes) else str(scan.value)
        when = _parsed(value.strip(" \0"))
        if when is not None and when <= acquired:
            return when
    if series is None or acquired is None:
        raise file.refuse("the date and time of its series or of its acquisition are missing")
    raise file.refuse("its series begins after its first acquisition, so the time to which its decay is corrected is not known")


def _waited(file: _File, tracer: Dataset, start: datetime) -> timedelta:
    """From the injection to the scan."""
    full, clock = str(tracer.get("RadiopharmaceuticalStartDateTime") or ""), str(tracer.get("RadiopharmaceuticalStartTime") or "")
    injected, within_day = _parsed(full) if full else None, _parsed(f"{start:%Y%m%d}{clock}") if clock else None
    if (full and injected is None) or (clock and within_day is None) or not (full or clock):
        raise file.refuse("the time of the injection is missing, or is no time")
    if injected is not None and within_day is not None and abs((injected - within_day).total_seconds()) % 86_400 > 1:
        raise file.refuse("it states two times of the injection that differ")
    if injected is not None:
        waited, most = start - injected, _LONGEST
    else:
        assert within_day is not None  # noqa: S101 - for the type checker
        waited, most = start - within_day, _LONGEST
        if waited < timedelta(0):
            waited, most = waited + timedelta(days=1), _OVERNIGHT
    if not timedelta(0) <= waited <= most:
        raise file.refuse("the injection is after the scan, or more than a day before it")
    return waited


def _time(header: Dataset, day: str, clock: str) -> datetime | None:
    if not header.get(day) or not header.get(clock):
        return None
    return _parsed(f"{header.get(day)}{header.get(clock)}")


def _parsed(text: str) -> datetime | None:
    """A date and time as in DICOM (PS3.5 section 6.2), to the second at least, without a time zone."""
    digits, _, fraction = text.strip().partition(".")
    if len(digits) != 14 or not digits.isdigit() or (fraction and not fraction.isdigit()):
        return None
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S") + timedelta(seconds=float(f"0.{fraction or 0}"))
    except ValueError:
        return None
