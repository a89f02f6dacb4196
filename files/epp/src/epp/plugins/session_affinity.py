# SPDX-License-Identifier: GPL-3.0-or-later
"""What session-affinity-scorer and session-affinity-filter share: how a request names its endpoint.

Two strategies. ``encoded_endpoint_header``: the answer carries a header with the endpoint's namespace and name, in
base64, and the client sends it back; nothing is remembered here. ``session_id``: the client sends an identifier of its
own, and the endpoint that served it is remembered as long as the session goes on.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from epp.datalayer.sessions import Sessions
from epp.model import Decision, Endpoint, InferenceRequest
from epp.scheduling.api import Context, RequestHook, ResponseHook, param

MAX_SESSIONS = 200_000
"""Sessions that are remembered at most; at some 300 bytes each, what a process can bear."""


@dataclass(frozen=True)
class EncodedEndpointHeaderConfig:
    """Strategy encoded_endpoint_header."""

    header: str = param("x-session-token", doc="header of request and answer")


@dataclass(frozen=True)
class SessionSource:
    """Where an identifier may stand: exactly one of them."""

    header: str = param("", doc="a request header")
    cookie: str = param("", doc="a cookie")
    attribute: str = param("", doc="what another plugin found out: agent-identity, session-id")

    def __post_init__(self) -> None:
        """One, and no more."""
        if sum(map(bool, (self.header, self.cookie, self.attribute))) != 1:
            raise ValueError("name one place: header, cookie, or attribute (what another plugin found out)")

    def read(self, request: InferenceRequest) -> str:
        """The identifier, empty if it is not there."""
        if self.header:
            return request.headers.get(self.header.lower(), "")
        if self.cookie:
            return cookie(request.headers.get("cookie", ""), self.cookie)
        found = request.attributes.get(self.attribute, "")
        return found if isinstance(found, str) else ""


@dataclass(frozen=True)
class SessionIdConfig:
    """Strategy session_id."""

    sources: tuple[SessionSource, ...] = param(
        (SessionSource("x-session-id"),), doc="header, cookie or attribute; the first that is not empty"
    )
    eviction_ttl_seconds: float = param(300.0, above=0, doc="how long a session is remembered without use")
    eviction_sweep_seconds: float = param(10.0, above=0, doc="not needed: sessions expire by themselves")


@dataclass(frozen=True)
class SessionAffinityParameters:
    """Parameters of both plugins."""

    strategy: str = param(
        "encoded_endpoint_header", choices=("encoded_endpoint_header", "session_id"), doc="how sessions are told apart"
    )
    encoded_endpoint_header_config: EncodedEndpointHeaderConfig = param(
        EncodedEndpointHeaderConfig, doc="header (x-session-token)"
    )
    session_id_config: SessionIdConfig = param(
        SessionIdConfig, doc="sources ([header: x-session-id]), evictionTtlSeconds (300)"
    )
    profile_name: str = param("", doc="profile whose endpoint is meant; empty for the one that answers")


class SessionAffinity(RequestHook, ResponseHook):
    """Finds a request's endpoint, and keeps it findable."""

    PARAMETERS = SessionAffinityParameters

    def __init__(self, name: str, parameters: SessionAffinityParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._header = parameters.encoded_endpoint_header_config.header.lower()
        self._by_id = parameters.strategy == "session_id"
        self._sources = parameters.session_id_config.sources
        self._profile = parameters.profile_name
        self._sessions = Sessions(parameters.session_id_config.eviction_ttl_seconds, MAX_SESSIONS)
        context.datastore.on_removed(self._sessions.drop)

    def bound(self, request: InferenceRequest, endpoints: list[Endpoint]) -> Endpoint | None:
        """The endpoint of the request's session, if it is among ``endpoints``."""
        if self._by_id:
            session = self._session(request)
            found = self._sessions.endpoint(session) if session else None
            return found if found in endpoints else None
        token = request.headers.get(self._header, "")
        wanted = decode(token) if token else ""
        return next((each for each in endpoints if f"{each.namespace}/{each.name}" == wanted), None) if wanted else None

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        """A session that has no endpoint, or whose endpoint could not be had, belongs to this one now."""
        session = self._session(request) if self._by_id else ""
        endpoint = self._endpoint(decision)
        if session and endpoint is not None and self._sessions.endpoint(session) is not endpoint:
            self._sessions.bind(session, endpoint)

    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> Mapping[str, str]:
        """The token, for the client to send back."""
        endpoint = None if self._by_id or decision is None else self._endpoint(decision, served)
        return {} if endpoint is None else {self._header: encode(endpoint)}

    def _session(self, request: InferenceRequest) -> str:
        return next((found for source in self._sources if (found := source.read(request))), "")

    def _endpoint(self, decision: Decision, served: str = "") -> Endpoint | None:
        picked = decision.profiles.get(self._profile, ()) if self._profile else decision.endpoints
        actual = next((endpoint for endpoint in picked if endpoint.hostport == served), None)
        return actual or (picked[0] if picked else None)


def encode(endpoint: Endpoint) -> str:
    """An endpoint as a token."""
    return base64.b64encode(f"{endpoint.namespace}/{endpoint.name}".encode()).decode()


def decode(token: str) -> str:
    """``namespace/name`` from a token; empty for what is none."""
    try:
        return base64.b64decode(token, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def cookie(header: str, name: str) -> str:
    """The value of a cookie."""
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value.strip().strip('"')
    return ""
