# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads every endpoint's metrics, often while there is traffic and seldom while there is none.

How often an endpoint is read:

* it has requests, its own metrics say so, or it had some a moment ago: every ``interval``
  (``--refresh-metrics-interval``, 50 ms); if there are so many of them that this would be more than READS_BUSY a
  second, that many, and at least every FRESH seconds. What is sent between two readings is known to the picker all the
  same (``load``);
* it is idle in a pool that has traffic: every FRESH seconds;
* the pool is idle: every ``idle_interval`` (1 s), or at READS_IDLE a second, and at least every LONGEST seconds. The
  first request wakes all.

Of a pool with traffic, no more than READS_MOST pages a second are read, however many endpoints it has: from 1 600
endpoints on FRESH becomes longer, and is 2.5 s with 5 000.

An endpoint that has no metrics (its engine's label says so, or its server has no such page) is no worse for it: the
requests in flight stand in, and it counts neither as late nor as dead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from epp.datalayer.exposition import SCAN_SECONDS, PageReader
from epp.datalayer.http import ClientTls, Closed, GetClient, HttpError, NoPage, Refused, late
from epp.datalayer.mapping import Mapper, NoMetrics, Place
from epp.datalayer.store import Datastore
from epp.model import Endpoint, EndpointMetrics

log = logging.getLogger(__name__)

QUIET_AFTER = 2.0
"""Seconds without a request, with nothing queued or running, after which an endpoint (or a pool) counts as idle."""

FRESH = 0.8
"""Seconds between two readings of an endpoint that is idle itself in a pool that has traffic: with the time that a
reading takes, no decision under load sees a metric that is older than a second."""

READS_BUSY = 500.0
READS_IDLE = 100.0
"""Readings a second of all busy, and of all idle endpoints of a pool together. More endpoints are read less often each:
busy ones at least every FRESH, idle ones at least every LONGEST seconds."""

LONGEST = 5.0

READS_MOST = 2000.0
"""Readings a second of a pool with traffic. A reading takes as long as a tenth of a decision, and decisions wait for
it: a picker of thousands of endpoints would do little else. What it does not read it knows in part all the same, from
what it has sent."""

READS_SPARE = 1.3
AT_ONCE = 32
"""Whatever has come together (a process that stood still, a pool that has just been found), no more readings begin a
second than the first of these times READS_MOST, but for so many at once: a request must not wait behind thousands of
readings."""

JUST_NOW = 0.01
"""Seconds for which an endpoint that was sent a request need not be woken again."""

REFUSED_INTERVAL = 0.25
"""Seconds between two readings of an endpoint where nobody listens: it gets no request until somebody does."""


@dataclass(frozen=True)
class ScrapeOptions:
    """How metrics are read. Times are seconds."""

    interval: float = 0.05
    """Between two readings of an endpoint that has traffic (flag refresh-metrics-interval)."""
    idle_interval: float = 1.0
    """Between two readings of an endpoint in a pool that has had none for a while."""
    timeout: float = 1.0
    scheme: str = "http"
    path: str = ""
    """Empty is the engine's own."""
    port: int | None = None
    """0 is the endpoint's own, None the engine's."""
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    enabled: bool = True
    """False reads nothing: in-flight load stands in for metrics."""
    mapper: Mapper = field(default_factory=Mapper)

    def places(self, endpoint: Endpoint) -> list[Place]:
        """Where to look for the metrics of an endpoint, first guess first."""
        places = self.mapper.engine(endpoint.labels).places
        own = [Place(self.path or place.path, self.port if self.port is not None else place.port) for place in places]
        return list(dict.fromkeys(own))

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context for scheme https. Raises OSError for files that cannot be used."""
        return ClientTls(
            self.scheme, self.insecure_skip_verify, self.ca_cert_path, self.client_cert_path, self.client_key_path
        ).context()


class Scraper:
    """Keeps the metrics of all endpoints of a datastore fresh."""

    def __init__(
        self,
        datastore: Datastore,
        options: ScrapeOptions,
        on_error: Callable[[Endpoint, str, bool], None] | None = None,
    ) -> None:
        """``on_error`` is told of each reading that failed: the reason, and whether there was a page (of no use)."""
        self.datastore = datastore
        self.options = options
        self.tls = options.tls()
        self.pace = Pace(options)
        self._on_error = on_error
        self._failed: list[Callable[[Endpoint], None]] = []
        self._readers: dict[Endpoint, _Reader] = {}
        self._asked: deque[tuple[float, _Reader]] = deque()
        """When readings were asked for, the oldest first."""
        self.answered = False
        """Some endpoint has answered: from here they can be reached, and where one refuses, nobody listens."""
        self._loop: asyncio.AbstractEventLoop | None = None
        datastore.on_added(self._add)
        datastore.on_removed(self._remove)
        datastore.on_acquired(self._wake)

    def on_failed(self, callback: Callable[[Endpoint], None]) -> None:
        """Call ``callback`` after each reading that failed, when the endpoint shows what that means."""
        self._failed.append(callback)

    async def run(self) -> None:
        """Read until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            for endpoint in self.datastore.endpoints():
                self._add(endpoint)
            limit = self.options.timeout
            while True:
                await asyncio.sleep(limit / 4)
                then = time.monotonic() - limit
                while self._asked and self._asked[0][0] <= then:
                    asked_at, reader = self._asked.popleft()
                    reader.late(asked_at)
        finally:
            self._loop = None
            for endpoint in list(self._readers):
                self._remove(endpoint)
            self._asked.clear()

    def asked(self, reader: _Reader, at: float) -> None:
        """A reading was asked for, and must not take for ever; for readers."""
        self._asked.append((at, reader))

    def reached(self) -> None:
        """An endpoint has answered, whatever it said; for readers."""
        if not self.answered:
            self.answered = True
            for reader in self._readers.values():
                reader.doubt()

    def failed(self, endpoint: Endpoint, reason: str, extraction: bool) -> None:
        """A reading failed; for readers."""
        if self._on_error is not None:
            self._on_error(endpoint, reason, extraction)
        for callback in self._failed:
            callback(endpoint)

    def _add(self, endpoint: Endpoint) -> None:
        if self._loop is None or endpoint in self._readers:
            return
        mapper = self.options.mapper
        if not self.options.enabled or not mapper.engine(endpoint.labels).is_read():
            endpoint.unmetered = True
            return
        if (name := mapper.named(endpoint.labels)) and name not in mapper.engines:
            known = ", ".join(sorted(mapper.engines))
            log.warning(
                "%s is labelled with the unknown engine %r and read as %s; known are %s; see engineConfigs of "
                "core-metrics-extractor",
                endpoint.name,
                name,
                mapper.default,
                known,
            )
        reader = _Reader(self, endpoint, self._loop)
        self._readers[endpoint] = reader
        self.pace.endpoints = len(self._readers)
        reader.begin()

    def _remove(self, endpoint: Endpoint) -> None:
        reader = self._readers.pop(endpoint, None)
        if reader is not None:
            self.pace.endpoints = len(self._readers)
            self.pace.cool(endpoint)
            reader.stop()

    def _wake(self, endpoint: Endpoint) -> None:
        now = time.monotonic()
        reader_here = self._readers.get(endpoint)
        if reader_here is not None and now - reader_here.active_at < JUST_NOW:
            self.pace.active_at = now
            return
        was_idle = self.pace.idle(now)
        self.pace.active_at = now
        if was_idle:
            # Everybody's metrics are wanted now, though not in one burst.
            spread = min(fresh(len(self._readers)), len(self._readers) / READS_BUSY)
            for reader in self._readers.values():
                reader.hasten(random.uniform(0.0, spread))
        if reader_here is not None:
            reader_here.wake(now)


def fresh(endpoints: int) -> float:
    """Seconds between two readings of each of so many endpoints of a pool that has traffic."""
    return max(FRESH, endpoints / READS_MOST)


class Pace:
    """How often the endpoints of one pool are read. Times are monotonic seconds."""

    def __init__(self, options: ScrapeOptions) -> None:
        self._options = options
        self._hot: set[Endpoint] = set()
        self.endpoints = 0
        """How many are read."""
        self.active_at = -QUIET_AFTER
        """When the last request went to any of them."""
        self._next = 0.0
        """When the next reading would begin if there were none at once."""

    def idle(self, now: float) -> bool:
        """The pool has had no request for a while."""
        return now - self.active_at >= QUIET_AFTER

    def turn(self, now: float) -> float:
        """Seconds until a reading that is due may begin; it counts as begun then."""
        gap = 1.0 / (READS_MOST * READS_SPARE)
        self._next = max(self._next, now - AT_ONCE * gap) + gap
        wait = self._next - now
        return wait if wait > gap / 2 else 0.0  # not for what sums of gaps are off by

    def hot(self, endpoint: Endpoint) -> float:
        """Seconds until the next reading of an endpoint that has traffic."""
        self._hot.add(endpoint)
        return max(self._options.interval, min(len(self._hot) / READS_BUSY, fresh(self.endpoints)))

    def cool(self, endpoint: Endpoint) -> None:
        """This one has none any more."""
        self._hot.discard(endpoint)

    def quiet(self, now: float) -> float:
        """Seconds until the next reading of an endpoint that has none."""
        longest = max(self._options.idle_interval, min(self.endpoints / READS_IDLE, LONGEST))
        return max(self._options.interval, longest if self.idle(now) else min(longest, fresh(self.endpoints)))


class _Reader:
    """Reads one endpoint: a timer begins a reading, and its end sets the timer.

    Callbacks and no task: thousands of readings a second are what a picker of many endpoints does most.
    """

    def __init__(self, scraper: Scraper, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._scraper, self._endpoint, self._options, self._loop = scraper, endpoint, scraper.options, loop
        self._places = scraper.options.places(endpoint)
        self._client = self._connect()
        self._pages = PageReader()
        self._page: tuple[bytes, Mapping[str, str]] = (b"", {})
        """The last page that was looked into, and the labels by which its engine was known."""
        self._look_again_at = 0.0
        """A page that says the same is looked into all the same from then on: not every look is at the whole page."""
        self._interval = scraper.options.interval
        self.active_at = time.monotonic()
        """When a request went there for the last time, or somewhat before."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        """When the timer fires, by the loop's clock; uvloop's handles cannot say it when the delay was 0."""
        self._failing = ""
        self._lacking: set[str] = set()
        self._asked_at = 0.0
        """When the reading began whose answer is waited for; 0.0 while none is."""
        self._task: asyncio.Task[None] | None = None
        """Opens a connection."""
        self._stopped = False

    def _connect(self) -> GetClient:
        place, endpoint = self._places[0], self._endpoint
        return GetClient(endpoint.address, place.port or endpoint.port, place.path, self._scraper.tls)

    def wake(self, now: float) -> None:
        """There is traffic: read at the full rate from now on."""
        self.active_at = now
        interval = self._scraper.pace.hot(self._endpoint)
        if self._interval > interval:
            self._interval = interval
            self.hasten(0.0)

    def hasten(self, delay: float) -> None:
        """Read after at most so many seconds."""
        timer = self._timer
        if timer is None:
            return
        due = self._loop.time() + delay
        if self._due > due:
            timer.cancel()
            self._timer, self._due = self._loop.call_later(delay, self.begin), due

    def doubt(self) -> None:
        """If it could not be read, look again: a refusal says more now than it did."""
        if self._failing:
            self._interval = self._options.interval
            self.hasten(0.0)

    def begin(self) -> None:
        """Read, now or when it is its turn. The first reading is at once, so that a new endpoint is judged by what it
        says."""
        wait = self._scraper.pace.turn(time.monotonic())
        if wait > 0.0:
            self._timer, self._due = self._loop.call_later(wait, self._begin), self._loop.time() + wait
        else:
            self._begin()

    def _begin(self) -> None:
        self._timer = None
        self._asked_at = time.monotonic()
        if self._client.ask(self._told):
            self._scraper.asked(self, self._asked_at)
        else:
            self._task = self._loop.create_task(self._open(), name=f"scrape {self._endpoint.hostport}")

    def late(self, asked_at: float) -> None:
        """The answer to the reading that began then should be here."""
        if asked_at == self._asked_at and self._task is None:
            self._client.close()
            self._told(late(self._options.timeout))

    def stop(self) -> None:
        """Read no more."""
        self._stopped, self._asked_at = True, 0.0
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._client.close()

    async def _open(self) -> None:
        """Read over a connection that is yet to be opened."""
        try:
            outcome: bytes | Exception = await self._client.get(self._options.timeout)
        except Exception as error:
            outcome = error
        self._task = None
        self._told(outcome)

    def _told(self, outcome: bytes | Exception) -> None:
        """The answer is here."""
        if isinstance(outcome, Closed):
            self._task = self._loop.create_task(self._open(), name=f"scrape {self._endpoint.hostport}")
            return
        asked_at, self._asked_at = self._asked_at, 0.0
        try:
            self._read(outcome, asked_at)
        finally:
            if not self._stopped:
                # Spread, so that many endpoints are not read in one burst.
                delay = self._interval * random.uniform(0.9, 1.1)
                self._timer, self._due = self._loop.call_later(delay, self.begin), self._loop.time() + delay

    def _read(self, page: bytes | Exception, asked_at: float) -> None:
        endpoint = self._endpoint
        try:
            if isinstance(page, Exception):
                raise page
            if asked_at < self._look_again_at and (page, endpoint.labels) == self._page:
                metrics = endpoint.metrics.copy()
            else:
                self._pages.turn(page, asked_at)
                metrics = self._options.mapper.read(page, endpoint.labels, endpoint.metrics, self._pages)
                self._page, self._look_again_at = (page, endpoint.labels), asked_at + SCAN_SECONDS
        except (HttpError, NoMetrics) as error:
            self._failed(error)
            return
        except Exception as error:
            # A page must never end the reading of an endpoint, whatever is on it.
            log.exception("reading the metrics of %s went wrong", endpoint.name)
            self._slow_down(f"{type(error).__name__}: {error}", False)
            return
        self._scraper.reached()
        now, pace = time.monotonic(), self._scraper.pace
        if metrics.waiting or metrics.running or endpoint.inflight or now - self.active_at < QUIET_AFTER:
            self._interval = pace.hot(endpoint)
        else:
            pace.cool(endpoint)
            self._interval = min(self._interval * 2, pace.quiet(now))
        metrics.updated_at = now
        metrics.interval = self._interval
        endpoint.refused = endpoint.unmetered = False
        self._scraper.datastore.observed(endpoint, metrics, asked_at)
        self._check_custom(metrics)
        if self._failing:
            log.info("metrics of %s (%s) can be read again", endpoint.name, endpoint.hostport)
            self._failing = ""

    def _check_custom(self, metrics: EndpointMetrics) -> None:
        engine = self._options.mapper.engine(self._endpoint.labels)
        if not engine.custom:
            return
        lacking = {each.key for each in engine.custom if not each.optional and each.key not in metrics.custom}
        if lacking:
            names = ", ".join(sorted(lacking))
            self._scraper.failed(self._endpoint, f"the page has no metric for {names}", True)
            if lacking != self._lacking:
                log.warning("metrics of %s have none for the customMetrics %s", self._endpoint.name, names)
        self._lacking = lacking

    def _failed(self, error: HttpError | NoMetrics) -> None:
        """No figures: nobody is there, or a server that has none, or trouble that may pass."""
        endpoint, place = self._endpoint, self._places[0]
        # Metrics on a port of their own say nothing of the port that serves.
        own = place.port in (0, endpoint.port)
        endpoint.refused = own and isinstance(error, Refused) and self._scraper.answered
        self._scraper.datastore.changed(endpoint)
        if isinstance(error, NoPage | NoMetrics):
            self._scraper.reached()
            if endpoint.metrics.updated_at == 0.0:
                endpoint.unmetered = True
        if len(self._places) > 1 and endpoint.metrics.updated_at == 0.0:
            self._client.close()
            self._places.append(self._places.pop(0))
            self._client = self._connect()
        self._slow_down(str(error), isinstance(error, NoMetrics))

    def _slow_down(self, reason: str, extraction: bool) -> None:
        endpoint, pace = self._endpoint, self._scraper.pace
        pace.cool(endpoint)
        slower = max(self._options.interval, min(self._interval * 2, pace.quiet(time.monotonic())))
        self._interval = min(slower, REFUSED_INTERVAL) if endpoint.refused else slower
        self._scraper.failed(endpoint, reason, extraction)
        if reason == self._failing:
            return
        self._failing = reason
        log.warning("metrics of %s (%s) cannot be read: %s", endpoint.name, endpoint.hostport, reason)
        if endpoint.unmetered:
            log.info(
                "%s: the requests in flight stand in for its metrics; the label llm-d.ai/engine-type=none on its pod "
                "says that it has none",
                endpoint.name,
            )
