# SPDX-License-Identifier: GPL-3.0-or-later
"""priority-then-time-eviction-order-policy: the lowest priority is given up first, and among equals the newest.

The newest has the least work put into it. No parameters.
Source: llm-d-router policy of the same type.
"""

from __future__ import annotations

from epp.flowcontrol.api import EvictionOrder, Victim


class PriorityThenTimeEvictionOrderPolicy(EvictionOrder):
    """Lowest priority, then newest."""

    TYPE = "priority-then-time-eviction-order-policy"

    def rank(self, victim: Victim) -> tuple[float, ...]:
        """See the module."""
        return (victim.request.priority, -victim.dispatched)
