# SPDX-License-Identifier: GPL-3.0-or-later
"""p2p-source-producer: names another endpoint that holds more of the prompt, to fetch its KV cache from.

Parameters:
    minCachedTokenDelta (1): by how many tokens it must hold more than the endpoint that computes the prompt.
    prefillProfileName (prefill): the profile that computes it, where there is one.
    prefixMatchInfoProducerName (the first approx-prefix-cache-producer): who says what is cached.
Formula: of the endpoints that hold most, one at random in proportion to 1 / (1 + waiting requests).
Effect: header ``x-kv-cache-source-host-port``; what clients write there is taken away.
Source: llm-d-router producer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.datalayer import load
from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins.disaggregation import PREFILL
from epp.plugins.prefixes import match_of, needs_producer, producer_key
from epp.scheduling.api import Context, Producer, RequestHook, param

HEADER = "x-kv-cache-source-host-port"


@dataclass(frozen=True)
class P2PSourceProducerParameters:
    """Parameters of p2p-source-producer."""

    min_cached_token_delta: int = param(1, minimum=1, doc="by how many tokens it must hold more")
    prefill_profile_name: str = param(PREFILL, doc="profile that computes the prompt, where there is one")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="who says what is cached")


class P2PSourceProducer(RequestHook):
    """Knows where to fetch from."""

    TYPE = "p2p-source-producer"
    PARAMETERS = P2PSourceProducerParameters

    def __init__(self, name: str, parameters: P2PSourceProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._key = producer_key(context, parameters.prefix_match_info_producer_name)
        self._rng = context.rng

    @classmethod
    def needs(cls, parameters: P2PSourceProducerParameters) -> tuple[str, ...]:
        """A producer."""
        return needs_producer(parameters.prefix_match_info_producer_name)

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """See the module."""
        decision.headers[HEADER] = ""
        match = match_of(request, self._key)
        if match is None or not match.blocks:
            return
        computing = (decision.profiles.get(self._parameters.prefill_profile_name) or decision.endpoints)[0]
        most = max(match.blocks.values())
        delta = (most - match.blocks.get(computing, 0)) * match.block_tokens
        if delta >= self._parameters.min_cached_token_delta:
            holders = [endpoint for endpoint, blocks in match.blocks.items() if blocks == most]
            decision.headers[HEADER] = self._one(holders).hostport

    def _one(self, holders: list[Endpoint]) -> Endpoint:
        return self._rng.choices(holders, [1.0 / (1 + load.waiting(endpoint)) for endpoint in holders])[0]
