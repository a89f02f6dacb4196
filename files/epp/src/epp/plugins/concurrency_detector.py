# SPDX-License-Identifier: GPL-3.0-or-later
"""concurrency-detector: a pool is as full as the requests or tokens in flight make it; metrics are not asked.

Parameters: concurrencyMode (requests, tokens or hybrid; requests), maxConcurrency (100 requests per endpoint),
maxTokenConcurrency (1000000 tokens per endpoint), headroom (0): a fraction by which the filter lets an endpoint exceed
them.
Formula: requests: requests in flight / (endpoints * maxConcurrency); tokens: tokens in flight / (endpoints *
maxTokenConcurrency); hybrid: the mean over the endpoints of the larger one of the two ratios. A pool without endpoints
counts as 1. As a filter: endpoints below their limits, or all of them when none is.
Source: llm-d-router detector of the same type. In flight is what this process has sent and what has not ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Filter, SaturationDetector, param

REQUESTS, TOKENS, HYBRID = "requests", "tokens", "hybrid"


@dataclass(frozen=True)
class ConcurrencyDetectorParameters:
    """Parameters of concurrency-detector."""

    concurrency_mode: str = param(REQUESTS, choices=(REQUESTS, TOKENS, HYBRID), doc="what is counted")
    max_concurrency: int = param(100, minimum=1, doc="requests in flight at which an endpoint is full")
    max_token_concurrency: int = param(1_000_000, minimum=1, doc="tokens in flight at which an endpoint is full")
    headroom: float = param(0.0, minimum=0, doc="by which fraction the filter lets endpoints exceed that")


class ConcurrencyDetector(SaturationDetector, Filter):
    """What was sent and has not ended."""

    TYPE = "concurrency-detector"
    PARAMETERS = ConcurrencyDetectorParameters
    LAG: ClassVar[float] = 0.0

    def __init__(self, name: str, parameters: ConcurrencyDetectorParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters

    def saturation(self, endpoints: Sequence[Endpoint]) -> float:
        """See the module."""
        if not endpoints:
            return 1.0
        # All endpoints have the same capacity, so the ratio of the sums is the mean of the ratios.
        return sum(map(self._ratio, endpoints)) / len(endpoints)

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        limit = 1.0 + self._parameters.headroom
        return [endpoint for endpoint in endpoints if self._ratio(endpoint) < limit] or endpoints

    def _ratio(self, endpoint: Endpoint) -> float:
        rules = self._parameters
        requests = endpoint.inflight / rules.max_concurrency
        tokens = endpoint.inflight_tokens / rules.max_token_concurrency
        if rules.concurrency_mode == HYBRID:
            return max(requests, tokens)
        return tokens if rules.concurrency_mode == TOKENS else requests
