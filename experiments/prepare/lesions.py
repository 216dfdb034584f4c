"""Synthetic computed tomography of an organ with lesions, from four different scanners: NIfTI volumes and lesion masks.

Nothing is downloaded and no person is real. A person is an ellipsoid of fat that contains an ellipsoid of organ, which contains vessels
(brighter tubes) and one to four lesions (ellipsoids slightly darker than the organ), in millimetres, with sizes that vary between persons.
Each scanner samples the body with its spacing, orientation and extent, adds an offset, a smooth shading (as of beam hardening) and noise,
and rounds to whole Hounsfield units (HU). A mask is 1 if the centre of a voxel is in a lesion, else 0.
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

FIELD = 80.0  # mm, smallest extent of a scan along each axis
AIR, FAT, ORGAN = -1000.0, -90.0, 105.0  # HU
VESSEL = 60.0  # HU, difference to the organ
LESION, LESION_SD = -50.0, 12.0  # HU, difference to the organ: mean and standard deviation over lesions
RADII = (4.0, 10.0)  # mm, of a lesion's half-axes
BODY, LIVER = (38.0, 34.0, 40.0), (26.0, 22.0, 28.0)  # mm, half-axes; each varies by VARIATION
VARIATION = 0.1
EDGE = 1.0  # mm, width of the transition between tissues


@dataclass(frozen=True)
class Scanner:
    """One site: its number of persons and the properties of its scans.

    ``orientation``: direction of each voxel axis (nibabel's codes). ``spacing``: in mm along those axes. ``noise``, ``offset`` and
    ``shading`` (from the centre to the edge of the field): in HU.
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
    """Centre (3,) and half-axes (3,) in mm, and the axes' directions as columns (3, 3)."""

    middle: Floats
    radii: Floats
    turn: Floats

    def depth(self, points: Floats) -> Floats:
        """(...) approximate distance in mm of ``points`` (..., 3) to the surface; positive inside, negative outside."""
        import numpy as np

        scaled = np.linalg.norm((points - self.middle) @ self.turn / self.radii, axis=-1)
        inside: Floats = (1.0 - scaled) * self.radii.min()
        return inside


@dataclass(frozen=True)
class Person:
    """One body. ``vessels``: (point, direction, radius in mm) each. ``contrast``: each lesion's difference to the organ in HU."""

    body: Ellipsoid
    organ: Ellipsoid
    vessels: tuple[tuple[Floats, Floats, float], ...]
    lesions: tuple[Ellipsoid, ...]
    contrast: tuple[float, ...]


def _turned(generator: np.random.Generator) -> Floats:
    """A random rotation (3, 3), uniform up to reflections, which do not change an ellipsoid."""
    import numpy as np

    return np.asarray(np.linalg.qr(generator.normal(size=(3, 3)))[0])


def draw(generator: np.random.Generator) -> Person:
    """A random person; coordinates in mm, with the centre of the field at 0."""
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
        # The lesion's centre is in the organ scaled to two thirds, so that the lesion is within the organ.
        where = generator.normal(size=3)
        where *= generator.uniform() ** (1 / 3) / np.linalg.norm(where) * 2 / 3
        middle = organ.middle + organ.turn @ (where * organ.radii)
        lesions.append(Ellipsoid(middle, generator.uniform(*RADII, 3), _turned(generator)))
        contrast.append(float(generator.normal(LESION, LESION_SD)))
    return Person(body, organ, tuple(vessels), tuple(lesions), tuple(contrast))


def geometry(scanner: Scanner, generator: np.random.Generator) -> tuple[tuple[int, ...], Floats]:
    """Size in voxels along each axis, and the affine (4, 4) to millimetres in RAS+. The scan covers the field; its centre is within 3 mm of
    the body's along each axis."""
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
    """The volume in HU and the mask, both of shape ``size``."""
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
    """Writes one folder for each scanner; all values follow from ``seed``."""
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
            f"Synthetic CT with lesions, a simulated scanner (seed {seed}); no person is real",
            'image = { path = "images", format = "nifti", masks = "masks" }',
        )
        scans = f"{scanner.orientation}, {' x '.join(f'{s:g}' for s in scanner.spacing)} mm, noise {scanner.noise:g} HU"
        say(f"{site}: {len(ids)} persons, {scans}; {sum(counts)} lesions, median {np.median(millilitres):.1f} ml a person")


DATASET = Dataset(
    name="lesions",
    about="synthetic CT volumes with lesions from four simulated scanners, drawn from the seed",
    homepage="none: nothing is downloaded",
    licence="Apache-2.0, as this program; no person is real",
    sources=(),
    build=build,
)
