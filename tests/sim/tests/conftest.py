# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers on free ports of the loopback interface, in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import pytest

from sim.cli import make_parser, normalise, settings_from
from sim.engine import Engine
from sim.run import Listener


@dataclass
class Running:
    """A server that listens, and a client whose relative addresses lead to it."""

    listener: Listener
    http: aiohttp.ClientSession

    @property
    def engine(self) -> Engine:
        """The server's engine."""
        return self.listener.instance.engine


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Return a function that starts a server of the model `demo` with the given flags, a hundred times faster than
    real.
    """
    started: list[Running] = []

    async def start_one(*flags: str) -> Running:
        argv = normalise(["demo", "--time-scale", "100", *flags])
        settings, _ = settings_from(make_parser().parse_args(argv))
        listener = Listener(settings, "127.0.0.1", 0)
        await listener.open()
        running = Running(listener, aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}"))
        started.append(running)
        return running

    yield start_one
    for running in started:
        await running.http.close()
        await running.listener.close(0.0)
