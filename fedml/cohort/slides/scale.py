"""Micrometres per pixel as a site states them, for slides whose files do not.

Stated(folder, {"b*": 0.25}, Path("site.toml")).of(folder / "b1.tif")     # 0.25
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from fedml.errors import InputError

Mpp = Annotated[float, Field(ge=0.01, le=50)]
MPP = (
    "format slide: micrometres per pixel of slides that do not state them; one number, or a table of patterns of paths below path, such as "
    '{ "p1*" = 0.25 }; default: as the files state'
)


class Stated(NamedTuple):
    """``mpp``: of all slides below ``folder``, or by pattern of their paths; ``file``: the manifest, for messages."""

    folder: Path
    mpp: float | Mapping[str, float] | None
    file: Path

    def of(self, path: Path) -> float | None:
        """Of the slide at ``path``; None: nothing is stated.

        Raises:
            InputError: two patterns with different numbers fit.
        """
        if self.mpp is None or isinstance(self.mpp, int | float):
            return self.mpp
        inside = path.relative_to(self.folder).as_posix()
        found = {pattern: mpp for pattern, mpp in self.mpp.items() if fnmatchcase(inside, pattern)}
        if len(set(found.values())) > 1:
            both = " and ".join(f'"{pattern}"' for pattern in found)
            raise InputError(f"{self.file}: data.image mpp states two numbers for {inside} ({both}); let one pattern fit.")
        return next(iter(found.values()), None)
