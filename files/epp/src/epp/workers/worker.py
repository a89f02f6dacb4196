# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker: wires what decides to its parent, which knows the endpoints. Only ``epp.workers`` imports it."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import socket
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import uvloop

from epp import serve
from epp.config import EndpointPickerConfig
from epp.datalayer import Datastore
from epp.datalayer.objectives import Objectives
from epp.extproc import Health, Watchdog
from epp.observe import Insight, PoolView, Recorder
from epp.process import Running, StartError, run_until_stopped, signals
from epp.process import Worker as Background
from epp.settings import Settings
from epp.statesync import Ledger, PeersOptions, StateSync
from epp.transport import H2Transport, KeyPair
from epp.workers.channel import Channel
from epp.workers.digest import Digest
from epp.workers.feed import Feed
from epp.workers.messages import (
    Answer,
    Ask,
    Begin,
    Ended,
    Endpoints,
    Heard,
    Models,
    Objects,
    Readings,
    Ready,
    Shed,
    Status,
    ToWorker,
    Welcome,
    pack,
    to_worker,
)
from epp.workers.pages import states
from epp.workers.place import Place

log = logging.getLogger("epp.workers")

STATUS_SECONDS = 0.25
STREAMS = 100
"""Streams that a gateway is asked to have on one connection before it opens another one, which another worker gets. No
fewer (RFC 9113, 6.5.2): there are clients that have one connection and wait."""
_PR_SET_PDEATHSIG = 1


def run(settings: Settings, cfg: EndpointPickerConfig, place: Place) -> int:
    """Serve what the parent hands over, until it says to end; returns the exit status."""
    # The end of the parent's socket is noticed, too, but not by code that never comes back.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _sign_logs(place.index)
    try:
        uvloop.run(_serve(settings, cfg, place))
    except serve.EXPECTED as error:
        log.error("worker %d: %s", place.index, error)
        return 1
    return 0


async def _serve(settings: Settings, cfg: EndpointPickerConfig, place: Place) -> None:
    """Wire, take over what the parent knows, serve, drain."""
    stop = signals()
    recorder = Recorder(streams=settings.enable_grpc_stream_metrics)
    watchdog = Watchdog()
    stores = {name: Datastore(name) for name in serve.pool_names(settings, cfg)}
    for name, store in stores.items():
        recorder.watch_pool(PoolView(name, store.endpoints, producer=serve.load_producer(cfg)))
    objectives = Objectives(None, settings.pool_namespace) if settings.pool_name else None
    serves = serve.serving(settings, cfg, stores, objectives, recorder, watchdog)
    channel = await Channel.open(socket.socket(fileno=place.control), to_worker)
    options = serve.transport_options(settings, await _pair(channel))
    transport = H2Transport(serves.service, replace(options, streams=STREAMS))
    ledger = Ledger(place.sender, stores)
    sync = StateSync(ledger, _peers(settings, place), recorder.peers)
    arrivals = Arrivals(socket.socket(fileno=place.gate), transport, channel)
    sync.on_news = Digest(lambda news: channel.send(Heard(news))).add
    parent = Parent(channel, Feed(stores, objectives), transport, ledger, recorder)
    watchdog.start()
    try:
        transport.prepare()
        sync.start()
        work: list[Background] = [parent, arrivals, sync, *serves.workers]
        await run_until_stopped(Running(transport, Health({}), work, None, stop, settings.drain_timeout))
    finally:
        await transport.stop()
        sync.close()
        watchdog.stop()


def _sign_logs(index: int) -> None:
    """Every line says which worker wrote it."""
    plain = logging.getLogRecordFactory()

    def signed(*values: Any, **named: Any) -> logging.LogRecord:
        record = plain(*values, **named)
        record.name = f"{record.name}/{index}"
        return record

    logging.setLogRecordFactory(signed)


async def _pair(channel: Channel[ToWorker]) -> KeyPair | None:
    """The certificate that the parent's first message brings, if it does. Raises StartError when there is none."""
    async for message in channel.messages():
        if isinstance(message, Welcome) and message.key:
            return KeyPair(message.key, message.chain)
        return None
    raise StartError("the parent has ended")


def _peers(settings: Settings, place: Place) -> PeersOptions:
    """The other workers here, and all workers of the other replicas."""
    others = [place.address(index) for index in range(settings.workers) if index != place.index]
    return PeersOptions(
        settings.statesync_port,
        settings.statesync_peers,
        ports=settings.workers,
        index=place.index,
        own=place.address(place.index),
        siblings=others,
    )


class Parent:
    """What the parent says, and what it is answered."""

    def __init__(
        self, channel: Channel[ToWorker], feed: Feed, transport: H2Transport, ledger: Ledger, recorder: Recorder
    ) -> None:
        self._channel, self._feed, self._transport = channel, feed, transport
        self._ledger, self._recorder = ledger, recorder
        self._insight = Insight(recorder.decisions)
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Listen until cancelled. Raises StartError when the parent has ended."""
        async for message in self._channel.messages():
            match message:
                case Begin():
                    self._channel.send(Ready())
                case Ended():
                    self._ledger.forget(message.sender)
                case Shed():
                    self._transport.shed(message.connections)
                case Ask():
                    task = asyncio.create_task(self._answer(message))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
                case Endpoints() | Readings() | Models() | Objects():
                    self._feed.take(message)
        raise StartError("the parent has ended")

    async def _answer(self, asked: Ask) -> None:
        try:
            found = await self._ask(asked.what, asked.arguments)
        except Exception:
            log.exception("no answer to the parent's question for %s", asked.what)
            return
        self._channel.send(Answer(asked.number, pack(found)))

    def _ask(self, what: str, arguments: list[Any]) -> Awaitable[Any]:
        match what:
            case "figures":
                # In a thread, as the page of a single process is made.
                return asyncio.to_thread(states, self._recorder)
            case "decisions":
                return self._insight.decisions(*arguments)
            case "profile":
                return self._insight.profile(*arguments)
            case "stacks":
                return self._insight.stacks()
            case _:
                return self._insight.objects()


class Arrivals:
    """Connections that the parent hands over."""

    def __init__(self, gate: socket.socket, transport: H2Transport, channel: Channel[ToWorker]) -> None:
        self._gate, self._transport, self._channel = gate, transport, channel
        self._received = 0
        self._beginning: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take connections, and report what became of them, until cancelled."""
        loop = asyncio.get_running_loop()
        self._gate.setblocking(False)
        loop.add_reader(self._gate, self._receive)
        self._transport.on_lost = self._report
        try:
            while True:
                await asyncio.sleep(STATUS_SECONDS)
                self._report()
        finally:
            loop.remove_reader(self._gate)

    def _report(self) -> None:
        kept = self._transport.staying + len(self._beginning)
        self._channel.send(Status(self._received - kept, self._transport.open()))

    def _receive(self) -> None:
        try:
            data, handles, _, _ = socket.recv_fds(self._gate, 1, 1)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._gate)  # the parent has ended, as its channel says, too
        for handle in handles:
            self._received += 1
            task = asyncio.create_task(self._begin(socket.socket(fileno=handle)))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._transport.adopt(connection)
        except OSError as error:
            log.debug("a connection ended before it began: %s", error)
