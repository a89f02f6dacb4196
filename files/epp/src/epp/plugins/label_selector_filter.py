# SPDX-License-Identifier: GPL-3.0-or-later
"""label-selector-filter: keeps endpoints that a Kubernetes label selector matches.

Parameters: matchLabels ({}): labels with their values; matchExpressions ([]): entries with key, operator (In, NotIn,
Exists, DoesNotExist) and values. All must hold; an empty selector matches everything.
Source: llm-d-router filter of the same type; its deprecated name by-label-selector works, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Filter, param

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True)
class LabelRequirement:
    """One entry of matchExpressions."""

    key: str
    operator: str = param("", choices=OPERATORS)
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Kubernetes' own rules."""
        if not self.operator:
            raise ValueError(f"operator is missing; it is one of {', '.join(OPERATORS)}")
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError(f"values do not go with {self.operator}: In and NotIn need some, the others none")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels fulfil it. A missing label is not in any set, as in Kubernetes."""
        value = labels.get(self.key)
        if self.operator == "Exists":
            return value is not None
        if self.operator == "DoesNotExist":
            return value is None
        return (value in self.values) == (self.operator == "In")


@dataclass(frozen=True)
class LabelSelectorFilterParameters:
    """Parameters of label-selector-filter."""

    match_labels: dict[str, str] = param(dict, doc="labels with their values")
    match_expressions: tuple[LabelRequirement, ...] = param((), doc="entries with key, operator and values")

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether all of it holds for these labels."""
        for key, value in self.match_labels.items():
            if labels.get(key) != value:
                return False
        return all(expression.holds(labels) for expression in self.match_expressions)


class LabelSelectorFilter(Filter):
    """Keeps what the selector matches."""

    TYPE = "label-selector-filter"
    ALIASES = ("by-label-selector",)
    PARAMETERS = LabelSelectorFilterParameters

    def __init__(self, name: str, parameters: LabelSelectorFilterParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._matches = parameters.matches

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        return [endpoint for endpoint in endpoints if self._matches(endpoint.labels)]
