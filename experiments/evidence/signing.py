"""The coordinator's Ed25519 key (RFC 8032), and a signature as JSON.

key = private_key(None, print)                                    # created at first use
text = signature(key, manifest, "manifest.json")                  # bytes of signature.json
fingerprint = check_signature(text, manifest, "manifest.json")    # ValueError if it does not match
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedml.errors import InputError

_KEYS = {"algorithm", "file", "fingerprint", "public_key", "signature"}
_LARGEST = 1 << 16  # bytes of a key file


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII, a line end. Equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def default_key() -> Path:
    """``$XDG_CONFIG_HOME/fedml/coordinator.key`` (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".config") / "fedml" / "coordinator.key"


def private_key(path: Path | None, say: Callable[[str], None]) -> Ed25519PrivateKey:
    """The key in ``path`` (PEM, PKCS #8, no password); if ``path`` is None, the key at ``default_key()``, created if it does not exist.

    Raises:
        InputError: the file cannot be read, is not an Ed25519 key, or is readable by other accounts.
    """
    place = path or default_key()
    if path is None and not place.exists():
        return _make(place, say)
    try:
        with place.open("rb") as file:
            shared, text = os.fstat(file.fileno()).st_mode & 0o077, file.read(_LARGEST)
        key = serialization.load_pem_private_key(text, None)
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror}); give the coordinator's private key with --key.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{place}: is not a private key without a password; give an Ed25519 key as PEM (PKCS #8).") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{place}: is not an Ed25519 key; create one with `openssl genpkey -algorithm ed25519`, or omit --key.")
    if shared:
        raise InputError(f"{place}: other accounts can read this key; run `chmod 600` on it; create a new key if it may have been read.")
    return key


def _make(path: Path, say: Callable[[str], None]) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # unlike a rename, a link never replaces a key that another process has just created
        finally:
            partial.unlink()
        path.with_suffix(".pub").write_bytes(public)
    except FileExistsError:
        return private_key(path, say)
    except OSError as error:
        raise InputError(f"{path}: the coordinator's key cannot be created ({error.strerror}); give a key with --key.") from error
    say(f"created the coordinator's key {path}: keep it secret, and give reviewers {path.with_suffix('.pub').name} or its fingerprint")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The coordinator's public key in ``path`` (PEM).

    Raises:
        InputError: the file cannot be read or is not an Ed25519 public key.
    """
    try:
        with path.open("rb") as file:
            key = serialization.load_pem_public_key(file.read(_LARGEST))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the coordinator's public key.") from error
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: is not a public key; give the coordinator's as PEM (the file that ends with .pub).") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is not an Ed25519 key; give the coordinator's public key.")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def signature(key: Ed25519PrivateKey, data: bytes, file: str) -> bytes:
    """The bytes of signature.json: the signature on ``data``, the bytes of ``file``."""
    public = key.public_key()
    return canonical({
        "algorithm": "Ed25519", "file": file, "fingerprint": fingerprint(public), "signature": _text(key.sign(data)),
        "public_key": _text(public.public_bytes_raw()),
    })  # fmt: skip


def check_signature(text: bytes, data: bytes, file: str) -> str:
    """The fingerprint of the key that signed ``data``.

    Raises:
        ValueError: the signature does not match, or ``text`` is not exactly in the form that ``signature`` writes.
    """
    try:
        fields = json.loads(text)
        public, signed = base64.b64decode(fields["public_key"], validate=True), base64.b64decode(fields["signature"], validate=True)
        key = Ed25519PublicKey.from_public_bytes(public)
        same = (_text(public), _text(signed)) == (fields["public_key"], fields["signature"])
        whole = fields.keys() == _KEYS and canonical(fields) == text and same
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise ValueError("is not a signature") from None
    if not whole or (fields["algorithm"], fields["file"]) != ("Ed25519", file) or fields["fingerprint"] != fingerprint(key):
        raise ValueError("is not a signature in canonical form")
    try:
        key.verify(signed, data)
    except InvalidSignature:
        raise ValueError(f"does not match {file}: one of the two was changed") from None
    return fingerprint(key)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
