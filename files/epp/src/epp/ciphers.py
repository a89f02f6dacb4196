# SPDX-License-Identifier: GPL-3.0-or-later
"""The flags ``--tls-min-version`` and ``--tls-cipher-suites`` in the words of gRPC's and Python's TLS libraries.

gRPC reads its cipher suites from the environment when it is first imported, and offers no minimum version beyond its
own (1.2). Version 1.3 alone is had by allowing, of the suites of 1.2, only one that needs a shared secret nobody has.
So this module imports nothing of gRPC, and must be asked before anything does.
"""

from __future__ import annotations

GRPC_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
"""The environment variable that gRPC reads, once."""

SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
}
"""Suites of TLS 1.2 that are fit for HTTP/2, by IANA's (and Go's) names; in OpenSSL's words."""

TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""Those of TLS 1.3 are always all allowed, as in Go."""

NONE_OF_TLS12 = "ECDHE-PSK-AES128-CBC-SHA"
VERSION13 = "VersionTLS13"


def openssl(suites: tuple[str, ...]) -> str:
    """The suites in OpenSSL's words, those of TLS 1.3 left out; empty for the library's choice. Raises ValueError."""
    for suite in suites:
        if suite not in SUITES and suite not in TLS13_SUITES:
            raise ValueError(f"{suite} is not a cipher suite that HTTP/2 allows; known are {', '.join(SUITES)}")
    chosen = [SUITES[suite] for suite in suites if suite in SUITES]
    if suites and not chosen:
        raise ValueError(
            "only suites of TLS 1.3 are listed, and those are always allowed; use --tls-min-version=VersionTLS13"
        )
    return ":".join(dict.fromkeys(chosen))


def grpc_suites(minimum: str, suites: tuple[str, ...]) -> str:
    """What gRPC's environment variable must say; empty for nothing. Raises ValueError."""
    chosen = openssl(suites)
    return NONE_OF_TLS12 if minimum == VERSION13 else chosen
