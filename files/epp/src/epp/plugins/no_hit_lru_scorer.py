# SPDX-License-Identifier: GPL-3.0-or-later
"""no-hit-lru-scorer: spreads prompts that no endpoint knows, so that caches grow evenly.

Parameters:
    lruSize (1024): endpoints that are remembered.
    prefixMatchInfoProducerName (the first approx-prefix-cache-producer): who says what an endpoint knows.
    prefixPluginType, prefixPluginName: taken and ignored, as in the reference.
Formula: 0.5 for all when any endpoint holds a prefix of the prompt; else 1 - rank / (n - 1), where those that never got
an unknown prompt come first, then those that got one longest ago. 1 for a single endpoint.
Source: llm-d-router (and llm-d-inference-scheduler 0.4) scorer of the same type. Ranks are among the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.datalayer.recency import Recency
from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins.approx_prefix_cache_producer import PREFILL_PROFILE
from epp.plugins.prefixes import match_of, needs_producer, producer_key
from epp.scheduling.api import Context, Producer, RequestHook, Scorer, param


@dataclass(frozen=True)
class NoHitLRUScorerParameters:
    """Parameters of no-hit-lru-scorer."""

    lru_size: int = param(1024, minimum=1, doc="endpoints that are remembered")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="who says what an endpoint knows")
    prefix_plugin_type: str = param("", doc="ignored")
    prefix_plugin_name: str = param("", doc="ignored")


class NoHitLRUScorer(Scorer, RequestHook):
    """Takes turns with unknown prompts."""

    TYPE = "no-hit-lru-scorer"
    PARAMETERS = NoHitLRUScorerParameters

    def __init__(self, name: str, parameters: NoHitLRUScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._recency = Recency(parameters.lru_size)
        self._key = producer_key(context, parameters.prefix_match_info_producer_name)
        self._cold = f"{self.TYPE}/{name}"
        context.datastore.on_removed(self._recency.drop)

    @classmethod
    def needs(cls, parameters: NoHitLRUScorerParameters) -> tuple[str, ...]:
        """A producer."""
        return needs_producer(parameters.prefix_match_info_producer_name)

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        match = match_of(request, self._key)
        cold = match is None or not any(match.blocks.get(endpoint) for endpoint in endpoints)
        request.attributes[self._cold] = cold
        if not cold:
            return [0.5] * len(endpoints)
        last = len(endpoints) - 1
        if last <= 0:
            return [1.0] * len(endpoints)
        return [1.0 - rank / last for rank in self._recency.ranks(endpoints)]

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """Whoever gets an unknown prompt is last in line now."""
        if request.attributes.pop(self._cold, False):
            for endpoint in (decision.endpoints[0], *decision.profiles.get(PREFILL_PROFILE, ())[:1]):
                self._recency.used(endpoint)
