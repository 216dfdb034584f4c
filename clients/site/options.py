"""The option ``--site``, which most commands of ``fedml-site`` have, and the site that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedml.clients.site.manifest import Site

SiteFile = Annotated[Path, typer.Option("--site", help="This site's manifest, or its folder.")]


def site_of(path: Path) -> Site:
    """The site of a manifest or of its folder. Raises ``InputError`` if it cannot be read."""
    from fedml.clients.site.manifest import read_site

    return read_site(path)
