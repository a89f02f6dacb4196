# SPDX-License-Identifier: GPL-3.0-or-later
"""always-disagg-pd-decider: prefill always happens elsewhere.

Parameters: none.
Source: llm-d-router decider of the same type.
"""

from __future__ import annotations

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Decider


class AlwaysDisaggPDDecider(Decider):
    """Always."""

    TYPE = "always-disagg-pd-decider"

    def disaggregate(self, request: InferenceRequest, endpoint: Endpoint) -> bool:
        """Yes."""
        return True
