# SPDX-License-Identifier: GPL-3.0-or-later
"""latency-scorer: prefers endpoints by predicted latency; without predictions by cache and queue.

Parameters:
    ttftWeight (0.8), tpotWeight (0.2): how much the two latencies count.
    headroomSelectionStrategy (least): of endpoints in time, those closest to the target, or with the most room.
    compositeKVWeight, compositeQueueWeight, compositePrefixWeight (1 each): for requests without predictions.
    latencyPredictionInfoProducerName (a predicted-latency-producer), prefixMatchInfoProducerName (the first
    approx-prefix-cache-producer).
Formula: with predictions only the first of these groups that is not empty scores, the others get 0: in time; idle; late
in TPOT only; late in TTFT only; late in both. In the group, |headroom| of each latency is scaled to 0..1, c is their
weighted mean (a latency that is the same everywhere does not count), and the score is (int((1 - c) * 100) + 1) / 100;
with strategy most, in time, (int(c * 100) + 1) / 100.
Without: round(100 * weighted mean of (1 - kv usage), (max q - q) / max q, matched part of the prompt) / 100.
Source: llm-d-router scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.plugins.latency import headrooms, needs_predictions, prediction_of
from epp.plugins.prefixes import match_of, needs_producer, producer_key, shares
from epp.scheduling.api import Context, LatencyPrediction, Producer, Scorer, param

Room = tuple[float, float]
NO_RANGE = 1e-9


@dataclass(frozen=True)
class LatencyScorerParameters:
    """Parameters of latency-scorer."""

    ttft_weight: float = param(0.8, minimum=0, doc="how much the time to the first token counts")
    tpot_weight: float = param(0.2, minimum=0, doc="how much the time per token counts")
    headroom_selection_strategy: str = param("least", choices=("least", "most"), doc="which endpoints in time")
    composite_kv_weight: float = param(1.0, minimum=0, key="compositeKVWeight", doc="without predictions: free cache")
    composite_queue_weight: float = param(1.0, minimum=0, doc="without predictions: short queue")
    composite_prefix_weight: float = param(1.0, minimum=0, doc="without predictions: prompt is cached")
    latency_prediction_info_producer_name: str = param("", doc="whose predictions count; empty for anybody's")
    prefix_match_info_producer_name: str = param("", plugin=Producer, doc="who says what is cached")


class LatencyScorer(Scorer):
    """Sooner is better, and just in time is best."""

    TYPE = "latency-scorer"
    PARAMETERS: ClassVar[type[Any]] = LatencyScorerParameters

    def __init__(self, name: str, parameters: LatencyScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._parameters = parameters
        self._key = producer_key(context, parameters.prefix_match_info_producer_name)

    @classmethod
    def needs(cls, parameters: Any) -> tuple[str, ...]:
        """Producers."""
        prefixes = needs_producer(parameters.prefix_match_info_producer_name)
        return (*prefixes, *needs_predictions(parameters.latency_prediction_info_producer_name))

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        prediction = prediction_of(request, self._parameters.latency_prediction_info_producer_name)
        if prediction is None or not any(endpoint in prediction.ttft for endpoint in endpoints):
            return self._composite(request, endpoints)
        return self._predicted(request, prediction, endpoints)

    def _predicted(
        self, request: InferenceRequest, prediction: LatencyPrediction, endpoints: list[Endpoint]
    ) -> list[float]:
        rooms = [room or (0.0, 0.0) for room in headrooms(request, prediction, endpoints)]
        everybody = range(len(endpoints))
        in_time = [index for index in everybody if min(rooms[index]) >= 0]
        groups = (
            in_time,
            [index for index in everybody if endpoints[index].inflight == 0],
            [index for index in everybody if rooms[index][0] >= 0],
            [index for index in everybody if rooms[index][1] >= 0],
            list(everybody),
        )
        chosen = next(group for group in groups if group)
        most = bool(in_time) and self._parameters.headroom_selection_strategy == "most"
        scores = [0.0] * len(endpoints)
        for index, distance in zip(chosen, self._distances([rooms[index] for index in chosen]), strict=True):
            scores[index] = (int((distance if most else 1.0 - distance) * 100) + 1) / 100
        return scores

    def _distances(self, rooms: list[Room]) -> list[float]:
        """How far each is from its targets, 0 (least) to 1."""
        rules = self._parameters
        ttft, tpot = _scaled([abs(room[0]) for room in rooms]), _scaled([abs(room[1]) for room in rooms])
        first, second = rules.ttft_weight, rules.tpot_weight
        if (ttft is None) != (tpot is None):
            first, second = (1.0, 0.0) if tpot is None else (0.0, 1.0)
        total = first + second
        first, second = (first / total, second / total) if total > 0 else (1.0, 0.0)
        middle = [0.5] * len(rooms)
        return [first * a + second * b for a, b in zip(ttft or middle, tpot or middle, strict=True)]

    def _composite(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        rules = self._parameters
        kv, queue, prefix = rules.composite_kv_weight, rules.composite_queue_weight, rules.composite_prefix_weight
        total = kv + queue + prefix
        kv, queue, prefix = (kv / total, queue / total, prefix / total) if total > 0 else (1.0, 0.0, 0.0)
        queues = load.all_waiting(endpoints)
        longest = max(queues, default=0)
        held = shares(match_of(request, self._key), endpoints)
        scores: list[float] = []
        for endpoint, waiting, share in zip(endpoints, queues, held, strict=True):
            relative = (longest - waiting) / longest if longest else 1.0
            value = kv * (1.0 - load.kv_usage(endpoint)) + queue * relative + prefix * share
            scores.append(int(100 * value + 0.5) / 100)
        return scores


def _scaled(values: list[float]) -> list[float] | None:
    """From 0 for the smallest to 1 for the largest; None when they do not differ."""
    least, most = min(values), max(values)
    if most - least <= NO_RANGE:
        return None
    return [(value - least) / (most - least) for value in values]
