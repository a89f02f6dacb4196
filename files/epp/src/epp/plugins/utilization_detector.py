# SPDX-License-Identifier: GPL-3.0-or-later
"""utilization-detector: a pool is as full as its endpoints' queues and KV caches are, on average.

Parameters: queueDepthThreshold (5 requests), kvCacheUtilThreshold (0.8), metricsStalenessThreshold (200ms),
headroom (0): a fraction by which the filter lets an endpoint exceed the thresholds; stalenessPolicy (saturated or
ignore): whether an endpoint without fresh metrics counts as 1, or not at all.
Formula: mean over the endpoints of max(queue / queueDepthThreshold, kv usage / kvCacheUtilThreshold); a pool without
endpoints counts as 1, one where all are ignored as 0. As a filter: endpoints with fresh metrics below both thresholds,
or all of them when none is.

Left out, stalenessPolicy is saturated where sheddable requests are refused (as in the reference), and ignore under
flow control: there a pool that counts as full lets nobody through, so that metrics which cannot be read would stop all
traffic to servers that may be well. Flow control also adds to the queue the requests that were sent since the last
reading and exceed what it says (min(unseen, in flight - waiting - running)), as it would otherwise send any number of
requests between two readings.

Source: GAIE v1.5 and llm-d-router detector of the same type; v1.3's top-level saturationDetector has the first three
parameters. A reading is stale only when it is overdue: idle endpoints are read seldom on purpose.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Filter, SaturationDetector, param

SATURATED, IGNORE = "saturated", "ignore"


@dataclass(frozen=True)
class UtilizationDetectorParameters:
    """Parameters of utilization-detector."""

    queue_depth_threshold: int = param(5, minimum=1, doc="waiting requests at which an endpoint is full")
    kv_cache_util_threshold: float = param(0.8, above=0, maximum=1, doc="used part of the KV cache at which it is full")
    metrics_staleness_threshold: float = param(0.2, above=0, duration=True, doc="how overdue a reading may be")
    headroom: float = param(0.0, minimum=0, doc="by which fraction the filter lets endpoints exceed the thresholds")
    staleness_policy: str | None = param(
        None, choices=(SATURATED, IGNORE), doc="what an endpoint without fresh metrics counts as; see above"
    )


class UtilizationDetector(SaturationDetector, Filter):
    """Full queues or full caches."""

    TYPE = "utilization-detector"
    PARAMETERS = UtilizationDetectorParameters

    def __init__(self, name: str, parameters: UtilizationDetectorParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._threshold = parameters.metrics_staleness_threshold

    def saturation(self, endpoints: Sequence[Endpoint]) -> float:
        """See the module."""
        ignore = self._parameters.staleness_policy == IGNORE
        return self._mean(endpoints, ignore, load.all_waiting(endpoints))

    def pressure(self, endpoints: Sequence[Endpoint]) -> float:
        """See the module."""
        ignore = self._parameters.staleness_policy != SATURATED
        return self._mean(endpoints, ignore, [_queued(endpoint) for endpoint in endpoints])

    def stale(self, endpoints: Sequence[Endpoint]) -> int:
        """How many endpoints have no fresh metrics."""
        now = time.monotonic()
        return sum(load.stale(endpoint, now, self._threshold) for endpoint in endpoints)

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        now, limit = time.monotonic(), 1.0 + self._parameters.headroom
        roomy = [
            endpoint
            for endpoint in endpoints
            if not load.stale(endpoint, now, self._threshold)
            and self._utilization(endpoint, load.waiting(endpoint)) < limit
        ]
        return roomy or endpoints

    def _mean(self, endpoints: Sequence[Endpoint], ignore: bool, queues: list[int]) -> float:
        if not endpoints:
            return 1.0
        now, total, count = time.monotonic(), 0.0, 0
        for endpoint, queue in zip(endpoints, queues, strict=True):
            if not load.stale(endpoint, now, self._threshold):
                total += self._utilization(endpoint, queue)
            elif ignore:
                continue
            else:
                total += 1.0
            count += 1
        return total / count if count else 0.0

    def _utilization(self, endpoint: Endpoint, queue: int) -> float:
        rules = self._parameters
        return max(queue / rules.queue_depth_threshold, load.kv_usage(endpoint) / rules.kv_cache_util_threshold)


def _queued(endpoint: Endpoint) -> int:
    """Waiting requests, and those sent since the last reading, as far as they exceed what it says is there."""
    metrics = endpoint.metrics
    if metrics.updated_at == 0.0 or not metrics.reports_waiting:
        return load.waiting(endpoint)
    return metrics.waiting + min(endpoint.unseen, max(0, endpoint.inflight - metrics.waiting - metrics.running))
