# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoint serves which session, as long as the session is used now and then."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from epp.model import Endpoint


class Sessions:
    """Session identifier to endpoint.

    Forgets what was not used for ``ttl`` seconds, and the least recently used beyond ``limit``.
    """

    def __init__(self, ttl: float, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl = ttl
        self._limit = limit
        self._clock = clock
        self._bound: OrderedDict[str, tuple[Endpoint, float]] = OrderedDict()
        self._counts: Counter[Endpoint] = Counter()

    def __len__(self) -> int:
        """Sessions that are remembered, some of which may have expired."""
        return len(self._bound)

    def endpoint(self, session: str) -> Endpoint | None:
        """The session's endpoint; asking counts as use."""
        self._expire()
        found = self._bound.get(session)
        if found is None:
            return None
        self._bound[session] = (found[0], self._clock())
        self._bound.move_to_end(session)
        return found[0]

    def bind(self, session: str, endpoint: Endpoint) -> None:
        """The session is served there from now on."""
        self.forget(session)
        self._bound[session] = (endpoint, self._clock())
        self._counts[endpoint] += 1
        while len(self._bound) > self._limit:
            self.forget(next(iter(self._bound)))

    def count(self, endpoint: Endpoint) -> int:
        """Sessions that are bound to an endpoint."""
        return self._counts[endpoint]

    def forget(self, session: str) -> None:
        """The session is over."""
        found = self._bound.pop(session, None)
        if found is not None:
            self._counts[found[0]] -= 1
            if not self._counts[found[0]]:
                del self._counts[found[0]]

    def drop(self, endpoint: Endpoint) -> None:
        """The endpoint is gone: its sessions are free to go elsewhere."""
        if endpoint in self._counts:
            for session in [session for session, (other, _) in self._bound.items() if other is endpoint]:
                self.forget(session)

    def _expire(self) -> None:
        """The least recently used come first, so only what has expired is looked at, and one more."""
        oldest = self._clock() - self._ttl
        while self._bound:
            session, (_, used) = next(iter(self._bound.items()))
            if used >= oldest:
                return
            self.forget(session)
