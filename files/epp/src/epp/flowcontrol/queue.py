# SPDX-License-Identifier: GPL-3.0-or-later
"""What waits: requests, the flows they belong to, and the bands of flows of one priority. Plain data structures."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from epp.flowcontrol.outcomes import Outcome
from epp.model import InferenceRequest

if TYPE_CHECKING:
    from epp.flowcontrol.api import BandOptions, Selector

SLACK = 16
"""Dead entries that a heap may carry besides as many as it has live ones."""


class FlowKey(NamedTuple):
    """What makes requests one flow."""

    fairness_id: str
    priority: int


@dataclass(slots=True, eq=False)
class Item:
    """One request on its way through flow control. Times are seconds of the clock that whoever drives it has."""

    request: InferenceRequest
    size: int
    """Bytes of the body, which count against the limits."""
    enqueued: float
    deadline: float
    """When its time to live ends while there are endpoints; infinity for never."""
    rank: float = 0.0
    """Its place in its flow: smaller goes first, equal ones as they came."""
    serial: int = 0
    outcome: Outcome | None = None
    """None while it waits. Set once."""
    flow: Flow | None = None

    @property
    def key(self) -> FlowKey:
        """The flow that it belongs to."""
        return FlowKey(self.request.fairness_id, self.request.priority)


class Flow:
    """The waiting requests of one flow in the order of the band's policy. What has been taken out of the middle stays
    in the heap as a dead entry until it comes up, or until there are too many of them."""

    __slots__ = ("_heap", "bytes", "idle_since", "key", "requests")

    def __init__(self, key: FlowKey, now: float) -> None:
        self.key = key
        self.requests = 0
        self.bytes = 0
        self.idle_since = now
        """Since when nothing waits; meaningless while something does."""
        self._heap: list[tuple[float, int, Item]] = []

    @property
    def head(self) -> Item | None:
        """Who goes next; None when nobody waits."""
        heap = self._heap
        while heap and heap[0][2].outcome is not None:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def add(self, item: Item) -> None:
        """One more."""
        heapq.heappush(self._heap, (item.rank, item.serial, item))
        self.requests += 1
        self.bytes += item.size

    def removed(self, item: Item, now: float) -> None:
        """One of them has got its outcome."""
        self.requests -= 1
        self.bytes -= item.size
        if not self.requests:
            self._heap.clear()
            self.idle_since = now
        elif len(self._heap) > 2 * self.requests + SLACK:
            self._heap = [entry for entry in self._heap if entry[2].outcome is None]
            heapq.heapify(self._heap)


@dataclass(slots=True, eq=False)
class Band:
    """All flows of one priority."""

    priority: int
    options: BandOptions
    selector: Selector
    kept: bool
    """It is configured (or the band of priority 0), and stays when it is idle."""
    idle_since: float
    flows: dict[str, Flow] = field(default_factory=dict)
    requests: int = 0
    bytes: int = 0

    def flow(self, key: FlowKey, now: float) -> Flow:
        """The flow of that key, made now unless it is there."""
        flow = self.flows.get(key.fairness_id)
        if flow is None:
            flow = self.flows[key.fairness_id] = Flow(key, now)
        return flow

    def collect(self, before: float, gone: Callable[[FlowKey], None]) -> None:
        """Forget flows that have been idle since ``before``."""
        for name, flow in list(self.flows.items()):
            if not flow.requests and flow.idle_since <= before:
                del self.flows[name]
                gone(flow.key)
