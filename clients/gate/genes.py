"""What a site remembers of tests of genes. Each rare variant is in one column of one gene, whatever the runs of a study ask: of two columns
that differ by a variant, the difference would be about its few carriers. Kept in the state folder for each study, so that neither a new
run nor a restart lifts it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from fedml.clients.gate.pins import pin
from fedml.clients.work import genomics
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.wire.records import AGREEMENT, ANALYSIS, PANEL, array_record, unpack

FOLDER = "genes"


def check_genes(state: Path, run: str, request: Request, content: RecordDict) -> None:
    """What a site remembers of requests about genes: the coefficients, of which a run has one vector, and each variant's column.

    Raises:
        SiteError: the coefficients changed within the run, or a variant is in another column than before.
    """
    text = "the coefficients changed within the tests of genes"
    pin(state, run, {"theta": genomics.theta_digest(content)}, Reason.REPLAYED, text)
    given, agreed = unpack(array_record(content, ANALYSIS)), unpack(array_record(content, AGREEMENT))
    asked = hashlib.sha256()
    for values in (agreed[PANEL], given["column"], given["gene"]):
        asked.update(hashlib.sha256(values.tobytes()).digest())
    once(state, request.study.sha256, asked.hexdigest(), genomics.gene_variants(request, content))


def once(state: Path, study: str, request: str, variants: Sequence[int]) -> None:
    """Notes that ``request`` asks about ``variants``; it is on the disk when this returns. The same request may be answered again.

    Args:
        study: its SHA-256. request: digest of the request. variants: numbers below 2^64 that stand for the variants.

    Raises:
        SiteError: another request of the study asked about one of them.
    """
    folder = state / FOLDER / study[:32]
    path = folder / f"{request[:32]}.bin"
    if path.exists():
        return
    own = np.unique(np.array(variants, np.uint64))
    for other in sorted(folder.glob("*.bin")):
        if len(np.intersect1d(own, np.fromfile(other, "<u8"), assume_unique=True)):
            raise SiteError(
                Reason.OFF_PLAN,
                "a variant of these genes was in another column before, in this run or an earlier one: the difference would be about few "
                "persons. Where data, roster or software changed since, the study has to be approved anew, under another name",
            )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        own.astype("<u8").tofile(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
