"""``[cohort.image.tiles]``: how whole slides are cut into tiles, which tiles are left out, and the frozen encoder of tiles."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedml.study.section import Section, without_unused

_Three = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]
_Spread = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class Encoder(Section):
    """``[cohort.image.tiles.encoder]``: a frozen network; each site computes the features of every tile once
    (``fedml.cohort.slides.features``), and training is on them.

    In a study file ``weights = "encoder.safetensors"`` names the file of weights; reading the study fills ``sha256``. The file itself is
    not sent: each site has it as ``[data] image encoder``.
    """

    net: str = Field(description="name of the network on a tile, as of [model] image; of its last layer's input the features are")
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="SHA-256 of the file of weights, which every site must have; weights fills it"
    )
    untrained: bool = Field(
        default=False, description="true: random weights by the study's seed, which know nothing of tissue; for tests and comparisons"
    )
    mean: _Three = Field(default=(0.485, 0.456, 0.406), description="taken from red, green and blue of 0 to 1; default: ImageNet's")
    spread: _Spread = Field(default=(0.229, 0.224, 0.225), description="what is left is divided by this; default: ImageNet's")

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if self.net == "gabor":
            if self.sha256 or self.untrained:
                raise ValueError('net "gabor" has no weights; remove weights and untrained')
        elif not self.sha256 and not self.untrained:
            raise ValueError(
                'an encoder without trained weights gives features by chance; name its weights: weights = "encoder.safetensors" '
                "(or untrained = true, if features by chance are what you want)"
            )
        elif self.sha256 and self.untrained:
            raise ValueError("untrained = true and a file of weights are given; remove one of them")
        return self


class Quality(Section):
    """``[cohort.image.tiles.quality]``: tiles with pen, out of focus or on a fold are left out (``fedml.cohort.slides.quality``). Without
    the section no tile is left out; a site counts them in ``fedml-site check``."""

    pen: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="largest fraction of a tile in the colours of red, green or blue pens; 1: no rule"
    )
    blur: Annotated[float, Field(ge=0, le=1e5)] = Field(
        default=15.0, description="least variance of the Laplacian of the brightness (0 to 255) of a tile; 0: no rule"
    )
    fold: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.25, description="largest fraction of a tile that is darker than it is pale: folded tissue; 1: no rule"
    )


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
    quality: Quality | None = Field(default=None, description="rules by which tiles are left out; default: none is")
    encoder: Encoder | None = Field(
        default=None, description="frozen network whose features of each tile are computed once; default: the model trains on pixels"
    )

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unused(self, dump(self), first=("size_px", "mpp", "min_tissue", "per_step"))
