"""``fedml-site index``: what the site keeps of its files from start to start, and whether it is still true."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedml.clients.site.options import SiteFile, site_of


def index(
    site_file: SiteFile = Path("site.toml"),
    verify: Annotated[bool, typer.Option("--verify", help="Read every file of prepared images again and compare its content.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Delete the index of headers; the next start reads all headers again.")] = False,
) -> None:
    """Show what this site remembers of the files of its images by their size, times and inode. With --verify, find files whose content is
    another although none of these has changed; the next start reads them again. Exit code 1 if there are any.

    Example: fedml-site index --verify --site /srv/fedml/site.toml
    """
    from fedml.cache_entries import differing
    from fedml.cohort.found_images import INDEX
    from fedml.cohort.state_index import entries

    site = site_of(site_file)
    folder = site.state / "cache" / "images"
    print(f"{site.name}: the headers of {entries(folder / INDEX):,} files are remembered")
    other: list[str] = []
    if verify:
        count, other = differing(folder)
        print(f"{count:,} files were read again, {len(other):,} of them have another content than their size, times and inode tell")
        if other:
            print("the next start reads them again; the copy or the file system that made them does not keep times of changes")
    if forget or other:
        (folder / INDEX).unlink(missing_ok=True)
        print("the index of headers is deleted; the next start makes a new one")
    raise typer.Exit(1 if other else 0)
