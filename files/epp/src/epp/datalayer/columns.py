# SPDX-License-Identifier: GPL-3.0-or-later
"""The load of a large pool's endpoints as arrays, which change where an endpoint's load does.

To go through thousands of endpoints and their metrics for each request takes milliseconds, most of them for memory that
is in no cache; and so it does to go through a list of numbers that have come one by one. Between two requests few of
them change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np

from epp.datalayer import load
from epp.datalayer.known import Column, Counts, Known
from epp.model import Endpoint


class Candidates(Known):
    """The endpoints of a pool for one decision. Who leaves some out, or changes their order, makes another list."""

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns.standing)
        self._columns = columns

    @property
    def refused(self) -> Sequence[Endpoint]:
        """Those of the pool that are left out, because nobody listens there."""
        return self._columns.refused

    def waiting(self) -> Counts:
        """:func:`load.waiting` of each."""
        return self._columns.waiting

    def kv_free(self) -> Column:
        """What :func:`load.kv_usage` leaves of each."""
        return self._columns.kv_free

    def spread(self, values: Mapping[Endpoint, float]) -> Column:
        """The value of each, 0 for those that have none."""
        columns = self._columns
        count = len(columns.standing)
        found = np.zeros(count + 1)  # with a place for those that have none
        found[list(map(columns.places.get, values, repeat(count)))] = list(values.values())
        return found[:count]


class Columns:
    """Of these endpoints, those that do not refuse, and their load."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.standing = [endpoint for endpoint in endpoints if not endpoint.refused]
        self.refused = [endpoint for endpoint in endpoints if endpoint.refused]
        self.waiting = np.array(load.all_waiting(self.standing), np.int64)
        self.kv_free = np.array(load.all_kv_free(self.standing), np.float64)
        self.places = {endpoint: place for place, endpoint in enumerate(self.standing)}
        """Where each stands in these."""
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
