"""The commands ``fedml-site predict`` and ``fedml-site predict-slides``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.errors import InputError

FLIPS = ("flip-0", "flip-1", "flip-2")  # mirrored along an axis of the prepared image


def predict(
    run_folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="The folder of a finished run; several: an ensemble.", show_default=False)
    ],
    images: Annotated[
        Path, typer.Option("--images", metavar="PATH", help="An image, a DICOM series, or a folder of such.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the masks; only this account can read them.")] = Path(
        "masks"
    ),
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="same (DICOM-SEG of a DICOM series), nifti, or dicom-seg.")
    ] = "same",
    view: Annotated[
        list[str] | None,
        typer.Option("--view", metavar="VIEW", help="Also predict flip-0, flip-1, flip-2 or turns; several allowed.", show_default=False),
    ] = None,
    dropout: Annotated[int, typer.Option("--dropout", min=0, max=1000, metavar="N", help="N passes with dropout.")] = 0,
    maps: Annotated[bool, typer.Option("--maps", help="Write entropy and mutual information of each voxel as NIfTI.")] = False,
) -> None:
    """Write the masks that a trained model draws, on the grid of each image's own file. Nothing leaves this machine.

    Of several predictions (runs, --view, --dropout) the mean probability counts; predictions.csv says how far they disagree.

    Example: fedml-site predict fedml-runs/spleen-20260131-101500-3fa2b1 --images /srv/images --out masks
    """
    from fedml.clients.desk.predict_masks import FORMATS, Out, write_masks
    from fedml.clients.desk.predict_members import How
    from fedml.clients.desk.predict_slides import is_of_slides

    if (slides := next((run for run in run_folders if is_of_slides(run)), None)) is not None:
        raise InputError(f"{slides}: its model is of slides; use fedml-site predict-slides.")
    known = next((one for one in FORMATS if one == form), None)
    if known is None:
        raise InputError(f'--format "{form}" is not known; one of: {", ".join(FORMATS)}.')
    views = set(view or ())
    if unknown := sorted(views - {*FLIPS, "turns"}):
        raise InputError(f'--view "{unknown[0]}" is not known; one of: {", ".join(FLIPS)}, turns.')
    how = How(tuple(axis for axis, name in enumerate(FLIPS) if name in views), "turns" in views, dropout)
    written = write_masks(run_folders, images, Out(out, known, maps), print, how)
    print(f"{len(written)} mask(s) in {out}")


def predict_slides(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    images: Annotated[Path, typer.Option("--images", metavar="PATH", help="A slide, or a folder of slides.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for what is predicted; only this account can read it.")] = Path(
        "predictions"
    ),
    encoder: Annotated[Path | None, typer.Option(metavar="FILE", help="The weights of the study's encoder.")] = None,
    mpp: Annotated[float | None, typer.Option(min=0.01, max=50, help="Micrometres per pixel, where a file has none.")] = None,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder in which features are kept.")] = None,
) -> None:
    """Write a trained model's prediction for each person with slides, and a picture of its attention. Nothing leaves this machine.

    Example: fedml-site predict-slides fedml-runs/tumour-20260131-101500-3fa2b1 --images slides --out out --encoder encoder.safetensors
    """
    from fedml.clients.desk.predict_slides import SlideOptions, is_of_slides, write_slides

    if not is_of_slides(run_folder):
        raise InputError(f"{run_folder}: is no run of a model of slides; use fedml-site predict for masks.")
    files = write_slides(run_folder, images, out, SlideOptions(encoder, mpp, cache), print)
    print(f"{len(files)} file(s) in {out}")
