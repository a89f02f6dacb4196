# SPDX-License-Identifier: GPL-3.0-or-later
"""core-metrics-extractor: which metric of which engine says how loaded an endpoint is.

Parameters: engineLabelKey (llm-d.ai/engine-type, legacy inference.networking.k8s.io/engine-type): the pod label that
names the engine; defaultEngine (vllm); engineConfigs: engines of one's own, or known ones with other metrics, each
with name, queuedRequestsSpec, runningRequestsSpec, kvUsageSpec, loraSpec, cacheInfoSpec, cacheBlockSizeLabelName,
cacheNumBlocksLabelName, cacheBlockSizeSpec, cacheNumBlocksSpec, customMetrics. A spec is ``metric`` or
``metric{label=value}``. customMetrics: figures for plugins like endpoint-attribute-scorer, each with attributeKey,
metricSpec and optional (false: it is an error of the reading when the page lacks it); the first series that matches.
Known engines: vllm, sglang, trtllm-serve, triton-tensorrt-llm, triton, llamacpp, and none for endpoints that have no
metrics.
Source: GAIE v1.5 and llm-d-router extractor of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from epp.datalayer.exposition import MetricSpec
from epp.scheduling.api import Extractor, param


@dataclass(frozen=True)
class CustomMetricConfig:
    """One more figure to take."""

    attribute_key: str
    metric_spec: str
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be read."""
        if not self.attribute_key:
            raise ValueError("attributeKey is empty; name the attribute")
        MetricSpec.parse(self.metric_spec)


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
    custom_metrics: tuple[CustomMetricConfig, ...] = ()

    def __post_init__(self) -> None:
        """Refuse specs that cannot be read."""
        if not self.name:
            raise ValueError("name is empty; name the engine as the pod label does")
        for field in fields(self):
            text = getattr(self, field.name)
            if field.name.endswith("_spec") and text:
                MetricSpec.parse(text)
        keys = [metric.attribute_key for metric in self.custom_metrics]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"customMetrics has the attributeKey {twice!r} twice; remove one")


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
