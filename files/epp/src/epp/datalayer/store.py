# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoints of a pool and what this process has sent to them.

Written to by one source (a Kubernetes watch or a file) and by the scraper, read by everyone, all in one event loop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from epp.datalayer.columns import Candidates, Columns
from epp.datalayer.hold import Hold
from epp.datalayer.journal import Journal
from epp.model import NO_FLOW, Charge, Endpoint, EndpointMetrics, Flow, FlowShare, reachable, unread

SEEN_AFTER: Final = 0.02
"""Seconds that a request may need from the decision until the engine counts it (gateway, network, tokenizer)."""

MAX_UNSEEN: Final = 4096
"""Requests remembered per endpoint between two readings; more than this says nothing more."""


LARGE: Final = 64
"""Endpoints from which on a pool's load is kept in columns."""


class Source(Protocol):
    """Something that keeps a datastore filled with endpoints."""

    async def run(self) -> None:
        """Work until cancelled; never raises for trouble that may pass."""

    def problem(self) -> str:
        """What is wrong now, for health and metrics; empty when all is well."""


class Datastore:
    """The endpoints that may serve now, the sum of what is known of each."""

    def __init__(self, pool: str = "") -> None:
        self.pool = pool
        """Name of the pool, for metrics and logs."""
        self.synced = False
        """True once a source has delivered a complete list, even an empty one; False again if the pool is deleted."""
        self.journal = Journal()
        """What peers are told, if there are any."""
        self._endpoints: tuple[Endpoint, ...] = ()
        self._columns: Columns | None = None
        self._places: dict[str, Endpoint] | None = None
        """Endpoints by ``hostport``, once somebody has asked."""
        self._unseen: dict[Endpoint, deque[tuple[float, int]]] = {}
        self._added: list[Callable[[Endpoint], None]] = []
        self._removed: list[Callable[[Endpoint], None]] = []
        self._busy: list[Callable[[Endpoint], None]] = []
        self._observed: list[Callable[[Endpoint, float], None]] = []
        self._replaced: list[Callable[[], None]] = []

    def endpoints(self) -> tuple[Endpoint, ...]:
        """A snapshot of the endpoints that are ready and not being deleted."""
        return self._endpoints

    def standing(self) -> list[Endpoint]:
        """Those of them that requests may go to (see :func:`epp.model.reachable`), in a list of the caller's own."""
        if len(self._endpoints) < LARGE:
            return list(reachable(self._endpoints))
        columns = self._columns
        if columns is None or not columns.refresh():
            columns = self._columns = Columns(self._endpoints)
        return Candidates(columns) if columns.standing else unread(self._endpoints)

    def changed(self, endpoint: Endpoint) -> None:
        """Something of an endpoint has changed that decides where requests go; for whoever does not do so here."""
        if self._columns is not None:
            self._columns.change(endpoint)

    def on_added(self, callback: Callable[[Endpoint], None]) -> None:
        """Call ``callback`` for each endpoint that becomes ready."""
        self._added.append(callback)

    def on_removed(self, callback: Callable[[Endpoint], None]) -> None:
        """Call ``callback`` for each endpoint that left; it may come back later as a new object."""
        self._removed.append(callback)

    def on_acquired(self, callback: Callable[[Endpoint], None]) -> None:
        """Call ``callback`` whenever a request goes to an endpoint."""
        self._busy.append(callback)

    def on_replaced(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after each delivery of a source, whether or not it brought anything new."""
        self._replaced.append(callback)

    def on_observed(self, callback: Callable[[Endpoint, float], None]) -> None:
        """Call ``callback`` after each reading of an endpoint's metrics, with the time at which it was asked for."""
        self._observed.append(callback)

    def replace(self, wanted: Iterable[Endpoint]) -> None:
        """Make ``wanted`` the endpoints: those known already (same name, namespace, address, port) keep their state.

        For the sources. The first call makes the datastore synced.
        """
        known = {_identity(endpoint): endpoint for endpoint in self._endpoints}
        kept: list[Endpoint] = []
        fresh: list[Endpoint] = []
        for endpoint in wanted:
            old = known.pop(_identity(endpoint), None)
            if old is None:
                fresh.append(endpoint)
                kept.append(endpoint)
            else:
                old.labels = endpoint.labels
                kept.append(old)
        for endpoint in fresh:
            self._unseen[endpoint] = deque(maxlen=MAX_UNSEEN)
        self._endpoints = tuple(kept)
        self._columns = self._places = None
        self.synced = True
        for endpoint in known.values():
            self._unseen.pop(endpoint, None)
            for callback in self._removed:
                callback(endpoint)
        for endpoint in fresh:
            for callback in self._added:
                callback(endpoint)
        for done in self._replaced:
            done()

    def hold(self, charges: Sequence[Charge], flow: Flow = NO_FLOW) -> Hold:
        """A request of this flow goes to the endpoints of ``charges``, the first of which answers: count it there until
        the hold is released. Call it once, in the same turn of the event loop as the decision."""
        return Hold(self, charges, flow)

    def acquire(self, endpoint: Endpoint, tokens: int = 0, flow: Flow = NO_FLOW) -> None:
        """Count a request, and the tokens that it costs; for holds."""
        share = endpoint.flows.get(flow)
        if share is None:
            share = endpoint.flows[flow] = FlowShare()
        share.requests += 1
        share.tokens += tokens
        endpoint.inflight += 1
        endpoint.inflight_tokens += tokens
        endpoint.own += 1
        endpoint.own_tokens += tokens
        self.changed(endpoint)
        if self.journal.active:
            self.journal.touch(endpoint)
        for callback in self._busy:
            callback(endpoint)

    def release(self, endpoint: Endpoint, tokens: int = 0, flow: Flow = NO_FLOW) -> None:
        """The opposite, once per :meth:`acquire` and with its tokens and flow, also for endpoints long gone; for
        holds."""
        share = endpoint.flows.get(flow)
        if share is None:
            raise RuntimeError(f"endpoint {endpoint.name} was released more often than acquired")
        share.requests -= 1
        share.tokens -= tokens
        if not share.requests:
            del endpoint.flows[flow]
        endpoint.inflight -= 1
        endpoint.inflight_tokens -= tokens
        endpoint.own -= 1
        endpoint.own_tokens -= tokens
        self.changed(endpoint)
        if self.journal.active:
            self.journal.touch(endpoint)
        sent = self._unseen.get(endpoint)
        if sent is not None and len(sent) > endpoint.inflight:
            # A request that has ended waits nowhere; which one it was matters little.
            endpoint.unseen_tokens -= sent.popleft()[1]
            endpoint.unseen = len(sent)

    def computed(self, endpoint: Endpoint, tokens: int, flow: Flow = NO_FLOW) -> None:
        """So many tokens of a request that is still in flight cost nothing any more; for holds."""
        endpoint.flows[flow].tokens -= tokens
        endpoint.inflight_tokens -= tokens
        endpoint.own_tokens -= tokens
        if self.journal.active:
            self.journal.touch(endpoint)

    def elsewhere(self, endpoint: Endpoint, requests: int, tokens: int) -> None:
        """Peers have so many requests and tokens more (or fewer) in flight there; for ``epp.statesync``."""
        endpoint.inflight += requests
        endpoint.inflight_tokens += tokens
        self.changed(endpoint)
        if requests > 0:
            self.busy(endpoint)

    def busy(self, endpoint: Endpoint) -> None:
        """A peer has sent a request there; for ``epp.statesync``. Told apart from counts: it may have ended since."""
        for callback in self._busy:
            callback(endpoint)

    def sent(self, endpoint: Endpoint, tokens: int) -> None:
        """Remember a request of ``tokens`` uncached prompt tokens until the endpoint's metrics can show it."""
        if self.journal.active:
            self.journal.sent(endpoint, tokens)
        self.sent_elsewhere(endpoint, tokens)

    def sent_elsewhere(self, endpoint: Endpoint, tokens: int) -> None:
        """The same for a request that a peer has sent; for ``epp.statesync``."""
        sent = self._unseen.get(endpoint)
        if sent is None:
            return
        if len(sent) == MAX_UNSEEN:
            endpoint.unseen_tokens -= sent[0][1]
        sent.append((time.monotonic(), tokens))
        endpoint.unseen = len(sent)
        endpoint.unseen_tokens += tokens
        self.changed(endpoint)

    def at(self, hostport: str) -> Endpoint | None:
        """The endpoint of that name on the wire; None for a place that is not of this pool."""
        if self._places is None:
            self._places = {endpoint.hostport: endpoint for endpoint in self._endpoints}
        return self._places.get(hostport)

    def observed(self, endpoint: Endpoint, metrics: EndpointMetrics, asked_at: float) -> None:
        """Take over a new reading, asked for at ``asked_at`` (monotonic seconds). For the scraper."""
        endpoint.metrics = metrics
        sent = self._unseen.get(endpoint)
        if sent:
            while sent and sent[0][0] < asked_at - SEEN_AFTER:
                endpoint.unseen_tokens -= sent.popleft()[1]
            endpoint.unseen = len(sent)
        self.changed(endpoint)
        for callback in self._observed:
            callback(endpoint, asked_at)


def _identity(endpoint: Endpoint) -> tuple[str, str, str, int]:
    """What makes two descriptions the same endpoint: a pod that came back with another address is another one."""
    return (endpoint.namespace, endpoint.name, endpoint.address, endpoint.port)
