"""``fedml-site deidentification``: what is found in the site's images that may identify a person."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedml.clients.site.options import SiteFile, site_of


def deidentification(
    site_file: SiteFile = Path("site.toml"),
    files: Annotated[bool, typer.Option("--files", help="Also list the findings of each file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, with the findings of each file.")] = False,
    pixels: Annotated[bool, typer.Option("--pixels/--no-pixels", help="Look for text in pixels too, where Tesseract is installed.")] = True,
) -> None:
    """Look for identifiers of persons in this site's images: headers, sidecars, pixels, names of files and folders. Nothing leaves
    this machine, and no value that was found is shown.

    Exit code: 0 nothing found; 1 something to check; 3 something for which a file is not de-identified.

    Example: fedml-site deidentification --site /srv/fedml/site.toml
    """
    from fedml.clients.desk.deidentification import examine, show

    report = examine(site_of(site_file), pixels=pixels)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=False) if as_json else show(report, files=files))
    raise typer.Exit(report.code)
