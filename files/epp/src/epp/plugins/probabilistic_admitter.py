# SPDX-License-Identifier: GPL-3.0-or-later
"""probabilistic-admitter: sheds sheddable requests (priority below 0) the more likely, the fuller the pool is.

Parameters: queueDepthThreshold (5 requests), kvCacheUtilThreshold (0.8), power (5), k (300).
Formula: a request is refused with probability min(saturation^power * k, 1), where saturation is the mean over the
endpoints of max(queue / queueDepthThreshold, kv usage / kvCacheUtilThreshold), and an endpoint that was never read
counts as 1. With the defaults 2 % are refused at a saturation of 0.15, and all from 0.32 on.
Source: llm-d-router admitter of the same type; its refusals come as 500 there, and as 429 here.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Admitter, Context, param


@dataclass(frozen=True)
class ProbabilisticAdmitterParameters:
    """Parameters of probabilistic-admitter."""

    queue_depth_threshold: int = param(5, minimum=1, doc="waiting requests at which an endpoint is full")
    kv_cache_util_threshold: float = param(0.8, above=0, maximum=1, doc="used part of the KV cache at which it is full")
    power: float = param(5.0, above=0, doc="how steeply refusals grow with saturation")
    k: float = param(300.0, above=0, doc="factor; all are refused from a saturation of (1/k)^(1/power) on")


class ProbabilisticAdmitter(Admitter):
    """A curve in place of a gate."""

    TYPE = "probabilistic-admitter"
    PARAMETERS = ProbabilisticAdmitterParameters

    def __init__(self, name: str, parameters: ProbabilisticAdmitterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._rng = context.rng

    def admit(self, request: InferenceRequest, endpoints: list[Endpoint]) -> str:
        """See the module."""
        if request.priority >= 0:
            return ""
        saturation = sum(map(self._utilization, endpoints)) / len(endpoints)
        if self._rng.random() >= saturation**self._parameters.power * self._parameters.k:
            return ""
        return f"the pool is {saturation:.0%} full, sheddable request dropped"

    def _utilization(self, endpoint: Endpoint) -> float:
        if endpoint.metrics.updated_at == 0.0:
            return 1.0
        queue = load.waiting(endpoint) / self._parameters.queue_depth_threshold
        return max(queue, load.kv_usage(endpoint) / self._parameters.kv_cache_util_threshold)
