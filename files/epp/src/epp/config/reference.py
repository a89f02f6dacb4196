# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugin types of GAIE v1.3, v1.5 and llm-d-router that this EPP knows of and does not have.

They get a sentence of their own: whoever brings a working configuration should not be told that it has a typing error.
"""

from __future__ import annotations

NOT_YET = frozenset(
    {
        "precise-prefix-cache-scorer",
        "multicluster-queue-scorer",
        "multicluster-kv-cache-utilization-scorer",
        "multicluster-prefix-cache-scorer",
        "multicluster-session-affinity-filter",
        "global-strict-fairness-policy",
        "round-robin-fairness-policy",
        "program-aware-fairness",
        "fcfs-ordering-policy",
        "edf-ordering-policy",
        "slo-deadline-ordering-policy",
        "static-usage-limit-policy",
        "priority-holdback-policy",
        "soft-reflective-ceiling-policy",
        "sheddable-eviction-filter",
        "priority-then-time-eviction-order-policy",
        "precise-prefix-cache-producer",
        "disaggregatedset-rollout-screener",
        "anthropic-parser",
        "vllmhttp-parser",
        "sglanghttp-parser",
        "vllmgrpc-parser",
        "vertexai-parser",
        "passthrough-parser",
        "models-data-source",
        "models-data-extractor",
        "dcgm-data-source",
        "dcgm-extractor",
    }
)
