# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugin types of GAIE v1.3, v1.5 and llm-d-router that this EPP knows of and does not have, and why.

They get a sentence of their own: whoever brings a working configuration should not be told that it has a typing error.
"""

from __future__ import annotations

_NO_GPU_FIGURES = "figures of GPUs are not read; customMetrics of core-metrics-extractor has those of engines"
_ONE_CLUSTER = "an EPP serves the pools of one cluster"

UNAVAILABLE = {
    "dcgm-data-source": _NO_GPU_FIGURES,
    "dcgm-extractor": _NO_GPU_FIGURES,
    "multicluster-kv-cache-utilization-scorer": _ONE_CLUSTER,
    "multicluster-prefix-cache-scorer": _ONE_CLUSTER,
    "multicluster-queue-scorer": _ONE_CLUSTER,
    "multicluster-session-affinity-filter": _ONE_CLUSTER,
}
"""Plugin type to why it is not there."""
