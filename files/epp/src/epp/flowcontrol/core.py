# SPDX-License-Identifier: GPL-3.0-or-later
"""Who waits, who goes next, whose time is over. Knows no clock, no endpoints, no tasks: all that is told or asked.

Bands are strictly ordered by priority. Before each dispatch the usage limit policy sets a ceiling for each band. The
first band from the top whose ceiling does not lie above the saturation stops itself and all below it: less urgent
requests must not fill up what more urgent ones wait for. In the first band that may go and has somebody who waits, the
fairness policy picks the flow; in the flow, the ordering policy has put somebody first.

A request gets exactly one outcome. Its time to live counts while there are endpoints, from when it came or, if that was
later, from when endpoints came; while there are none another one counts, from when it came: requests that have waited
for the first endpoint are not given up the moment it is there.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from epp.flowcontrol.api import BandOptions, Options
from epp.flowcontrol.outcomes import Outcome
from epp.flowcontrol.queue import Band, FlowKey, Item
from epp.scheduling.profile import Failures


@dataclass(frozen=True, slots=True)
class Blocked:
    """A band that may not dispatch although somebody waits in it."""

    priority: int
    requests: int


class FlowControl:
    """The queue of one pool."""

    def __init__(self, options: Options, now: float, gone: Callable[[FlowKey], None] = lambda key: None) -> None:
        """``gone`` is told of each flow that is forgotten."""
        self.options = options
        self.requests = 0
        """Requests that wait."""
        self.bytes = 0
        """Bytes of their bodies."""
        self.blocked: Blocked | None = None
        """What the last :meth:`next` found that may not go; the most urgent one."""
        self.closed = False
        self._gone = gone
        self._failures = Failures()
        self._serial = 0
        self._bands: dict[int, Band] = {}
        self._priorities: tuple[int, ...] = ()
        self._arrivals: OrderedDict[int, Item] = OrderedDict()
        """Who waits, by serial number, which is the order in which they came."""
        self._empty = True
        self._filled_at = now
        for priority in {*options.bands, 0}:
            self._open_band(priority, now, kept=True)

    @property
    def bands(self) -> Sequence[Band]:
        """All bands, the most urgent first."""
        return [self._bands[priority] for priority in self._priorities]

    def pool(self, empty: bool, now: float) -> None:
        """Say whether the pool has no endpoints; to be said before anything else is asked at that moment."""
        if self._empty and not empty:
            self._filled_at = now
        self._empty = empty

    def deadline(self, now: float) -> float:
        """The deadline of a request that comes now."""
        return now + self.options.request_ttl if self.options.request_ttl else math.inf

    def enqueue(self, item: Item, now: float) -> Outcome | None:
        """Let a request wait; its outcome if it may not."""
        if self.closed:
            item.outcome = Outcome.REJECTED_OTHER
            return item.outcome
        key = item.key
        band = self._bands.get(key.priority) or self._open_band(key.priority, now)
        if not self._has_room(band, item.size):
            item.outcome = Outcome.REJECTED_NO_ENDPOINTS if self._empty else Outcome.REJECTED_CAPACITY
            return item.outcome
        self._serial += 1
        item.serial = self._serial
        item.rank = self._rank(band, item)
        item.flow = flow = band.flow(key, now)
        head = flow.head
        flow.add(item)
        self._count(band, 1, item.size)
        self._arrivals[item.serial] = item
        if flow.head is not head:
            band.selector.changed(flow)
        return None

    def next(self, saturation: float, now: float) -> Item | None:
        """Take out the request that goes to an endpoint now; None when nobody may, or nobody waits."""
        self.blocked = None
        ceilings = self._ceilings(saturation)
        for index, priority in enumerate(self._priorities):
            if saturation >= ceilings[index]:
                self._note_blocked(index)
                return None
            band = self._bands[priority]
            if band.requests:
                item = self._pick(band, now)
                self._finish(item, Outcome.DISPATCHED, now)
                try:
                    band.options.fairness.dispatched(item, now)
                except Exception:
                    self._failures.report(band.options.fairness, "it does not learn of this request")
                return item
        return None

    def cancel(self, item: Item, outcome: Outcome, now: float) -> bool:
        """Take out a request whose client has left, or that cannot be served; False if it waits no more."""
        if item.outcome is not None:
            return False
        self._finish(item, outcome, now)
        return True

    def expire(self, now: float) -> list[Item]:
        """Take out all requests whose time is over, each with its outcome."""
        expired = []
        outcome = Outcome.EVICTED_NO_ENDPOINTS if self._empty else Outcome.EVICTED_TTL
        while (item := self._oldest()) is not None and self._expiry(item) <= now:
            self._finish(item, outcome, now)
            expired.append(item)
        return expired

    def collect(self, now: float) -> None:
        """Forget flows and bands that have been idle for long."""
        for band in list(self._bands.values()):
            had = bool(band.flows)
            band.collect(now - self.options.flow_gc, self._gone)
            if had and not band.flows:
                band.idle_since = now
            elif not band.flows and not band.kept and band.idle_since <= now - self.options.band_gc:
                del self._bands[band.priority]
                self._sort()

    def close(self, now: float) -> list[Item]:
        """Take out everybody, and refuse whoever comes after."""
        self.closed = True
        waiting = list(self._arrivals.values())
        for item in waiting:
            self._finish(item, Outcome.EVICTED_OTHER, now)
        return waiting

    def _open_band(self, priority: int, now: float, kept: bool = False) -> Band:
        options = self._band_options(priority)
        band = Band(priority, options, options.fairness.selector(), kept, now)
        self._bands[priority] = band
        self._sort()
        return band

    def _band_options(self, priority: int) -> BandOptions:
        options = self.options
        if priority in options.bands:
            return options.bands[priority]
        if priority < 0 and options.negative_band is not None:
            return options.negative_band
        return options.default_band

    def _sort(self) -> None:
        self._priorities = tuple(sorted(self._bands, reverse=True))

    def _has_room(self, band: Band, size: int) -> bool:
        return (
            _fits(self.requests + 1, self.options.max_requests)
            and _fits(self.bytes + size, self.options.max_bytes)
            and _fits(band.requests + 1, band.options.max_requests)
            and _fits(band.bytes + size, band.options.max_bytes)
        )

    def _count(self, band: Band, requests: int, size: int) -> None:
        self.requests += requests
        self.bytes += size
        band.requests += requests
        band.bytes += size

    def _finish(self, item: Item, outcome: Outcome, now: float) -> None:
        """Give a waiting request its outcome, and take it out of everything."""
        flow = item.flow
        assert flow is not None
        was_head = flow.head is item
        item.outcome, item.flow = outcome, None
        del self._arrivals[item.serial]
        flow.removed(item, now)
        band = self._bands[flow.key.priority]
        self._count(band, -1, -item.size)
        if was_head:
            band.selector.changed(flow)

    def _pick(self, band: Band, now: float) -> Item:
        try:
            flow = band.selector.pick(now)
            if flow is not None and (item := flow.head) is not None:
                return item
            raise ValueError("it picked no flow that waits")
        except Exception:
            self._failures.report(band.options.fairness, "whoever has waited longest goes next")
            heads = (flow.head for flow in band.flows.values())
            return min((head for head in heads if head is not None), key=lambda item: item.serial)

    def _rank(self, band: Band, item: Item) -> float:
        try:
            rank = float(band.options.ordering.rank(item))
            if rank == rank:  # what is no number would break the heap's order
                return rank
            raise ValueError("its rank is not a number")
        except Exception:
            self._failures.report(band.options.ordering, "the request is placed by its arrival")
            return item.enqueued

    def _ceilings(self, saturation: float) -> Sequence[float]:
        policy = self.options.usage_limit
        try:
            ceilings = policy.ceilings(saturation, self._priorities)
            if len(ceilings) == len(self._priorities):
                return ceilings
            raise ValueError(f"{len(ceilings)} ceilings for {len(self._priorities)} bands")
        except Exception:
            self._failures.report(policy, "every band may use all of the pool")
            return [1.0] * len(self._priorities)

    def _note_blocked(self, index: int) -> None:
        for priority in self._priorities[index:]:
            band = self._bands[priority]
            if band.requests:
                self.blocked = Blocked(priority, band.requests)
                return

    def _oldest(self) -> Item | None:
        return next(iter(self._arrivals.values()), None)

    def _expiry(self, item: Item) -> float:
        """Never decreases from one arrival to the next, so that the oldest one says it for all."""
        if self._empty:
            ttl = self.options.no_endpoint_ttl
            return item.enqueued + ttl if ttl else math.inf
        return max(item.deadline, self._filled_at + self.options.request_ttl)


def _fits(value: int, limit: int) -> bool:
    return not limit or value <= limit
