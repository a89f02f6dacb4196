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
        "precise-prefix-cache-producer",
        "disaggregatedset-rollout-screener",
        "vllmgrpc-parser",
        "dcgm-data-source",
        "dcgm-extractor",
    }
)
