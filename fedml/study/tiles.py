"""``[cohort.image.tiles]``: how whole slides are cut into tiles."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedml.study.section import Section


class Tiles(Section):
    """``[cohort.image] tiles``: each person's slides are cut into square tiles, and the tiles with tissue are used
    (``fedml.cohort.slides.slide``)."""

    size_px: Annotated[int, Field(ge=16, le=2048)] = Field(default=256, description="pixels of a tile per side")
    mpp: Annotated[float, Field(ge=0.05, le=50)] | None = Field(
        default=None, description="micrometres per pixel, equal at every site; default: a slide's finest level, not resampled"
    )
    min_tissue: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="least fraction of a tile that is tissue; other tiles are skipped"
    )
    per_step: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=64, description="tiles of a person in a training step, drawn again for each step; evaluation uses all tiles"
    )
