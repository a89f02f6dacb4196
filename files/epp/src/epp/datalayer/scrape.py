# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads every endpoint's metrics, often while there is traffic and seldom while there is none."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from epp.datalayer.http import GetClient, HttpError, Refused
from epp.datalayer.mapping import Mapper, NoMetrics
from epp.datalayer.store import Datastore
from epp.model import Endpoint

log = logging.getLogger(__name__)

QUIET_AFTER = 2.0
"""Seconds without a request, with nothing queued or running, after which an endpoint counts as idle."""

REFUSED_INTERVAL = 0.25
"""Seconds between two readings of an endpoint where nobody listens: it gets no request until somebody does."""


@dataclass(frozen=True)
class ScrapeOptions:
    """How metrics are read. Times are seconds."""

    interval: float = 0.05
    """Between two readings of an endpoint that has traffic (flag refresh-metrics-interval)."""
    idle_interval: float = 1.0
    """Between two readings of an endpoint that has had none for a while."""
    timeout: float = 1.0
    scheme: str = "http"
    path: str = "/metrics"
    port: int = 0
    """0 is the endpoint's own."""
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    enabled: bool = True
    """False reads nothing: in-flight load stands in for metrics."""
    mapper: Mapper = field(default_factory=Mapper)

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context for scheme https. Raises OSError for files that cannot be used."""
        if self.scheme != "https":
            return None
        context = ssl.create_default_context(cafile=self.ca_cert_path or None)
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert_path:
            context.load_cert_chain(self.client_cert_path, self.client_key_path or None)
        return context


class Scraper:
    """Keeps the metrics of all endpoints of a datastore fresh."""

    def __init__(
        self,
        datastore: Datastore,
        options: ScrapeOptions,
        on_error: Callable[[Endpoint, str, bool], None] | None = None,
    ) -> None:
        """``on_error`` is told of each reading that failed: the reason, and whether there was a page (of no use)."""
        self._datastore = datastore
        self._options = options
        self._on_error = on_error
        self._tls = options.tls()
        self._readers: dict[Endpoint, _Reader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = False
        datastore.on_added(self._add)
        datastore.on_removed(self._remove)
        datastore.on_acquired(self._wake)

    async def run(self) -> None:
        """Read until cancelled."""
        self._running = self._options.enabled
        try:
            for endpoint in self._datastore.endpoints():
                self._add(endpoint)
            await asyncio.get_running_loop().create_future()
        finally:
            self._running = False
            for endpoint in list(self._readers):
                self._remove(endpoint)

    def _add(self, endpoint: Endpoint) -> None:
        if not self._running or endpoint in self._readers:
            return
        reader = _Reader(self._datastore, endpoint, self._options, self._tls, self._on_error)
        self._readers[endpoint] = reader
        task = asyncio.get_running_loop().create_task(reader.run(), name=f"scrape {endpoint.hostport}")
        reader.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remove(self, endpoint: Endpoint) -> None:
        reader = self._readers.pop(endpoint, None)
        if reader is not None and reader.task is not None:
            reader.task.cancel()

    def _wake(self, endpoint: Endpoint) -> None:
        reader = self._readers.get(endpoint)
        if reader is not None:
            reader.wake()


class _Reader:
    """Reads one endpoint."""

    def __init__(
        self,
        datastore: Datastore,
        endpoint: Endpoint,
        options: ScrapeOptions,
        tls: ssl.SSLContext | None,
        on_error: Callable[[Endpoint, str, bool], None] | None,
    ) -> None:
        self._datastore, self._endpoint, self._options, self._on_error = datastore, endpoint, options, on_error
        self._client = GetClient(endpoint.address, options.port or endpoint.port, options.path, tls)
        self._interval = options.interval
        self._active_at = time.monotonic()
        self._pause: asyncio.Future[None] | None = None
        self._failing = ""
        self.task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is traffic: read at the full rate from now on."""
        self._active_at = time.monotonic()
        if self._interval > self._options.interval and self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def run(self) -> None:
        """Read until cancelled. The first reading is at once, so that a new endpoint is judged by what it says."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._read()
                # Spread, so that many endpoints are not read in one burst.
                delay = self._interval * random.uniform(0.9, 1.1)
                self._pause = loop.create_future()
                timer = loop.call_later(delay, _finish, self._pause)
                await self._pause
                timer.cancel()
        finally:
            self._client.close()

    async def _read(self) -> None:
        endpoint, asked_at = self._endpoint, time.monotonic()
        try:
            page = await self._client.get(self._options.timeout)
            metrics = self._options.mapper.read(page, endpoint.labels, endpoint.metrics)
        except (HttpError, NoMetrics) as error:
            # Metrics on a port of their own say nothing of the port that serves.
            own = self._options.port in (0, endpoint.port)
            endpoint.refused = own and isinstance(error, Refused) and endpoint.metrics.updated_at > 0.0
            self._failed(str(error), isinstance(error, NoMetrics))
            return
        except Exception as error:
            # A page must never end the reading of an endpoint, whatever is on it.
            log.exception("reading the metrics of %s went wrong", endpoint.name)
            self._failed(f"{type(error).__name__}: {error}")
            return
        now = time.monotonic()
        busy = metrics.waiting or metrics.running or endpoint.inflight or now - self._active_at < QUIET_AFTER
        self._interval = self._options.interval if busy else self._slower()
        metrics.updated_at = now
        metrics.interval = self._interval
        endpoint.refused = False
        self._datastore.observed(endpoint, metrics, asked_at)
        if self._failing:
            log.info("metrics of %s (%s) can be read again", endpoint.name, endpoint.hostport)
            self._failing = ""

    def _failed(self, reason: str, extraction: bool = False) -> None:
        self._interval = min(self._slower(), REFUSED_INTERVAL) if self._endpoint.refused else self._slower()
        if self._on_error is not None:
            self._on_error(self._endpoint, reason, extraction)
        if reason != self._failing:
            log.warning("metrics of %s (%s) cannot be read: %s", self._endpoint.name, self._endpoint.hostport, reason)
            self._failing = reason

    def _slower(self) -> float:
        """Twice the time until the next reading, up to the idle interval."""
        return max(self._options.interval, min(self._interval * 2, self._options.idle_interval))


def _finish(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)
