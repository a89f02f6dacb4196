# SPDX-License-Identifier: GPL-3.0-or-later
"""header-based-testing-filter: lets a test say where its request goes. Not for production.

Parameters: none.
Formula: header ``test-epp-endpoint-selection`` holds a comma-separated list of ``ip`` (all ports of it) or ``ip:port``;
the candidates named there stay, in the header's order; without the header none stays.
Source: GAIE v1.3 and llm-d-router filter of the same type; the Gateway conformance suite uses it.
"""

from __future__ import annotations

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Filter

HEADER = "test-epp-endpoint-selection"


class HeaderBasedTestingFilter(Filter):
    """Keeps what the header names."""

    TYPE = "header-based-testing-filter"

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        kept: list[Endpoint] = []
        for entry in request.headers.get(HEADER, "").split(","):
            wanted = entry.strip()
            kept += [
                endpoint
                for endpoint in endpoints
                if wanted in (endpoint.address, endpoint.hostport) and endpoint not in kept
            ]
        return kept
