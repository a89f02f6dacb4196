# SPDX-License-Identifier: GPL-3.0-or-later
"""Which dispatched requests make room for more urgent ones that wait. Knows no clock and no streams.

A request is given up only for one of higher priority, and only a few until the saturation can have shown the effect: a
detector that reads metrics needs a while to notice that a request has ended.
"""

from __future__ import annotations

import heapq
from typing import Any

from epp.flowcontrol.api import EvictionOptions, Victim
from epp.flowcontrol.core import Blocked
from epp.scheduling.profile import Failures

AT_ONCE = 2
"""Requests given up before the effect is waited for."""
SLACK = 16


class InFlight[V: Victim]:
    """The dispatched requests that may be given up."""

    def __init__(self, options: EvictionOptions, lag: float) -> None:
        """``lag`` is how many seconds the saturation needs to show that a request has ended."""
        self._options, self._lag = options, lag
        self._victims: dict[V, None] = {}
        self._heap: list[tuple[tuple[float, ...], int, V]] = []
        self._serial = 0
        self._window_ends = 0.0
        self._given_up = 0
        """Requests given up in this window, whose effect need not show yet."""
        self._failures = Failures()

    def __len__(self) -> int:
        return len(self._victims)

    def add(self, victim: V) -> None:
        """A request has been dispatched; it is remembered if it may be given up."""
        try:
            if not self._options.filter.evictable(victim.request):
                return
            rank = self._options.order.rank(victim)
        except Exception:
            self._failures.report(self._options.filter, "the request is not given up")
            return
        self._serial += 1
        self._victims[victim] = None
        heapq.heappush(self._heap, (rank, -self._serial, victim))  # among equals the newest first

    def remove(self, victim: V | None) -> None:
        """It has ended. One that was not remembered is as good as none."""
        if victim is not None:
            self._victims.pop(victim, None)
        if len(self._heap) > 2 * len(self._victims) + SLACK:
            self._heap = [entry for entry in self._heap if entry[2] in self._victims]
            heapq.heapify(self._heap)

    def make_room(self, blocked: Blocked, now: float) -> list[V]:
        """Take out those that are to be given up now for a band that may not dispatch; often none."""
        if now >= self._window_ends:
            self._given_up = 0
        chosen: list[V] = []
        while self._given_up < min(AT_ONCE, blocked.requests) and (victim := self._next()) is not None:
            if victim.request.priority >= blocked.priority:
                break
            heapq.heappop(self._heap)
            del self._victims[victim]
            chosen.append(victim)
            if not self._given_up:
                self._window_ends = now + self._lag
            self._given_up += 1
        return chosen

    def _next(self) -> V | None:
        heap: list[tuple[Any, int, V]] = self._heap
        while heap and heap[0][2] not in self._victims:
            heapq.heappop(heap)
        return heap[0][2] if heap else None
