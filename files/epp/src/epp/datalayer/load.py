# SPDX-License-Identifier: GPL-3.0-or-later
"""An endpoint's load as it is now, not as it was at the last reading.

Metrics are up to one scrape interval old, and many decisions fall into one interval. So each estimate is the last
reading plus the requests sent since then, which the engine could not have counted yet:

* an engine that has a queue will queue what was sent since: ``waiting`` grows by it;
* an engine without one will run it: ``running`` grows by it;
* its KV cache will hold the uncached prompt tokens of it: ``kv_usage`` grows by their part of the cache, or of one of
  :data:`CACHE_TOKENS` where the engine does not say how large its cache is.

Nothing is added once a reading has seen the requests, so on quiet endpoints these are exactly the readings. For an
endpoint that was never read (no metrics), the requests in flight stand in for both queue and batch; where an engine has
a metric of only one of them, the requests in flight that are not in that one stand in for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final

from epp.datalayer.known import Known
from epp.model import Endpoint

CACHE_TOKENS: Final = 500_000
"""Tokens of a KV cache of unknown size: what one GPU with 80 GB holds for a model of some 8 billion parameters. It
only has to tell apart endpoints that were sent different amounts, until their metrics do."""


def waiting(endpoint: Endpoint) -> int:
    """Requests in the endpoint's queue."""
    metrics = endpoint.metrics
    if metrics.updated_at == 0.0:
        return endpoint.inflight
    if not metrics.reports_waiting:
        return max(0, endpoint.inflight - metrics.running)
    return metrics.waiting + endpoint.unseen if metrics.waiting > 0 else 0


def all_waiting(endpoints: Iterable[Endpoint]) -> list[int]:
    """:func:`waiting` of each, without a call for each."""
    if isinstance(endpoints, Known):
        counts: list[int] = endpoints.waiting().tolist()
        return counts
    return [
        (metrics.waiting + endpoint.unseen if metrics.waiting > 0 else 0)
        if metrics.updated_at and metrics.reports_waiting
        else waiting(endpoint)
        for endpoint in endpoints
        for metrics in (endpoint.metrics,)
    ]


def running(endpoint: Endpoint) -> int:
    """Requests in the endpoint's batch."""
    metrics = endpoint.metrics
    if metrics.updated_at == 0.0:
        return endpoint.inflight
    if not metrics.reports_running:
        return max(0, endpoint.inflight - metrics.waiting)
    return metrics.running if metrics.waiting > 0 else metrics.running + endpoint.unseen


def kv_usage(endpoint: Endpoint) -> float:
    """Used part of the endpoint's KV cache, 0..1."""
    metrics = endpoint.metrics
    if endpoint.unseen_tokens == 0:
        return metrics.kv_cache_usage
    capacity = metrics.block_size * metrics.num_blocks or CACHE_TOKENS
    return min(1.0, metrics.kv_cache_usage + endpoint.unseen_tokens / capacity)


def all_kv_free(endpoints: Iterable[Endpoint]) -> list[float]:
    """What :func:`kv_usage` leaves of each, without a call for each."""
    if isinstance(endpoints, Known):
        free: list[float] = endpoints.kv_free().tolist()
        return free
    return [
        1.0 - (kv_usage(endpoint) if endpoint.unseen_tokens else endpoint.metrics.kv_cache_usage)
        for endpoint in endpoints
    ]


def spread(values: Mapping[Endpoint, float], endpoints: Sequence[Endpoint]) -> list[float]:
    """The value of each, 0 for those that have none."""
    return list(map(values.get, endpoints, repeat(0.0)))


def stale(endpoint: Endpoint, now: float, threshold: float) -> bool:
    """Whether the last reading is more than ``threshold`` seconds overdue at ``now`` (monotonic seconds).

    The scraper reads idle endpoints seldom on purpose; only what comes later than planned is stale. An endpoint that
    has no metrics at all never is.
    """
    metrics = endpoint.metrics
    if endpoint.unmetered:
        return False
    return metrics.updated_at == 0.0 or now - metrics.updated_at > threshold + metrics.interval
