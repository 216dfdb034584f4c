"""Which sites are late in a round, by the study's rule ([federation] late), and what becomes of their replies.

A site is late when it has taken ``late`` times as long as it usually does: the median of its last five replies, at least
``late_seconds`` and at most ``timeout``. It is waited for no longer once the others are enough (``quorum``, ``quorum_persons``). Its reply
is never counted: it belongs to weights that are no longer those of the run. A site that is late is asked again when that reply is there, or
after the timeout, so that it does not work through requests that are all over.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import final

from flwr.serverapp import Grid

from fedml.errors import Reason
from fedml.flower.grid import pull_by
from fedml.strategies.exchange import Answer, Patience
from fedml.study.study import Study

LAST = 5  # replies whose median is a site's usual time


@dataclass
@final
class Lateness:
    """What is known of the sites' times; of one run."""

    study: Study
    persons: Mapping[str, int]  # site -> training persons, that it described or the study states
    took: dict[str, list[float]] = field(default_factory=dict)
    owed: dict[str, tuple[str, float]] = field(default_factory=dict)  # site -> (message that it has not answered, when it was sent)

    def patience(self) -> Patience | None:
        """How long each site is waited for in the next round; None without a rule."""
        fed = self.study.federation
        if not fed.late:
            return None
        usual = {site: max(fed.late * median(seconds[-LAST:]), fed.late_seconds) for site, seconds in self.took.items()}
        return Patience({site: min(seconds, float(fed.timeout)) for site, seconds in usual.items()}, self.enough)

    def enough(self, sites: Collection[str]) -> bool:
        """Whether so many sites that train, and their persons, make a round."""
        fed = self.study.federation
        training = [site for site in sites if site in fed.training]
        return len(training) >= fed.needed and sum(self.persons.get(site, 0) for site in training) >= fed.quorum_persons

    def busy(self, grid: Grid) -> dict[str, str]:
        """Site -> ``late``, of those that still work at an earlier round. A reply that is there by now is thrown away."""
        now = time.monotonic()
        for site, (message, sent) in list(self.owed.items()):
            if now - sent > self.study.federation.timeout or list(pull_by(grid, [message], now)):
                del self.owed[site]
        return dict.fromkeys(self.owed, str(Reason.LATE))

    def note(self, answer: Answer, sent: float) -> Answer:
        """Remembers the time of an answer, or that it is owed. ``sent``: when the round began (``time.monotonic``)."""
        if answer.reason is None:
            self.took.setdefault(answer.site, []).append(answer.seconds)
            del self.took[answer.site][:-LAST]
        elif answer.reason == Reason.LATE:
            self.owed[answer.site] = (answer.message_id, sent)
        return answer


def persons_of(study: Study, described: Mapping[str, Mapping[str, list[int]]]) -> dict[str, int]:
    """Site -> training persons: those that it described, or that the study states."""
    if study.privacy.unit == "patient":
        return {site: int(n) for site, n in study.privacy.persons.items()}
    return {site: sum(parts.get("train", [])) for site, parts in described.items()}
