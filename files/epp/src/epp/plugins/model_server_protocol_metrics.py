# SPDX-License-Identifier: GPL-3.0-or-later
"""model-server-protocol-metrics: which metrics of the default engine say how loaded an endpoint is.

Parameters: queuedRequestsSpec, runningRequestsSpec, kvUsageSpec, loraSpec, cacheInfoSpec; empty is vLLM's own. A spec
is ``metric`` or ``metric{label=value}``.
Source: GAIE v1.3 extractor of the same type, which core-metrics-extractor has replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.datalayer.exposition import MetricSpec
from epp.scheduling.api import Extractor, param


@dataclass(frozen=True)
class ModelServerProtocolMetricsParameters:
    """Parameters of model-server-protocol-metrics."""

    queued_requests_spec: str = param("", doc="metric of waiting requests")
    running_requests_spec: str = param("", doc="metric of running requests")
    kv_usage_spec: str = param("", doc="metric of KV cache use, 0 to 1")
    lora_spec: str = param("", doc="metric of LoRA adapters")
    cache_info_spec: str = param("", doc="metric of the KV cache's block size")

    def __post_init__(self) -> None:
        """Refuse specs that cannot be read."""
        for text in vars(self).values():
            if text:
                MetricSpec.parse(text)


class ModelServerProtocolMetrics(Extractor):
    """Read by the data layer."""

    TYPE = "model-server-protocol-metrics"
    PARAMETERS = ModelServerProtocolMetricsParameters
