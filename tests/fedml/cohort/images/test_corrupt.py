"""Damaged files of every format that is read: each is refused with a reason, or read as what it is known to hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.reasons import TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from tests.corrupt_files import SIZE, Case, Made, cases


def outcome(folder: Path, made: Made) -> tuple[str, Any, Any]:
    """(reason, or "" if it is read; image; mask)."""
    masks = folder / "m" if made.masked else None
    structures = {"segments": {"1": ("gtv", "part 1")}} if made.masked else {}
    shape = ImageShape(size=SIZE if made.format != "png" else (8, 9), **structures)
    try:
        found = read_images(
            folder / "i", made.format, ["p"], shape, codes=(0, 1) if made.masked else None, rules=ImageRules(masks, max_quarantined=0.0)
        )
    except TooManyExcluded as error:
        (one,) = error.excluded
        assert one.text.startswith("/") or one.reason is Unusable.NOT_DE_IDENTIFIED, one.text
        return str(one.reason), None, None
    except InputError as error:
        assert "has no usable image with a mask" in str(error)  # noqa: PT017
        return "no-mask", None, None
    return "", found.pixels[0, 0], None if found.masks is None else found.masks[:][0, 0]


def verdict(case: Case, folder: Path) -> str:
    """``refused``, ``equal``, or what is wrong."""
    made = case.make(folder)
    reason, image, mask = outcome(folder, made)
    if made.image is None:
        return "refused" if reason else f"WRONG: {case.kind}, {case.damage} ({case.number}) is accepted"
    if reason:
        return "refused" if made.harmless else f"WRONG: {case.kind}, {case.damage} ({case.number}) is whole, and refused as {reason}"
    same = np.array_equal(image, made.image) and (made.mask is None or np.array_equal(mask, made.mask))
    return "equal" if same else f"WRONG: {case.kind}, {case.damage} ({case.number}) is read otherwise"


@pytest.mark.long
def test_no_damaged_file_is_read_as_something_else(tmp_path: Path) -> None:
    made = cases(300)
    found = {case.number: verdict(case, tmp_path / str(case.number)) for case in made}
    table = Counter((case.kind, found[case.number].partition(":")[0]) for case in made)
    print("\n" + "\n".join(f"{kind:14} {what:8} {count:4}" for (kind, what), count in sorted(table.items())))
    wrong = [text for text in found.values() if text.startswith("WRONG")]
    assert len(made) >= 300
    assert not wrong, "\n".join(wrong)


def test_one_of_each_kind(tmp_path: Path) -> None:
    made = {case.kind: case for case in reversed(cases(1))}
    assert {verdict(case, tmp_path / str(case.number)).partition(":")[0] for case in made.values()} <= {"refused", "equal"}
