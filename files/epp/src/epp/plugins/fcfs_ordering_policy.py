# SPDX-License-Identifier: GPL-3.0-or-later
"""fcfs-ordering-policy: first come, first served. The default. No parameters.

Source: llm-d-router policy of the same type.
"""

from __future__ import annotations

from epp.flowcontrol.api import OrderingPolicy
from epp.flowcontrol.queue import Item


class FcfsOrderingPolicy(OrderingPolicy):
    """By arrival."""

    TYPE = "fcfs-ordering-policy"

    def rank(self, item: Item) -> float:
        """See the module."""
        return item.enqueued
