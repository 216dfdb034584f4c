"""The number type in which a prepared image is kept, by what bounds its values.

kept_type(spec)                   # np.float16 with an intensity window, np.float32 without

A window brings voxels to 0..1, where half precision is wrong by at most 2^-12 (2.4e-4, a quarter of a step of an 8-bit picture). Without
a window values are in the file's units, of which half precision keeps 11 binary digits and nothing beyond 65,504: a map of relaxation
times in ms would lose its fractions, an activity of PET would overflow. These, and what own transforms make of an image, stay float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedml.study.imaging import Preprocess


def kept_type(spec: Preprocess) -> type[np.floating[Any]]:
    """float16 if a window (or percentiles, which become one) bounds every voxel to 0..1; else float32."""
    return np.float16 if (spec.window or spec.percentiles) and not spec.transforms else np.float32
