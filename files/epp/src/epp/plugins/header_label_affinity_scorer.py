# SPDX-License-Identifier: GPL-3.0-or-later
"""header-label-affinity-scorer: prefers endpoints with the label value that a request header names.

Parameters:
    headerName (required): the request header.
    labelKey (required): the pod label.
    stampResponseHeader (true): the answer gets the header, too, with the label of the endpoint that was chosen.
Formula: 1 where the label is the header's value, else 0; 0 for all without the header.
Source: llm-d-router scorer of the same type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epp.model import Decision, Endpoint, InferenceRequest
from epp.scheduling.api import Context, ResponseHook, Scorer, param


@dataclass(frozen=True)
class HeaderLabelAffinityScorerParameters:
    """Parameters of header-label-affinity-scorer."""

    header_name: str
    """The request header with the preferred value."""
    label_key: str
    """The pod label to compare it with."""
    stamp_response_header: bool = param(True, doc="the answer gets the chosen endpoint's label in this header")

    def __post_init__(self) -> None:
        """Both names are needed."""
        if not self.header_name or not self.label_key:
            raise ValueError("headerName and labelKey must not be empty; name a header and a label")


class HeaderLabelAffinityScorer(Scorer, ResponseHook):
    """Follows a header."""

    TYPE = "header-label-affinity-scorer"
    PARAMETERS = HeaderLabelAffinityScorerParameters

    def __init__(self, name: str, parameters: HeaderLabelAffinityScorerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._header = parameters.header_name.lower()
        self._label = parameters.label_key
        self._stamp = parameters.stamp_response_header

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        wanted = request.headers.get(self._header)
        if not wanted:
            return [0.0] * len(endpoints)
        return [1.0 if endpoint.labels.get(self._label) == wanted else 0.0 for endpoint in endpoints]

    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> Mapping[str, str]:
        """The label of who answers."""
        label = decision.endpoints[0].labels.get(self._label) if decision is not None else None
        return {self._header: label} if self._stamp and label else {}
