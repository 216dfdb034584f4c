"""The volumes of one DICOM series: echoes, b-values, phases, magnitude and phase, directions and repetitions of one place.

    slices = selected(slices, study.cohort.image.select)       # only the echoes, b-values and phases that the study reads
    for group in split(slices): ...                            # each position once in every group, groups in order

Volumes are told apart by what the headers state, never by the order of files. Where that leaves two slices at one place, the series stays
one group, which reading then refuses as duplicate slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedml.cohort.dicom.grid import Slice
from fedml.cohort.dicom.headers import b_value_of, echo_of, numbers_of, phase_of
from fedml.cohort.dicom.macros import macro
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.series_section import Select

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NAMES = ("b-value", "echo time", "phase", "magnitude or phase", "direction", "acquisition", "time")
_FIRST = 4  # what names a volume; the others tell apart what these leave together, one after another
_KINDS = ("M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY")
_PLACES_MM = 1e-2  # closer positions along the normal are one


def dims_of(header: Dataset, groups: list[Dataset]) -> tuple[tuple[float, ...], ...]:
    """What ``NAMES`` lists, of a slice: numbers each, () where the file does not state it."""
    kind = [str(value).strip().upper() for value in np.atleast_1d(header.get("ImageType") or [])]
    if (found := macro(groups, "MRImageFrameTypeSequence", "FrameType")) is not None:
        kind = [str(value).strip().upper() for value in np.atleast_1d(found)]
    gradient = macro(groups, "MRDiffusionSequence", "DiffusionGradientOrientation", header)
    if gradient is None:
        for group in groups:
            for item in (group.get("MRDiffusionSequence") or [])[:1]:
                inner = (item.get("DiffusionGradientDirectionSequence") or [None])[0]
                gradient = None if inner is None else inner.get("DiffusionGradientOrientation")
    return (
        _ordered(b_value_of(header, groups)), _ordered(echo_of(header, groups)), _ordered(phase_of(header, groups)),
        tuple(float(_KINDS.index(value)) for value in kind if value in _KINDS),
        tuple(round(v, 6) for one in np.atleast_1d([] if gradient is None else gradient) for v in sorted(numbers_of(one))),
        _ordered(header.get("AcquisitionNumber")), _ordered(header.get("AcquisitionTime")),
    )  # fmt: skip


def _ordered(value: object) -> tuple[float, ...]:
    return tuple(sorted(numbers_of(value)))


def selected(slices: Sequence[Slice], rules: Select | None) -> list[Slice]:
    """The slices of the b-values, echo times and temporal positions that the rules name.

    Raises:
        ItemError: no-series: there are none.
    """
    if rules is None or not rules.of_volumes:
        return list(slices)
    asked = ((0, rules.b_value), (1, rules.echo_time_ms))
    kept = [
        one for one in slices
        if all(not two or any(two[0] <= value <= two[1] for value in one.dims[at]) for at, two in asked)
        and (not rules.phase or any(value in rules.phase for value in one.dims[2]))
    ]  # fmt: skip
    if not kept:
        raise ItemError(Unusable.NO_SERIES, f"{slices[0].path}: its series has no b-value, echo or phase that the study selects.")
    return kept


def split(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices of each volume, ordered by b-value, echo time, phase and so on; all in one group if they are one volume, or cannot be
    told apart."""
    places = [_place(one) for one in slices]
    if len(slices) > 1 and not any(places) and len({one.path for one in slices}) == 1:  # frames of one file without positions: times
        return [[one] for one in slices]
    if None in places or len(set(places)) == len(places):
        return [list(slices)]
    for count in range(_FIRST, len(NAMES) + 1):
        groups: dict[tuple[tuple[float, ...], ...], list[Slice]] = {}
        for one in slices:
            groups.setdefault(one.dims[:count], []).append(one)
        if len(groups) > 1 and all({_place(one) for one in g} == set(places) and len(g) == len(set(places)) for g in groups.values()):
            return [groups[key] for key in sorted(groups)]
    return [list(slices)]


def _place(one: Slice) -> tuple[int, ...] | None:
    return None if one.position is None else tuple(int(v) for v in np.rint(one.position / _PLACES_MM))


def differ(groups: Sequence[Sequence[Slice]]) -> str:
    """What tells the volumes apart, such as ``b-value 0, 500, 1000``."""
    for at, name in enumerate(NAMES):
        values = sorted({group[0].dims[at] for group in groups})
        if len(values) > 1:
            shown = ", ".join(f"{value[0]:g}" if value else "none" for value in values[:6])
            return name if at >= _FIRST - 1 else f"{name} {shown}" + (", ..." if len(values) > 6 else "")
    return "nothing"
