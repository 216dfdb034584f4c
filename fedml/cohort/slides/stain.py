"""Random changes of the stains of a tile: each of haematoxylin, eosin and DAB is scaled and shifted by itself.

    changed = jittered(tile, 0.05, seed, number)       # uint8 (3, size, size)

Colours become amounts of stain by the matrix of Ruifrok and Johnston 2001, "Quantification of histochemical staining by color
deconvolution"; the change is that of Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference"
(HED-light: 0.05, HED-strong: 0.2). The numbers follow from (seed, number of the tile in its batch) alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Optical densities of red, green and blue of a unit of each stain, rows of length 1; DAB as the third.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
_BACK = np.linalg.inv(STAINS)
_LEAST = 1e-6  # brightness of a black pixel


def jittered(tile: npt.NDArray[np.uint8], most: float, seed: int, number: int) -> npt.NDArray[np.uint8]:
    """``tile`` (3, size, size) with each stain s as s * a + b, a within 1 +- ``most`` and b within +- ``most``, both uniform."""
    random = np.random.default_rng([seed, number])
    scale, shift = random.uniform(1 - most, 1 + most, 3), random.uniform(-most, most, 3)
    return changed(tile, scale, shift)


def changed(tile: npt.NDArray[np.uint8], scale: npt.NDArray[np.float64], shift: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """``tile`` (3, size, size) with stain k as stain * ``scale[k]`` + ``shift[k]``, in units of natural optical density."""
    density = -np.log(np.maximum(tile.reshape(3, -1) / 255, _LEAST))  # (colours, pixels)
    amounts = _BACK.T @ density
    again = np.exp(-(STAINS.T @ (amounts * scale[:, None] + shift[:, None])))
    return np.asarray(np.rint(255 * again).clip(0, 255), np.uint8).reshape(tile.shape)
