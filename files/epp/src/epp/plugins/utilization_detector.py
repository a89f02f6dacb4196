# SPDX-License-Identifier: GPL-3.0-or-later
"""utilization-detector: a pool is as full as its endpoints' queues and KV caches are, on average.

Parameters: queueDepthThreshold (5 requests), kvCacheUtilThreshold (0.8), metricsStalenessThreshold (200ms),
headroom (0): a fraction by which the filter lets an endpoint exceed the thresholds.
Formula: mean over the endpoints of max(queue / queueDepthThreshold, kv usage / kvCacheUtilThreshold); an endpoint
without fresh metrics counts as 1, and so does a pool without endpoints. As a filter: endpoints below both thresholds,
or all of them when none is.
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


@dataclass(frozen=True)
class UtilizationDetectorParameters:
    """Parameters of utilization-detector."""

    queue_depth_threshold: int = param(5, minimum=1, doc="waiting requests at which an endpoint is full")
    kv_cache_util_threshold: float = param(0.8, above=0, maximum=1, doc="used part of the KV cache at which it is full")
    metrics_staleness_threshold: float = param(0.2, above=0, duration=True, doc="how overdue a reading may be")
    headroom: float = param(0.0, minimum=0, doc="by which fraction the filter lets endpoints exceed the thresholds")


class UtilizationDetector(SaturationDetector, Filter):
    """Full queues or full caches."""

    TYPE = "utilization-detector"
    PARAMETERS = UtilizationDetectorParameters

    def __init__(self, name: str, parameters: UtilizationDetectorParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters

    def saturation(self, endpoints: Sequence[Endpoint]) -> float:
        """See the module."""
        if not endpoints:
            return 1.0
        now = time.monotonic()
        return sum(self._utilization(endpoint, now) for endpoint in endpoints) / len(endpoints)

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        now, limit = time.monotonic(), 1.0 + self._parameters.headroom
        roomy = [endpoint for endpoint in endpoints if self._utilization(endpoint, now) < limit]
        return roomy or endpoints

    def _utilization(self, endpoint: Endpoint, now: float) -> float:
        rules = self._parameters
        if load.stale(endpoint, now, rules.metrics_staleness_threshold):
            return 1.0
        queue = load.waiting(endpoint) / rules.queue_depth_threshold
        return max(queue, load.kv_usage(endpoint) / rules.kv_cache_util_threshold)
