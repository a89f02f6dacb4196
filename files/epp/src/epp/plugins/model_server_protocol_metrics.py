# SPDX-License-Identifier: GPL-3.0-or-later
"""model-server-protocol-metrics: GAIE v1.3's extractor, which knows one engine.

Parameters: queuedRequestsSpec (vllm:num_requests_waiting), runningRequestsSpec (vllm:num_requests_running), kvUsageSpec
(vllm:kv_cache_usage_perc), loraSpec (vllm:lora_requests_info), cacheInfoSpec (vllm:cache_config_info).
Source: GAIE v1.3 extractor of the same type; core-metrics-extractor is its successor.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.plugins.core_metrics_extractor import CoreMetricsExtractorParameters, EngineConfig
from epp.scheduling.api import Extractor, param


@dataclass(frozen=True)
class ModelServerProtocolMetricsParameters:
    """Parameters of model-server-protocol-metrics."""

    queued_requests_spec: str = param("vllm:num_requests_waiting", doc="metric of waiting requests")
    running_requests_spec: str = param("vllm:num_requests_running", doc="metric of running requests")
    kv_usage_spec: str = param("vllm:kv_cache_usage_perc", doc="metric of KV cache use, 0..1")
    lora_spec: str = param("vllm:lora_requests_info", doc="metric of LoRA adapters")
    cache_info_spec: str = param("vllm:cache_config_info", doc="metric of the KV cache's block size")

    def __post_init__(self) -> None:
        """Refuse specs that cannot be read."""
        self.successor()

    def successor(self) -> CoreMetricsExtractorParameters:
        """The same in core-metrics-extractor's words."""
        engine = EngineConfig(
            "vllm",
            self.queued_requests_spec,
            self.running_requests_spec,
            self.kv_usage_spec,
            self.lora_spec,
            self.cache_info_spec,
        )
        return CoreMetricsExtractorParameters(engine_configs=(engine,))


class ModelServerProtocolMetrics(Extractor):
    """Read by the data layer."""

    TYPE = "model-server-protocol-metrics"
    PARAMETERS = ModelServerProtocolMetricsParameters
