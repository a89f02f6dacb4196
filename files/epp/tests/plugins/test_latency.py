# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins that weigh caches against waiting, and predictions against targets."""

from __future__ import annotations

from typing import Any

import pytest

from epp.model import Endpoint
from epp.scheduling import LatencyPrediction

KEY = "latency-prediction/p"


def predicted(request: Any, *each: tuple[Endpoint, float, float]) -> Any:
    request.attributes[KEY] = LatencyPrediction(
        {endpoint: ttft for endpoint, ttft, _ in each}, {endpoint: tpot for endpoint, _, tpot in each}
    )
    return request


def wanting(kit: Any, ttft: float, tpot: float) -> Any:
    return kit.ask(headers={"x-llm-d-slo-ttft-ms": str(ttft), "x-slo-tpot-ms": str(tpot)})


class TestPrefixAffinityFilter:
    @pytest.mark.parametrize(
        ("blocks", "threshold", "kept"),
        [
            ((8, 0, 0), 0.8, [0]),
            ((8, 10, 0), 0.8, [0, 1]),
            ((7, 0, 0), 0.8, [0, 1, 2]),
            ((0, 0, 0), 0.8, [0, 1, 2]),
            ((10, 10, 10), 0.8, [0, 1, 2]),
            ((0, 1, 0), 0.1, [1]),
        ],
    )
    def test_who_holds_enough(self, kit: Any, blocks: tuple[int, ...], threshold: float, kept: list[int]) -> None:
        pods = kit.endpoints(3)
        request = kit.ask()
        kit.matched(request, {pod: count for pod, count in zip(pods, blocks, strict=True) if count}, total=10)
        filter_ = kit.make("prefix-cache-affinity-filter", affinity_threshold=threshold)
        assert filter_.filter(request, pods) == [pods[number] for number in kept]

    @pytest.mark.parametrize(
        ("tokens", "penalty", "sticks"),
        [
            ((0, 0), 18000, True),
            ((1000, 0), 1000, True),
            ((1001, 0), 1000, False),
            ((10**9, 0), 0, True),
            ((5000, 4000), 1000, True),
        ],
    )
    def test_the_gate(self, kit: Any, tokens: tuple[int, int], penalty: float, sticks: bool) -> None:
        warm, cold = kit.endpoints(2)
        warm.inflight_tokens, cold.inflight_tokens = tokens
        request = kit.ask()
        kit.matched(request, {warm: 10}, total=10)
        filter_ = kit.make(
            "prefix-cache-affinity-filter", max_ttft_penalty_ms=float(penalty), peak_prefill_throughput=1000.0
        )
        assert filter_.filter(request, [warm, cold]) == ([warm] if sticks else [warm, cold])

    @pytest.mark.parametrize(
        ("times", "sticks"),
        [((300.0, 100.0), True), ((301.0, 100.0), False), ((None, 100.0), False), ((1.0, None), False)],
    )
    def test_the_gate_by_predictions(self, kit: Any, times: tuple[float | None, float | None], sticks: bool) -> None:
        warm, cold = kit.endpoints(2)
        request = kit.ask()
        kit.matched(request, {warm: 10}, total=10)
        known = [(pod, time, 0.0) for pod, time in zip((warm, cold), times, strict=True) if time is not None]
        predicted(request, *known)
        filter_ = kit.make("prefix-cache-affinity-filter", max_ttft_penalty_ms=200.0, ttft_source="latencyPredictor")
        assert filter_.filter(request, [warm, cold]) == ([warm] if sticks else [warm, cold])

    def test_exploration(self, kit: Any) -> None:
        warm, cold = kit.endpoints(2)
        request = kit.ask()
        kit.matched(request, {warm: 10}, total=10)
        filter_ = kit.make("prefix-cache-affinity-filter", exploration_probability=0.25)
        kept = [len(filter_.filter(request, [warm, cold])) for _ in range(2000)]
        assert 400 < kept.count(2) < 600

    def test_the_name_in_the_configuration(self, kit: Any) -> None:
        found = kit.parameters("prefix-cache-affinity-filter", "{maxTTFTPenaltyMs: 5000, ttftSource: latencyPredictor}")
        assert (found.max_ttft_penalty_ms, found.ttft_source) == (5000.0, "latencyPredictor")


class TestHeadroomTier:
    def test_in_time_before_late(self, kit: Any) -> None:
        pods = kit.endpoints(4)
        request = predicted(wanting(kit, 100, 10), (pods[0], 100, 10), (pods[1], 101, 1), (pods[2], 1, 11))
        filter_ = kit.make("slo-headroom-tier-filter", epsilon_explore_neg=0.0)
        assert filter_.filter(request, pods) == [pods[0]]
        assert filter_.filter(request, pods[1:]) == pods[1:]
        assert filter_.filter(request, pods[:1]) == pods[:1]
        always = kit.make("slo-headroom-tier-filter", epsilon_explore_neg=1.0)
        assert always.filter(request, pods) == pods[1:]

    def test_no_predictions_no_filter(self, kit: Any) -> None:
        pods = kit.endpoints(2)
        assert kit.make("slo-headroom-tier-filter").filter(wanting(kit, 1, 1), pods) == pods


class TestLatencyScorer:
    @pytest.mark.parametrize(
        ("weights", "metrics", "blocks", "scores"),
        [
            ((1, 1, 1), [(0.0, 0), (0.0, 0)], (0, 0), [0.67, 0.67]),
            ((1, 0, 0), [(0.25, 9), (0.5, 0)], (0, 9), [0.75, 0.5]),
            ((0, 1, 0), [(0.9, 0), (0.0, 5), (0.0, 10)], (0, 0, 0), [1.0, 0.5, 0.0]),
            ((0, 0, 1), [(0.0, 0), (0.0, 9)], (0, 5), [0.0, 0.5]),
            ((0, 0, 0), [(0.25, 0)], (0,), [0.75]),
            ((1, 1, 2), [(0.5, 2), (0.0, 4)], (10, 0), [0.75, 0.25]),
        ],
    )
    def test_without_predictions(
        self,
        kit: Any,
        weights: tuple[float, ...],
        metrics: list[tuple[float, int]],
        blocks: tuple[int, ...],
        scores: list[float],
    ) -> None:
        kv, queue, prefix = weights
        scorer = kit.make(
            "latency-scorer", composite_kv_weight=kv, composite_queue_weight=queue, composite_prefix_weight=prefix
        )
        pods = [
            kit.endpoint(number, metrics=kit.read(kv_cache_usage=usage, waiting=waiting))
            for number, (usage, waiting) in enumerate(metrics)
        ]
        request = kit.ask()
        kit.matched(request, {pod: count for pod, count in zip(pods, blocks, strict=True) if count}, total=10)
        assert scorer.score(request, pods) == [pytest.approx(score) for score in scores]

    @pytest.mark.parametrize(
        ("strategy", "scores"), [("least", [0.01, 0.51, 1.01, 0.0]), ("most", [1.01, 0.51, 0.01, 0.0])]
    )
    def test_in_time(self, kit: Any, strategy: str, scores: list[float]) -> None:
        pods = kit.endpoints(4)
        request = predicted(
            wanting(kit, 100, 100), (pods[0], 0, 50), (pods[1], 50, 50), (pods[2], 100, 50), (pods[3], 101, 50)
        )
        scorer = kit.make("latency-scorer", headroom_selection_strategy=strategy)
        assert scorer.score(request, pods) == [pytest.approx(score) for score in scores]

    @pytest.mark.parametrize(
        ("times", "busy", "best"),
        [
            ([(200, 200), (200, 200), (300, 300)], [1, 1, 0], 2),
            ([(200, 1), (1, 200), (200, 200)], [1, 1, 1], 1),
            ([(200, 1), (300, 1), (200, 200)], [1, 1, 1], 0),
            ([(200, 200), (150, 150), (300, 300)], [1, 1, 1], 1),
        ],
        ids=["idle first", "late in tpot only", "late in ttft only", "late in both"],
    )
    def test_late(self, kit: Any, times: list[tuple[float, float]], busy: list[int], best: int) -> None:
        pods = kit.endpoints(3)
        for pod, count in zip(pods, busy, strict=True):
            pod.inflight = count
        request = predicted(wanting(kit, 100, 100), *((pod, *time) for pod, time in zip(pods, times, strict=True)))
        scores = kit.make("latency-scorer", headroom_selection_strategy="most").score(request, pods)
        assert max(range(3), key=scores.__getitem__) == best

    def test_both_latencies_count_by_their_weights(self, kit: Any) -> None:
        pods = kit.endpoints(2)
        request = predicted(wanting(kit, 100, 100), (pods[0], 0, 100), (pods[1], 100, 0))
        assert kit.make("latency-scorer").score(request, pods) == [pytest.approx(0.2, abs=0.011), pytest.approx(0.81)]
        other = kit.make("latency-scorer", ttft_weight=0.0, tpot_weight=0.0)
        assert other.score(request, pods) == [0.01, 1.01]

    def test_without_targets_sooner_is_better(self, kit: Any) -> None:
        pods = kit.endpoints(2)
        for pod in pods:
            pod.inflight = 1
        request = predicted(kit.ask(), (pods[0], 500, 5), (pods[1], 100, 5))
        first, second = kit.make("latency-scorer").score(request, pods)
        assert second > first

    def test_somebody_elses_predictions(self, kit: Any) -> None:
        pods = kit.endpoints(1)
        request = predicted(wanting(kit, 100, 100), (pods[0], 1, 1))
        scorer = kit.make("latency-scorer", latency_prediction_info_producer_name="other")
        assert scorer.score(request, pods) == [pytest.approx(0.67)]

    def test_v13s_parameters(self, kit: Any) -> None:
        rig = kit.rig(
            "plugins:\n- type: predicted-latency-scorer\n  parameters:\n"
            "    {samplingMean: 500, headroomTTFTWeight: 0.5, headroomSelectionStrategy: most, affinityGateTau: 0.7,\n"
            "     compositeKVWeight: 0, compositeQueueWeight: 1, compositePrefixWeight: 0, selectionMode: linear}\n",
            kit.endpoints(1),
        )
        assert rig.plugin("predicted-latency-scorer").score(kit.ask(), rig.endpoints) == [1.0]
        assert rig.cfg.warnings == ()
        assert rig.scheduler.asks
        assert rig.send(kit.ask()).endpoints == tuple(rig.endpoints)
