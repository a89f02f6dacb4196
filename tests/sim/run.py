# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of the process: open the ports, serve, and on SIGTERM or SIGINT let running requests finish before
leaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import uvloop
from aiohttp import web

from sim.instance import Instance
from sim.server import Service
from sim.settings import ServerSettings

LOG: Final = logging.getLogger("sim")
_CLOSE_SECONDS: Final = 1.0  # for handlers to send the end of their answers
_CUT_SECONDS: Final = 0.01  # aiohttp takes 0 for "no limit"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Where and how long the servers of this process live. Durations in seconds."""

    addresses: Sequence[tuple[str, int]]
    startup_delay: float
    shutdown_timeout: float


class Listener:
    """One instance behind one address."""

    def __init__(self, settings: ServerSettings, host: str, port: int) -> None:
        """Call inside a running event loop. `port` 0 lets the system choose."""
        self._settings = settings
        self._host = host
        self._port = port
        self.instance: Instance
        self._http: web.Server
        self._server: asyncio.Server

    async def open(self) -> None:
        """Start to listen. Raises OSError."""
        self.instance = Instance(self._settings, f"{self._host}:{self._port}")
        self._http = Service(self.instance).http_server()
        self._server = await asyncio.get_running_loop().create_server(
            self._http, self._host, self._port, backlog=1024, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self.instance.name = f"{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    async def close(self, grace: float) -> None:
        """Stop accepting, close idle connections, let requests finish for `grace` seconds, then cut the rest."""
        self._server.close()
        self._http.pre_shutdown()
        ending = _CLOSE_SECONDS
        try:
            async with asyncio.timeout(grace):
                await self.instance.driver.wait_idle()
        except TimeoutError:
            ending = _CUT_SECONDS
        await self._http.shutdown(ending)
        self.instance.driver.close()


async def serve(settings: ServerSettings, where: RunSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain. Raises OSError if a port cannot be opened."""
    if where.startup_delay:
        LOG.info("starting up for %.1f s", where.startup_delay)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(where.startup_delay):
                await stop.wait()
    if stop.is_set():
        return
    listeners: list[Listener] = []
    try:
        for host, port in where.addresses:
            listener = Listener(settings, host, port)
            await listener.open()
            listeners.append(listener)
        first, last = where.addresses[0], where.addresses[-1]
        LOG.info("serving %s on %s:%d", settings.served_model_names[0], *first)
        if len(listeners) > 1:
            LOG.info("... and %d more, up to %s:%d", len(listeners) - 1, *last)
        await stop.wait()
        LOG.info("stopping: running requests have %.0f s to finish", where.shutdown_timeout)
    finally:
        await asyncio.gather(*(listener.close(where.shutdown_timeout) for listener in listeners))


def run(settings: ServerSettings, where: RunSettings) -> int:
    """Run until SIGTERM or SIGINT; return 0. Raises OSError if a port cannot be opened."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(settings, where, stop)

    uvloop.run(main())
    return 0
