# SPDX-License-Identifier: GPL-3.0-or-later
"""kv-cache-utilization-scorer: prefers room in the KV cache.

Parameters: none.
Formula: 1 - u, where u is the used part of the endpoint's KV cache, 0..1.
Source: GAIE v1.3 and llm-d-router scorer of the same type. Between two readings of the metrics, u is the estimate of
:mod:`epp.datalayer.load`.
"""

from __future__ import annotations

from epp.datalayer import load
from epp.datalayer.known import Column, Known
from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Scorer


class KVCacheUtilizationScorer(Scorer):
    """Prefers room in the KV cache."""

    TYPE = "kv-cache-utilization-scorer"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        return load.all_kv_free(endpoints)

    def column(self, request: InferenceRequest, endpoints: Known) -> Column:
        """See the module."""
        return endpoints.kv_free()
