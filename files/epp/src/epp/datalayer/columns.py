# SPDX-License-Identifier: GPL-3.0-or-later
"""The load of a large pool's endpoints as lists, which change where an endpoint's load does.

To go through thousands of endpoints and their metrics for each request takes milliseconds, most of them for memory that
is in no cache. Between two requests few of them change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from epp.datalayer import load
from epp.model import Endpoint


class Candidates(load.Known):
    """The endpoints of a pool for one decision. Who leaves some out, or changes their order, makes another list."""

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns.standing)
        self._columns = columns

    @property
    def refused(self) -> Sequence[Endpoint]:
        """Those of the pool that are left out, because nobody listens there."""
        return self._columns.refused

    def waiting(self) -> list[int]:
        """:func:`load.waiting` of each."""
        return self._columns.waiting.copy()

    def kv_free(self) -> list[float]:
        """What :func:`load.kv_usage` leaves of each."""
        return self._columns.kv_free.copy()

    def spread(self, values: Mapping[Endpoint, float]) -> list[float]:
        """The value of each, 0 for those that have none."""
        found, places = [0.0] * len(self), self._columns.places
        for endpoint, value in values.items():
            place = places.get(endpoint)
            if place is not None:
                found[place] = value
        return found


class Columns:
    """Of these endpoints, those that do not refuse, and their load."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.standing = [endpoint for endpoint in endpoints if not endpoint.refused]
        self.refused = [endpoint for endpoint in endpoints if endpoint.refused]
        self.waiting = load.all_waiting(self.standing)
        self.kv_free = load.all_kv_free(self.standing)
        self.places = {endpoint: place for place, endpoint in enumerate(self.standing)}
        """Where each stands in these lists."""
        self._changed: set[Endpoint] = set()

    def change(self, endpoint: Endpoint) -> None:
        """Something of the endpoint is not what it was."""
        self._changed.add(endpoint)

    def refresh(self) -> bool:
        """Take over what has changed. False if an endpoint has begun to refuse, or to listen: then make new ones."""
        places = self.places
        for endpoint in self._changed:
            place = places.get(endpoint)
            if endpoint.refused != (place is None):
                return False
            if place is not None:
                self.waiting[place] = load.waiting(endpoint)
                self.kv_free[place] = 1.0 - load.kv_usage(endpoint)
        self._changed.clear()
        return True
