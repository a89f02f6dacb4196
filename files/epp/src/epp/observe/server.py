# SPDX-License-Identifier: GPL-3.0-or-later
"""``/metrics``, ``/healthz`` and ``/debug/endpoints`` over plain HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from epp.model import Endpoint
from epp.observe.recorder import Recorder

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class ObserveServer:
    """The HTTP server of the metrics port."""

    def __init__(
        self, recorder: Recorder, endpoints: Callable[[], Sequence[Endpoint]], healthy: Callable[[], str]
    ) -> None:
        """``healthy`` returns why the EPP is not healthy, empty when it is."""
        self._recorder, self._endpoints, self._healthy = recorder, endpoints, healthy
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (useful with 0). Raises OSError when it is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/debug/endpoints", self._debug)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening and close connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _metrics(self, request: web.Request) -> web.Response:
        # In a thread: a long page would otherwise hold up every decision while it is written.
        page = await asyncio.to_thread(self._recorder.render)
        return web.Response(body=page, headers={"Content-Type": TEXT})

    async def _health(self, request: web.Request) -> web.Response:
        problem = self._healthy()
        return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

    async def _debug(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        return web.json_response({"endpoints": [describe(endpoint, now) for endpoint in self._endpoints()]})


def describe(endpoint: Endpoint, now: float) -> dict[str, Any]:
    """What the EPP knows of an endpoint, as JSON; ``now`` is in monotonic seconds."""
    metrics = endpoint.metrics
    return {
        "name": endpoint.name,
        "namespace": endpoint.namespace,
        "pod": endpoint.pod,
        "address": endpoint.hostport,
        "labels": dict(endpoint.labels),
        "inflight": endpoint.inflight,
        "unseen": endpoint.unseen,
        "unseenTokens": endpoint.unseen_tokens,
        "refused": endpoint.refused,
        "metrics": {
            "ageSeconds": round(now - metrics.updated_at, 3) if metrics.updated_at else None,
            "waiting": metrics.waiting,
            "running": metrics.running,
            "kvCacheUsage": metrics.kv_cache_usage,
            "blockSize": metrics.block_size,
            "numBlocks": metrics.num_blocks,
            "maxLora": metrics.max_lora,
            "runningAdapters": sorted(metrics.running_adapters),
            "waitingAdapters": sorted(metrics.waiting_adapters),
        },
    }
