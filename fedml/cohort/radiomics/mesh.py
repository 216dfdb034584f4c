"""The surface of a region as triangles between the midpoints of voxels: marching cubes (Lorensen and Cline 1987, Computer Graphics 21:163).

The table of the 256 cubes follows from three rules instead of being written down: corners that are inside are kept apart where a face
could be joined in two ways; a cube whose last corner is inside is that of its complement, turned inside out; and a polygon is cut into
triangles from the corner that gives the largest area (of seven corners: from that whose area is no other's). So the surface has the
volume and area of PyRadiomics 3.0.1; one of other rules differs by less than 1 % (IBSI allows as much).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from fedml.cohort.radiomics.region import Floats, Ints

Corner = tuple[int, int, int]  # (z, y, x), each 0 or 1
CORNERS: tuple[Corner, ...] = tuple((z, y, x) for z, y, x in product((0, 1), repeat=3))
_LAST: Corner = (1, 1, 0)


def _faces() -> list[list[Corner]]:
    """The corners of each face of a cube, in turn as seen from outside."""
    found = []
    for axis, side in product(range(3), (0, 1)):
        u, v = (other for other in range(3) if other != axis)
        ring = [(0, 0), (1, 0), (1, 1), (0, 1)]
        if (axis != 1) != bool(side):  # (axis, u, v) is a right-handed system except where axis is 1
            ring.reverse()
        face: list[Corner] = []
        for p, q in ring:
            corner = [0, 0, 0]
            corner[axis], corner[u], corner[v] = side, p, q
            face.append((corner[0], corner[1], corner[2]))
        found.append(face)
    return found


def _polygons(inside: Collection[Corner]) -> list[Floats]:
    """(corners, 3) the polygons that part ``inside`` from the other corners, as midpoints of edges."""
    after: dict[frozenset[Corner], frozenset[Corner]] = {}
    for face in _faces():
        for k in range(4):
            if face[k] in inside and face[k - 1] not in inside:
                last = k
                while face[(last + 1) % 4] in inside:
                    last += 1
                after[frozenset((face[last % 4], face[(last + 1) % 4]))] = frozenset((face[k - 1], face[k]))
    found = []
    while after:
        first, edge = after.popitem()
        ring = [first]
        while edge != first:
            ring.append(edge)
            edge = after.pop(edge)
        found.append(np.array([np.mean(list(edge), axis=0) for edge in ring]))
    return found


def _cut(ring: Floats) -> Floats:
    """(triangles, 3, 3) of a polygon."""
    count = len(ring)
    fans = [np.array([[ring[s], ring[(s + k) % count], ring[(s + k + 1) % count]] for k in range(1, count - 1)]) for s in range(count)]
    areas = [round(float(_areas(fan).sum()), 6) for fan in fans]
    if count == 7:
        return fans[next(s for s in range(count) if areas.count(areas[s]) == 1)]
    best = [fan for fan, area in zip(fans, areas, strict=True) if area == max(areas)]
    return sorted(best, key=lambda fan: round(float(_triples(fan).sum()), 6))[len(best) // 2]


def _areas(triangles: Floats) -> Floats:
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area: Floats = np.linalg.norm(normal, axis=1) / 2
    return area


def _triples(triangles: Floats) -> Floats:
    triple: Floats = np.einsum("ij,ij->i", np.cross(triangles[:, 0], triangles[:, 1]), triangles[:, 2])
    return triple


@lru_cache(maxsize=1)
def _table() -> tuple[Floats, Ints]:
    """(triangles, 3, 3) of all cubes, and of each the bits of the cube's corners that are inside (``CORNERS``)."""
    triangles, kinds = [], []
    for bits in range(256):
        inside = {corner for at, corner in enumerate(CORNERS) if bits >> at & 1}
        turned = _LAST in inside
        for ring in _polygons(set(CORNERS) - inside if turned else inside):
            cut = _cut(ring)
            triangles.append(cut if turned else cut[:, ::-1])  # normals point out of the region
            kinds += [bits] * len(cut)
    return np.concatenate(triangles), np.array(kinds)


def surface(mask: npt.NDArray[np.bool_], spacing: Floats) -> tuple[float, float]:
    """The volume (mm3) and the area (mm2) of the surface of ``mask`` (z, y, x), which has a margin; ``spacing``: mm, (3,)."""
    size = np.array(mask.shape) - 1
    cube = np.zeros(size, np.uint8)
    for at, (z, y, x) in enumerate(CORNERS):
        cube |= mask[z : z + size[0], y : y + size[1], x : x + size[2]].astype(np.uint8) << at
    cut = np.flatnonzero((cube > 0) & (cube < 255))
    kinds = cube.ravel()[cut]
    triangles, of = _table()
    triangles = triangles * spacing
    areas, triples = (np.bincount(of, measure(triangles), 256) for measure in (_areas, _triples))
    # det(o + a, o + b, o + c) = det(a, b, c) + o . (a x b + b x c + c x a)
    turns = np.cross(triangles, np.roll(triangles, -1, axis=1)).sum(1)
    normals = np.stack([np.bincount(of, turn, 256) for turn in turns.T], 1)
    origins = np.stack(np.unravel_index(cut, cube.shape), 1) * spacing
    volume = (triples[kinds] + np.einsum("ij,ij->i", origins, normals[kinds])).sum() / 6
    return float(abs(volume)), float(areas[kinds].sum())


def vertices(mask: npt.NDArray[np.bool_]) -> list[Ints]:
    """The corners of the surface, in half voxels: for each axis (corners, 3) those between two voxels along it."""
    found = []
    for axis in range(mask.ndim):
        low = [slice(None)] * mask.ndim
        high = [slice(None)] * mask.ndim
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        at = 2 * np.stack(np.nonzero(mask[tuple(low)] != mask[tuple(high)]), 1)
        at[:, axis] += 1
        found.append(at)
    return found
