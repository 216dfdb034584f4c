"""Text in pixels, by Tesseract, where it and pytesseract are installed (``pip install "fedml-cohorts[ocr]"``; Debian: tesseract-ocr).

    if not missing():
        in_pixels(frame)         # findings; never the text

Tesseract finds printed text of some size; it does not find all, and none in handwriting.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.identifiers.rules import Finding, Severity, found_in

if TYPE_CHECKING:
    from PIL.Image import Image

_SURE = 60.0  # of Tesseract's confidence, 0 to 100
_LARGEST, _SMALLEST = 2500, 1000  # pixels of the longer side: larger pictures are reduced, smaller ones enlarged
_SECONDS = 30


@lru_cache(maxsize=1)
def missing() -> str:
    """Why text in pixels is not looked for, as a sentence; "" if it is."""
    try:
        import pytesseract
    except ImportError:
        return 'text in pixels was not looked for: install Tesseract (Debian: tesseract-ocr) and pip install "fedml-cohorts[ocr]"'
    try:
        pytesseract.get_tesseract_version()
    except (pytesseract.TesseractNotFoundError, SystemExit, OSError):
        return "text in pixels was not looked for: install Tesseract (Debian: tesseract-ocr), pytesseract is there"
    return ""


def in_pixels(frame: npt.NDArray[Any]) -> list[Finding]:
    """The findings in a picture of any range of values, (rows, columns) or (rows, columns, 3)."""
    from PIL import Image

    values = np.asarray(frame, np.float32)
    low, high = float(np.min(values)), float(np.max(values))
    return in_picture(Image.fromarray(((values - low) / max(high - low, 1e-6) * 255).astype(np.uint8)), "pixels")


def in_file(path: Path) -> list[Finding]:
    """The findings in a PNG, JPEG or BMP file; none if it cannot be decoded."""
    from fedml.cohort.images.pictures import open_picture

    try:
        with open_picture(path) as picture:
            return in_picture(picture, "pixels")
    except Exception:  # of any class, on a damaged file, which the reading of images reports
        return []


def in_picture(picture: Image, where: str) -> list[Finding]:
    """The findings in a picture of Pillow."""
    import pytesseract

    grey = picture.convert("L")
    longest = max(grey.size)
    scale = _SMALLEST / longest if longest < _SMALLEST else _LARGEST / longest if longest > _LARGEST else 1.0
    if scale != 1.0:
        grey = grey.resize((max(round(grey.width * scale), 1), max(round(grey.height * scale), 1)))
    try:
        told = pytesseract.image_to_data(grey, output_type=pytesseract.Output.DICT, config="--psm 11", timeout=_SECONDS)
    except RuntimeError:  # the time is over
        return [Finding(0, "", where, "text was looked for too long", Severity.REVIEW)]
    words = [w for w, sure in zip(told["text"], told["conf"], strict=True) if float(sure) >= _SURE and sum(c.isalnum() for c in w) > 1]
    if sum(len(word) for word in words) < 4:
        return []
    return [Finding(0, "", where, "text is drawn into the pixels", Severity.REVIEW), *found_in(" ".join(words), where, pairs=True)]
