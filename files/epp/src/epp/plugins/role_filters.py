# SPDX-License-Identifier: GPL-3.0-or-later
"""What the filters by role share: the pod label ``llm-d.ai/role`` says for which stages an endpoint is meant."""

from __future__ import annotations

from typing import ClassVar

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Filter

ROLE = "llm-d.ai/role"


class RoleFilter(Filter):
    """Keeps endpoints with one of ``ROLES``."""

    ROLES: ClassVar[frozenset[str]]
    UNLABELLED: ClassVar[bool] = False
    """Endpoints without a role are kept, too."""

    def filter(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the modules."""
        kept: list[Endpoint] = []
        for endpoint in endpoints:
            role = endpoint.labels.get(ROLE)
            if role in self.ROLES if role is not None else self.UNLABELLED:
                kept.append(endpoint)
        return kept
