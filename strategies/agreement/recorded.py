"""The sums of an analysis in its run's folder, as the sites sent them, and the same analysis again from them.

    RUN/steps.jsonl     one line a step: phase, number, and of each site its bytes, the head of its journal and its signature
    RUN/sums.bin        for each step 8 bytes of length (little endian), and as many of a safetensors file with SITE/NAME

An analysis is a function of the study, the agreement and these sums alone. So who has the folder computes every number of it again
(``fedml verify``), without the sites: ``Recorded`` stands in the place of the connection to them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import RecordDict
from safetensors.numpy import load, save

from fedml.cohort.variants.harmonise import Panel
from fedml.cohort.variants.keys import from_text
from fedml.contract.replies import check_form
from fedml.errors import RunError, SiteError
from fedml.runs.events import Agreed, SiteRow
from fedml.runs.log import SHARED, STEPS, SUMS, write_whole
from fedml.strategies.agreement.agreement import Agreement
from fedml.study.study import Study
from fedml.wire.records import ANALYSIS, Phase, pack

MOST_BYTES = 900_000_000  # of sums of one run; a bundle takes 1 GiB
_LENGTH = struct.Struct("<Q")


def note(run: Path, phase: Phase, number: int, rows: Mapping[str, SiteRow], sums: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds a step to the record of the run. A run with more than ``MOST_BYTES`` of sums has a record without them."""
    first, path = not (run / STEPS).exists(), run / SUMS
    if not first and not path.exists():
        return
    line = {"phase": str(phase), "number": number, "sites": rows}
    frame = save({f"{site}/{name}": np.ascontiguousarray(value) for site, own in sums.items() for name, value in own.items()})
    with (run / STEPS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    with path.open("ab") as out:
        out.write(_LENGTH.pack(len(frame)))
        out.write(frame)
        size = out.tell()
    if size > MOST_BYTES:
        path.unlink()


def keep_agreement(run: Path, agreement: Agreement) -> None:
    """Saves what the sites agreed on about variants: the panel, how each site's dosages count, and the counts of its genotypes."""
    shared = agreement.shared
    flips = {} if shared is None else {f"flips/{site}": shared.flips[site] for site in agreement.nodes.values()}
    counts = {f"counts/{site}": np.ascontiguousarray(agreement.counts[site]) for site in agreement.nodes.values()}
    texts = {"panel": agreement.panel, "build": agreement.build.encode()}
    write_whole(run / SHARED, save({**{k: np.frombuffer(v, np.uint8) for k, v in texts.items()}, **flips, **counts}))


def agreement_of(study: Study, agreed: Agreed, shared: bytes | None) -> Agreement:
    """The agreement of a recorded run. ``shared``: the bytes of ``shared.safetensors``; None of an analysis without variants.

    Raises:
        ValueError: the file has other arrays than ``keep_agreement`` writes, or not those of the sites that agreed.
    """
    nodes = dict(enumerate(agreed.sites, 1))
    own = Agreement(nodes, persons=agreed.persons, roster=study.federation.sites)
    if shared is None:
        return own
    arrays = load(shared)
    keys = from_text(arrays["panel"].tobytes())
    flips, counts = ({site: arrays[f"{kind}/{site}"] for site in agreed.sites} for kind in ("flips", "counts"))
    fits = all(v.shape == (len(keys),) and v.dtype == np.uint8 and v.max(initial=0) <= 1 for v in flips.values())
    fits &= all(v.shape in ((7, len(keys)), (9, len(keys))) and v.dtype == np.int64 and v.min(initial=0) >= -1 for v in counts.values())
    if not fits or save(arrays) != shared or len(arrays) != 2 + 2 * len(nodes):
        raise ValueError("the variants' file has other arrays than a run writes")
    panel = Panel(keys, flips, agreed.matching, {}, {})
    return replace(own, shared=panel, counts=counts, build=arrays["build"].tobytes().decode())


class Answered(NamedTuple):
    """A step that was computed again. ``given``: site -> arrays of its request; ``agreement``: arrays of the agreement."""

    phase: Phase
    number: int
    rows: dict[str, SiteRow]
    sums: dict[str, dict[str, Any]]
    given: Mapping[str, Mapping[str, Any]]
    agreement: Mapping[str, Any]


class Recorded:
    """The recorded answers of the sites, in the place of the connection to them. Final. ``answered``: the steps so far."""

    def __init__(self, study: Study, steps: bytes, sums: bytes) -> None:
        self.study, self.answered = study, list[Answered]()
        self._rows, self._frames = [json.loads(line) for line in steps.splitlines()], _frames(sums)

    def answer(
        self, phase: Phase, number: int, given: Mapping[str, Mapping[str, Any]], agreement: Mapping[str, Any], shapes: Any
    ) -> Answered:
        """The next step's answers, of the sites of ``given`` in this order.

        Raises:
            RunError: the record has another step here, or sums of another form than the sites send.
        """
        at = len(self.answered)
        row = self._rows[at] if at < len(self._rows) else None
        if row is None or (row["phase"], row["number"]) != (str(phase), number) or list(row["sites"]) != list(given):
            raise RunError(f"step {at + 1} of the record is not {phase}, {number}, which follows from the steps before")
        frame = next(self._frames, None)
        arrays = {} if frame is None else load(frame)
        sums: dict[str, dict[str, Any]] = {}
        for site in given:
            sums[site] = {key.removeprefix(f"{site}/"): value for key, value in arrays.items() if key.startswith(f"{site}/")}
            try:
                check_form(self.study, phase, site, RecordDict({ANALYSIS: pack(sums[site])}), shapes)
            except SiteError as error:
                raise RunError(f"{phase}, {number}: the sums of {site} are not such as a site sends: {error}") from error
        if len(arrays) != sum(map(len, sums.values())) or save(arrays) != frame:
            raise RunError(f"{phase}, {number}: the record has other sums or bytes than those of the sites")
        self.answered.append(Answered(phase, number, row["sites"], sums, given, agreement))
        return self.answered[-1]

    def left(self) -> int:
        """Steps and sums of the record that the analysis did not ask for."""
        return max(len(self._rows) - len(self.answered), sum(1 for _ in self._frames))


def _frames(data: bytes) -> Iterator[bytes]:
    """The parts of ``sums.bin``; ``ValueError`` if it ends within one."""
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise ValueError("sums.bin ends within a length")
        size = _LENGTH.unpack_from(data, at)[0]
        at += _LENGTH.size
        if size > len(data) - at:
            raise ValueError("sums.bin ends within a step")
        yield data[at : at + size]
        at += size
