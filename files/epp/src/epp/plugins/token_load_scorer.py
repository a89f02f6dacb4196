# SPDX-License-Identifier: GPL-3.0-or-later
"""token-load-scorer: prefers endpoints with few tokens to compute.

Parameters:
    queueThresholdTokens (4194304): the load at which the score is 0; 128 requests of 32K tokens.
    inFlightLoadProducerName: taken and not needed, since the data layer counts.
Formula: 1 - min(t, T) / T, t the endpoint's tokens in flight plus those that this request would add to it.
Source: llm-d-router scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.prefixes import uncached_tokens
from epp.scheduling.api import Context, Producer, Scorer, param


@dataclass(frozen=True)
class TokenLoadScorerParameters:
    """Parameters of token-load-scorer."""

    queue_threshold_tokens: int = param(4194304, minimum=1, doc="tokens at which the score is 0")
    in_flight_load_producer_name: str = param("", plugin=Producer, doc="not needed: the data layer counts")


class TokenLoadScorer(Scorer):
    """Prefers who has few tokens to compute."""

    TYPE = "token-load-scorer"
    PARAMETERS = TokenLoadScorerParameters

    def __init__(self, name: str, parameters: TokenLoadScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._threshold = parameters.queue_threshold_tokens

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        threshold, answer = self._threshold, request.output_tokens
        fresh = uncached_tokens(request, endpoints)
        return [
            1.0 - min(endpoint.inflight_tokens + prompt + answer, threshold) / threshold
            for endpoint, prompt in zip(endpoints, fresh, strict=True)
        ]
