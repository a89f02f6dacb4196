# SPDX-License-Identifier: GPL-3.0-or-later
"""active-request-scorer: prefers endpoints to which this EPP has sent few requests that still go on.

Parameters:
    idleThreshold (0): endpoints with so many requests count as idle.
    maxBusyScore (1.0): score of the least busy of the others; below 1 there is a gap between idle and busy.
    inFlightLoadProducerName: taken and not needed, since the data layer counts.
    requestTimeout: taken and ignored, as in the reference: requests end when their streams do.
Formula: 1 for c <= idleThreshold, else (max - c) / max * maxBusyScore, c the endpoint's requests in flight.
Source: llm-d-router (and llm-d-inference-scheduler 0.4) scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Producer, Scorer, param


@dataclass(frozen=True)
class ActiveRequestScorerParameters:
    """Parameters of active-request-scorer."""

    idle_threshold: int = param(0, minimum=0, doc="endpoints with so many requests count as idle")
    max_busy_score: float = param(1.0, minimum=0, maximum=1, doc="score of the least busy one that is not idle")
    in_flight_load_producer_name: str = param("", plugin=Producer, doc="not needed: the data layer counts")
    request_timeout: str = param("", doc="ignored: requests end when their streams do")


class ActiveRequestScorer(Scorer):
    """Prefers who has little to do for us."""

    TYPE = "active-request-scorer"
    PARAMETERS = ActiveRequestScorerParameters

    def __init__(self, name: str, parameters: ActiveRequestScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._idle = parameters.idle_threshold
        self._busy = parameters.max_busy_score

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        idle = self._idle
        counts = [endpoint.inflight for endpoint in endpoints]
        most = max(counts, default=0)
        if most <= idle:
            return [1.0] * len(counts)
        scale = self._busy / most
        return [1.0 if count <= idle else (most - count) * scale for count in counts]
