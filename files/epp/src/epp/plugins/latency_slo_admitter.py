# SPDX-License-Identifier: GPL-3.0-or-later
"""latency-slo-admitter: refuses sheddable requests (priority below 0) whose latency targets no endpoint can meet.

Parameters: latencyPredictionInfoProducerName (a predicted-latency-producer).
A request is refused when all of these hold: it names a target (``x-llm-d-slo-ttft-ms``, ``x-llm-d-slo-tpot-ms``, or
their old names without ``llm-d-``); a producer has predicted its latency; no endpoint's prediction keeps the targets;
no endpoint is idle (no running requests) or cold (less than 2 % of its KV cache used: predictions mean little there).
Source: llm-d-router admitter of the same type; its refusals come as 500 there, and as 429 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.plugins.latency import needs_predictions, prediction_of
from epp.plugins.slo import TPOT, TTFT, target
from epp.scheduling.api import Admitter, Context, param

COLD = 0.02


@dataclass(frozen=True)
class LatencySloAdmitterParameters:
    """Parameters of latency-slo-admitter."""

    latency_prediction_info_producer_name: str = param("", doc="whose predictions count; empty for anybody's")


class LatencySloAdmitter(Admitter):
    """What is bound to be late need not begin."""

    TYPE = "latency-slo-admitter"
    PARAMETERS = LatencySloAdmitterParameters

    def __init__(self, name: str, parameters: LatencySloAdmitterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._producer = parameters.latency_prediction_info_producer_name

    @classmethod
    def needs(cls, parameters: LatencySloAdmitterParameters) -> tuple[str, ...]:
        """A producer."""
        return needs_predictions(parameters.latency_prediction_info_producer_name)

    def admit(self, request: InferenceRequest, endpoints: list[Endpoint]) -> str:
        """See the module."""
        if request.priority >= 0:
            return ""
        ttft, tpot = target(request.headers, TTFT), target(request.headers, TPOT)
        prediction = prediction_of(request, self._producer)
        if prediction is None or min(ttft, tpot) == math.inf:
            return ""
        known = [endpoint for endpoint in endpoints if endpoint in prediction.ttft or endpoint in prediction.tpot]
        if not known or any(map(_has_room, endpoints)):
            return ""
        for endpoint in known:
            wanted = prediction.tpot_targets.get(endpoint, tpot)
            if prediction.ttft.get(endpoint, 0.0) <= ttft and prediction.tpot.get(endpoint, 0.0) <= wanted:
                return ""
        return "no endpoint is expected to meet its latency targets, sheddable request dropped"


def _has_room(endpoint: Endpoint) -> bool:
    return load.running(endpoint) == 0 or load.kv_usage(endpoint) < COLD
