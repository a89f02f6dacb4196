# SPDX-License-Identifier: GPL-3.0-or-later
"""Drives the core in an event loop: lets requests wait, dispatches when something has changed, keeps time.

There is a reason to look whether somebody may go when a request comes, when one ends, when metrics have been read, and
when endpoints come; each looks at once. Some reasons are only the passing of time (metrics that turn stale, policies
that open now and then), so while somebody waits it is looked every few milliseconds, too.

A request is scheduled in the same turn in which it is dispatched, so that the next look at the saturation sees it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from epp.flowcontrol.api import Options, Victim
from epp.flowcontrol.core import FlowControl
from epp.flowcontrol.eviction import InFlight
from epp.flowcontrol.outcomes import Outcome, evicted, refusal
from epp.flowcontrol.queue import FlowKey, Item
from epp.flowcontrol.saturation import Saturation
from epp.model import Endpoint, InferenceRequest, Rejection, reachable

log = logging.getLogger(__name__)

TICK = 0.01
"""Seconds between two looks while somebody waits and nothing happens."""
AT_A_TIME = 32
"""Dispatches before the event loop gets its turn."""
COLLECT = 60.0
"""Seconds between two searches for idle flows."""
NOT_YET = "NotYetFinalized"
"""What the metric of letting requests in says of one that waits."""


class Pool(Protocol):
    """The endpoints; see ``epp.datalayer``."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that may serve now."""


class Series(Protocol):
    """Where one request is counted; see ``epp.observe``."""

    def queued(self, size: int) -> None:
        """It waits from now on."""

    def left(self, size: int) -> None:
        """It waits no more."""

    def enqueued(self, outcome: str, seconds: float) -> None:
        """It has been let in, or refused."""

    def finished(self, outcome: str, seconds: float) -> None:
        """It has got its outcome."""


class Recorder(Protocol):
    """Metrics; see ``epp.observe``."""

    def series(self, request: InferenceRequest) -> Series:
        """Where to count a request."""

    def cycle(self, seconds: float) -> None:
        """One look."""

    def revoked(self, request: InferenceRequest) -> None:
        """A request in flight has been given up."""

    def gone(self, fairness_id: str, priority: int) -> None:
        """A flow has been forgotten."""


class Routable[T](Protocol):
    """A request that wants an endpoint."""

    request: InferenceRequest

    def grant(self) -> T:
        """Send it to an endpoint now. Raises whatever keeps it from going."""

    def refused(self, code: str) -> None:
        """It will never be granted; ``code`` says why, for the metrics."""


class Evictable(Protocol):
    """A request that has been sent to an endpoint."""

    request: InferenceRequest

    def evict(self, rejection: Rejection) -> None:
        """Give it up: its client is told this, its endpoint is let go."""


@dataclass(slots=True, eq=False)
class _Pending[T](Item):
    """A request in the queue, and what is to be done when its turn comes."""

    routable: Routable[T] | None = None
    series: Series | None = None
    future: asyncio.Future[T] | None = None
    """Who waits for it; None until it is clear that it has to wait."""
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class _Dispatched(Victim):
    evictable: Evictable | None = None


class FlowController[T]:
    """Flow control of one pool. Belongs to one event loop."""

    def __init__(
        self,
        options: Options,
        pool: Pool,
        saturation: Saturation,
        recorder: Recorder,
        watchdog: AbstractContextManager[None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``watchdog`` is entered while requests are granted in a turn of their own; see ``epp.extproc``."""
        self._clock = clock
        self._pool, self._saturation, self._recorder = pool, saturation, recorder
        self._watchdog = watchdog or nullcontext()
        self.core = FlowControl(options, clock(), self._flow_gone)
        self._in_flight: InFlight[_Dispatched] | None = None
        if options.eviction is not None:
            self._in_flight = InFlight(options.eviction, saturation.lag)
        self._victims: dict[Evictable, _Dispatched] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        """A look is due in the next turn."""
        self._collected = clock()

    def submit(self, routable: Routable[T]) -> T | asyncio.Future[T]:
        """Grant a request now, or return a future that is done when it has been granted or refused.

        Raises Rejection when it may not wait, and whatever granting it raises. A future that is cancelled takes the
        request out of the queue.
        """
        started, now = time.perf_counter(), self._clock()
        request = routable.request
        series = self._recorder.series(request)
        item: _Pending[T] = _Pending(request, request.size, now, self.core.deadline(now))
        item.routable, item.series = routable, series
        self._look_at_pool(now)
        outcome = self.core.enqueue(item, now)
        series.enqueued(NOT_YET if outcome is None else outcome, time.perf_counter() - started)
        if outcome is not None:
            rejection = refusal(outcome, self.core.closed)
            series.finished(outcome, self._clock() - now)
            routable.refused(rejection.code)
            raise rejection
        series.queued(item.size)
        self._dispatch()
        if item.outcome is None:
            return self._wait(item)
        if item.error is not None:
            raise item.error
        result: T = item.result
        return result

    def dispatched(self, evictable: Evictable) -> None:
        """A request has been sent to an endpoint."""
        if self._in_flight is not None:
            victim = _Dispatched(evictable.request, self._clock(), evictable)
            self._victims[evictable] = victim
            self._in_flight.add(victim)

    def ended(self, evictable: Evictable) -> None:
        """It has ended, in whatever way."""
        if self._in_flight is not None:
            self._in_flight.remove(self._victims.pop(evictable, None))
        self.wake()

    def wake(self) -> None:
        """Something has changed: look soon whether somebody may go. Costs nothing while nobody waits."""
        if self.core.requests and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._turn)

    def close(self) -> int:
        """Refuse everybody who waits or comes, because the process ends; returns how many waited."""
        now = self._clock()
        waiting = self.core.close(now)
        for item in waiting:
            self._refuse(item, refusal(Outcome.EVICTED_OTHER, shutting_down=True), now)
        self._disarm()
        return len(waiting)

    def _wait(self, item: _Pending[T]) -> asyncio.Future[T]:
        item.future = asyncio.get_running_loop().create_future()
        item.future.add_done_callback(lambda future: self._cancelled(item) if future.cancelled() else None)
        self._arm()
        return item.future

    def _cancelled(self, item: _Pending[T]) -> None:
        """Whoever waited has left."""
        now = self._clock()
        if self.core.cancel(item, Outcome.EVICTED_CONTEXT_CANCELLED, now):
            self._refuse(item, refusal(Outcome.EVICTED_CONTEXT_CANCELLED), now)

    def _turn(self) -> None:
        """Look, in a turn of the event loop of its own."""
        self._soon = False
        now = self._clock()
        self._look_at_pool(now)
        for item in self.core.expire(now):
            self._refuse(item, refusal(_outcome(item)), now)
        self._dispatch()
        if now - self._collected >= COLLECT:
            self._collected = now
            self.core.collect(now)
        self._arm()

    def _dispatch(self) -> None:
        """Grant whoever may go. Who is left when there are too many for one turn has the next one."""
        for _ in range(AT_A_TIME):
            started = time.perf_counter()
            again = self._one()
            self._recorder.cycle(time.perf_counter() - started)
            if not again:
                return
        self.wake()

    def _one(self) -> bool:
        """Grant one request, or make room for one; False when there is nothing more to do now."""
        endpoints = reachable(self._pool.endpoints())
        if not endpoints or not self.core.requests:
            return False
        now = self._clock()
        item = self.core.next(self._saturation.effective(endpoints), now)
        if isinstance(item, _Pending):
            if item.future is not None and item.future.cancelled():  # and its callback is still to come
                item.outcome = Outcome.EVICTED_CONTEXT_CANCELLED
                self._refuse(item, refusal(item.outcome), now)
            else:
                self._grant(item, now)
            return True
        blocked = self.core.blocked
        if blocked is None or self._in_flight is None:
            return False
        victims = self._in_flight.make_room(blocked, now)
        for victim in victims:
            self._evict(victim)
        return bool(victims) and self._saturation.lag == 0.0

    def _grant(self, item: _Pending[T], now: float) -> None:
        assert item.routable is not None
        self._left(item, now)
        routable, item.routable = item.routable, None
        try:
            with self._watchdog:
                item.result = routable.grant()
        except BaseException as error:  # whatever it is concerns this request, and not the one whose turn this is
            item.error = error
        if item.future is None:
            return
        if item.error is not None:
            item.future.set_exception(item.error)
        else:
            item.future.set_result(item.result)

    def _evict(self, victim: _Dispatched) -> None:
        assert victim.evictable is not None
        log.info("request %s makes room for a more urgent one", victim.request.request_id)
        self._recorder.revoked(victim.request)
        victim.evictable.evict(evicted())

    def _refuse(self, item: Item, rejection: Rejection, now: float) -> None:
        assert isinstance(item, _Pending)
        assert item.routable is not None
        self._left(item, now)
        item.request.prompt = b""  # the item may stand in a heap for a while
        routable, item.routable = item.routable, None
        routable.refused(rejection.code)
        if item.future is not None and not item.future.done():
            item.future.set_exception(rejection)

    def _left(self, item: _Pending[T], now: float) -> None:
        assert item.series is not None
        item.series.left(item.size)
        item.series.finished(_outcome(item), now - item.enqueued)

    def _look_at_pool(self, now: float) -> None:
        self.core.pool(not reachable(self._pool.endpoints()), now)

    def _arm(self) -> None:
        """See to it that it is looked again in time."""
        self._disarm()
        if self.core.requests:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._turn)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flow_gone(self, key: FlowKey) -> None:
        self._recorder.gone(key.fairness_id, key.priority)


def _outcome(item: Item) -> Outcome:
    assert item.outcome is not None
    return item.outcome
