# SPDX-License-Identifier: GPL-3.0-or-later
"""prefix-cache-affinity-filter: keeps the endpoints that hold a prompt, unless that would make it wait.

Parameters:
    affinityThreshold (0.8): part of the prompt that an endpoint must hold.
    explorationProbability (0): how often all are kept in spite of it.
    maxTTFTPenaltyMs (18000): how much later the first token may come than elsewhere; 0 is any time.
    ttftSource (prefillThroughput): from tokens in flight, or from a producer's predictions (latencyPredictor).
    peakPrefillThroughput (15928 tokens/s): how fast an endpoint computes prompts.
    prefixMatchInfoProducerName (the first approx-prefix-cache-producer), inFlightLoadProducerName (not needed),
    latencyPredictionInfoProducerName (any).
Formula: those with matched / blocks >= affinityThreshold, if there are any; all when
min TTFT among them - min TTFT among the others > maxTTFTPenaltyMs, with TTFT = tokens in flight / peak * 1000.
Without predictions on either side (latencyPredictor) all are kept.
Source: llm-d-router filter of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.latency import needs_predictions, prediction_of
from epp.plugins.prefixes import match_of, needs_producer, producer_key, shares
from epp.scheduling.api import Context, Filter, Producer, param


@dataclass(frozen=True)
class PrefixCacheAffinityFilterParameters:
    """Parameters of prefix-cache-affinity-filter."""

    affinity_threshold: float = param(0.8, minimum=0, maximum=1, doc="part of the prompt that an endpoint must hold")
    exploration_probability: float = param(0.0, minimum=0, maximum=1, doc="how often all endpoints are kept")
    max_ttft_penalty_ms: float = param(
        18000.0,
        minimum=0,
        key="maxTTFTPenaltyMs",
        doc="by how much the first token may be later than elsewhere; 0: any",
    )
    ttft_source: str = param(
        "prefillThroughput", choices=("prefillThroughput", "latencyPredictor"), doc="where the time comes from"
    )
    peak_prefill_throughput: float = param(15928.0, above=0, doc="tokens of prompts per second and endpoint")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="who says what is cached")
    in_flight_load_producer_name: str = param("", plugin=Producer, doc="not needed: the data layer counts")
    latency_prediction_info_producer_name: str = param("", doc="whose predictions count; empty for anybody's")


class PrefixCacheAffinityFilter(Filter):
    """Sticks to warm caches while they are not too busy."""

    TYPE = "prefix-cache-affinity-filter"
    PARAMETERS = PrefixCacheAffinityFilterParameters

    def __init__(self, name: str, parameters: PrefixCacheAffinityFilterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._key = producer_key(context, parameters.prefix_match_info_producer_name)
        self._rng = context.rng

    @classmethod
    def needs(cls, parameters: PrefixCacheAffinityFilterParameters) -> tuple[str, ...]:
        """Producers."""
        predicting = parameters.ttft_source == "latencyPredictor"
        predictions = needs_predictions(parameters.latency_prediction_info_producer_name) if predicting else ()
        return (*needs_producer(parameters.prefix_match_info_producer_name), *predictions)

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        rules = self._parameters
        if rules.exploration_probability and self._rng.random() < rules.exploration_probability:
            return endpoints
        warm: list[Endpoint] = []
        cold: list[Endpoint] = []
        for endpoint, share in zip(endpoints, shares(match_of(request, self._key), endpoints), strict=True):
            (warm if share >= rules.affinity_threshold else cold).append(endpoint)
        if not warm or not cold or self._too_late(request, warm, cold):
            return endpoints
        return warm

    def _too_late(self, request: InferenceRequest, warm: list[Endpoint], cold: list[Endpoint]) -> bool:
        rules = self._parameters
        if rules.max_ttft_penalty_ms == 0:
            return False
        if rules.ttft_source == "latencyPredictor":
            prediction = prediction_of(request, rules.latency_prediction_info_producer_name)
            known = prediction.ttft if prediction is not None else {}
            here = [known[endpoint] for endpoint in warm if endpoint in known]
            there = [known[endpoint] for endpoint in cold if endpoint in known]
            if not here or not there:
                return True
            return min(here) - min(there) > rules.max_ttft_penalty_ms
        tokens = min(each.inflight_tokens for each in warm) - min(each.inflight_tokens for each in cold)
        return tokens / rules.peak_prefill_throughput * 1000.0 > rules.max_ttft_penalty_ms
