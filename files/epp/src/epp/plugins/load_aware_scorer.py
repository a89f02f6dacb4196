# SPDX-License-Identifier: GPL-3.0-or-later
"""load-aware-scorer: a mild preference for short queues, on an absolute scale.

Parameters: threshold (128): the queue at which the score is 0.
Formula: 0.5 for an empty queue, else 0.5 * (1 - min(q, T) / T), q the endpoint's waiting requests.
Source: llm-d-router (and llm-d-inference-scheduler 0.4) scorer of the same type. Between two readings of the metrics, q
is the estimate of :mod:`epp.datalayer.load`.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Scorer, param


@dataclass(frozen=True)
class LoadAwareScorerParameters:
    """Parameters of load-aware-scorer."""

    threshold: int = param(128, minimum=1, doc="waiting requests at which the score is 0")


class LoadAwareScorer(Scorer):
    """Prefers short queues a little."""

    TYPE = "load-aware-scorer"
    PARAMETERS = LoadAwareScorerParameters

    def __init__(self, name: str, parameters: LoadAwareScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._threshold = parameters.threshold

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        threshold = self._threshold
        return [0.5 * (1.0 - min(queue, threshold) / threshold) for queue in load.all_waiting(endpoints)]
