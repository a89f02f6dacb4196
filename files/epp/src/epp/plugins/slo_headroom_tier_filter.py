# SPDX-License-Identifier: GPL-3.0-or-later
"""slo-headroom-tier-filter: keeps the endpoints that are expected to meet a request's latency targets.

Parameters: epsilonExploreNeg (0.01): how often the others are kept instead, so that they are not left alone for ever;
latencyPredictionInfoProducerName (a predicted-latency-producer).
Formula: where predictions exist, the endpoints with headroom >= 0 in both TTFT and TPOT, if there are any; else all.
Endpoints without a prediction count as not meeting them. Without any predictions all are kept.
Source: llm-d-router filter of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.latency import headrooms, needs_predictions, prediction_of
from epp.scheduling.api import Context, Filter, param


@dataclass(frozen=True)
class SloHeadroomTierFilterParameters:
    """Parameters of slo-headroom-tier-filter."""

    epsilon_explore_neg: float = param(0.01, minimum=0, maximum=1, doc="how often those that are late are kept")
    latency_prediction_info_producer_name: str = param("", doc="whose predictions count; empty for anybody's")


class SloHeadroomTierFilter(Filter):
    """In time before late."""

    TYPE = "slo-headroom-tier-filter"
    PARAMETERS = SloHeadroomTierFilterParameters

    def __init__(self, name: str, parameters: SloHeadroomTierFilterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._producer = parameters.latency_prediction_info_producer_name
        self._explore = parameters.epsilon_explore_neg
        self._rng = context.rng

    @classmethod
    def needs(cls, parameters: SloHeadroomTierFilterParameters) -> tuple[str, ...]:
        """A producer."""
        return needs_predictions(parameters.latency_prediction_info_producer_name)

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        prediction = prediction_of(request, self._producer)
        if prediction is None or len(endpoints) < 2:
            return endpoints
        found = headrooms(request, prediction, endpoints)
        late = [endpoint for endpoint, room in zip(endpoints, found, strict=True) if room is None or min(room) < 0]
        if not late or len(late) == len(endpoints):
            return endpoints
        if self._rng.random() < self._explore:
            return late
        return [endpoint for endpoint in endpoints if endpoint not in late]
