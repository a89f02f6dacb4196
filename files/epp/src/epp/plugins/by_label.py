# SPDX-License-Identifier: GPL-3.0-or-later
"""by-label: keeps endpoints whose label has one of some values.

Parameters: label (required); validValues ([]); allowsNoLabel (false): endpoints without the label stay, too.
Source: llm-d-inference-scheduler 0.4 filter of the same type; llm-d-router has label-selector-filter in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Filter, param


@dataclass(frozen=True)
class ByLabelParameters:
    """Parameters of by-label."""

    label: str
    """The pod label."""
    valid_values: tuple[str, ...] = param((), doc="its values that are kept")
    allows_no_label: bool = param(False, doc="keep endpoints without the label, too")

    def __post_init__(self) -> None:
        """A label is needed."""
        if not self.label:
            raise ValueError("label is empty; name the pod label")


class ByLabel(Filter):
    """Keeps what has the right label."""

    TYPE = "by-label"
    PARAMETERS = ByLabelParameters

    def __init__(self, name: str, parameters: ByLabelParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._label = parameters.label
        self._values = frozenset(parameters.valid_values)
        self._unlabelled = parameters.allows_no_label

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        kept: list[Endpoint] = []
        for endpoint in endpoints:
            value = endpoint.labels.get(self._label)
            if value in self._values if value is not None else self._unlabelled:
                kept.append(endpoint)
        return kept
