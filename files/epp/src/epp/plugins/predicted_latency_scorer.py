# SPDX-License-Identifier: GPL-3.0-or-later
"""predicted-latency-scorer: GAIE v1.3's scorer by predicted latency, as latency-scorer scores.

Parameters: those of v1.3; of them ttftWeight and tpotWeight (headroomTTFTWeight 0.8, headroomTPOTWeight 0.2),
headroomSelectionStrategy (least) and the three compositeWeights (1) have an effect.
Formula: that of latency-scorer.
Source: GAIE v1.3 scorer of the same type, which also asks a predictor, and picks; see ``LIMITS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from epp.plugins.latency_scorer import LatencyScorer, LatencyScorerParameters
from epp.scheduling.api import Context, param


@dataclass(frozen=True)
class PredictedLatencyScorerParameters:
    """Parameters of predicted-latency-scorer."""

    sampling_mean: float = param(1000.0, above=0, doc="ignored: nothing is sampled")
    max_sampled_tokens: int = param(5, minimum=0, doc="ignored: nothing is sampled")
    slo_buffer_factor: float = param(1.0, above=0, doc="ignored: nothing is predicted")
    neg_headroom_ttft_weight: float = param(0.8, minimum=0, key="negHeadroomTTFTWeight", doc="ignored")
    neg_headroom_tpot_weight: float = param(0.2, minimum=0, key="negHeadroomTPOTWeight", doc="ignored")
    headroom_ttft_weight: float = param(0.8, minimum=0, key="headroomTTFTWeight", doc="as ttftWeight there")
    headroom_tpot_weight: float = param(0.2, minimum=0, key="headroomTPOTWeight", doc="as tpotWeight there")
    headroom_selection_strategy: str = param("least", doc="least or most; others count as least")
    composite_kv_weight: float = param(1.0, minimum=0, key="compositeKVWeight", doc="free cache")
    composite_queue_weight: float = param(1.0, minimum=0, doc="short queue")
    composite_prefix_weight: float = param(1.0, minimum=0, doc="prompt is cached")
    epsilon_explore_sticky: float = param(0.01, minimum=0, maximum=1, doc="ignored")
    epsilon_explore_neg: float = param(0.01, minimum=0, maximum=1, doc="ignored")
    affinity_gate_tau: float = param(0.8, minimum=0, maximum=1, doc="ignored")
    affinity_gate_tau_global: float = param(0.99, minimum=0, maximum=1, doc="ignored")
    selection_mode: str = param("linear", doc="ignored: a picker picks")
    streaming_mode: bool = param(True, doc="ignored")


class PredictedLatencyScorer(LatencyScorer):
    """latency-scorer with older parameters."""

    TYPE = "predicted-latency-scorer"
    PARAMETERS = PredictedLatencyScorerParameters
    LIMITS = "it predicts nothing itself: without another producer's predictions it scores by cache, queue and prefix"

    def __init__(self, name: str, parameters: PredictedLatencyScorerParameters, context: Context) -> None:
        strategy = "most" if parameters.headroom_selection_strategy == "most" else "least"
        now = LatencyScorerParameters(
            ttft_weight=parameters.headroom_ttft_weight,
            tpot_weight=parameters.headroom_tpot_weight,
            headroom_selection_strategy=strategy,
            composite_kv_weight=parameters.composite_kv_weight,
            composite_queue_weight=parameters.composite_queue_weight,
            composite_prefix_weight=parameters.composite_prefix_weight,
        )
        super().__init__(name, now, context)

    @classmethod
    def needs(cls, parameters: Any) -> tuple[str, ...]:
        """A producer."""
        return super().needs(LatencyScorerParameters())

    @classmethod
    def warnings(cls, parameters: PredictedLatencyScorerParameters) -> tuple[str, ...]:
        """What v1.3 would do."""
        return (cls.LIMITS,)
