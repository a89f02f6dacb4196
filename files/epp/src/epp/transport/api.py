# SPDX-License-Identifier: GPL-3.0-or-later
"""What every transport of the EPP offers, and what it asks of the service behind it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from epp.transport.tls import TlsSource

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

MESSAGE_SIZE = 128 * 1024 * 1024
"""Bytes of the largest message unless said otherwise.

A message holds what Envoy has in its buffers at that moment, in every body mode, so it can be as large as the largest
prompt or Envoy's buffer limit. gRPC's own 4 MiB, the reference's default, turn such prompts into errors 500.
"""

QUIET_SECONDS = 2.0
"""A draining server stops early once there has been no stream for this long: gateways take a moment to look away."""


class Exchange(Protocol):
    """One stream, as the service sees it."""

    interruptible: bool
    """The exchange may have something to say that no message has asked for; then ``push`` is to be set."""
    push: Callable[[Iterable[bytes]], None] | None
    """For the transport to set: sends answers out of turn, after which ``done`` is true. Called in the event loop."""

    @property
    def done(self) -> bool:
        """The last message has been answered: close the stream."""

    def receive(self, data: bytes) -> Iterable[bytes] | Coroutine[Any, Any, Iterable[bytes]]:
        """The answers to one message, at once or from a coroutine; messages are handed in one after the other.

        The answers are built while they are iterated over, so write each before asking for the next. Raises
        ``epp.extproc.ProtocolError`` if the peer broke the protocol.
        """

    def close(self, code: str) -> None:
        """The stream has ended with a gRPC status (``OK``, ``CANCELLED`` ...). Called exactly once."""


class Service(Protocol):
    """Opens an exchange for each stream."""

    def open(self, metadata: Sequence[tuple[str, str | bytes]] = ...) -> Exchange:
        """A stream begins; ``metadata`` is what the gateway sent along with the call."""


@dataclass(frozen=True)
class TransportOptions:
    """Where and how to listen."""

    host: str = "[::]"
    port: int = 9002
    tls: TlsSource | None = None
    """None is plaintext."""
    tls_min: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    """The oldest version of TLS. grpcio takes this, and the next, from its environment: see :mod:`epp.ciphers`."""
    tls_ciphers: str = ""
    """Cipher suites of TLS 1.2 in OpenSSL's words; empty for those that HTTP/2 allows."""
    max_receive: int = MESSAGE_SIZE
    """Bytes of one message from Envoy."""
    max_send: int = MESSAGE_SIZE
    """Bytes of one message to Envoy."""
    health_checking: bool = False
    """Answer health checks on the same port, always SERVING."""
    streams: int = 16_384
    """Streams that a gateway is asked to have open on one connection at most, before it opens another one. A gateway
    that opens more is served all the same. grpcio asks for no bound."""


class Transport(Protocol):
    """A server of ext_proc streams."""

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError when it cannot."""

    async def drain(self, grace: float) -> None:
        """Keep serving, new streams too, until none is left for a moment; at most ``grace`` seconds."""

    async def stop(self) -> None:
        """End whatever is still open."""
