# SPDX-License-Identifier: GPL-3.0-or-later
"""lora-affinity-scorer: prefers endpoints that have the request's LoRA adapter loaded, then those with a free slot.

Parameters: none.
Formula: adapter running 1.0; else adapters that run or wait < max_lora 0.8; else adapter waiting 0.6; else 0.
Source: GAIE v1.3 and llm-d-router scorer of the same type. One thing differs: an adapter that runs and waits counts
once. vLLM (seen with 0.32) names every adapter that runs as waiting as well, and so would seem to have no slot left
when half of them are free. A request for a base model is rated like any other name: all endpoints of a pool that serves
no adapters get the same score.
"""

from __future__ import annotations

from epp.model import Endpoint, EndpointMetrics, InferenceRequest
from epp.scheduling.api import Scorer


class LoraAffinityScorer(Scorer):
    """Prefers endpoints that have the adapter."""

    TYPE = "lora-affinity-scorer"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        adapter = request.target_model or request.model
        return [_affinity(adapter, endpoint.metrics) for endpoint in endpoints]


def _affinity(adapter: str, metrics: EndpointMetrics) -> float:
    if adapter in metrics.running_adapters:
        return 1.0
    if len(metrics.running_adapters | metrics.waiting_adapters) < metrics.max_lora:
        return 0.8
    return 0.6 if adapter in metrics.waiting_adapters else 0.0
