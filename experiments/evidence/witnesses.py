"""The sites' own signatures in a bundle: each is of one site, on the head of its journal with a reply (``fedml.contract.witness``).

They are what a coordinator cannot write alone: without a site's key nobody signs for it. Whose key it is, is known to who compares its
fingerprint with the one that the site tells (``fedml-site key``; ``ssh-keygen -l -f node.key.pub``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt
from safetensors.numpy import load

from fedml.contract.witness import Said, Witness, arrays_digest, fingerprint, is_signed, read_witness
from fedml.experiments.evidence.closed import CONSTANTS, Problem, agreement_of
from fedml.experiments.evidence.contents import counts_by_site
from fedml.experiments.runs.record import Record, exchanges
from fedml.runs.events import Final, Round
from fedml.runs.log import EVENTS, MODEL, RECEIVED
from fedml.tasks.registry import make_task

Counts = Mapping[str, npt.NDArray[Any]]


def signers(record: Record) -> dict[str, str]:
    """Site -> fingerprint of the key that signed its part of the last evaluation, ``SHA256:...``; sites that signed it only."""
    rows = {site: row.get("witness") for site, row in record.final.sites.items()}
    return {site: fingerprint(row["key"]) for site, row in rows.items() if row is not None}


def summary(record: Record) -> str:
    """How many sites signed, with their fingerprints."""
    found, asked = signers(record), len(record.final.sites)
    if not found:
        return f"signed by 0 of {asked} sites' keys: what the sites answered rests on the signer of the bundle"
    shown = ", ".join(f"{site} {mark}" for site, mark in found.items())
    return f"the last evaluation is signed by {len(found)} of {asked} sites' keys ({shown})"


def check(files: Mapping[str, bytes], record: Record, keys: Mapping[str, str]) -> Iterator[Problem]:
    """Every signature in the log fits what the bundle says about its site.

    Args:
        keys: site -> the fingerprint that its key must have; for a site in it, every answer must be signed.
    """
    for site in keys.keys() - set(record.study.federation.sites):
        yield EVENTS, f"--site-key names {site}, which is not a site of the study"
    try:
        found = {(event.kind, event.round, site): read_witness(row.get("witness") or {}) for event, site, row in _rows(record)}
    except ValueError as error:
        yield EVENTS, f"a site's signature: {error}"
        return
    agreement = agreement_of(files, record)
    learned = {name: value for name, value in load(files[MODEL]).items() if not name.startswith(CONSTANTS)}
    received = _received(files)
    used: dict[str, set[str]] = {}
    for event, site, row in _rows(record):
        witness, where = found[event.kind, event.round, site], f"{event.kind} {event.round}, {site}"
        if witness is None:
            if site in keys:
                yield EVENTS, f"{where}: is not signed, and --site-key asks for it"
            continue
        used.setdefault(site, set()).add(f"{witness.key} {witness.run}")
        if row["journal"] is None or not is_signed(_said(record, event, site, row, witness), witness):
            yield EVENTS, f"{where}: the site's signature is not on what the log says: its head, round, run, study or a digest was changed"
        elif witness.agreement != agreement:
            yield EVENTS, f"{where}: the site signed another agreement (study, panel, image shape, constants) than the bundle has"
        elif site in keys and fingerprint(witness.key) != keys[site]:
            yield EVENTS, f"{where}: is signed by {fingerprint(witness.key)}, --site-key has {keys[site]}"
        elif isinstance(event, Final):
            yield from _last(record, site, witness, arrays_digest(learned), received.get(site))
        elif event.round == 1 and record.agreed.first_sha256 != witness.weights and not record.study.training.ema:
            yield EVENTS, f"{where}: the site received other first weights than the log says (first_sha256)"
    for site, several in used.items():
        if len(several) > 1:
            yield EVENTS, f"{site}: its signatures are by several keys or of several runs"
    if len({one.rpartition(" ")[2] for several in used.values() for one in several}) > 1:
        yield EVENTS, "the sites signed different runs"
    if received.keys() - signers(record).keys():
        yield RECEIVED, "has counts of a site that did not sign"


def _rows(record: Record) -> Iterator[tuple[Round | Final, str, Mapping[str, Any]]]:
    for event in exchanges(record.rounds, record.final):
        for site, row in event.sites.items():
            yield event, site, row


def _said(record: Record, event: Round | Final, site: str, row: Mapping[str, Any], by: Witness) -> Said:
    head, entries = row["journal"]
    phase = "evaluate" if isinstance(event, Final) else "round"
    return Said(site, record.start.study_sha256, by.run, phase, event.round, head, entries, by.agreement, by.weights, by.counts, by.reply)


def _last(record: Record, site: str, by: Witness, weights: str, received: Counts | None) -> Iterator[Problem]:
    """What the last evaluation's signature is of: the bundle's model, and the counts as they came."""
    if by.weights != weights:
        yield MODEL, f"{site} signed that it evaluated another model"
    if received is None:
        yield RECEIVED, f"has no counts of {site}, which signed some"
        return
    if by.counts != arrays_digest(received):
        yield RECEIVED, f"{site} signed other counts"
        return
    spread = make_task(record.study).spread
    parts = dict.fromkeys(key.rpartition("/")[0] for key in received)
    apart = site in record.study.federation.evaluate_only and len(record.study.federation.training) > 0
    fresh = dict[str, Any]()
    for part in parts:
        own = spread({key.rpartition("/")[2]: value for key, value in received.items() if key.rpartition("/")[0] == part})
        name = f"external{part.removeprefix('test')}" if apart and part.startswith("test") else part
        fresh |= {f"{name}/{key}": value for key, value in own.items() if not apart or part.startswith("test")}
    if arrays_digest(fresh) != arrays_digest(counts_by_site(record).get(site, {})):
        yield RECEIVED, f"the counts of {site} in the record are not those that it signed"


def _received(files: Mapping[str, bytes]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    out: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key, value in load(files[RECEIVED]).items() if RECEIVED in files else ():
        site, _, name = key.partition("/")
        out.setdefault(site, {})[name] = value
    return out
