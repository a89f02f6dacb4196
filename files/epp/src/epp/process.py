# SPDX-License-Identifier: GPL-3.0-or-later
"""A serving process: ports that open together, work in the background, a signal, a drain.

The endpoint picker and body-based routing are two such processes. What they serve is none of this module's business.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from epp import __version__
from epp.datalayer.lease import Election
from epp.extproc import Health
from epp.observe import ObserveServer
from epp.statesync import StateSync
from epp.transport import HealthServer, Transport

log = logging.getLogger("epp")


class StartError(Exception):
    """Something that keeps a process from starting or running; the text says what to do."""


YOUNG_OBJECTS = 50_000
"""Objects more than have gone until the garbage collector looks at them. A request leaves it nothing, so that with the
usual 2 000 it would only look, again and again, at the requests that are under way."""

LAST_WORDS = 0.2
"""Seconds that it may take to tell clients that their requests have waited in vain."""


class Queue(Protocol):
    """Where requests wait."""

    def close(self) -> int:
        """Refuse all that wait; returns how many."""


class Worker(Protocol):
    """A part that works in the background."""

    async def run(self) -> None:
        """Work until cancelled."""


@dataclass
class Servers:
    """What listens."""

    transport: Transport
    health: HealthServer
    observe: ObserveServer
    metrics_port: int
    """As the flag says, for the error when it is taken."""
    encrypted: bool
    """Whether ext_proc is served with TLS."""
    sync: StateSync | None = None
    """What talks to other replicas."""

    async def start(self) -> None:
        """Listen on all ports. Raises OSError for one that cannot be had."""
        grpc = await self.transport.start()
        health = await self.health.start()
        try:
            metrics = await self.observe.start()
        except OSError as error:
            raise OSError(f"cannot listen on --metrics-port={self.metrics_port}: {error.strerror}") from None
        if self.sync is not None:
            log.info("other replicas are told on %d", self.sync.start())
        tls = "TLS" if self.encrypted else "plaintext"
        where = f"ext_proc on {grpc} ({tls}), health on {health}, metrics on {metrics}"
        log.info("epp %s serving: %s", __version__, where)

    async def stop(self) -> None:
        """Close whatever is open."""
        await self.transport.stop()
        await self.health.stop()
        await self.observe.stop()
        if self.sync is not None:
            self.sync.close()


@dataclass
class Running:
    """What is needed to run and to end."""

    transport: Transport
    health: Health
    work: Sequence[Worker]
    election: Election | None
    stop: asyncio.Event
    drain_timeout: float
    """Seconds that open streams have after the signal."""
    queues: Sequence[Queue] = ()
    """Where requests wait; what is still there at the end is refused."""


def signals() -> asyncio.Event:
    """Set when somebody wants the process to end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def run_until_stopped(running: Running) -> None:
    """Work until a signal comes, then drain. Raises if a part of the work ends by itself."""
    gc.freeze()  # what exists now lives as long as the process: keep the collector away from it
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    tasks = [asyncio.create_task(each.run()) for each in running.work]
    competing = asyncio.create_task(running.election.run()) if running.election else None
    waiting = asyncio.create_task(running.stop.wait())
    everything = [*tasks, *([competing] if competing else [])]
    try:
        await asyncio.wait([waiting, *everything], return_when=asyncio.FIRST_COMPLETED)
        _raise_if_dead(everything)
        running.health.draining = True
        if competing is not None:
            competing.cancel()  # gives the lease back, so that another one can lead while this one drains
        await _drain(running)
    finally:
        for task in (waiting, *everything):
            task.cancel()
        await asyncio.gather(waiting, *everything, return_exceptions=True)


async def _drain(running: Running) -> None:
    """Serve what comes although no traffic is wanted any more. A second signal ends it."""
    running.stop.clear()
    log.info("shutting down: NOT_SERVING, open streams have %g s", running.drain_timeout)
    draining = asyncio.create_task(running.transport.drain(running.drain_timeout))
    second = asyncio.create_task(running.stop.wait())
    await asyncio.wait([draining, second], return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, second):
        task.cancel()
    if sum(queue.close() for queue in running.queues):
        await asyncio.sleep(LAST_WORDS)
    log.info("stopped")


def _raise_if_dead(tasks: Sequence[asyncio.Task[None]]) -> None:
    """The data layer works until it is cancelled. If a part of it ended, the process must not live on half-dead."""
    for task in tasks:
        if task.done():
            error = None if task.cancelled() else task.exception()
            raise error or StartError("a background task ended unexpectedly")
