"""The way up of a photograph: EXIF's Orientation (CIPA DC-008, section 4.6.5 A) says how its stored pixels are turned to stand upright.

array = np.asarray(upright(picture))          # rows and columns as any viewer shows them
require_same_turn(image, mask)                # ItemError unless mask and image are turned alike
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedml.cohort.images.reasons import ItemError, Unusable

_ORIENTATION = 0x0112
_SWAPPED = (5, 6, 7, 8)  # rows become columns
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp")


def turn(picture: Any) -> int:
    """1 (upright) to 8. Anything else that a file may say, or EXIF data that cannot be read, is 1, as in every viewer."""
    try:
        stated = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow parses EXIF data itself and raises exceptions of any class
        return 1
    return stated if stated in range(1, 9) else 1


def upright(picture: Any) -> Any:
    """The picture, turned and mirrored as its EXIF orientation says."""
    from PIL import Image

    ways = Image.Transpose
    way = {
        2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM, 5: ways.TRANSPOSE, 6: ways.ROTATE_270, 7: ways.TRANSVERSE,
        8: ways.ROTATE_90,
    }.get(turn(picture))  # fmt: skip
    return picture if way is None else picture.transpose(way)


def upright_size(picture: Any) -> tuple[int, int]:
    """(rows, columns) of ``upright(picture)``, without decoding it."""
    width, height = picture.size
    return (width, height) if turn(picture) in _SWAPPED else (height, width)


def require_same_turn(image: Path, mask: Path) -> None:
    """Checks that a mask is turned as its picture is: whether one without EXIF was drawn on the upright or on the stored pixels, nobody
    can tell.

    Raises:
        ItemError: mask-mismatch.
        Exception: any exception of Pillow.
    """
    from PIL import Image

    if image.suffix.lower() not in _PICTURES:
        return
    with Image.open(image) as picture:
        turned = turn(picture)
    if turned == 1 and mask.suffix.lower() not in _PICTURES:
        return
    drawn = 1
    if mask.suffix.lower() in _PICTURES:
        with Image.open(mask) as picture:
            drawn = turn(picture)
    if drawn != turned:
        text = f"{image}: its EXIF orientation is {turned}, that of its mask {drawn}; store the pixels of both upright."
        raise ItemError(Unusable.MASK_MISMATCH, text)
