# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS on the ext_proc port: self-signed, mounted, reloaded, or off."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from conformance.kit.certificates import write_certificate
from conformance.kit.grpc import Ended, any_certificate
from conformance.kit.picker import Picker
from conformance.kit.talk import route
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World


def handshake(port: int) -> tuple[bytes, str, str]:
    """Certificate (DER), protocol of the application layer and version of TLS."""
    with socket.create_connection(("127.0.0.1", port), 5) as plain, any_certificate().wrap_socket(plain) as secured:
        certificate = secured.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate, secured.selected_alpn_protocol() or "", secured.version() or ""


@pytest.fixture(scope="module")
def secured(around: World, main_pool: Pool) -> Iterator[Picker]:
    """A picker with TLS, which is the default."""
    with around.picker(main_pool.name, tls=True) as found:
        yield found


class TestSelfSigned:
    def test_it_serves(self, secured: Picker, pool: Pool) -> None:
        """TLS is on by default, with a certificate of the picker's own."""
        assert route(secured).destination in pool.hostports

    def test_http2_is_negotiated(self, secured: Picker) -> None:
        """ALPN says h2, which Envoy insists on."""
        assert handshake(secured.ports.grpc)[1] == "h2"

    def test_version(self, secured: Picker) -> None:
        """TLS 1.2 or 1.3."""
        assert handshake(secured.ports.grpc)[2] in ("TLSv1.2", "TLSv1.3")

    def test_the_certificate_is_valid_now(self, secured: Picker) -> None:
        """It is neither too old nor too young."""
        certificate = x509.load_der_x509_certificate(handshake(secured.ports.grpc)[0])
        now = datetime.datetime.now(datetime.UTC)
        assert certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc

    def test_plaintext_is_refused(self, secured: Picker) -> None:
        """A client without TLS gets nowhere."""
        channel = secured.channel(secured.ports.grpc, tls=False)
        with pytest.raises((Ended, OSError)):
            channel.stream().receive()

    def test_health_is_plaintext(self, secured: Picker) -> None:
        """Probes do without TLS."""
        assert secured.health.check("") == "SERVING"


def test_off(picker: Picker) -> None:
    """--secure-serving=false: no TLS handshake is answered."""
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(picker.ports.grpc)


class TestMounted:
    def test_it_is_used(self, around: World, pool: Pool, tmp_path: Path) -> None:
        """--cert-path: the certificate of the folder; without --enable-cert-reload it stays what it was."""
        first = write_certificate(tmp_path, "one")
        with around.picker(pool.name, f"--cert-path={tmp_path}", tls=True) as found:
            assert handshake(found.ports.grpc)[0] == first
            write_certificate(tmp_path, "two")
            assert route(found).destination in pool.hostports
            assert handshake(found.ports.grpc)[0] == first

    def test_it_is_reloaded(self, around: World, pool: Pool, tmp_path: Path) -> None:
        """--enable-cert-reload: a new certificate is used for new connections, a broken one is not."""
        write_certificate(tmp_path, "one")
        with around.picker(pool.name, f"--cert-path={tmp_path}", "--enable-cert-reload=true", tls=True) as found:
            assert route(found).destination in pool.hostports
            second = write_certificate(tmp_path, "two")
            eventually(lambda: handshake(found.ports.grpc)[0] == second)
            (tmp_path / "tls.crt").write_text("no certificate")
            time.sleep(1.0)  # there is nothing to wait for: it must go on as it was
            assert handshake(found.ports.grpc)[0] == second
            assert route(found).destination in pool.hostports

    @pytest.mark.parametrize("what", ["no folder", "no key", "no certificate"])
    def test_it_is_missing(self, around: World, pool: Pool, tmp_path: Path, what: str) -> None:
        """A certificate that cannot be read: the picker does not start, and says so."""
        write_certificate(tmp_path, "one")
        path = tmp_path / "absent" if what == "no folder" else tmp_path
        if what == "no key":
            (tmp_path / "tls.key").unlink()
        if what == "no certificate":
            (tmp_path / "tls.crt").write_text("nonsense")
        said = around.refusal(*around.flags(pool.name, tls=True), f"--cert-path={path}")
        assert str(path) in said or "certificate" in said
