# SPDX-License-Identifier: GPL-3.0-or-later
"""predicted-latency-producer: would ask a predictor for each endpoint's latency.

Parameters: sloBufferFactor (1), contextTTL (5m), streamingMode (false), endpointRoleLabel, predictInProduce (true),
useEncoderCacheFeatures (false), samplingMean, maxDecodeTokenSamples: taken, without effect.
Effect: none; see ``LIMITS``. latency-scorer then scores as it does in the reference while the predictor is away, and
slo-headroom-tier-filter and latency-slo-admitter let everything pass.
Source: llm-d-router producer of the same type, which asks two services beside the picker.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Producer, param


@dataclass(frozen=True)
class PredictedLatencyProducerParameters:
    """Parameters of predicted-latency-producer."""

    slo_buffer_factor: float = param(1.0, above=0, doc="no effect")
    context_ttl: float = param(300.0, above=0, duration=True, key="contextTTL", doc="no effect")
    streaming_mode: bool = param(False, doc="no effect")
    endpoint_role_label: str = param("", doc="no effect")
    predict_in_produce: bool = param(True, doc="no effect")
    use_encoder_cache_features: bool = param(False, doc="no effect")
    sampling_mean: float = param(1000.0, above=0, doc="no effect")
    max_decode_token_samples: int = param(0, minimum=0, doc="no effect")


class PredictedLatencyProducer(Producer):
    """Knows nothing of the future."""

    TYPE = "predicted-latency-producer"
    PARAMETERS = PredictedLatencyProducerParameters
    LIMITS = "the latency predictor is not asked: nothing is predicted, and plugins do what they do without predictions"

    @classmethod
    def warnings(cls, parameters: PredictedLatencyProducerParameters) -> tuple[str, ...]:
        """Nobody should wait for it."""
        return (cls.LIMITS,)

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Nothing."""
