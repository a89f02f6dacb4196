# SPDX-License-Identifier: GPL-3.0-or-later
"""edf-ordering-policy: earliest deadline first: the end of the time to live. No parameters.

Source: llm-d-router policy of the same type. All requests have the same time to live (defaultRequestTTL) today, in both
implementations, so that the order is that of their arrival.
"""

from __future__ import annotations

from epp.flowcontrol.api import OrderingPolicy
from epp.flowcontrol.queue import Item


class EdfOrderingPolicy(OrderingPolicy):
    """By the end of the time to live."""

    TYPE = "edf-ordering-policy"

    def rank(self, item: Item) -> float:
        """See the module."""
        return item.deadline
