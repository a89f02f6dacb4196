# SPDX-License-Identifier: GPL-3.0-or-later
"""running-requests-size-scorer: prefers small batches.

Parameters: none.
Formula: (max - r) / (max - min) over the candidates' running requests r; 1 for all when all are equal.
Source: GAIE v1.3 and llm-d-router scorer of the same type. Between two readings of the metrics, r is the estimate of
:mod:`epp.datalayer.load`.
"""

from __future__ import annotations

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.plugins.formulas import fewest_first
from epp.scheduling.api import Scorer


class RunningRequestsSizeScorer(Scorer):
    """Prefers small batches."""

    TYPE = "running-requests-size-scorer"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        return fewest_first([load.running(endpoint) for endpoint in endpoints])
