# SPDX-License-Identifier: GPL-3.0-or-later
"""slo-deadline-ordering-policy: the request that must have its first token earliest goes first. No parameters.

Formula: deadline = arrival + the client's target for the time to first token (header ``x-llm-d-slo-ttft-ms``, or
``x-slo-ttft-ms``). A request without a target, or with one that is no positive number, goes after all that have one;
requests with equal deadlines, or without, go by arrival.
Source: llm-d-router policy of the same type.
"""

from __future__ import annotations

from epp.flowcontrol.api import OrderingPolicy
from epp.flowcontrol.queue import Item
from epp.plugins.slo import TTFT, target


class SloDeadlineOrderingPolicy(OrderingPolicy):
    """By when the first token is wanted."""

    TYPE = "slo-deadline-ordering-policy"

    def rank(self, item: Item) -> float:
        """See the module."""
        return item.enqueued + target(item.request.headers, TTFT) / 1000.0
