# SPDX-License-Identifier: GPL-3.0-or-later
"""endpoint-attribute-filter: keeps endpoints by one figure of theirs.

Parameters:
    attribute (required): one of core-metrics-extractor's customMetrics.
    producer: taken and not needed; only the extractor has figures.
    onMissing (Pass): what becomes of endpoints without the figure, Pass or Fail.
    fallbackOnEmpty (false): keep all when none is left.
    algorithm: type, and the block of that name: threshold {operator (LessThan, LessThanOrEqual, GreaterThan,
    GreaterThanOrEqual, Equal, NotEqual), value}; range {min, max}; topK {k, higherIsBetter (true)};
    percentile {percentile, higherIsBetter (true)}.
Formula: threshold: value OP threshold; range: min <= value <= max; topK: the k best; percentile: not worse than the
value of rank ceil(p / 100 * n) from below.
Source: llm-d-router filter of the same type.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Filter, param

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "LessThan": operator.lt,
    "LessThanOrEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqual": operator.ge,
    "Equal": operator.eq,
    "NotEqual": operator.ne,
}
Values = list[tuple[Endpoint, float]]


@dataclass(frozen=True)
class Threshold:
    """A bound."""

    value: float
    operator: str = param("LessThan", choices=tuple(OPERATORS))

    def keep(self, values: Values) -> set[Endpoint]:
        """Those on the right side."""
        holds = OPERATORS[self.operator]
        return {endpoint for endpoint, value in values if holds(value, self.value)}


@dataclass(frozen=True)
class Range:
    """Two bounds, both included."""

    min: float
    max: float

    def __post_init__(self) -> None:
        """In order."""
        if self.min > self.max:
            raise ValueError(f"min must not be more than max, and {self.min:g} is more than {self.max:g}")

    def keep(self, values: Values) -> set[Endpoint]:
        """Those between."""
        return {endpoint for endpoint, value in values if self.min <= value <= self.max}


@dataclass(frozen=True)
class TopK:
    """The best so many."""

    k: int = param(1, minimum=1)
    higher_is_better: bool = True

    def keep(self, values: Values) -> set[Endpoint]:
        """The first k."""
        ranked = sorted(values, key=lambda pair: pair[1], reverse=self.higher_is_better)
        return {endpoint for endpoint, _ in ranked[: self.k]}


@dataclass(frozen=True)
class Percentile:
    """A bound that moves with the values."""

    percentile: float = param(50.0, minimum=0, maximum=100)
    higher_is_better: bool = True

    def keep(self, values: Values) -> set[Endpoint]:
        """Those not worse than the percentile."""
        if not values:
            return set()
        ranked = sorted(value for _, value in values)
        cut = ranked[max(0, math.ceil(self.percentile / 100 * len(ranked)) - 1)]
        better = operator.ge if self.higher_is_better else operator.le
        return {endpoint for endpoint, value in values if better(value, cut)}


@dataclass(frozen=True)
class FilterAlgorithm:
    """From figures to endpoints."""

    type: str = param("", choices=("threshold", "range", "topK", "percentile"))
    threshold: Threshold | None = None
    range: Range | None = None
    top_k: TopK | None = None
    percentile: Percentile | None = None

    def __post_init__(self) -> None:
        """The block of that name is needed."""
        if not self.type:
            raise ValueError("type is missing; it is threshold, range, topK or percentile")
        if self.rule is None:
            raise ValueError(f"type is {self.type}, and {self.type} is missing; add it")

    @property
    def rule(self) -> Threshold | Range | TopK | Percentile | None:
        """The block that counts."""
        found: Threshold | Range | TopK | Percentile | None = getattr(
            self, "top_k" if self.type == "topK" else self.type
        )
        return found


@dataclass(frozen=True)
class EndpointAttributeFilterParameters:
    """Parameters of endpoint-attribute-filter."""

    attribute: str
    """Which figure."""
    algorithm: FilterAlgorithm
    """Type, and the block of that name."""
    producer: str = param("", doc="not needed: only core-metrics-extractor has figures")
    on_missing: str = param("Pass", choices=("Pass", "Fail"), doc="what becomes of endpoints without the figure")
    fallback_on_empty: bool = param(False, doc="keep all when none is left")


class EndpointAttributeFilter(Filter):
    """Keeps by any figure."""

    TYPE = "endpoint-attribute-filter"
    PARAMETERS = EndpointAttributeFilterParameters

    def __init__(self, name: str, parameters: EndpointAttributeFilterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        rule = parameters.algorithm.rule
        assert rule is not None
        self._rule = rule
        self._key = parameters.attribute
        self._pass = parameters.on_missing == "Pass"
        self._fallback = parameters.fallback_on_empty

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        values: Values = []
        missing: set[Endpoint] = set()
        for endpoint in endpoints:
            value = endpoint.metrics.custom.get(self._key)
            if value is None:
                missing.add(endpoint)
            else:
                values.append((endpoint, value))
        kept = self._rule.keep(values) | (missing if self._pass else set())
        left = [endpoint for endpoint in endpoints if endpoint in kept]
        return left if left or not self._fallback else endpoints
