# SPDX-License-Identifier: GPL-3.0-or-later
"""destination-endpoint-served-verifier: tells the client which endpoint served it, for tests of gateways.

Parameters: none.
Effect: sets the response header ``x-conformance-test-served-endpoint`` to the endpoint that the gateway says has served
the request, or to ``fail: ...`` if the gateway does not say.
Source: GAIE v1.3 and llm-d-router plugin of the same type; the Gateway conformance suite uses it.
"""

from __future__ import annotations

from collections.abc import Mapping

from epp.model import Decision, InferenceRequest
from epp.scheduling.api import ResponseHook

HEADER = "x-conformance-test-served-endpoint"


class DestinationEndpointServedVerifier(ResponseHook):
    """Tells who served."""

    TYPE = "destination-endpoint-served-verifier"

    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> Mapping[str, str]:
        """See the module."""
        return {HEADER: served or "fail: the gateway does not say which endpoint has served the request"}
