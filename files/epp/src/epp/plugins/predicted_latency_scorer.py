# SPDX-License-Identifier: GPL-3.0-or-later
"""predicted-latency-scorer: GAIE v1.3's choice by predicted latency; predictor, scorer and picker in one.

Parameters:
    headroomSelectionStrategy (least): of endpoints in time, those closest to the targets or with the most room; or by
    composite-least, composite-most: the composite below instead; or composite-only: the composite for all.
    headroomTTFTWeight (0.8), headroomTPOTWeight (0.2); negHeadroomTTFTWeight (0.8), negHeadroomTPOTWeight (0.2): how
    much the two latencies count in time, and late.
    compositeKVWeight, compositeQueueWeight, compositePrefixWeight (1 each).
    affinityGateTauGlobal (0.99), affinityGateTau (0.8): if any endpoint holds such a part of the prompt, only those
    that do are left, at first, and among those in time or late; except by chance (epsilonExploreSticky, 0.01).
    epsilonExploreNeg (0.01): how often one that is late is taken although others are in time.
    selectionMode (linear): by lot, or the one with the largest weight (max).
    streamingMode (true), sloBufferFactor (1): as of predicted-latency-producer. samplingMean, maxSampledTokens: not
    needed.
Formula: the chosen endpoint scores 1, the others 0. Weights in the lot:
in time (headroom >= 0 in both): int((1 - c) * 99) + 2, or int(c * 99) + 2 for most, where c is the weighted mean of
both headrooms, each scaled to 0..1 (0.5 where all are alike);
late (only idle endpoints, if there are any): int((1 - d) * 80) + 2 within each of the groups late in both, in TTFT, in
TPOT, where d is the weighted mean of what they are late by, each scaled to 0..1;
composite: round(1 + 99 * weighted mean of (1 - kv usage), (max q - q) / (max q - min q), cached part of the prompt),
101 minus that for composite-least. Without predictions the composite decides.
Source: GAIE v1.3 scorer of the same type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.plugins.latency import headrooms, prediction_of
from epp.plugins.predicted_latency_producer import PredictedLatencyProducer, PredictedLatencyProducerParameters
from epp.plugins.prefixes import match_of, needs_producer, producer_key, shares
from epp.scheduling.api import Context, Scorer, param

MIN_WEIGHT, MAX_WEIGHT, LATE_RANGE = 1, 100, 80
NO_RANGE = 1e-9
STRATEGIES = ("least", "most", "composite-least", "composite-most", "composite-only")


@dataclass(frozen=True)
class PredictedLatencyScorerParameters:
    """Parameters of predicted-latency-scorer."""

    sampling_mean: float = param(1000.0, above=0, doc="not needed")
    max_sampled_tokens: int = param(5, minimum=0, doc="not needed")
    slo_buffer_factor: float = param(1.0, above=0, doc="multiplies targets for the time per token")
    neg_headroom_ttft_weight: float = param(
        0.8, minimum=0, key="negHeadroomTTFTWeight", doc="late: how much the time to the first token counts"
    )
    neg_headroom_tpot_weight: float = param(
        0.2, minimum=0, key="negHeadroomTPOTWeight", doc="late: how much the time per token counts"
    )
    headroom_ttft_weight: float = param(
        0.8, minimum=0, key="headroomTTFTWeight", doc="in time: how much the time to the first token counts"
    )
    headroom_tpot_weight: float = param(
        0.2, minimum=0, key="headroomTPOTWeight", doc="in time: how much the time per token counts"
    )
    headroom_selection_strategy: str = param("least", choices=STRATEGIES, doc="which endpoints in time")
    composite_kv_weight: float = param(1.0, minimum=0, key="compositeKVWeight", doc="composite: free cache")
    composite_queue_weight: float = param(1.0, minimum=0, doc="composite: short queue")
    composite_prefix_weight: float = param(1.0, minimum=0, doc="composite: prompt is cached")
    epsilon_explore_sticky: float = param(0.01, minimum=0, maximum=1, doc="how often the gates are open")
    epsilon_explore_neg: float = param(0.01, minimum=0, maximum=1, doc="how often a late one is taken")
    affinity_gate_tau: float = param(0.8, minimum=0, maximum=1, doc="part of the prompt that closes the inner gates")
    affinity_gate_tau_global: float = param(0.99, minimum=0, maximum=1, doc="part that closes the outer gate; 0: none")
    selection_mode: str = param("linear", choices=("linear", "max"), doc="by lot, or the largest weight")
    streaming_mode: bool = param(True, doc="as of predicted-latency-producer")

    def predicting(self) -> PredictedLatencyProducerParameters:
        """What its producer is told."""
        return PredictedLatencyProducerParameters(
            slo_buffer_factor=self.slo_buffer_factor, streaming_mode=self.streaming_mode
        )


@dataclass(slots=True)
class _Pod:
    """One endpoint, seen with a request."""

    index: int
    endpoint: Endpoint
    share: float
    """Part of the prompt that it holds."""
    ttft: float = 0.0
    """Headroom, milliseconds."""
    tpot: float = 0.0

    @property
    def in_time(self) -> bool:
        """Both."""
        return self.ttft >= 0 and self.tpot >= 0


class PredictedLatencyScorer(Scorer):
    """Chooses, and says so as a score."""

    TYPE = "predicted-latency-scorer"
    PARAMETERS = PredictedLatencyScorerParameters

    def __init__(self, name: str, parameters: PredictedLatencyScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._rules = parameters
        self._prefixes = producer_key(context, "")
        self._rng = context.rng
        context.adopt(PredictedLatencyProducer(name, parameters.predicting(), context))

    @classmethod
    def needs(cls, parameters: PredictedLatencyScorerParameters) -> tuple[str, ...]:
        """Who says what is cached."""
        return needs_producer("")

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        scores = [0.0] * len(endpoints)
        if endpoints:
            scores[self._choose(request, endpoints).index] = 1.0
        return scores

    def _choose(self, request: InferenceRequest, endpoints: list[Endpoint]) -> _Pod:
        held = shares(match_of(request, self._prefixes), endpoints)
        pods = [_Pod(index, *each) for index, each in enumerate(zip(endpoints, held, strict=True))]
        prediction = prediction_of(request, self.name)
        rooms = headrooms(request, prediction, endpoints) if prediction is not None else []
        if not rooms or None in rooms:
            return self._lot(pods, self._composite(pods))
        for pod, room in zip(pods, rooms, strict=True):
            assert room is not None
            pod.ttft, pod.tpot = room
        pods = self._gate(pods, self._rules.affinity_gate_tau_global)
        if self._rules.headroom_selection_strategy == "composite-only":
            return self._lot(pods, self._composite(pods))
        in_time, late = [pod for pod in pods if pod.in_time], [pod for pod in pods if not pod.in_time]
        if in_time and late:
            explores = self._rng.random() < self._rules.epsilon_explore_neg
            return self._of_late(late) if explores else self._of_those_in_time(in_time)
        return self._of_those_in_time(in_time) if in_time else self._of_late(late)

    def _of_those_in_time(self, pods: list[_Pod]) -> _Pod:
        pods = self._gate(pods, self._rules.affinity_gate_tau)
        if self._rules.headroom_selection_strategy.startswith("composite"):
            return self._lot(pods, self._composite(pods))
        rules = self._rules
        first, second = (rules.headroom_ttft_weight, rules.headroom_tpot_weight) if rules.streaming_mode else (1.0, 0.0)
        first, second = _normalised(first, second)
        rooms = zip(_scaled([pod.ttft for pod in pods], 0.5), _scaled([pod.tpot for pod in pods], 0.5), strict=True)
        means = [first * ttft + second * tpot for ttft, tpot in rooms]
        most = rules.headroom_selection_strategy == "most"
        span = MAX_WEIGHT - MIN_WEIGHT
        return self._lot(pods, [int((mean if most else 1.0 - mean) * span) + MIN_WEIGHT + 1 for mean in means])

    def _of_late(self, pods: list[_Pod]) -> _Pod:
        pods = [pod for pod in pods if not pod.endpoint.inflight] or pods
        pods = self._gate(pods, self._rules.affinity_gate_tau)
        if self._rules.headroom_selection_strategy.startswith("composite"):
            return self._lot(pods, self._composite(pods, least=False))
        chosen: list[_Pod] = []
        weights: list[int] = []
        for late_first, late_others in ((True, True), (True, False), (False, True)):
            group = [pod for pod in pods if (pod.ttft < 0) == late_first and (pod.tpot < 0) == late_others]
            chosen += group
            weights += self._by_lateness(group)
        return self._lot(chosen, weights)

    def _by_lateness(self, pods: list[_Pod]) -> list[int]:
        first, second = _normalised(self._rules.neg_headroom_ttft_weight, self._rules.neg_headroom_tpot_weight)
        late = zip(
            _scaled([max(0.0, -pod.ttft) for pod in pods], 0.0),
            _scaled([max(0.0, -pod.tpot) for pod in pods], 0.0),
            strict=True,
        )
        return [int((1.0 - first * ttft - second * tpot) * LATE_RANGE) + MIN_WEIGHT + 1 for ttft, tpot in late]

    def _composite(self, pods: list[_Pod], least: bool | None = None) -> list[int]:
        rules = self._rules
        kv, queue, prefix = rules.composite_kv_weight, rules.composite_queue_weight, rules.composite_prefix_weight
        total = kv + queue + prefix
        kv, queue, prefix = (kv / total, queue / total, prefix / total) if total > 0 else (1.0, 0.0, 0.0)
        waiting = _scaled([float(load.waiting(pod.endpoint)) for pod in pods], 0.0)
        weights = []
        for pod, longest in zip(pods, waiting, strict=True):
            value = kv * (1.0 - load.kv_usage(pod.endpoint)) + queue * (1.0 - longest) + prefix * pod.share
            weights.append(int(MIN_WEIGHT + (MAX_WEIGHT - MIN_WEIGHT) * value + 0.5))
        if least is None:
            least = rules.headroom_selection_strategy == "composite-least"
        return [MIN_WEIGHT + MAX_WEIGHT - weight for weight in weights] if least else weights

    def _gate(self, pods: list[_Pod], part: float) -> list[_Pod]:
        """Those that hold this part of the prompt, if there are any, and chance does not want otherwise."""
        holding = [pod for pod in pods if pod.share >= part] if part > 0 and len(pods) > 1 else []
        if not holding or self._rng.random() < self._rules.epsilon_explore_sticky:
            return pods
        return holding

    def _lot(self, pods: list[_Pod], weights: Sequence[int]) -> _Pod:
        if self._rules.selection_mode == "max":
            return pods[max(range(len(pods)), key=weights.__getitem__)]
        return self._rng.choices(pods, weights)[0] if len(pods) > 1 else pods[0]


def _normalised(first: float, second: float) -> tuple[float, float]:
    total = first + second
    return (first / total, second / total) if total > 0 else (1.0, 0.0)


def _scaled(values: list[float], alike: float) -> list[float]:
    """From 0 for the smallest to 1 for the largest; ``alike`` for all when they do not differ."""
    least, most = min(values, default=0.0), max(values, default=0.0)
    if most - least <= NO_RANGE:
        return [alike] * len(values)
    return [(value - least) / (most - least) for value in values]
