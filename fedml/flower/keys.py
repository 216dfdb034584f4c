"""Keys and certificates of a federation: node keys in Flower's format, a certificate authority, and checks of existing certificates."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import os
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedml.errors import InputError


def _write_private(path: Path, data: bytes) -> None:
    """Writes a new file that only this user can read.

    Raises:
        InputError: the file exists.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise InputError(f"{path}: already exists, and a key is never overwritten; delete the file first to replace the key.") from error


def write_node_key(path: Path) -> Path:
    """Writes a node key (EC P-384, OpenSSH format) to ``path`` and its public key to ``path.pub``; returns the latter path.

    Raises:
        InputError: the file exists.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.OpenSSH
    _write_private(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    public = path.with_name(path.name + ".pub")
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n")
    return public


def read_public_key(path: Path) -> bytes:
    """A node's public key (OpenSSH format, written by ``write_node_key``) as PEM, Flower's format.

    Raises:
        InputError: the file cannot be read, is not a public key, or is not a key of a NIST elliptic curve.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give the .pub file that the site sent.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path}: is not an OpenSSH public key; give the .pub file that fedml-site key wrote.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
        raise InputError(f"{path}: is not a key of a NIST elliptic curve; have the site make one with fedml-site key.")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_fingerprint(pem: bytes) -> str:
    """Fingerprint of a public key (PEM) as shown by ``ssh-keygen -l``: ``SHA256:...``; empty if ``pem`` is not a public key."""
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(pem)
        line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(line.split()[1])).digest()).decode().rstrip("=")
    return ""


def certificate_fingerprint(path: Path) -> str:
    """SHA-256 fingerprint of the first certificate in ``path`` as shown by ``openssl x509 -noout -fingerprint``: hex with colons."""
    return x509.load_pem_x509_certificates(path.read_bytes())[0].fingerprint(hashes.SHA256()).hex(":").upper()


def check_certificate(host: str, certificate: Path, key: Path, authority: Path) -> None:
    """Checks that a client that trusts ``authority`` accepts ``certificate`` for ``host``, by a TLS handshake in memory.

    Raises:
        InputError: a file is missing or invalid, the key does not belong to the certificate, or the certificate is not trusted, not for
            ``host``, or expired.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(cafile=authority)
    except (OSError, ValueError) as error:
        raise InputError(f"{authority}: has no certificate (PEM); give the certificate of the authority that sites will trust.") from error
    try:
        server.load_cert_chain(certificate, key, password=lambda: "none")
    except (OSError, ValueError) as error:
        text = f"{certificate}, {key}: are not a certificate and its key"
        raise InputError(f"{text}; give PEM files, the key without a password.") from error
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(to_client, to_server, server_hostname=host), server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(6):  # more than the turns of a handshake
            for end in ends:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        raise InputError(
            f"{certificate}: a site that trusts {authority} would not accept the certificate for {host} ({why}); give one that it accepts."
        ) from error


def write_authority(folder: Path, hosts: Sequence[str] = ("localhost", "127.0.0.1"), *, days: int = 365) -> None:
    """Writes a new certificate authority (``ca.pem``) and a server certificate for ``hosts`` (``server.pem``, ``server.key``) to
    ``folder``.

    The authority's private key is not saved, so it cannot issue a second certificate.

    Raises:
        InputError: ``server.key`` exists.
    """
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedml {hosts[0]}"[:64])])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        draft = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public)
        draft = draft.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=5))
        return draft.not_valid_after(now + datetime.timedelta(days=days))

    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(_usage(sign=True), critical=True)
        .sign(ca_key, hashes.SHA384())
    )
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    server = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]), key.public_key())
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    plain = serialization.NoEncryption()
    _write_private(folder / "server.key", key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, sign: bool) -> x509.KeyUsage:
    """Key usage of an authority (``sign``: signs certificates) or of a server (signs handshakes)."""
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
