# SPDX-License-Identifier: GPL-3.0-or-later
"""header-profile-handler: a request header names the profile.

Parameters: headerName (EPP-Profile): the header; defaultProfile (decode): runs when the header is missing or empty.
Formula: a single profile always runs; of several the one that the header names. A name that no profile has: 429, as in
the reference.
Source: llm-d-router profile handler of the same type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Context, Profile, ProfileHandler, param


@dataclass(frozen=True)
class HeaderProfileHandlerParameters:
    """Parameters of header-profile-handler."""

    header_name: str = param("EPP-Profile", doc="header that names the profile")
    default_profile: str = param("decode", doc="profile of requests without that header")


class HeaderProfileHandler(ProfileHandler):
    """Does as it is told."""

    TYPE = "header-profile-handler"
    PARAMETERS = HeaderProfileHandlerParameters

    def __init__(self, name: str, parameters: HeaderProfileHandlerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        self._header = parameters.header_name.lower()
        self._default = parameters.default_profile

    def pick(
        self, request: InferenceRequest, profiles: Sequence[Profile], results: Mapping[str, list[Endpoint] | None]
    ) -> Sequence[Profile]:
        """The named profile, once."""
        if results:
            return ()
        if len(profiles) == 1:
            return profiles
        return [profile for profile in profiles if profile.name == self._named(request)]

    def primary(self, request: InferenceRequest, results: Mapping[str, list[Endpoint] | None]) -> str:
        """The one that ran."""
        return next(iter(results), self._named(request))

    def _named(self, request: InferenceRequest) -> str:
        return request.headers.get(self._header, "").strip() or self._default
