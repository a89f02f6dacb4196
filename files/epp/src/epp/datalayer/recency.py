# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order endpoints were last used for something."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from epp.model import Endpoint


class Recency:
    """Remembers the ``limit`` endpoints that were used last."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: OrderedDict[Endpoint, None] = OrderedDict()

    def used(self, endpoint: Endpoint) -> None:
        """It was used now."""
        self._used[endpoint] = None
        self._used.move_to_end(endpoint)
        while len(self._used) > self._limit:
            self._used.popitem(last=False)

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone."""
        self._used.pop(endpoint, None)

    def ranks(self, endpoints: Sequence[Endpoint]) -> list[int]:
        """0 for the first that is due, and so on: those never used in the given order, then the least recently used."""
        position = {endpoint: number for number, endpoint in enumerate(self._used)}
        order = sorted(range(len(endpoints)), key=lambda index: position.get(endpoints[index], -1))
        ranks = [0] * len(endpoints)
        for rank, index in enumerate(order):
            ranks[index] = rank
        return ranks
