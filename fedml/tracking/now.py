"""What a run does now, as MLflow tags ``fedml.status`` of the run and of each site's child run, while it is recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from fedml.runs.live import doing_of, read_live, words_of

TAG = "fedml.status"
_SECONDS = 5.0  # between two looks


@final
class Now:
    """Sets the tags that have changed, at most every five seconds."""

    def __init__(self, run: Path, rounds: int) -> None:
        self._run, self._rounds = run, rounds
        self._looked, self._told = 0.0, dict[str, str]()

    def look(self, client: Any, parent: str, children: Mapping[str, str]) -> None:
        """Reads what the server writes of itself, if there is something (``fedml.runs.live``)."""
        if not parent or time.monotonic() - self._looked < _SECONDS:
            return
        self._looked = time.monotonic()
        if (live := read_live(self._run)) is None:
            return
        texts = {children[name]: words_of(site, live, time.time()) for name, site in live.sites.items() if name in children}
        self._set(client, {parent: doing_of(live, self._rounds), **texts})

    def end(self, client: Any, parent: str, children: Mapping[str, str], status: str) -> None:
        """The run has ended, so no site does anything for it."""
        self._set(client, {parent: status, **dict.fromkeys(children.values(), status)})

    def _set(self, client: Any, texts: Mapping[str, str]) -> None:
        for run_id, text in texts.items():
            if self._told.get(run_id) != text:
                client.set_tag(run_id, TAG, text)
                self._told[run_id] = text
