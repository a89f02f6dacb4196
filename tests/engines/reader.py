# SPDX-License-Identifier: GPL-3.0-or-later
"""The EPP's own reader of metrics, in this process, at a running engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from engines.server import Server
from epp.datalayer import Datastore, ScrapeOptions, Scraper
from epp.model import Endpoint, EndpointMetrics

PATIENCE = 60.0


@asynccontextmanager
async def reading(server: Server) -> AsyncIterator[Endpoint]:
    """An endpoint whose metrics are read as the EPP reads them."""
    labels = {"llm-d.ai/engine-type": server.kind}
    endpoint = Endpoint(server.kind, "", server.kind, server.host, server.port, labels)
    store = Datastore()
    store.replace([endpoint])
    options = ScrapeOptions(port=server.metrics_port) if server.metrics_port else ScrapeOptions()
    task = asyncio.create_task(Scraper(store, options).run())
    try:
        yield endpoint
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(endpoint: Endpoint, what: str, seen: Callable[[EndpointMetrics], bool]) -> EndpointMetrics:
    """The first reading that shows this. Raises AssertionError with the last one."""
    end = time.monotonic() + PATIENCE
    while not (endpoint.metrics.updated_at and seen(endpoint.metrics)):
        assert time.monotonic() < end, f"never {what}; last seen: {endpoint.metrics}"
        await asyncio.sleep(0.02)
    return endpoint.metrics


def idle(metrics: EndpointMetrics) -> bool:
    """Nothing runs and nothing waits."""
    return metrics.running == 0 and metrics.waiting == 0
