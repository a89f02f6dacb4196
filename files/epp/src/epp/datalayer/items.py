# SPDX-License-Identifier: GPL-3.0-or-later
"""Which items (images, say) each endpoint has worked on lately, and so may still have in a cache of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from epp.model import Endpoint


class Items:
    """Per endpoint the ``capacity`` item hashes that were used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: dict[Endpoint, OrderedDict[int, None]] = {}

    def add(self, endpoint: Endpoint, items: Iterable[int]) -> None:
        """The endpoint works on these items now."""
        held = self._held.setdefault(endpoint, OrderedDict())
        for item in items:
            held[item] = None
            held.move_to_end(item)
        while len(held) > self._capacity:
            held.popitem(last=False)

    def matched(self, weights: Mapping[int, float], endpoints: Sequence[Endpoint]) -> dict[Endpoint, float]:
        """The summed weight of the items that each endpoint holds; those that hold none are absent."""
        found: dict[Endpoint, float] = {}
        for endpoint in endpoints:
            held = self._held.get(endpoint)
            if held:
                total = sum(weight for item, weight in weights.items() if item in held)
                if total:
                    found[endpoint] = total
        return found

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone, and its cache with it."""
        self._held.pop(endpoint, None)
