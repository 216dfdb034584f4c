"""The files for a person, in the process that ran the study; the code that makes them is loaded when the run has ended."""

from __future__ import annotations

from pathlib import Path


def write_pages(run: Path, into: Path) -> None:
    """As ``fedml.experiments.tracked.files.write_pages``."""
    from fedml.experiments.tracked import files

    files.write_pages(run, into)
