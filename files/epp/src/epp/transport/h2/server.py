# SPDX-License-Identifier: GPL-3.0-or-later
"""The transport on sockets: listens, connects each connection with the event loop, looks after it, drains."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import cast

from epp.transport.api import METHOD, QUIET_SECONDS, Service, TransportOptions
from epp.transport.h2 import frames as f
from epp.transport.h2.connection import Connection, Method, Options
from epp.transport.h2.health import health_methods
from epp.transport.h2.tls import server_context

log = logging.getLogger(__name__)

BACKLOG = 1024
WRITE_BUFFER = 1024 * 1024
"""Bytes that wait for a socket until its streams stop building answers."""
JOIN_BELOW = 32 * 1024
"""A write of fewer bytes is joined; larger ones are handed over in parts."""
JOIN_BELOW_TLS = 128 * 1024
"""The same with TLS, which makes a record of each part, however small."""
GREETING_SECONDS = 10
"""A connection that has not begun to speak HTTP/2 by then is closed."""
STUCK_SECONDS = 60
"""A peer that takes nothing from its socket for so long is gone, or means no good."""
SILENCE_SECONDS = 60
"""A peer with open streams that says nothing for so long is asked whether it is there."""
PING_SECONDS = 20
"""How long the answer may take."""
CLOSE_SECONDS = 1.0
"""How long a server that stops waits for its last bytes to leave."""
GOODBYE_SECONDS = 1.0
"""Between the GOAWAY that asks a peer to leave and the one that refuses streams: longer than any round trip."""


class _Peer(asyncio.Protocol):
    """One connection and its socket."""

    def __init__(self, server: H2Transport) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._join_below = JOIN_BELOW
        self.connection = Connection(server.methods, server.limits, self.flush)
        self._age = 0
        self._stuck = 0
        self._silent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A gateway has connected, TLS included."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if transport.get_extra_info("sslcontext") is not None:
            self._join_below = JOIN_BELOW_TLS
        self._server.peers.add(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Bytes are here."""
        connection = self.connection
        connection.receive(data)
        if connection.out:
            self.flush()

    def eof_received(self) -> None:
        """The peer has closed its side; without it nothing can be done."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._server.lost(self)
        self.connection.finished = True
        self.connection.lost()
        self.connection.out.clear()

    def pause_writing(self) -> None:
        """The socket takes nothing at the moment."""
        self.connection.paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._stuck = 0
        self.connection.paused = False
        self.connection.resume()
        self.flush()

    def flush(self) -> None:
        """Write what is to be written, and have more made as long as the socket takes it."""
        connection, transport = self.connection, self._transport
        if transport is None:
            return
        while out := connection.out:
            connection.out = []
            if len(out) == 1:
                transport.write(out[0])
            elif sum(map(len, out)) < self._join_below:
                transport.write(b"".join(out))
            else:
                transport.writelines(out)
            if not connection.waiting or connection.paused:
                break
            connection.resume()
        if connection.finished:
            transport.close()

    def second(self) -> None:
        """A second has passed: end what takes too long."""
        connection = self.connection
        self._age += 1
        self._stuck = self._stuck + 1 if connection.paused else 0
        self._silent = 0 if connection.heard else self._silent + 1
        connection.heard = False
        if not connection.greeted and self._age > GREETING_SECONDS:
            self.abort("it did not speak HTTP/2")
        elif self._stuck > STUCK_SECONDS:
            self.abort(f"it read nothing for {STUCK_SECONDS} s")
        elif self._silent > SILENCE_SECONDS + PING_SECONDS and connection.streams:
            self.abort(f"it did not answer a PING for {PING_SECONDS} s")
        else:
            if self._silent == SILENCE_SECONDS and connection.streams:
                connection.out.append(f.frame(f.PING, 0, 0, b"there?  "))
            connection.second()
            self.flush()

    def abort(self, reason: str) -> None:
        """Close the connection now."""
        if self._transport is not None:
            log.warning("the connection of %s ends: %s", self._transport.get_extra_info("peername"), reason)
            self._transport.abort()

    @property
    def unsent(self) -> bool:
        """Bytes wait for the socket."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0


class H2Transport:
    """Serves ext_proc streams with HTTP/2 of our own."""

    def __init__(self, service: Service, options: TransportOptions) -> None:
        self._options = options
        self.methods = {METHOD: Method(service.open)}
        if options.health_checking:
            self.methods |= health_methods()
        self.limits = Options(options.max_receive, options.max_send, asked=options.streams)
        self.peers: set[_Peer] = set()
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None
        self._clock: asyncio.Task[None] | None = None
        self.on_lost: Callable[[], None] = lambda: None
        """Called whenever a connection has ended."""
        self._leaving: dict[_Peer, float] = {}
        """Connections that were asked to leave, and when."""

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError when it cannot."""
        listener = listen(self._options.host, self._options.port)
        self.prepare()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Peer(self), sock=listener, ssl=self._context, backlog=BACKLOG)
        port: int = listener.getsockname()[1]
        return port

    def prepare(self) -> None:
        """Become ready for connections that are brought with :meth:`adopt`; instead of listening."""
        options = self._options
        if options.tls is not None:
            self._context = server_context(options.tls, options.tls_min, options.tls_ciphers)
        self._clock = asyncio.create_task(self._seconds())

    async def adopt(self, connection: socket.socket) -> asyncio.BaseTransport:
        """Serve a connection that was accepted elsewhere, TLS included. Raises OSError when its handshake fails."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: _Peer(self), connection, ssl=self._context)
        return transport

    async def drain(self, grace: float) -> None:
        """Keep serving, new streams too, until none is left for a moment; at most ``grace`` seconds.

        Gateways take a moment to look away. After it they are asked to take new streams elsewhere; connections that
        still come are served.
        """
        started = quiet_since = time.monotonic()
        while (now := time.monotonic()) < started + grace:
            if self.open():
                quiet_since = now
            elif now - quiet_since >= QUIET_SECONDS:
                return
            if now - started >= QUIET_SECONDS:
                self._ask_to_leave(list(self.peers), now)
            await asyncio.sleep(min(0.05, started + grace - now))

    async def stop(self) -> None:
        """End whatever is still open."""
        if self._clock is not None:
            self._clock.cancel()
        if self._server is not None:
            self._server.close()
        if number := self.open():
            log.warning("%d streams are still open and end now; a longer --drain-timeout would let them", number)
        for peer in list(self.peers):
            peer.connection.end_all("the server stops")
            peer.flush()
        end = time.monotonic() + CLOSE_SECONDS
        while any(peer.unsent for peer in self.peers) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for peer in list(self.peers):
            peer.connection.lost()

    def open(self) -> int:
        """Streams that are open now."""
        return sum(len(peer.connection.streams) for peer in self.peers)

    def shed(self, count: int) -> None:
        """Ask so many gateways to connect anew, those with the fewest streams; what is open goes on."""
        staying = [peer for peer in self.peers if peer not in self._leaving]
        self._ask_to_leave(sorted(staying, key=lambda each: len(each.connection.streams))[:count], time.monotonic())

    @property
    def staying(self) -> int:
        """Connections that were not asked to leave."""
        return len(self.peers) - len(self._leaving)

    def lost(self, peer: _Peer) -> None:
        """For connections: one is gone."""
        self.peers.discard(peer)
        self._leaving.pop(peer, None)
        self.on_lost()

    def _ask_to_leave(self, peers: list[_Peer], now: float) -> None:
        """GOAWAY in two steps, so that no stream is lost that is on its way (RFC 9113, 6.8)."""
        for peer in peers:
            if peer not in self._leaving:
                self._leaving[peer] = now
                peer.connection.go_away(final=False)
                peer.flush()
            elif now - self._leaving[peer] >= GOODBYE_SECONDS and not peer.connection.leaving:
                peer.connection.go_away(final=True)
                peer.flush()

    async def _seconds(self) -> None:
        """Have every connection look after itself."""
        while True:
            await asyncio.sleep(1.0)
            self._ask_to_leave(list(self._leaving), time.monotonic())
            for peer in list(self.peers):
                peer.second()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ``[::]`` takes IPv4 as well. Raises OSError with a text for people."""
    address = host.strip("[]")
    everywhere = address == "::"
    try:
        if everywhere and not socket.has_dualstack_ipv6():
            address = "0.0.0.0"
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server(
            (address, port), family=family, backlog=BACKLOG, dualstack_ipv6=everywhere and family == socket.AF_INET6
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot listen on {host}:{port}: {reason}; is the port taken?") from None
