# SPDX-License-Identifier: GPL-3.0-or-later
"""queue-scorer: prefers short queues.

Parameters: none.
Formula: (max - q) / (max - min) over the candidates' waiting requests q; 1 for all when all are equal.
Source: GAIE v1.3 and llm-d-router scorer of the same type. Between two readings of the metrics, q is the estimate of
:mod:`epp.datalayer.load`.
"""

from __future__ import annotations

from epp.datalayer import load
from epp.datalayer.known import Column, Known
from epp.model import Endpoint, InferenceRequest
from epp.plugins.formulas import fewest_first, fewest_first_column
from epp.scheduling.api import Scorer


class QueueScorer(Scorer):
    """Prefers short queues."""

    TYPE = "queue-scorer"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        return fewest_first(load.all_waiting(endpoints))

    def column(self, request: InferenceRequest, endpoints: Known) -> Column:
        """See the module."""
        return fewest_first_column(endpoints.waiting())
