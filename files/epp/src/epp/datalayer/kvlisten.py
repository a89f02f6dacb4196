# SPDX-License-Identifier: GPL-3.0-or-later
"""Listens to what engines publish of their KV caches, over ZeroMQ.

Two ways, as in the reference: every engine publishes on a port of its own, and is connected with when it joins the pool
(ranks of a pod at successive ports); or this process listens on one address, and the engines connect with it. Who
speaks is known by the connection in the first case, and by the topic in the second.

Messages are numbered. A number that begins again means that the engine has begun again, with an empty cache. After a
gap, and at the beginning, an engine that keeps its last messages is asked for those that are missing, at its replay
port. Where it keeps none, what was lost is lost: a block that was thrown away meanwhile is believed in until the engine
names it again.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq
import zmq.asyncio

from epp.datalayer.kvevents import Batch, read_batch, topic_of
from epp.model import Endpoint

log = logging.getLogger(__name__)

QUEUED_MESSAGES = 10_000
RECONNECT_MS = 500
MAX_RECONNECT_MS = 5_000
HEARTBEAT_MS = 5_000
REPLAY_SECONDS = 2.0
"""How long the next message of a replay may take."""
REPLAY_REST_SECONDS = 30.0
"""Between a replay that failed and the next attempt."""
AT_ONCE = 64
"""Messages before the event loop gets its turn."""
WARNING_SECONDS = 30.0
END_OF_REPLAY = b"\xff" * 8


@dataclass(frozen=True)
class ListenOptions:
    """Where engines publish."""

    topic: str = "kv@"
    """What topics must begin with."""
    bind: str = ""
    """Address on which engines connect with this process (``tcp://*:5557``); empty: they do not."""
    port: int = 0
    """Port on which each engine publishes, plus its rank in the pod; 0: they do not."""
    replay_port: int = 0
    """Port on which each engine can be asked for earlier messages, plus its rank; 0: it cannot."""


class Pool(Protocol):
    """The endpoints; see ``epp.datalayer.store``."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that may serve now."""


class Audience(Protocol):
    """Who wants to know."""

    def heard(self, endpoint: Endpoint, model: str, batch: Batch) -> None:
        """An engine has said something of its cache; ``model`` is what its topic names."""

    def forgotten(self, endpoint: Endpoint) -> None:
        """An engine has begun again: its cache is empty."""


@dataclass(slots=True)
class _Stream:
    """How far one engine's messages have come."""

    last: int = -1
    """Number of the last one; -1 before the first."""
    ts: float = 0.0
    """When that was written."""
    model: str = ""
    """What its topic names: repeated messages come without one."""
    replay_failed: float = -REPLAY_REST_SECONDS


class Listener:
    """Listens until cancelled. Belongs to one event loop."""

    def __init__(self, pool: Pool, options: ListenOptions, audience: Audience) -> None:
        self._pool, self._options, self._audience = pool, options, audience
        self._context: zmq.asyncio.Context | None = None
        self._changed = asyncio.Event()
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}
        self._streams: dict[Endpoint, _Stream] = {}
        self._named: tuple[tuple[Endpoint, ...], dict[str, list[Endpoint]]] = ((), {})
        self._warned: dict[str, float] = {}

    def changed(self, endpoint: Endpoint) -> None:
        """An endpoint has come or gone; for the datastore to call."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled. Raises OSError if it cannot listen where it should."""
        self._context = zmq.asyncio.Context()
        try:
            central = self._bound() if self._options.bind else None
            async with asyncio.TaskGroup() as group:
                if central is not None:
                    group.create_task(self._central(central))
                if self._options.port:
                    group.create_task(self._follow_pool(group))
                await asyncio.Event().wait()
        finally:
            self._context.destroy(linger=0)

    def _subscriber(self) -> zmq.asyncio.Socket:
        assert self._context is not None
        made = self._context.socket(zmq.SUB)
        made.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        made.setsockopt(zmq.IPV6, int(socket.has_ipv6))
        made.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        made.setsockopt(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
        made.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        made.setsockopt(zmq.SUBSCRIBE, self._options.topic.encode())
        return made

    def _bound(self) -> zmq.asyncio.Socket:
        made = self._subscriber()
        try:
            made.bind(self._options.bind)
        except zmq.ZMQError as error:
            raise OSError(f"cannot listen for KV cache events on {self._options.bind}: {error}") from None
        log.info("engines may publish their KV cache events on %s", self._options.bind)
        return made

    async def _follow_pool(self, group: asyncio.TaskGroup) -> None:
        """Have a connection with every endpoint of the pool, and with nobody else."""
        while True:
            self._changed.clear()
            wanted = self._pool.endpoints()
            for endpoint in set(self._tasks).difference(wanted):
                self._tasks.pop(endpoint).cancel()
                self._streams.pop(endpoint, None)
            for endpoint in wanted:
                if endpoint not in self._tasks:
                    self._tasks[endpoint] = group.create_task(self._engine(endpoint))
            await self._changed.wait()

    async def _engine(self, endpoint: Endpoint) -> None:
        """One engine's messages."""
        subscriber = self._subscriber()
        stream = self._streams.setdefault(endpoint, _Stream())
        try:
            try:
                subscriber.connect(_address(endpoint, self._options.port))
            except zmq.ZMQError as error:
                log.warning("the KV cache events of %s cannot be read: %s", endpoint.name, error)
                return
            if self._options.replay_port:
                await self._replay(endpoint, stream, 0)
            while True:
                await self._messages(subscriber, lambda topic: endpoint)
        finally:
            subscriber.close(linger=0)

    async def _central(self, subscriber: zmq.asyncio.Socket) -> None:
        """Everybody's messages."""
        try:
            while True:
                await self._messages(subscriber, None)
        finally:
            subscriber.close(linger=0)

    async def _messages(self, subscriber: zmq.asyncio.Socket, who: Callable[[bytes], Endpoint] | None) -> None:
        """Wait for a message, and take what else is there."""
        await self._message(await subscriber.recv_multipart(), who)
        for _ in range(AT_ONCE):
            try:
                parts = await subscriber.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            await self._message(parts, who)
        await asyncio.sleep(0)

    async def _message(self, parts: Sequence[bytes], who: Callable[[bytes], Endpoint] | None) -> None:
        if len(parts) != 3 or len(parts[1]) != 8:
            self._warn("frames", "a KV cache event has %d frames, and not topic, number and batch", len(parts))
            return
        topic, number, payload = parts[0], int.from_bytes(parts[1], "big"), parts[2]
        try:
            batch = read_batch(payload)
        except ValueError as error:
            self._warn("words", "a KV cache event is not understood: %s", error)
            return
        pod, model = topic_of(topic)
        endpoint = who(topic) if who is not None else self._speaker(pod, batch.rank)
        if endpoint is None:
            self._warn(f"pod {pod}", "KV cache events come from %s, which is not of this pool", pod or "somebody")
            return
        stream = self._streams.setdefault(endpoint, _Stream())
        stream.model = model
        if await self._in_order(endpoint, stream, number, batch.ts, replayable=who is not None):
            stream.last, stream.ts = number, batch.ts
            self._tell(endpoint, model, batch)

    async def _in_order(self, endpoint: Endpoint, stream: _Stream, number: int, ts: float, replayable: bool) -> bool:
        """Whether a live message is to be taken: it may have come with a replay. Asks for what is missing."""
        # A message that comes twice was written once.
        if number < stream.last or (number == stream.last and ts != stream.ts):
            log.info("%s has begun again: its KV cache is empty", endpoint.name)
            self._audience.forgotten(endpoint)
            stream.last = -1
        if number == stream.last:
            return False
        if number > stream.last + 1 and replayable and self._options.replay_port:
            await self._replay(endpoint, stream, stream.last + 1)
        return number > stream.last

    async def _replay(self, endpoint: Endpoint, stream: _Stream, first: int) -> None:
        """Take an engine's earlier messages, from number ``first`` on, as far as it still has them."""
        if time.monotonic() - stream.replay_failed < REPLAY_REST_SECONDS:
            return
        assert self._context is not None
        asker = self._context.socket(zmq.DEALER)
        asker.setsockopt(zmq.IPV6, int(socket.has_ipv6))
        try:
            asker.connect(_address(endpoint, self._options.replay_port))
            await asker.send_multipart((b"", first.to_bytes(8, "big")))
            while True:
                async with asyncio.timeout(REPLAY_SECONDS):
                    parts = await asker.recv_multipart()
                number, payload = parts[-2], parts[-1]
                if number == END_OF_REPLAY or not payload:
                    return
                if not self._replayed(endpoint, stream, parts, first):
                    return
        except (TimeoutError, ValueError, IndexError, zmq.ZMQError) as error:
            stream.replay_failed = time.monotonic()
            what = str(error) or "no answer"
            self._warn("replay", "%s does not repeat its KV cache events: %s", endpoint.name, what)
        finally:
            asker.close(linger=0)

    def _replayed(self, endpoint: Endpoint, stream: _Stream, parts: Sequence[bytes], first: int) -> bool:
        """Take one repeated message. False if nobody knows of which model it speaks: the first live one will say."""
        number = int.from_bytes(parts[-2], "big")
        model = topic_of(parts[-3])[1] if len(parts) > 2 and parts[-3] else stream.model
        if not model:
            return False
        if number > stream.last + 1 and first:  # removals are lost, too: begin with what it still has
            self._audience.forgotten(endpoint)
        if number > stream.last:
            batch = read_batch(parts[-1])
            stream.last, stream.ts = number, batch.ts
            self._tell(endpoint, model, batch)
        return True

    def _tell(self, endpoint: Endpoint, model: str, batch: Batch) -> None:
        try:
            self._audience.heard(endpoint, model, batch)
        except ValueError as error:
            self._warn("sense", "a KV cache event of %s makes no sense: %s", endpoint.name, error)

    def _speaker(self, pod: str, rank: int | None) -> Endpoint | None:
        """The endpoint that a topic means by ``ip:port``, address, pod or name; of several, the one of that rank."""
        endpoints = self._pool.endpoints()
        if self._named[0] is not endpoints:
            names: dict[str, list[Endpoint]] = {}
            for each in endpoints:
                for name in {each.hostport, each.address, each.pod, each.name}:
                    names.setdefault(name, []).append(each)
            self._named = (endpoints, names)
            for each in set(self._streams).difference(endpoints):
                del self._streams[each]
        found = self._named[1].get(pod, [])
        if len(found) > 1:
            found = [each for each in found if rank_of(each) == (rank or 0)]
        return found[0] if found else None

    def _warn(self, kind: str, message: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._warned.get(kind, -WARNING_SECONDS) >= WARNING_SECONDS:
            if len(self._warned) > QUEUED_MESSAGES:
                self._warned.clear()
            self._warned[kind] = now
            log.warning(message, *values)


def rank_of(endpoint: Endpoint) -> int:
    """Which of a pod's endpoints it is."""
    found = re.search(r"-rank-(\d{1,4})$", endpoint.name)
    return int(found[1]) if found else 0


def _address(endpoint: Endpoint, port: int) -> str:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"tcp://{host}:{port + rank_of(endpoint)}"
