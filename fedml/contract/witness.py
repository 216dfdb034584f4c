"""A site's signature on the head of its journal, which goes with a reply: what the site itself says, for readers of a run's record.

    signed = witness(key, said)                         # at the site: ``key`` is its node key
    said, public = checked(record)                      # at the centre, and of whoever reads the run

The node key (EC P-384) is the one with which the site's SuperNode logs in, so its fingerprint is the one that the coordinating centre
registered. The signature (ECDSA with SHA-384, FIPS 186-5) covers ``said`` as canonical JSON behind a prefix of its own, so that no other
message that is signed with this key can be taken for it. The digests are of what the site received and sent, computed by the site.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PREFIX = b"fedml-site-journal/1\n"
_HEX = re.compile("[0-9a-f]{64}", re.ASCII)
_LONGEST = 400  # characters of a key or a signature
WITNESS = ("key", "signature", "run", "agreement", "weights", "counts", "reply")  # what is with ``head`` and ``count`` in a reply


class Said(NamedTuple):
    """What a site signs. ``run``: Flower's number of the run, as in the journal. ``head``, ``entries``: of the journal with this reply.

    SHA-256, hexadecimal: ``study``; ``agreement`` (``agreement_digest``); ``weights`` as they arrived; ``counts`` as they were sent ("" if
    none were); ``reply``: of all its records (``reply_digest``).
    """

    site: str
    study: str
    run: str
    phase: str
    round: int
    head: str
    entries: int
    agreement: str
    weights: str
    counts: str
    reply: str


class Witness(NamedTuple):
    """A signature as it is in a reply and in the run's log. ``key``: the public key (OpenSSH); ``signature``: DER, base64."""

    key: str
    signature: str
    run: str
    agreement: str
    weights: str
    counts: str
    reply: str


def arrays_digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of arrays, by name; equal to ``fedml.models.fusion.digest`` of tensors."""
    out = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key]).reshape(np.shape(arrays[key]))
        out.update(f"{key}:{array.dtype}:{array.shape}:".encode())
        out.update(array.tobytes())
    return out.hexdigest()


def agreement_digest(study: str, panel: bytes, image_shape: Sequence[int], constants: Mapping[str, Any]) -> str:
    """What the numbers of a model mean, the same at all sites: variants and their alleles, shape of images, preprocessing constants.

    Args:
        study: SHA-256 of the study. panel: as in ``panel.tsv``. constants: arrays by name.
    """
    shape = [int(n) for n in image_shape]
    fields = {"study": study, "panel": hashlib.sha256(panel).hexdigest(), "image_shape": shape, "constants": arrays_digest(constants)}
    return hashlib.sha256(_canonical(fields)).hexdigest()


def meaning_digest(agreement: str, first: str, started: Sequence[str], weights: str) -> str:
    """One digest of a run's model and all that gives it its meaning.

    Args:
        agreement: of ``agreement_digest``. first: of the weights with which the first round began. started: names of those that were taken
        from ``[model] start``. weights: of the model's arrays and constants.
    """
    return hashlib.sha256(_canonical({"agreement": agreement, "first": first, "started": list(started), "weights": weights})).hexdigest()


def reply_digest(records: Mapping[str, str]) -> str:
    """SHA-256 of a reply, from the name and SHA-256 of each of its records, as the site's journal has them."""
    return hashlib.sha256(_canonical(dict(records))).hexdigest()


def witness(key: ec.EllipticCurvePrivateKey, said: Said) -> Witness:
    """The site's signature on ``said``."""
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    signature = base64.b64encode(key.sign(_message(said), ec.ECDSA(hashes.SHA384()))).decode()
    return Witness(public, signature, said.run, said.agreement, said.weights, said.counts, said.reply)


def read_witness(record: Mapping[str, Any]) -> Witness | None:
    """The signature in a reply's record of the journal, or in a row of a log; None if there is none.

    Raises:
        ValueError: it has another form than declared.
    """
    values = {name: record[name] for name in WITNESS if name in record}
    if not values:
        return None
    if len(values) != len(WITNESS) or not all(isinstance(v, str) and len(v) <= _LONGEST and v.isprintable() for v in values.values()):
        raise ValueError(f"a signature has exactly {', '.join(WITNESS)}, each a short text")
    found = Witness(**values)
    digests = (found.agreement, found.weights, found.reply, *([found.counts] if found.counts else []))
    if not all(_HEX.fullmatch(digest) for digest in digests) or not re.fullmatch(r"\d{1,20}", found.run, re.ASCII):
        raise ValueError("a signature's digests are SHA-256 in hexadecimal, and its run is a number")
    public_key(found.key)
    return found


def public_key(text: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signature; ``ValueError`` if ``text`` is not a key of a NIST elliptic curve in OpenSSH's format."""
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("a signature's key is no OpenSSH public key") from error
    again = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    if not isinstance(key, ec.EllipticCurvePublicKey) or again != text:
        raise ValueError("a signature's key is no key of a NIST elliptic curve, or has a comment")
    return key


def fingerprint(key: str) -> str:
    """Fingerprint of a public key (OpenSSH) as shown by ``ssh-keygen -l``: ``SHA256:...``."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(key.split()[1])).digest()).decode().rstrip("=")


def is_signed(said: Said, by: Witness) -> bool:
    """Whether ``by`` is a signature on ``said``."""
    try:
        public_key(by.key).verify(base64.b64decode(by.signature, validate=True), _message(said), ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _message(said: Said) -> bytes:
    return _PREFIX + _canonical(said._asdict())


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
