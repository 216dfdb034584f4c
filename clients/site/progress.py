"""How far a site's training in this round is: a number that may leave, and nothing else.

The gate writes it, in tenths and only while a round is trained, to a file of the state folder; the SuperNode sends it with its requests for
messages (``fedml.flower.supernode``). How fast it grows tells the time of a step, and so roughly the number of training persons, which
*describe* has told already. Where that number is protected (a privacy unit), or ``[policy] progress = false``, nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from torch import nn

    from fedml.clients.site.manifest import Site

PROGRESS = "progress"
_TENTHS = 10


@final
class Teller:
    """Writes the progress of one site. A file that cannot be written stops nothing."""

    def __init__(self, state: Path) -> None:
        self._file, self._tenth = state / PROGRESS, -1

    def of(self, request: Any, site: Site) -> Any:
        """The request (``fedml.clients.work.request``) with the function that takes its progress, if that may leave the site."""
        told = site.manifest.policy.progress and request.study.privacy.unit == "none"
        return replace(request, tell=self.tell) if told else request

    def tell(self, part: float) -> None:
        """``part``: from 0 to 1, rounded down to tenths."""
        tenth = int(min(max(part, 0.0), 1.0) * _TENTHS)
        if tenth != self._tenth:
            self._tenth = tenth
            self._write(str(100 * tenth // _TENTHS))

    def end(self) -> None:
        """No round is trained any longer."""
        if self._tenth >= 0:
            self._tenth = -1
            self._write("")

    def _write(self, text: str) -> None:
        try:
            self._file.write_text(text)
        except OSError as error:
            logging.getLogger("fedml.site").warning("the progress cannot be written: %s", error)


def counting(tell: Callable[[float], None], steps: int) -> Callable[[Mapping[str, nn.Parameter]], None]:
    """A gradient hook that counts steps, and changes nothing."""
    done = 0

    def count(parameters: Mapping[str, nn.Parameter]) -> None:
        nonlocal done
        tell(done / max(steps, 1))
        done += 1

    return count
