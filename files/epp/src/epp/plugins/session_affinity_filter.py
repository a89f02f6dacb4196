# SPDX-License-Identifier: GPL-3.0-or-later
"""session-affinity-filter: keeps the endpoint that has served a session before, and no other.

Parameters: those of session-affinity-scorer.
Formula: only the session's endpoint while it is a candidate; else all.
Source: llm-d-router filter of the same type.
"""

from __future__ import annotations

from epp.model import Endpoint, InferenceRequest
from epp.plugins.session_affinity import SessionAffinity
from epp.scheduling.api import Filter


class SessionAffinityFilter(SessionAffinity, Filter):
    """Insists on who knows the session."""

    TYPE = "session-affinity-filter"

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        bound = self.bound(request, endpoints)
        return endpoints if bound is None else [bound]
