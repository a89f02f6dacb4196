# SPDX-License-Identifier: GPL-3.0-or-later
"""How news travel: every process publishes on a ZeroMQ socket, and subscribes to those of its peers.

Peers are found by name: each name (a headless Service, usually) is resolved every few seconds, and every address that
it has is a peer, this process among them, which is ignored. What cannot be sent is dropped, never waited for. A peer
that comes subscribes to its own name as well: that is how the others know that it is new, and they tell it what is
cached.

The socket is plain TCP and believes what it hears. It carries counts and hashes, no prompts; a NetworkPolicy should let
only the replicas reach it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from epp.statesync.ledger import Ledger
from epp.statesync.messages import News, decode, encode

log = logging.getLogger(__name__)

EVERYBODY = b"*"
"""The topic that all peers read. A peer's own name is a topic, too."""
DELAY_SECONDS = 0.02
"""How long news wait for more to come along. To send or to hear a message costs as much as a request."""
HEARTBEAT_SECONDS = 0.5
RESOLVE_SECONDS = 5.0
WARNING_SECONDS = 30.0
"""Between two warnings about the same kind of trouble."""
AT_ONCE = 64
"""Messages before the event loop gets its turn."""
QUEUED_MESSAGES = 1000
"""What waits for a peer that does not read; more is dropped."""


@dataclass(frozen=True)
class PeersOptions:
    """Where to listen, and where peers are."""

    port: int
    """Of this process, 0 for any, and unless a name says otherwise of its peers."""
    names: Sequence[str]
    """``host`` or ``host:port``; a host may have many addresses."""
    host: str = "*"
    """Address to listen on."""
    ports: int = 1
    """How many processes there are at each address: they listen on ports that follow each other."""
    index: int = 0
    """Which of them this process is."""
    own: str = ""
    """A ZeroMQ address under which the other processes of this pod find this one; empty when it is alone."""
    siblings: Sequence[str] = ()
    """Their addresses."""


class StateSync:
    """Exchanges news with peers until cancelled."""

    def __init__(
        self, ledger: Ledger, options: PeersOptions, report: Callable[[int], None] = lambda count: None
    ) -> None:
        """``report`` is told again and again how many peers there are."""
        self._ledger = ledger
        self._options = options
        self._report = report
        # Plain sockets, which never wait here: those of zmq.asyncio cost as much again as what is said.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._publisher = self._context.socket(zmq.XPUB)
        self._subscriber = self._context.socket(zmq.SUB)
        self._newcomers: asyncio.Queue[bytes] = asyncio.Queue()
        self._connected: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        """Fires when news have waited long enough; None while there are none."""
        self._warned: dict[str, float] = {}
        self.on_news: Callable[[News], None] = lambda news: None
        """Called with all that is said to everybody."""
        ledger.wake(self._soon)

    def start(self) -> int:
        """Listen; returns the port, 0 where only this pod's processes speak. Raises OSError when it cannot."""
        for each in (self._publisher, self._subscriber):
            each.setsockopt(zmq.LINGER, 0)
            each.setsockopt(zmq.IPV6, int(socket.has_ipv6))
        self._publisher.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        self._subscriber.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        for topic in (EVERYBODY, self._ledger.sender.encode()):
            self._subscriber.setsockopt(zmq.SUBSCRIBE, topic)
        options = self._options
        for sibling in options.siblings:
            self._subscriber.connect(sibling)
        if options.own:
            self._publisher.bind(options.own)
            if not options.names:
                return 0
        port = options.port + options.index
        try:
            self._publisher.bind(f"tcp://{options.host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise OSError(f"cannot listen on --statesync-port={port}: {error}") from None
        bound = self._publisher.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        return int(bound.rstrip(b"\0").rpartition(b":")[2])

    async def run(self) -> None:
        """Work until cancelled; then say goodbye."""
        loop = self._loop = asyncio.get_running_loop()
        self._soon()  # what happened before now has called in vain
        readers = {self._subscriber.FD: self._hear, self._publisher.FD: self._look}
        for descriptor, reader in readers.items():
            loop.add_reader(descriptor, reader)
            loop.call_soon(reader)  # what came before now is not signalled any more
        try:
            async with asyncio.TaskGroup() as group:
                for each in (self._repeat(), self._welcome(), self._resolve()):
                    group.create_task(each)
        finally:
            self._loop = None
            if self._timer is not None:
                self._timer.cancel()
            for descriptor in readers:
                loop.remove_reader(descriptor)
            self._say(self._ledger.goodbye())

    def close(self) -> None:
        """Give the sockets back."""
        self._publisher.close(linger=200)
        self._subscriber.close()
        self._context.term()

    def _soon(self) -> None:
        """Something has happened: say so in a moment."""
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(DELAY_SECONDS, self._speak)

    def _speak(self) -> None:
        """Say what has happened."""
        self._timer = None
        if news := self._ledger.news():
            self._say(news)

    async def _repeat(self) -> None:
        """Say all counts again and again, so that who missed some is right soon; notice who has fallen silent."""
        while True:
            if news := self._ledger.news(whole=True):
                self._say(news)
            for name in self._ledger.expire(time.monotonic()):
                log.info("the peer %s is silent, and no longer counted", name)
            self._report(self._replicas())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _hear(self) -> None:
        """Take over what peers have said. The socket signals once for all that is there."""
        for _ in range(AT_ONCE):
            if self._subscriber.closed:
                return
            try:
                parts = self._subscriber.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._ledger.hear(decode(parts[-1]), time.monotonic())
            except ValueError as error:
                self._warn("words", "a message on the port of --statesync-port is not understood: %s", error)
        asyncio.get_running_loop().call_soon(self._hear)

    def _look(self) -> None:
        """See who has come. The socket signals once for all, and forgets it when something is sent meanwhile."""
        while not self._publisher.closed and int(self._publisher.EVENTS) & zmq.POLLIN:
            event = self._publisher.recv(zmq.NOBLOCK)
            if event[:1] == b"\x01" and event[1:] not in (EVERYBODY, self._ledger.sender.encode()):
                self._newcomers.put_nowait(event[1:])

    async def _welcome(self) -> None:
        """Tell newcomers what is known here."""
        while True:
            topic = await self._newcomers.get()
            count = 0
            for news in self._ledger.snapshot():
                self._publish(topic, news)
                count += 1
                await asyncio.sleep(0)  # requests go on meanwhile
            log.info("the peer %s has come; it was told what is cached, in %d messages", topic.decode(), count)

    async def _resolve(self) -> None:
        """Connect with whoever the names stand for now, and with nobody else."""
        while True:
            wanted: set[str] = set()
            for name in self._options.names:
                wanted |= await self._addresses(name)
            for address in wanted - self._connected:
                self._subscriber.connect(address)
            for address in self._connected - wanted:
                self._subscriber.disconnect(address)
            self._connected = wanted
            self._hear()  # its signal may have been for what has been done here
            await asyncio.sleep(RESOLVE_SECONDS)

    async def _addresses(self, name: str) -> set[str]:
        host, colon, port = name.rpartition(":")
        if not colon or not port.isdecimal():
            host, port = name, str(self._options.port)
        ports = range(int(port), int(port) + self._options.ports)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            self._warn(name, "the peers' name %s cannot be resolved: %s", host, error)
            return {each for each in self._connected for port in ports if each.endswith(f":{port}")}
        hosts = {str(where[0]) for _, _, _, _, where in found}
        return {f"tcp://[{each}]:{port}" if ":" in each else f"tcp://{each}:{port}" for each in hosts for port in ports}

    def _replicas(self) -> int:
        """How many replicas are known but the own one; the processes of one differ behind a slash."""
        own = self._ledger.sender.partition("/")[0]
        return len({name.partition("/")[0] for name in self._ledger.peers} - {own})

    def _say(self, news: News) -> None:
        self._publish(EVERYBODY, news)
        self.on_news(news)

    def _publish(self, topic: bytes, news: News) -> None:
        # Never waits: what a peer does not read in time is dropped for it.
        self._publisher.send_multipart((topic, encode(news)), zmq.NOBLOCK)
        self._look()

    def _warn(self, kind: str, message: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._warned.get(kind, -WARNING_SECONDS) >= WARNING_SECONDS:
            self._warned[kind] = now
            log.warning(message, *values)
