# SPDX-License-Identifier: GPL-3.0-or-later
"""session-id-producer: reads a session's identifier, for other plugins.

Parameters: headerName or cookieName (headerName x-session-id when neither is given); lruSize (1024) and ttl (30m):
taken and not needed, since those who remember sessions have their own bounds.
Effect: leaves the identifier in the request's attribute ``session-id``. A ``sessionIdConfig`` of the affinity plugins
takes it with ``sources: [{attribute: session-id}]``.
Source: llm-d-router producer of the same type.
"""

from __future__ import annotations

from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.plugins.session_affinity import cookie
from epp.scheduling.api import Context, Producer, param

SESSION_ID = "session-id"
"""The attribute's name."""


@dataclass(frozen=True)
class SessionIdProducerParameters:
    """Parameters of session-id-producer."""

    header_name: str = param("", doc="request header with the identifier (x-session-id unless cookieName is given)")
    cookie_name: str = param("", doc="cookie with the identifier")
    lru_size: int = param(1024, minimum=1, doc="not needed")
    ttl: float = param(1800.0, above=0, duration=True, doc="not needed")

    def __post_init__(self) -> None:
        """One of them."""
        if self.header_name and self.cookie_name:
            raise ValueError("headerName and cookieName exclude each other; remove one")


class SessionIdProducer(Producer):
    """Reads who is asking."""

    TYPE = "session-id-producer"
    PARAMETERS = SessionIdProducerParameters

    def __init__(self, name: str, parameters: SessionIdProducerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._cookie = parameters.cookie_name
        self._header = (parameters.header_name or "x-session-id").lower()

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        """Look at header or cookie."""
        headers = request.headers
        found = cookie(headers.get("cookie", ""), self._cookie) if self._cookie else headers.get(self._header, "")
        if found:
            request.attributes[SESSION_ID] = found
