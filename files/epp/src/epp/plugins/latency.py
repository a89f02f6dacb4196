# SPDX-License-Identifier: GPL-3.0-or-later
"""How plugins find predicted latencies, and how far they are from what a request wants.

Headroom is target minus prediction in milliseconds; a request without a target has target 0, so that its headroom is
negative everywhere, and least negative where it will be served soonest. Where nothing is predicted of the time per
token, its headroom is 0.
"""

from __future__ import annotations

import math

from epp.model import Endpoint, InferenceRequest
from epp.plugins.slo import TPOT, TTFT, target
from epp.scheduling.api import LATENCY_PREDICTION, LatencyPrediction

PRODUCER = "predicted-latency-producer"


def needs_predictions(producer: str) -> tuple[str, ...]:
    """Who has to be there so that :func:`prediction_of` finds something."""
    return () if producer else (PRODUCER,)


def prediction_of(request: InferenceRequest, producer: str = "") -> LatencyPrediction | None:
    """What ``producer`` (empty: anybody) predicts for a request, None if nothing."""
    key = f"{LATENCY_PREDICTION}/{producer}" if producer else LATENCY_PREDICTION
    for name, value in request.attributes.items():
        if isinstance(value, LatencyPrediction) and name.startswith(key):
            return value
    return None


def headrooms(
    request: InferenceRequest, prediction: LatencyPrediction, endpoints: list[Endpoint]
) -> list[tuple[float, float] | None]:
    """Headroom of TTFT and TPOT on each endpoint; None for one without a prediction."""
    ttft, tpot, targets = _wanted(request, TTFT), _wanted(request, TPOT), prediction.tpot_targets
    return [
        (
            ttft - prediction.ttft[endpoint],
            targets.get(endpoint, tpot) - prediction.tpot[endpoint] if endpoint in prediction.tpot else 0.0,
        )
        if endpoint in prediction.ttft
        else None
        for endpoint in endpoints
    ]


def _wanted(request: InferenceRequest, names: tuple[str, ...]) -> float:
    value = target(request.headers, names)
    return 0.0 if value == math.inf else value
