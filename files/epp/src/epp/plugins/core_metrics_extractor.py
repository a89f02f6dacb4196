# SPDX-License-Identifier: GPL-3.0-or-later
"""core-metrics-extractor: which metric of which engine says how loaded an endpoint is.

Parameters: engineLabelKey (llm-d.ai/engine-type, legacy inference.networking.k8s.io/engine-type): the pod label that
names the engine; defaultEngine (vllm); engineConfigs: engines of one's own, or known ones with other metrics, each
with name, queuedRequestsSpec, runningRequestsSpec, kvUsageSpec, loraSpec, cacheInfoSpec, cacheBlockSizeLabelName,
cacheNumBlocksLabelName, cacheBlockSizeSpec, cacheNumBlocksSpec. A spec is ``metric`` or ``metric{label=value}``.
Source: GAIE v1.5 and llm-d-router extractor of the same type, whose customMetrics are not available here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from epp.datalayer.exposition import MetricSpec
from epp.scheduling.api import Extractor, param


@dataclass(frozen=True)
class EngineConfig:
    """One engine's metrics; an empty spec is a metric that the engine does not have."""

    name: str
    queued_requests_spec: str = ""
    running_requests_spec: str = ""
    kv_usage_spec: str = ""
    lora_spec: str = ""
    cache_info_spec: str = ""
    cache_block_size_label_name: str = "block_size"
    cache_num_blocks_label_name: str = "num_gpu_blocks"
    cache_block_size_spec: str = ""
    cache_num_blocks_spec: str = ""

    def __post_init__(self) -> None:
        """Refuse specs that cannot be read."""
        if not self.name:
            raise ValueError("name is empty; name the engine as the pod label does")
        for field in fields(self):
            text = getattr(self, field.name)
            if field.name.endswith("_spec") and text:
                MetricSpec.parse(text)


@dataclass(frozen=True)
class CoreMetricsExtractorParameters:
    """Parameters of core-metrics-extractor."""

    engine_label_key: str = param("", doc="pod label that names the engine")
    default_engine: str = param("vllm", doc="engine of pods without that label")
    engine_configs: tuple[EngineConfig, ...] = param((), doc="engines of one's own")

    def __post_init__(self) -> None:
        """Each engine once."""
        names = [engine.name for engine in self.engine_configs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"engineConfigs has the engine {twice!r} twice; remove one")


class CoreMetricsExtractor(Extractor):
    """Read by the data layer."""

    TYPE = "core-metrics-extractor"
    PARAMETERS = CoreMetricsExtractorParameters
