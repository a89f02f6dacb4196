# SPDX-License-Identifier: GPL-3.0-or-later
"""single-profile-handler: runs the only profile, and takes what it picks.

Parameters: none.
Source: GAIE v1.3 and llm-d-router profile handler of the same type; an error with more than one profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Profile, ProfileHandler


class SingleProfileHandler(ProfileHandler):
    """Runs the only profile."""

    TYPE = "single-profile-handler"
    MAX_PROFILES = 1

    def pick(
        self, request: InferenceRequest, profiles: Sequence[Profile], results: Mapping[str, list[Endpoint] | None]
    ) -> Sequence[Profile]:
        """The profile, unless it has run."""
        return () if results else profiles

    def primary(self, request: InferenceRequest, results: Mapping[str, list[Endpoint] | None]) -> str:
        """Its name."""
        return next(iter(results))
