# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS for HTTP/2 (RFC 9113, 9.2): ALPN, versions, suites, and the certificate of the moment at each handshake."""

from __future__ import annotations

import os
import ssl

from epp.transport.tls import KeyPair, TlsSource


def server_context(source: TlsSource, minimum: ssl.TLSVersion, ciphers: str) -> ssl.SSLContext:
    """The context of a listening socket; ``ciphers`` are those of TLS 1.2 in OpenSSL's words, empty for the default.

    With a source that reloads, a handshake gets the certificate that is there when it begins.
    """
    used = source.current()
    context = _context(used, minimum, ciphers)
    if not source.reloads:
        return context
    fresh = context

    def choose(handshake: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        nonlocal used, fresh
        pair = source.current()
        if pair is not used:
            used, fresh = pair, _context(pair, minimum, ciphers)
        handshake.context = fresh

    context.sni_callback = choose  # also called for clients that name no server
    return context


def _context(pair: KeyPair, minimum: ssl.TLSVersion, ciphers: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(ciphers or "ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["h2"])
    # OpenSSL's binding reads files only. This one is in memory, for a container's file system may be read-only.
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pair.key.rstrip() + b"\n" + pair.chain)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
