# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries ext_proc messages and health checks over the network: HTTP/2, gRPC framing, TLS, drain. It routes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

# Read when grpcio is imported. Its own lines are no JSON, and say nothing that our errors do not.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from epp.transport.api import MESSAGE_SIZE, Service, Transport, TransportOptions
from epp.transport.grpcio import GrpcioTransport
from epp.transport.h2 import H2Transport, listen
from epp.transport.health import HealthServer
from epp.transport.tls import CertificateError, KeyPair, TlsSource

TRANSPORTS: Mapping[str, Callable[[Service, TransportOptions], Transport]] = {
    "h2": H2Transport,
    "grpcio": GrpcioTransport,
}
"""What serves ext_proc, by the values of the flag ``--transport``."""

__all__ = [
    "MESSAGE_SIZE",
    "TRANSPORTS",
    "CertificateError",
    "GrpcioTransport",
    "H2Transport",
    "HealthServer",
    "KeyPair",
    "Service",
    "TlsSource",
    "Transport",
    "TransportOptions",
    "listen",
]
