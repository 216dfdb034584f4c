"""The command ``fedml-site predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)],
    images: Annotated[
        Path, typer.Option("--images", metavar="PATH", help="An image, a DICOM series, or a folder of such.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the masks; only this account can read them.")] = Path(
        "masks"
    ),
    encoder: Annotated[Path | None, typer.Option(metavar="FILE", help="Slides: the weights of the study's encoder.")] = None,
    mpp: Annotated[float | None, typer.Option(min=0.01, max=50, help="Slides: micrometres per pixel, where a file has none.")] = None,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Slides: folder in which features are kept.")] = None,
) -> None:
    """Write the masks that a trained model draws, on the grid of each image's own file. Nothing leaves this machine.

    Of slides: a table of predictions, and for each slide a picture of the model's attention.

    Example: fedml-site predict fedml-runs/spleen-20260131-101500-3fa2b1 --images /srv/images --out masks
    """
    from fedml.clients.desk.predict_masks import write_masks
    from fedml.clients.desk.predict_slides import SlideOptions, is_of_slides, write_slides

    if is_of_slides(run_folder):
        files = write_slides(run_folder, images, out, SlideOptions(encoder, mpp, cache), print)
        print(f"{len(files)} file(s) in {out}")
        return
    written = write_masks(run_folder, images, out, print)
    print(f"{len(written)} mask(s) in {out}")
