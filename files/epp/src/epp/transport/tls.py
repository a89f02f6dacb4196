# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's certificate: made in memory at start, or read from a mounted folder and, if wished, read again."""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

log = logging.getLogger(__name__)

_VALIDITY = datetime.timedelta(days=3650)


class CertificateError(Exception):
    """A certificate that cannot be used; the text names the file and what to do."""


@dataclass(frozen=True)
class KeyPair:
    """A private key and the chain that belongs to it, both PEM."""

    key: bytes
    chain: bytes


class TlsSource:
    """Where the certificate comes from."""

    def __init__(self, directory: str = "", reload: bool = False, pair: KeyPair | None = None) -> None:
        """``directory`` holds ``tls.crt`` and ``tls.key``; without one ``pair`` is used, or a self-signed certificate.

        Raises CertificateError if the files cannot be used. With ``reload`` they are looked at again on each handshake.
        """
        self._directory = Path(directory) if directory else None
        self.reloads = reload and self._directory is not None
        self._stamp = self._look()
        self._pair = read_pair(self._directory) if self._directory else pair or self_signed()

    def current(self) -> KeyPair:
        """The certificate to use now. A new one that cannot be used leaves the old one in place."""
        stamp = self._look() if self.reloads else self._stamp
        if stamp != self._stamp and self._directory is not None:
            self._stamp = stamp
            try:
                self._pair = read_pair(self._directory)
                log.info("new certificate in use, from %s", self._directory)
            except CertificateError as error:
                log.error("the new certificate is not used, the old one stays: %s", error)
        return self._pair

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when the files do, also through the symbolic links that Kubernetes swaps."""
        if self._directory is None:
            return ()
        stamps = []
        for name in ("tls.crt", "tls.key"):
            try:
                status = (self._directory / name).stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)


def read_pair(directory: Path) -> KeyPair:
    """Read and check ``tls.crt`` and ``tls.key``. Raises CertificateError."""
    pair = KeyPair(key=_read(directory / "tls.key"), chain=_read(directory / "tls.crt"))
    try:
        certificate = x509.load_pem_x509_certificate(pair.chain)
    except ValueError as error:
        raise CertificateError(f"{directory / 'tls.crt'}: not a PEM certificate: {error}") from None
    try:
        key = serialization.load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CertificateError(f"{directory / 'tls.key'}: not an unencrypted PEM private key: {error}") from None
    if _public(key.public_key()) != _public(certificate.public_key()):
        raise CertificateError(f"{directory}: tls.key does not belong to tls.crt; replace both together")
    return pair


def self_signed() -> KeyPair:
    """A fresh certificate that nobody can verify: it encrypts, it does not authenticate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Inference Ext")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        chain=certificate.public_bytes(serialization.Encoding.PEM),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(
            f"{path}: cannot be read: {error.strerror}; --cert-path needs tls.crt and tls.key"
        ) from None


def _public(key: object) -> bytes:
    encode = getattr(key, "public_bytes")  # noqa: B009 - every key type has it, their union in the stubs does not
    data: bytes = encode(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return data
