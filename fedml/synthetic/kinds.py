"""What ``fedml synth --kind`` writes besides hospitals with genotypes, images and clinical columns."""

from __future__ import annotations

from pathlib import Path

from fedml.errors import InputError, nearest
from fedml.synthetic.nodules import write_nodules
from fedml.synthetic.slides import write_slides

KINDS = ("hospitals", "nodules", "slides")


def write_kind(kind: str, out: Path, persons: int, seed: int) -> str:
    """Writes the sites of ``kind`` with ``persons`` persons each to the new folder ``out``; returns what was written and its study.

    Raises:
        InputError: there is no such kind, or the folder exists.
    """
    if kind not in KINDS:
        raise InputError(f'--kind "{kind}" is not known{nearest(kind, KINDS)}; one of: {", ".join(KINDS)}.')
    if out.exists():
        raise InputError(f"{out}: exists; give the name of a new folder.")
    count = len(write_nodules(out, persons, seed)["sites"]) if kind == "nodules" else len(write_slides(out, persons, seed))
    study = {"nodules": "radiomics", "slides": "slides"}[kind]
    return f"{out}: {count} sites of {persons} persons; run experiments/studies/{study}.toml on them"
