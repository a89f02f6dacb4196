# SPDX-License-Identifier: GPL-3.0-or-later
"""global-strict-fairness-policy: no fairness among flows: the whole band in the order of its ordering policy.

The default. No parameters. A flow that sends more gets more.
Source: llm-d-router policy of the same type.
"""

from __future__ import annotations

import heapq

from epp.flowcontrol.api import FairnessPolicy, Selector
from epp.flowcontrol.queue import Flow, Item

SLACK = 16


class GlobalStrictFairnessPolicy(FairnessPolicy):
    """As if there were one flow."""

    TYPE = "global-strict-fairness-policy"

    def selector(self) -> Selector:
        """See the module."""
        return _Heads()


class _Heads(Selector):
    """A heap of the flows' heads. What is no head any more is found out when it comes up."""

    def __init__(self) -> None:
        self._waiting: dict[Flow, None] = {}
        self._heap: list[tuple[float, int, Item, Flow]] = []

    def changed(self, flow: Flow) -> None:
        head = flow.head
        if head is None:
            self._waiting.pop(flow, None)
        else:
            self._waiting[flow] = None
            heapq.heappush(self._heap, (head.rank, head.serial, head, flow))
        if len(self._heap) > 2 * len(self._waiting) + SLACK:
            heads = ((flow.head, flow) for flow in self._waiting)
            self._heap = [(head.rank, head.serial, head, flow) for head, flow in heads if head is not None]
            heapq.heapify(self._heap)

    def pick(self, now: float) -> Flow | None:
        heap = self._heap
        while heap:
            _, _, item, flow = heap[0]
            if flow.head is item:
                return flow
            heapq.heappop(heap)
        return None
