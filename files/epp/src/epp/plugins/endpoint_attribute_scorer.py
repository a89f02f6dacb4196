# SPDX-License-Identifier: GPL-3.0-or-later
"""endpoint-attribute-scorer: rates endpoints by one figure of theirs.

Parameters:
    attributeKey (required): one of core-metrics-extractor's customMetrics.
    producer: taken and not needed; only the extractor has figures.
    algorithm: type (linear_lower_is_better or linear_higher_is_better), normalization: adaptiveRange {} (the default,
    over the candidates) or fixedRange {min, max}.
Formula: (value - min) / (max - min), clamped to 0..1, or 1 minus that where lower is better; 1 for all that have the
figure when the range is empty; 0 for those that lack it.
Source: llm-d-router scorer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Scorer, param

LOWER, HIGHER = "linear_lower_is_better", "linear_higher_is_better"


@dataclass(frozen=True)
class FixedRange:
    """Known bounds."""

    min: float
    max: float

    def __post_init__(self) -> None:
        """In order."""
        if not self.min < self.max:
            raise ValueError(f"min must be less than max, and {self.min:g} is not less than {self.max:g}")


@dataclass(frozen=True)
class AdaptiveRange:
    """The candidates' own bounds."""


@dataclass(frozen=True)
class Normalization:
    """At most one of them."""

    fixed_range: FixedRange | None = None
    adaptive_range: AdaptiveRange | None = None

    def __post_init__(self) -> None:
        """One, and no more."""
        if self.fixed_range is not None and self.adaptive_range is not None:
            raise ValueError("fixedRange and adaptiveRange exclude each other; remove one")


@dataclass(frozen=True)
class LinearAlgorithm:
    """From figure to score."""

    type: str = param("", choices=(LOWER, HIGHER))
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        """A type is needed."""
        if not self.type:
            raise ValueError(f"type is missing; it is {LOWER} or {HIGHER}")


@dataclass(frozen=True)
class EndpointAttributeScorerParameters:
    """Parameters of endpoint-attribute-scorer."""

    attribute_key: str
    """Which figure."""
    algorithm: LinearAlgorithm
    """Type and normalization."""
    producer: str = param("", doc="not needed: only core-metrics-extractor has figures")


class EndpointAttributeScorer(Scorer):
    """Rates by any figure."""

    TYPE = "endpoint-attribute-scorer"
    PARAMETERS = EndpointAttributeScorerParameters

    def __init__(self, name: str, parameters: EndpointAttributeScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._key = parameters.attribute_key
        self._lower = parameters.algorithm.type == LOWER
        normalization = parameters.algorithm.normalization
        self._range = normalization.fixed_range if normalization is not None else None

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        values = [endpoint.metrics.custom.get(self._key) for endpoint in endpoints]
        known = [value for value in values if value is not None]
        if not known:
            return [0.0] * len(endpoints)
        least, most = (self._range.min, self._range.max) if self._range else (min(known), max(known))
        return [0.0 if value is None else self._rate(value, least, most) for value in values]

    def _rate(self, value: float, least: float, most: float) -> float:
        if least == most:
            return 1.0
        share = min(1.0, max(0.0, (value - least) / (most - least)))
        return 1.0 - share if self._lower else share
