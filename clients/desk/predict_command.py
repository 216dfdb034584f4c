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
) -> None:
    """Write the masks that a trained model draws, on the grid of each image's own file. Nothing leaves this machine.

    Example: fedml-site predict fedml-runs/spleen-20260131-101500-3fa2b1 --images /srv/images --out masks
    """
    from fedml.clients.desk.predict_masks import write_masks

    written = write_masks(run_folder, images, out, print)
    print(f"{len(written)} mask(s) in {out}")
