# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS: metrics over https, and the service account of a pod."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from epp.datalayer import ScrapeOptions
from epp.datalayer.http import GetClient, HttpError
from epp.datalayer.kubeconfig import TOKEN_TTL, KubeConfigError, in_cluster


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "pair.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.mark.parametrize(
    ("verify", "trusted", "works"), [(False, False, True), (True, True, True), (True, False, False)]
)
async def test_https(pair: Path, verify: bool, trusted: bool, works: bool) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair)
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    options = ScrapeOptions(
        scheme="https",
        insecure_skip_verify=not verify,
        ca_cert_path=str(pair) if trusted else "",
        client_cert_path=str(pair),
    )
    client = GetClient("127.0.0.1", server.sockets[0].getsockname()[1], "/metrics", options.tls())
    if works:
        assert await client.get(5) == b"ok"
    else:
        with pytest.raises(HttpError, match="certificate"):
            await client.get(5)
    client.close()
    server.close()


def test_plain_http_needs_no_tls() -> None:
    assert ScrapeOptions().tls() is None
    with pytest.raises(OSError):
        ScrapeOptions(scheme="https", ca_cert_path="/nonexistent").tls()


def test_service_account(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    (tmp_path / "token").write_text("first\n")
    with pytest.raises(KubeConfigError, match=r"ca\.crt: cannot be used"):
        in_cluster(tmp_path)
    (tmp_path / "ca.crt").write_bytes(pair.read_bytes())
    credentials = in_cluster(tmp_path)
    assert credentials.server == "https://[fd00::1]:6443"
    assert credentials.tls is not None
    assert credentials.headers() == {"Authorization": "Bearer first"}
    (tmp_path / "token").write_text("second")
    assert credentials.headers() == {"Authorization": "Bearer first"}, "not read on every request"
    credentials._read_at -= TOKEN_TTL
    assert credentials.headers() == {"Authorization": "Bearer second"}
