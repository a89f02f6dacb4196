# SPDX-License-Identifier: GPL-3.0-or-later
"""utilization-filter: drops endpoints that are too busy.

Parameters:
    conditions (required): entries with metric (active-requests, running-requests, waiting-queue, kv-cache-utilization)
    and maxValue; all must hold.
    fallbackOnEmpty (false): keep all when none is left.
    inFlightLoadProducerName: taken and not needed, since the data layer counts.
Formula: value <= maxValue for each condition; a metric that was never read counts as 0.
Source: llm-d-router filter of the same type. Between two readings of the metrics, values are the estimates of
:mod:`epp.datalayer.load`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epp.datalayer import load
from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Filter, Producer, param

METRICS: dict[str, Callable[[Endpoint], float]] = {
    "active-requests": lambda endpoint: endpoint.inflight,
    "running-requests": load.running,
    "waiting-queue": load.waiting,
    "kv-cache-utilization": load.kv_usage,
}


@dataclass(frozen=True)
class Condition:
    """One bound."""

    metric: str = param("", choices=tuple(METRICS))
    max_value: float = param(-1.0, minimum=0)

    def __post_init__(self) -> None:
        """Both are needed."""
        if not self.metric or self.max_value < 0:
            raise ValueError("a condition needs metric and maxValue; add them")


@dataclass(frozen=True)
class UtilizationFilterParameters:
    """Parameters of utilization-filter."""

    conditions: tuple[Condition, ...]
    """Entries with metric and maxValue."""
    fallback_on_empty: bool = param(False, doc="keep all when none is left")
    in_flight_load_producer_name: str = param("", plugin=Producer, doc="not needed: the data layer counts")

    def __post_init__(self) -> None:
        """At least one."""
        if not self.conditions:
            raise ValueError("conditions is empty; add one with metric and maxValue")


class UtilizationFilter(Filter):
    """Drops who is too busy."""

    TYPE = "utilization-filter"
    PARAMETERS = UtilizationFilterParameters

    def __init__(self, name: str, parameters: UtilizationFilterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._conditions = [(METRICS[each.metric], each.max_value) for each in parameters.conditions]
        self._fallback = parameters.fallback_on_empty

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        kept = endpoints
        for metric, most in self._conditions:
            kept = [endpoint for endpoint in kept if metric(endpoint) <= most]
        return kept if kept or not self._fallback else endpoints
