"""The commands ``fedml status`` and ``fedml drop``: for whoever watches a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from fedml.errors import InputError, nearest
from fedml.experiments.options import Json

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
_WATCH_SECONDS = 2.0


def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a run does: its round, each site, bytes, estimated end. Works on the folder of a running or an ended run.

    Example: fedml status fedml-runs/heart-20260131-101500-3fa2b1 --watch
    """
    from fedml.experiments.runs.status import as_json as to_json
    from fedml.experiments.runs.status import ended, status_of, text_of

    shown = ""
    while True:
        found = status_of(run)
        text = json.dumps(to_json(found)) if as_json else text_of(found)
        if text != shown:
            print(text, flush=True)
            shown = text
        if not watch or ended(found):
            return
        time.sleep(_WATCH_SECONDS)


def drop(run: RunFolder, site: Annotated[str, typer.Argument(help="The site, as the roster names it.", show_default=False)]) -> None:
    """Remove a lost site from a running run: nobody waits for it, and nothing that it sends is counted any longer. The record shows it.

    Example: fedml drop fedml-runs/heart-20260131-101500-3fa2b1 oslo
    """
    from fedml.experiments.runs.status import ended, status_of
    from fedml.runs.live import drop as ask

    found = status_of(run)
    names = [each.name for each in found.sites]
    if site not in names:
        raise InputError(f'"{site}" is no site of this run{nearest(site, names)}; its sites: {", ".join(names)}.')
    if ended(found):
        raise InputError(f"{run}: the run is {found.state}, so no site can be removed from it; start a new one without {site}.")
    try:
        ask(run, site)
    except OSError as error:
        raise InputError(
            f"{run}: cannot be written to ({error.strerror}); give this command as the account that started the run."
        ) from error
    print(f"{site} is removed from this run; the quorum decides whether it goes on")
