# SPDX-License-Identifier: GPL-3.0-or-later
"""agent-identity: requests of one agent's session count as one flow.

Parameters: additionalSessionHeaders ([]): headers that are looked at before the known ones.
Formula: the first that is not empty of additionalSessionHeaders, x-claude-code-session-id, x-session-affinity,
session-id, session_id is the agent. Unless the request has a fairness header, it is the fairness ID.
Effect: the attribute ``agent-identity`` has it, too, for ``sources: [{attribute: agent-identity}]`` of the
session-affinity plugins.
Source: llm-d-router plugin of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import InferenceRequest
from epp.scheduling.api import Context, HeaderProcessor, param

AGENT_IDENTITY = "agent-identity"
"""The attribute's name."""
HEADERS = ("x-claude-code-session-id", "x-session-affinity", "session-id", "session_id")
DEFAULT_FLOW = "default-flow"
"""The fairness ID of requests that name none."""


@dataclass(frozen=True)
class AgentIdentityParameters:
    """Parameters of agent-identity."""

    additional_session_headers: tuple[str, ...] = param((), doc="headers that are looked at before the known ones")


class AgentIdentity(HeaderProcessor):
    """Knows agents by their headers."""

    TYPE = "agent-identity"
    PARAMETERS = AgentIdentityParameters

    def __init__(self, name: str, parameters: AgentIdentityParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._headers = (*(each.lower() for each in parameters.additional_session_headers), *HEADERS)

    def request_headers(self, request: InferenceRequest) -> None:
        """See the module."""
        agent = next((value for header in self._headers if (value := request.headers.get(header))), "")
        if agent:
            request.attributes[AGENT_IDENTITY] = agent
            if request.fairness_id == DEFAULT_FLOW:
                request.fairness_id = agent
