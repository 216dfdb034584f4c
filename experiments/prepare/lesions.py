"""Synthetic computed tomography of an organ with lesions, from four scanners unlike each other: NIfTI volumes, and where the lesions are.

Nothing is downloaded and nobody in it is real. A person is an ellipsoid of fat, in it an ellipsoid of organ, in it vessels (brighter tubes)
and one to four lesions (ellipsoids a little darker than the organ), all in millimetres of the body and somewhat different in everybody. A
scanner samples that with spacing, orientation and extent of its own, adds an offset, a smooth shading (as of beam hardening) and noise, and
rounds to whole Hounsfield units (HU). A mask is 1 where the middle of a voxel lies in a lesion, 0 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedml.experiments.prepare.source import Dataset, Say, write_manifest, write_table
from fedml.seeds import derive_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FIELD = 80.0  # mm that every scanner covers along each axis at least
AIR, FAT, ORGAN = -1000.0, -90.0, 105.0  # HU
VESSEL = 60.0  # HU above the organ
LESION, LESION_SD = -50.0, 12.0  # HU from the organ: mean, and standard deviation over lesions
RADII = (4.0, 10.0)  # mm, of a lesion's half-axes
BODY, LIVER = (38.0, 34.0, 40.0), (26.0, 22.0, 28.0)  # mm, half-axes; each varies by VARIATION
VARIATION = 0.1
EDGE = 1.0  # mm over which one tissue passes into another


@dataclass(frozen=True)
class Scanner:
    """One site: how many persons it has, and how it sees them.

    ``orientation``: where voxels run to along each axis (nibabel's codes). ``spacing`` in mm along those axes. ``noise``, ``offset`` and
    ``shading`` (from the middle to the edge of the field) in HU.
    """

    persons: int
    orientation: str
    spacing: tuple[float, float, float]
    noise: float
    offset: float
    shading: float


SCANNERS = {
    "north": Scanner(48, "RAS", (2.0, 2.0, 2.0), noise=12.0, offset=0.0, shading=0.0),
    "east": Scanner(36, "LPS", (1.6, 1.6, 3.0), noise=20.0, offset=6.0, shading=15.0),
    "south": Scanner(36, "LAS", (1.8, 1.8, 4.0), noise=16.0, offset=-8.0, shading=-20.0),
    "west": Scanner(24, "PIR", (2.5, 2.2, 2.5), noise=26.0, offset=10.0, shading=25.0),
}


@dataclass(frozen=True)
class Ellipsoid:
    """Middle (3,) and half-axes (3,) in mm, and the axes' directions as columns (3, 3)."""

    middle: Floats
    radii: Floats
    turn: Floats

    def depth(self, points: Floats) -> Floats:
        """About how many mm each of ``points`` (..., 3) lies inside; negative outside."""
        import numpy as np

        scaled = np.linalg.norm((points - self.middle) @ self.turn / self.radii, axis=-1)
        inside: Floats = (1.0 - scaled) * self.radii.min()
        return inside


@dataclass(frozen=True)
class Person:
    """One body; ``vessels`` are (a point, a direction, a radius in mm), ``contrast`` a lesion's HU from the organ."""

    body: Ellipsoid
    organ: Ellipsoid
    vessels: tuple[tuple[Floats, Floats, float], ...]
    lesions: tuple[Ellipsoid, ...]
    contrast: tuple[float, ...]


def _turned(generator: np.random.Generator) -> Floats:
    """A rotation (3, 3), any as likely as any other up to reflections, which an ellipsoid does not show."""
    import numpy as np

    return np.asarray(np.linalg.qr(generator.normal(size=(3, 3)))[0])


def draw(generator: np.random.Generator) -> Person:
    """A person, in mm with the field's middle at 0."""
    import numpy as np

    def varied(radii: tuple[float, ...]) -> Floats:
        return np.asarray(radii) * generator.uniform(1 - VARIATION, 1 + VARIATION, 3)

    body = Ellipsoid(generator.uniform(-1, 1, 3), varied(BODY), np.eye(3))
    organ = Ellipsoid(body.middle + generator.uniform(-4, 4, 3), varied(LIVER), _turned(generator))
    vessels = []
    for _ in range(int(generator.integers(2, 5))):
        direction = generator.normal(size=3)
        point = organ.middle + generator.uniform(-10, 10, 3)
        vessels.append((point, direction / np.linalg.norm(direction), float(generator.uniform(1.2, 2.5))))
    lesions, contrast = [], []
    for _ in range(int(generator.integers(1, 5))):
        # Within the organ: its middle in the organ shrunk to two thirds.
        where = generator.normal(size=3)
        where *= generator.uniform() ** (1 / 3) / np.linalg.norm(where) * 2 / 3
        middle = organ.middle + organ.turn @ (where * organ.radii)
        lesions.append(Ellipsoid(middle, generator.uniform(*RADII, 3), _turned(generator)))
        contrast.append(float(generator.normal(LESION, LESION_SD)))
    return Person(body, organ, tuple(vessels), tuple(lesions), tuple(contrast))


def geometry(scanner: Scanner, generator: np.random.Generator) -> tuple[tuple[int, ...], Floats]:
    """Voxels along each axis, and the affine (4, 4) to millimetres in RAS+: the field covered, its middle within 3 mm of the body's."""
    import numpy as np
    from nibabel.orientations import axcodes2ornt

    size = tuple(int(np.ceil(FIELD / s)) + int(generator.integers(0, 5)) for s in scanner.spacing)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (direction, sign) in enumerate(axcodes2ornt(scanner.orientation)):
        affine[int(direction), axis] = sign * scanner.spacing[axis]
    affine[:3, 3] = generator.uniform(-3, 3, 3) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return size, affine


def scan(
    person: Person, scanner: Scanner, size: tuple[int, ...], affine: Floats, generator: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU and mask, both of ``size``."""
    import numpy as np

    index = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in size), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]

    def share(depth: Floats) -> Floats:
        return np.clip(0.5 + depth / EDGE, 0.0, 1.0)

    organ = share(person.organ.depth(points))
    value = AIR + (FAT - AIR) * share(person.body.depth(points))
    value += (ORGAN - value) * organ
    for point, direction, radius in person.vessels:
        away = points - point
        across = np.linalg.norm(away - (away @ direction)[..., None] * direction, axis=-1)
        value += VESSEL * share(radius - across) * organ
    mask = np.zeros(size, np.uint8)
    for lesion, contrast in zip(person.lesions, person.contrast, strict=True):
        depth = lesion.depth(points)
        value += (ORGAN + contrast - value) * share(depth)
        mask[depth > 0] = 1
    value += scanner.offset + scanner.shading * (points**2).sum(-1) / (FIELD / 2) ** 2
    value += generator.normal(0.0, scanner.noise, size)
    return np.clip(np.rint(value), -1024, 3071).astype(np.int16), mask


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """One folder a scanner; ``seed`` decides everything."""
    import nibabel
    import numpy as np

    for site, scanner in SCANNERS.items():
        folder = out / site
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        ids = [f"{site}-{k + 1:03d}" for k in range(scanner.persons)]
        counts, millilitres = [], []
        for person in ids:
            generator = np.random.default_rng(derive_seed(seed, "prepare", "lesions", person))
            drawn = draw(generator)
            size, affine = geometry(scanner, generator)
            hounsfield, mask = scan(drawn, scanner, size, affine, generator)
            for kind, values in (("images", hounsfield), ("masks", mask)):
                volume = nibabel.Nifti1Image(values, affine)
                volume.header.set_xyzt_units("mm")
                nibabel.save(volume, folder / kind / f"{person}.nii.gz")
            counts.append(len(drawn.lesions))
            millilitres.append(float(mask.sum() * np.prod(scanner.spacing) / 1000))
        write_table(
            folder / "persons.csv",
            ("id", "lesions", "lesion_ml"),
            zip(ids, counts, (f"{ml:.3f}" for ml in millilitres), strict=True),
        )
        write_manifest(
            folder,
            f"Synthetic CT with lesions, a made-up scanner (seed {seed}): nobody in it is a real person",
            'image = { path = "images", format = "nifti", masks = "masks" }',
        )
        seen_as = f"{scanner.orientation}, {' x '.join(f'{s:g}' for s in scanner.spacing)} mm, noise {scanner.noise:g} HU"
        say(f"{site}: {len(ids)} persons, {seen_as}; {sum(counts)} lesions, {np.median(millilitres):.1f} ml in the median person")


DATASET = Dataset(
    name="lesions",
    about="synthetic CT volumes with lesions from four made-up scanners, drawn from the seed",
    homepage="none: nothing is downloaded",
    licence="Apache-2.0, as this program; nobody in it is real",
    sources=(),
    build=build,
)
