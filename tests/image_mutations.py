"""Broken images made from real ones, each with what a careful reader says of it: DICOM, NIfTI, PNG and a slide, always the same ones.

    case = CASES[17]                   # case.kind, case.mutation, case.verdict, case.reasons
    python -m tests.image_mutations DATA 0 300    # makes and reads each; one JSON line before it and one after

A case is ``wrong`` (it must be excluded for one of its reasons), ``harmless`` (its voxels must be those of the clean file) or ``untold``
(it cannot be recognised, such as a flipped bit of raw pixels: any result but a crash). The clean files are real ones, a series cut to 12
slices.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEED = 2026
ADDRESS_GB = 12  # of address space: keeps the machine safe; what is held against 2 GB is what was really used
PERSON = "UCSF-BR-06"  # the Patient ID in the real files
SLICES = 12


@dataclass(frozen=True)
class Bench:
    """A folder with one clean item in it: ``images`` with ``PERSON``'s file or series, ``masks`` where the kind has masks."""

    data: Path
    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def masks(self) -> Path:
        return self.folder / "masks"

    def only(self, ending: str = "") -> Path:
        """The image's file."""
        return next(p for p in sorted(self.images.iterdir()) if p.name.endswith(ending))

    def slices(self) -> list[Path]:
        """The series' files by position."""
        return sorted((self.images / PERSON).rglob("*.dcm"))


Mutation = Callable[[Bench, random.Random], None]


class Case(NamedTuple):
    """One input; ``make`` changes the clean item on a ``Bench``."""

    number: int
    kind: str
    mutation: str
    verdict: str
    reasons: frozenset[str]
    make: Mutation

    def seed(self) -> random.Random:
        """The same draws at each making."""
        return random.Random(f"{SEED} {self.kind} {self.number}")


class Kind(NamedTuple):
    """How a clean item is laid out and read."""

    lay: Callable[[Bench], None]
    format: str
    masked: bool
    size: tuple[int, ...] | None  # None: the study names no size
    channels: int = 1


def _link(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.symlink_to(source)


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(source.read_bytes())


@cache
def series_files(data: Path) -> list[Path]:
    """The breast series, by position."""
    import pydicom

    files = (data / "dicom_mr/UCSF-BR-06/image_dce_ser").glob("*.dcm")
    return sorted(files, key=lambda p: float(pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[0]))


def _lay_series(b: Bench) -> None:
    for k, path in enumerate(series_files(b.data)[20 : 20 + SLICES]):
        _copy(path, b.images / PERSON / f"{k:02d}.dcm")


def _lay_segmented(b: Bench) -> None:
    for k, path in enumerate(series_files(b.data)):
        _link(path, b.images / PERSON / f"{k:02d}.dcm")
    _copy(b.data / "dicom_mr/UCSF-BR-06/mask/1-1.dcm", b.masks / f"{PERSON}.dcm")


SPLEEN = "nifti/spleen_ct/sub-spleen2/ct/sub-spleen2_ct.nii.gz"
SPLEEN_MASK = "nifti/spleen_ct/derivatives/labels/sub-spleen2/ct/sub-spleen2_ct_seg-manual.nii.gz"


def _lay_nifti(b: Bench) -> None:
    _copy(b.data / SPLEEN, b.images / f"{PERSON}.nii.gz")


def _lay_nifti_masked(b: Bench) -> None:
    _link(b.data / SPLEEN, b.images / f"{PERSON}.nii.gz")
    _copy(b.data / SPLEEN_MASK, b.masks / f"{PERSON}.nii.gz")


def _lay_photograph(b: Bench) -> None:
    from PIL import Image

    b.images.mkdir(parents=True)
    Image.open(b.data / "wbc_two_labs/Dataset 2/057.bmp").save(b.images / f"{PERSON}.png")


def _lay_photograph_masked(b: Bench) -> None:
    _lay_photograph(b)
    _copy(b.data / "wbc_two_labs/Dataset 2/057.png", b.masks / f"{PERSON}.png")


def _lay_grey(b: Bench) -> None:  # a real PNG as it is
    _copy(b.data / "wbc_two_labs/Dataset 1/001.png", b.images / f"{PERSON}.png")


def _lay_bitmap(b: Bench) -> None:
    _copy(b.data / "wbc_two_labs/Dataset 1/001.bmp", b.images / f"{PERSON}.bmp")


def _lay_slide(b: Bench) -> None:
    _copy(b.data / "wsi/CMU-1-Small-Region.svs", b.images / f"{PERSON}.svs")


KINDS = {
    "DICOM": Kind(_lay_series, "dicom", False, (256, 256, SLICES)),
    "DICOM + SEG": Kind(_lay_segmented, "dicom", True, (256, 256, 60)),
    "NIfTI": Kind(_lay_nifti, "nifti", False, None),
    "NIfTI + mask": Kind(_lay_nifti_masked, "nifti", True, (164, 166, 26)),
    "PNG": Kind(_lay_photograph, "png", False, None, 3),
    "PNG, grey": Kind(_lay_grey, "png", False, None),
    "PNG + mask": Kind(_lay_photograph_masked, "png", True, (300, 300), 3),
    "BMP": Kind(_lay_bitmap, "bmp", False, None, 3),
    "SVS": Kind(_lay_slide, "slide", False, None, 3),
}


def _codes(kind: str) -> tuple[int, ...] | None:
    return None if not KINDS[kind].masked else (0, 128, 255) if kind.startswith("PNG") else (0, 1)


def read_item(kind: str, bench: Bench) -> tuple[list[str], list[str], tuple[Any, ...] | None]:
    """(reasons, sentences) of the exclusions, and the arrays that were read."""
    from fedml.cohort.found_images import ImageRules
    from fedml.cohort.images.reasons import TooManyExcluded
    from fedml.cohort.read_images import read_images
    from fedml.errors import InputError
    from fedml.study.cohort_section import ImageShape

    how = KINDS[kind]
    if how.format == "slide":
        return _read_slide(bench.images / f"{PERSON}.svs")
    shape = None if how.size is None else ImageShape(size=how.size, channels=how.channels)
    try:
        found = read_images(
            bench.images, how.format, [PERSON], shape, codes=_codes(kind),
            rules=ImageRules(bench.masks if how.masked else None, max_quarantined=0.0),
        )  # fmt: skip
    except TooManyExcluded as error:
        return [str(a.reason) for a in error.excluded], [a.text for a in error.excluded], None
    except InputError as error:
        if "has no usable image with a mask" not in str(error):
            raise
        return ["no-mask"], [str(error)], None
    return [str(a.reason) for a in found.excluded], [a.text for a in found.excluded], (found.pixels, found.masks)


def _read_slide(path: Path) -> tuple[list[str], list[str], tuple[Any, ...] | None]:
    from fedml.cohort.images.reasons import ItemError
    from fedml.cohort.slides.slide import open_slide, tissue_tiles

    try:
        slide = open_slide(path)
        places = tissue_tiles(slide, 256, 0, min_tissue=0.1)
        tiles = np.stack([slide.tile(int(x), int(y), 256) for x, y in places[:64]]) if len(places) else np.zeros((0, 3, 256, 256), np.uint8)
        slide.close()
    except ItemError as error:
        return [str(error.reason)], [str(error)], None
    return [], [], (places, tiles)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    def alike(a: Any, b: Any) -> bool:
        return a is b or (a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())

    return all(alike(a, b) for a, b in zip(one, other, strict=True))


def _peak_reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def make(case: Case, bench: Bench) -> None:
    """Lays the clean item out and breaks it."""
    KINDS[case.kind].lay(bench)
    case.make(bench, case.seed())


def main(data: Path, start: int, end: int) -> None:
    """Makes and reads cases ``start`` to ``end``; a line of JSON to stdout before each reading and after it."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_GB << 30, ADDRESS_GB << 30))
    cases = CASES[start:end]
    clean: dict[str, tuple[Any, ...]] = {}
    for kind in {case.kind: None for case in cases}:
        with tempfile.TemporaryDirectory() as folder:  # imports are paid for here
            KINDS[kind].lay(bench := Bench(data, Path(folder)))
            reasons, texts, read = read_item(kind, bench)
            if read is None or reasons:
                raise AssertionError(f"the clean {kind} is excluded: {texts}")
            clean[kind] = read
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            make(case, bench := Bench(data, Path(folder)))
            print(json.dumps({"begin": case.number}), flush=True)
            _peak_reset()
            began, busy = time.monotonic(), time.process_time()
            reported: dict[str, Any] = {"number": case.number}
            try:
                reasons, texts, read = read_item(case.kind, bench)
                reported |= {"reasons": reasons, "texts": texts, "equal": read is not None and _same(read, clean[case.kind])}
                reported |= {"read": read is not None}
                del read
            except Exception as error:
                reported |= {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
            reported |= {
                "seconds": round(time.process_time() - busy, 3),
                "wall": round(time.monotonic() - began, 3),
                "mb": round(_peak_mb()),
            }
            print(json.dumps(reported), flush=True)


def _cases() -> list[Case]:
    from tests.image_mutations_dicom import TABLE as dicom
    from tests.image_mutations_files import TABLE as files
    from tests.image_mutations_seg import TABLE as masks

    rows = [
        (kind, name, verdict, reasons, how) for kind, name, count, verdict, reasons, how in (*dicom, *masks, *files) for _ in range(count)
    ]
    return [Case(n, kind, name, verdict, frozenset(reasons.split()), how) for n, (kind, name, verdict, reasons, how) in enumerate(rows)]


if __name__ == "__main__":
    sys.modules["tests.image_mutations"] = sys.modules["__main__"]
CASES = _cases()
if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
