# SPDX-License-Identifier: GPL-3.0-or-later
"""``/metrics``, ``/healthz`` and ``/debug`` over HTTP or HTTPS.

``/healthz`` is open to everyone, as probes expect; the rest is guarded, if there is a guard.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from epp.model import Endpoint
from epp.observe import profiling
from epp.observe.access import AccessGuard
from epp.observe.decisions import KEPT
from epp.observe.insight import Insight

log = logging.getLogger(__name__)

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN = ("/healthz",)
RELOAD_SECONDS = 1.0
"""How often the files of the certificate are looked at."""


class Page(Protocol):
    """Whoever knows the metrics."""

    def render(self) -> bytes:
        """All of them in Prometheus' text format. May run in another thread."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ObserveOptions:
    """How the server is reached."""

    host: str | None = None
    """None is all addresses."""
    port: int = 9090
    guard: AccessGuard | None = None
    """Asked about every request that is not open to all; None lets everyone in."""
    tls: MetricsTls | None = None
    """None is plain HTTP."""
    profiling: bool = True
    """Serve ``/debug/pprof/``."""


class MetricsTls:
    """The certificate of the metrics server, taken over again when its files change."""

    def __init__(
        self, directory: str, client_ca: str = "", minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2, ciphers: str = ""
    ) -> None:
        """Raises OSError (or its kin ssl.SSLError) for files that cannot be used, and names them."""
        self._files = (Path(directory) / "tls.crt", Path(directory) / "tls.key")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = minimum
        if ciphers:
            self.context.set_ciphers(ciphers)
        self._stamp = self._look()
        self._load()
        if client_ca:
            try:
                self.context.load_verify_locations(client_ca)
            except OSError as error:
                raise OSError(f"--metrics-client-ca-file={client_ca}: cannot be used: {error}") from error
            self.context.verify_mode = ssl.CERT_REQUIRED

    def refresh(self) -> bool:
        """Take over changed files; True if there were any. Raises OSError, and then keeps the old certificate."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self._load()
        return True

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(*self._files)
        except OSError as error:
            raise OSError(
                f"--metrics-cert-dir={self._files[0].parent}: cannot be used: {error}; it needs tls.crt and tls.key"
            ) from error

    def _look(self) -> tuple[tuple[int, int], ...]:
        stamps = []
        for file in self._files:
            try:
                status = file.stat()
                stamps.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                stamps.append((0, 0))
        return tuple(stamps)


class ObserveServer:
    """The HTTP server of the metrics port."""

    def __init__(
        self,
        recorder: Page,
        pools: Callable[[], Mapping[str, Sequence[Endpoint]]],
        healthy: Callable[[], tuple[str, str]],
        options: ObserveOptions | None = None,
        insight: Insight | None = None,
    ) -> None:
        """``healthy`` returns why there should be no traffic, and what else is wrong; both empty when all is well."""
        self._recorder, self._pools, self._healthy = recorder, pools, healthy
        self._options = options or ObserveOptions()
        self._insight = insight or Insight()
        self._runner: web.AppRunner | None = None
        self._reloading: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; returns the port (useful with 0). Raises OSError when it is taken."""
        options = self._options
        app = web.Application(middlewares=[self._guarded])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/debug/endpoints", self._debug)
        app.router.add_get("/debug/decisions", self._debug_decisions)
        if options.profiling:
            app.router.add_get("/debug/pprof/", self._pprof_index)
            app.router.add_get("/debug/pprof/profile", self._pprof_profile)
            app.router.add_get("/debug/pprof/goroutine", self._pprof_stacks)
            app.router.add_get("/debug/pprof/heap", self._pprof_heap)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        tls = options.tls.context if options.tls else None
        site = web.TCPSite(runner, options.host, options.port, ssl_context=tls)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        if options.tls is not None:
            self._reloading = asyncio.create_task(_follow(options.tls), name="metrics certificate")
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening and close connections."""
        if self._reloading is not None:
            self._reloading.cancel()
            self._reloading = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        guard = self._options.guard
        if guard is not None and request.path not in OPEN:
            # The API server, as a proxy in between, keeps Authorization for itself.
            token = request.headers.get("Authorization") or request.headers.get("X-Authorization")
            refusal = await guard.refusal(token or "", request.path)
            if refusal is not None:
                headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
                return web.Response(status=refusal.status, text=f"{refusal.text}\n", headers=headers)
        return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        # In a thread: a long page would otherwise hold up every decision while it is written.
        page = await asyncio.to_thread(self._recorder.render)
        return web.Response(body=page, headers={"Content-Type": TEXT})

    async def _health(self, request: web.Request) -> web.Response:
        problem, warning = self._healthy()
        text = f"{problem or 'ok'}\n" + (f"warning: {warning}\n" if warning else "")
        return web.Response(status=503 if problem else 200, text=text)

    async def _debug(self, request: web.Request) -> web.Response:
        now, pools = time.monotonic(), self._pools()
        named = [(pool, endpoint) for pool, endpoints in pools.items() for endpoint in endpoints]
        return web.json_response({"endpoints": [{"pool": pool, **describe(each, now)} for pool, each in named]})

    async def _debug_decisions(self, request: web.Request) -> web.Response:
        try:
            limit = int(request.query.get("limit", KEPT))
        except ValueError:
            return web.Response(status=400, text="limit must be a number\n")
        model = request.query.get("model", "")
        return web.json_response({"decisions": await self._insight.decisions(limit, model)})

    async def _pprof_index(self, request: web.Request) -> web.Response:
        return web.Response(text=profiling.INDEX)

    async def _pprof_profile(self, request: web.Request) -> web.Response:
        try:
            seconds = float(request.query.get("seconds", profiling.DEFAULT_SECONDS))
        except ValueError:
            return web.Response(status=400, text="seconds must be a number\n")
        return web.Response(text=await self._insight.profile(seconds))

    async def _pprof_stacks(self, request: web.Request) -> web.Response:
        return web.Response(text=await self._insight.stacks())

    async def _pprof_heap(self, request: web.Request) -> web.Response:
        return web.Response(text=await self._insight.objects())


async def _follow(tls: MetricsTls) -> None:
    """Look at the certificate's files until cancelled."""
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        try:
            if tls.refresh():
                log.info("new certificate of the metrics server in use")
        except OSError as error:
            log.error("the new certificate of the metrics server is not used, the old one stays: %s", error)


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
        "unmetered": endpoint.unmetered,
        "models": None if endpoint.models is None else sorted(endpoint.models),
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
            "custom": dict(metrics.custom),
        },
    }
