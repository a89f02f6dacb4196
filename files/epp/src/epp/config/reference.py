# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugin types of GAIE v1.3, v1.5 and llm-d-router that this EPP knows of and does not have.

They get a sentence of their own: whoever brings a working configuration should not be told that it has a typing error.
"""

from __future__ import annotations

NOT_YET = frozenset(
    {
        "precise-prefix-cache-scorer",
        "mm-embeddings-cache-scorer",
        "endpoint-attribute-scorer",
        "topology-affinity-scorer",
        "latency-scorer",
        "predicted-latency-scorer",
        "multicluster-queue-scorer",
        "multicluster-kv-cache-utilization-scorer",
        "multicluster-prefix-cache-scorer",
        "prefix-cache-affinity-filter",
        "slo-headroom-tier-filter",
        "utilization-filter",
        "endpoint-attribute-filter",
        "topology-affinity-filter",
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
        "token-producer",
        "tokenizer",
        "precise-prefix-cache-producer",
        "predicted-latency-producer",
        "burst-prefix-cache-producer",
        "p2p-source-producer",
        "mm-embeddings-cache-producer",
        "request-attribute-reporter",
        "disaggregatedset-rollout-screener",
        "vllmgrpc-parser",
        "models-data-source",
        "models-data-extractor",
        "k8s-notification-source",
        "endpoint-notification-source",
        "dcgm-data-source",
        "dcgm-extractor",
        "topology-extractor",
    }
)
