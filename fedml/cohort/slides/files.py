"""Which files are a person's slides: ``<id>.<extension>``, ``<id>/<name>.<extension>``, and series of DICOM below ``<id>/``."""

from __future__ import annotations

from pathlib import Path

from fedml.cohort.dicom.files import looks_dicom
from fedml.cohort.slides.dicom import instances_of, slides_below

ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".mrxs", ".svslide")  # OpenSlide's formats of one file, and MIRAX


def slides_of_person(folder: Path, person: str) -> list[Path]:
    """A person's slides, sorted by name."""
    files = [path for ending in ENDINGS if (path := folder / f"{person}{ending}").exists()]
    if (folder / person).is_dir():
        files += sorted(path for path in (folder / person).iterdir() if path.name.endswith(ENDINGS))
        files += slides_below(folder / person)
    return files


def files_of_slide(path: Path) -> list[Path]:
    """All files of a slide: MIRAX keeps the pixels in a folder of the same name, DICOM a level in each file of a series."""
    if not path.name.endswith(ENDINGS) and looks_dicom(path):
        return instances_of(path)
    parts = [path]
    if path.suffix == ".mrxs":
        parts += sorted(p for p in path.with_suffix("").glob("*") if p.is_file())
    return parts
