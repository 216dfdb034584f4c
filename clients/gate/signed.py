"""The head of the site's journal in a reply, signed with the site's node key (``fedml.contract.witness``).

A site without ``[connection]``, such as one in a rehearsal, has no node key and sends the head unsigned. So do the replies before the first
round. In a step of an analysis, ``weights`` is of the arrays of the request and ``counts`` of the sums; the agreement is with the
orientation of the site's dosages.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, RecordDict

from fedml.clients.gate.journal import Entry, RecordNote
from fedml.clients.site.manifest import Site
from fedml.clients.work.request import Request
from fedml.contract.replies import read_arrays
from fedml.contract.witness import Said, agreement_digest, arrays_digest, reply_digest, witness
from fedml.wire.records import AGREEMENT, ANALYSES, ANALYSIS, ARRAYS, CLASS_WEIGHTS, COUNTS, FLIPS, IMAGE_SHAPE, PANEL, Phase

log = logging.getLogger("fedml.site")
_OWN = (PANEL, IMAGE_SHAPE, FLIPS, CLASS_WEIGHTS)  # of an agreement, besides the preprocessing constants
OF_STEP = (PANEL, IMAGE_SHAPE)  # of the agreement with a step of an analysis


def head_of(site: Site, request: Request, asked: RecordDict, reply: RecordDict, entry: Entry) -> ConfigRecord:
    """The record ``journal`` of a reply.

    Args:
        asked: the request's content. reply: its answer, without this record. entry: the journal's, about this reply.
    """
    plain: dict[str, Any] = {"head": entry.digest, "count": entry.seq}
    key = None if site.manifest.connection is None else _key(site.folder / site.manifest.connection.key)
    if key is None or request.phase not in (Phase.ROUND, Phase.EVALUATE, *ANALYSES):
        return ConfigRecord(plain)
    agreed = read_arrays(asked, AGREEMENT)
    analysis = request.phase in ANALYSES
    sent, answer = (ANALYSIS, ANALYSIS) if analysis else (ARRAYS, COUNTS)
    constants = {name: value for name, value in agreed.items() if name not in (OF_STEP if analysis else _OWN)}
    study = request.study.sha256
    said = Said(
        site=request.name, study=study, run=entry.run, phase=str(request.phase), round=request.round, head=entry.digest,
        entries=entry.seq, agreement=agreement_digest(study, agreed[PANEL].tobytes(), agreed[IMAGE_SHAPE].tolist(), constants),
        weights=arrays_digest(read_arrays(asked, sent)), counts=arrays_digest(read_arrays(reply, answer)) if answer in reply else "",
        reply=_reply(entry.records),
    )  # fmt: skip
    return ConfigRecord(plain | witness(key, said)._asdict())


def _reply(records: Sequence[RecordNote]) -> str:
    return reply_digest({record.name: record.sha256 for record in records})


@lru_cache(maxsize=8)
def _key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """The site's node key; None, and a line in the site's log, if it cannot be read: the SuperNode, which needs it, says so too."""
    try:
        found = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        log.warning("replies are not signed: the node key cannot be read (%s)", type(error).__name__)
        return None
    return found if isinstance(found, ec.EllipticCurvePrivateKey) else None
