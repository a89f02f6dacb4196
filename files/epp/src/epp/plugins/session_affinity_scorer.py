# SPDX-License-Identifier: GPL-3.0-or-later
"""session-affinity-scorer: prefers the endpoint that has served a session before.

Parameters:
    strategy (encoded_endpoint_header): or session_id; see :mod:`epp.plugins.session_affinity`.
    encodedEndpointHeaderConfig: header (x-session-token).
    sessionIdConfig: sources ([{header: x-session-id}]; header, cookie or attribute), evictionTtlSeconds (300),
    evictionSweepSeconds (10, not needed).
    profileName: the profile whose endpoint is meant; empty for the one that answers.
Formula: 1 for the session's endpoint, 0 for the others, and for all while the session has none.
Source: llm-d-router (and, with the header alone, llm-d-inference-scheduler 0.4) scorer of the same type.
"""

from __future__ import annotations

from epp.model import Endpoint, InferenceRequest
from epp.plugins.session_affinity import SessionAffinity
from epp.scheduling.api import Scorer


class SessionAffinityScorer(SessionAffinity, Scorer):
    """Prefers who knows the session."""

    TYPE = "session-affinity-scorer"

    def score(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float]:
        """See the module."""
        bound = self.bound(request, endpoints)
        return [1.0 if endpoint is bound else 0.0 for endpoint in endpoints]
