# SPDX-License-Identifier: GPL-3.0-or-later
"""sheddable-eviction-filter: only sheddable requests (priority below 0) may be given up. No parameters.

Source: llm-d-router filter of the same type.
"""

from __future__ import annotations

from epp.flowcontrol.api import EvictionFilter
from epp.model import InferenceRequest


class SheddableEvictionFilter(EvictionFilter):
    """By the sign of the priority."""

    TYPE = "sheddable-eviction-filter"

    def evictable(self, request: InferenceRequest) -> bool:
        """See the module."""
        return request.priority < 0
