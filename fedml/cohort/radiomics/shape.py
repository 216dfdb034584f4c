"""Features of a region's shape: its surface as triangles, its largest diameters and its principal axes, in mm.

Names and formulas are those of PyRadiomics 3.0.1: axes are four roots of the eigenvalues of the covariance of voxel places, and slices are
planes of equal third index, columns of equal second and rows of equal first (x, y, z order of the file).
"""

from __future__ import annotations

import numpy as np

from fedml.cohort.radiomics.mesh import surface, vertices
from fedml.cohort.radiomics.region import Floats, Ints, Region

_FEW = 2000  # points of which all distances are taken at once


def shape_features(region: Region) -> dict[str, float]:
    """The features of a region of three axes by name."""
    volume, area = surface(np.ascontiguousarray(region.mask.transpose(2, 1, 0)), region.spacing[::-1])
    corners = np.concatenate(vertices(region.mask))
    row, column, plane = (_in_planes(corners, region.spacing, axis) for axis in range(3))
    least, minor, major = principal_axes(region)
    return {
        "Elongation": float(minor / major), "Flatness": float(least / major), "LeastAxisLength": float(least),
        "MajorAxisLength": float(major), "Maximum2DDiameterColumn": column, "Maximum2DDiameterRow": row, "Maximum2DDiameterSlice": plane,
        "Maximum3DDiameter": diameter(corners / 2 * region.spacing), "MeshVolume": volume, "MinorAxisLength": float(minor),
        "Sphericity": float((36 * np.pi * volume**2) ** (1 / 3) / area), "SurfaceArea": area, "SurfaceVolumeRatio": area / volume,
        "VoxelVolume": len(region.values) * float(np.prod(region.spacing)),
    }  # fmt: skip


def principal_axes(region: Region) -> Floats:
    """(axes,) lengths of the principal axes, ascending, mm."""
    places = np.stack(np.nonzero(region.mask), 1) * region.spacing
    spread = np.linalg.eigvalsh(np.cov(places.T, bias=True))
    lengths: Floats = 4 * np.sqrt(np.where(spread < 1e-10, 0.0, spread))  # what rounding leaves of a flat region
    return lengths


def _in_planes(corners: Ints, spacing: Floats, axis: int) -> float:
    """The largest distance of two corners with the same place along ``axis``."""
    others = [other for other in range(3) if other != axis]
    most = 0.0
    order = np.argsort(corners[:, axis], kind="stable")
    planes, starts = np.unique(corners[order, axis], return_index=True)
    for plane in np.split(order, starts[1:]) if len(planes) else []:
        most = max(most, diameter(corners[plane][:, others] / 2 * spacing[others]))
    return most


def diameter(points: Floats) -> float:
    """The largest distance of two of the ``points`` (points, axes). Two that are the farthest are corners of the convex hull."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    if len(points) > _FEW:
        try:
            points = points[ConvexHull(points).vertices]
        except QhullError:  # all in a line
            points = points[[int(np.argmin(points @ way)) for way in (np.ones(points.shape[1]), -np.ones(points.shape[1]))]]
    return float(pdist(points).max()) if len(points) > 1 else 0.0
